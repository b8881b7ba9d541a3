"""`tunewatch migrate RUN --auto`, `--recover` and `--account`: what may be done without asking, and the record."""

from __future__ import annotations

from typing import Any

import click

from tui.commands.common import confirm_by_name, emit_json, refuse_if_read_only, say_step


def allow(run: str, allowed: bool, said: dict[str, Any], *, as_json: bool) -> int:
    """Remember for one run whether a lost box may be replaced, and on which terms; then say what that means now."""
    from remote.kill import name_victim
    from remote.recover import explain
    from remote.recovery_policy import set_policy
    from tui.cloud import open_desk

    refuse_if_read_only("changing what may be done without asking")
    with open_desk() as desk:
        name = name_victim(desk.journal, run).run
        given = {key: value for key, value in said.items() if value is not None}
        set_policy(desk.journal, name, desk.clock(), on=allowed, **given)
        found = explain(desk, name)
    if as_json:
        done = {"ok": True, "state": "done", "run": name, "instance_id": None, "steps": []}
        emit_json({**done, "policy": found.to_json()})
    else:
        click.echo("\n".join(found.lines()), err=True)
        if allowed:
            click.echo("It is done while a tunewatch screen is open, or by: tunewatch migrate RUN --recover.", err=True)
    return 0


def recover_run(run: str, *, dry: bool, yes: bool, as_json: bool) -> int:
    """Make good a loss as the policy of the run allows; with `dry` only say what would be done."""
    from remote.access import opener
    from remote.migrate import account, last_migration
    from remote.recover import explain, recover
    from runner.errors import Exit
    from tui.cloud import dollars, open_desk

    with open_desk(say_step) as desk:
        if dry:
            found = explain(desk, run)
            if as_json:
                emit_json({"ok": True, "state": "done", "run": found.run, "instance_id": None, "steps": [],
                           "policy": found.to_json()})  # fmt: skip
            else:
                click.echo("\n".join(found.lines()))
            return 0
        refuse_if_read_only("recovering a run")
        confirm_by_name(run, f"{run} goes on elsewhere if its box is lost and its policy allows it.", yes=yes,
                        as_json=as_json)  # fmt: skip
        result = recover(desk, run, opener(desk.journal.home))
        cost = account(last_migration(desk.journal, result.run or run))
    if as_json:
        emit_json({**result.to_json(), "migration": cost})
    elif result.state == "running":
        overlap = dollars(cost.get("overlap_usd") or 0.0)
        click.echo(f"{result.run} trains on instance {result.instance_id}; overlap {overlap}", err=True)
    else:
        click.echo(f"{result.run} could not be recovered: {cost.get('why') or result.state}.", err=True)
    return 0 if result.ok else int(Exit.UNCONFIRMED)


def tell_account(run: str, *, as_json: bool) -> int:
    """What was said before each move of a run and what it cost, and how the forecasts of all moves came out."""
    from remote.home import home
    from remote.journal import Journal
    from remote.move_record import moves, summary
    from runner.errors import NotFoundError

    journal = Journal(home())
    try:
        every = moves(journal)
    finally:
        journal.close()
    mine = [move for move in every if move.run == run or move.run.endswith(f"/{run}")]
    if not mine:
        raise NotFoundError(f"{run} was never moved to the end of a move.", hint="tunewatch migrate RUN --to OFFER.")
    if as_json:
        emit_json({"ok": True, "state": "done", "run": mine[-1].run, "instance_id": None, "steps": [],
                   "moves": [move.to_json() for move in mine], "record": summary(every)})  # fmt: skip
    else:
        click.echo("\n".join(line for move in mine for line in move.lines()))
        click.echo(summary(every))
    return 0
