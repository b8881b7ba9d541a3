"""`tunewatch rule`: the auto-stop rule a run obeys, and another one while it goes on."""

from __future__ import annotations

import click

from tui.commands.common import confirm_by_name, emit_json, json_option, refuse_if_read_only, say_step, yes_option


@click.command(short_help="The auto-stop rule of a run, and another one while it goes on.")
@click.argument("run")
@click.option("--patience", type=int, help="Evals in a row without improvement that end the run.")
@click.option("--min-delta", type=float, help="Loss; a gain has to exceed it.")
@click.option("--min-steps", type=int, help="Steps; no stop before.")
@click.option("--count-from", type=click.Choice(["min_steps", "start"]), help="Whether earlier evals are judged too.")
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=300.0, show_default=True, help="Seconds to wait for its answer."
)
@yes_option
@json_option
def command(
    run: str,
    patience: int | None,
    min_delta: float | None,
    min_steps: int | None,
    count_from: str | None,
    timeout: float,
    yes: bool,
    as_json: bool,
) -> int:
    """Say by which auto-stop rule RUN (its name, its directory, or host:/its/directory) is judged; with an option, ask
    it to go on under another. The run itself takes the rule up between two steps, replays it over its evals so far and
    answers; a rule under which it would have stopped already stops it then. What is not given stays as it is.

    \b
    tunewatch rule stage5/20260215-104518
    tunewatch rule stage5/20260215-104518 --patience 6 --min-delta 0.002
    """
    from remote.asking import change_rule, rule_in_force
    from remote.ssh_auth import ask_on_terminal
    from runner.autostop import StopRule, changed_rule
    from runner.errors import Exit, UsageError

    fields = {"patience": patience, "min_delta": min_delta, "min_steps": min_steps, "count_from": count_from}
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        changed_rule(StopRule(), given)
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    if not given:
        name, known = rule_in_force(run, ask=ask_on_terminal)
        if as_json:
            rule = None if known.rule is None else {one: getattr(known.rule, one) for one in fields}
            emit_json({"run": name, "rule": rule, "takes_another": known.ended is None and "rule" in known.obeys})
        else:
            click.echo(known.rule.in_words() if known.rule is not None else "no auto-stop: the horizon ends it")
        return 0
    refuse_if_read_only("changing the rule of a run")
    name = run.rstrip("/").rpartition("/")[2]
    asked = ", ".join(f"{key} {value}" for key, value in given.items())
    confirm_by_name(name, f"{run} will go on under another auto-stop rule: {asked}.", yes=yes, as_json=as_json)
    done = change_rule(run, given, progress=say_step, timeout=timeout, ask=ask_on_terminal)
    if as_json:
        emit_json(done.to_json())
    elif done.ack is not None:
        click.echo(f"acknowledged at step {done.ack.step}: {done.ack.detail}", err=True)
    elif done.result.ok:
        click.echo("That is the rule in force already.", err=True)
    else:
        click.echo("requested; the run has not answered yet", err=True)
    return 0 if done.result.ok else int(Exit.UNCONFIRMED)
