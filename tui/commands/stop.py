"""`tunewatch stop`: end training with a checkpoint, keep the box."""

from __future__ import annotations

import click

from tui.commands.common import confirm_by_name, emit_json, json_option, refuse_if_read_only, say_step, yes_option


@click.command(short_help="Stop training with a checkpoint, keep the box.")
@click.argument("run")
@click.option("--reason", default="asked for", show_default=True, help="Kept in the run's own record.")
@click.option("--timeout", type=click.FloatRange(min=1), help="Seconds to wait before it is killed (grace + 60).")
@yes_option
@json_option
def command(run: str, reason: str, timeout: float | None, yes: bool, as_json: bool) -> int:
    """Ask RUN (its name, its directory, or host:/its/directory) to save a checkpoint and end, wait for it, and say
    with which exit status it ended. What does not listen is killed after its grace. The box stays, and keeps billing.

    \b
    tunewatch stop stage5/20260215-104518
    tunewatch stop box:/root/tunewatch/runs/stage5/20260215-104518 --yes
    """
    from remote.home import home
    from remote.recovery_policy import note_asked_stop
    from remote.ssh_auth import ask_on_terminal
    from remote.stop import stop_target
    from runner.errors import Exit

    refuse_if_read_only("stopping a run")
    name = run.rstrip("/").rpartition("/")[2]
    confirm_by_name(name, f"{run} will save a checkpoint and stop training.", yes=yes, as_json=as_json)
    note_asked_stop(run, home())
    result = stop_target(run, reason=reason, progress=say_step, timeout=timeout, ask=ask_on_terminal)
    if as_json:
        emit_json(result.to_json())
    return 0 if result.ok else int(Exit.UNCONFIRMED)
