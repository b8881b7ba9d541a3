"""`tunewatch kill`: stop with a checkpoint, destroy the box, prove it gone."""

from __future__ import annotations

import click

from tui.commands.common import confirm_by_name, emit_json, json_option, refuse_if_read_only, say_step, yes_option


@click.command(short_help="Stop, destroy the box and prove it gone.")
@click.argument("run_or_instance")
@click.option("--now", is_flag=True, help="Do not wait for a checkpoint.")
@click.option("--timeout", type=click.FloatRange(min=1), help="Seconds to wait for the checkpoint.")
@yes_option
@json_option
def command(run_or_instance: str, now: bool, timeout: float | None, yes: bool, as_json: bool) -> int:
    """End the rental of a RUN or INSTANCE: the run saves, its log and results are brought here, the box is destroyed
    with everything on its disk, and it is called destroyed only after two listings of the account without it. Until
    then it may still bill (exit code 7). Doing it again is harmless. A machine of your own (host:NAME) is given back:
    its run is ended, nothing is deleted.

    \b
    tunewatch kill stage5/20260215-104518
    tunewatch kill 31457957 --yes --json
    """
    from remote.access import opener
    from remote.kill import kill, name_victim
    from remote.money import bill
    from remote.provider import is_own, upper
    from remote.settings import load_settings
    from runner.errors import Exit
    from tui.cloud import dollars, open_desk

    refuse_if_read_only("destroying a box")
    proof_s = load_settings().number("kill.proof")
    with open_desk(say_step) as desk:
        victim = name_victim(desk.journal, run_or_instance)
        own, called = is_own(victim.instance_id), desk.called(victim.instance_id)
        run = victim.run or "no run of ours"
        kept = "what was not uploaded" if now else "log and results come here first, what else was not uploaded"
        what = f"{upper(called)} ({run}) will be destroyed with its disk: {kept} is lost."
        if own:
            what = f"The run on {called} ({run}) will be ended and the host given back; nothing on it is deleted."
        confirm_by_name(run_or_instance if own else str(victim.instance_id), what, yes=yes, as_json=as_json)
        result = kill(
            desk, victim, open_pair=opener(desk.journal.home), checkpoint=not now, for_s=proof_s, grace_s=timeout
        )
        cost = bill(desk.journal, victim.instance_id)
    if as_json:
        emit_json({**result.to_json(), "bill": cost.to_json()})
    elif result.ok:
        ended = "given back with everything on it" if own else "destroyed"
        click.echo(f"{called} is {ended}; it cost {dollars(cost.total)}", err=True)
    else:
        risk = "its run may still train" if own else f"may still bill {dollars(cost.usd_per_h)}/h"
        click.echo(f"{called} is UNCONFIRMED and {risk}. Repeat the command, or: tunewatch reconcile", err=True)
    return 0 if result.ok else int(Exit.UNCONFIRMED)
