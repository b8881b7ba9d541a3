"""`tunewatch adopt`: take an instance rented by hand under watch."""

from __future__ import annotations

import click

from tui.commands.common import confirm_by_name, emit_json, json_option, refuse_if_read_only, say_step, yes_option


@click.command(short_help="Take an instance rented by hand under watch.")
@click.argument("instance", type=int)
@click.argument("target", required=False)
@click.option("--guard", is_flag=True, help="Arm a guard on it, with the limits below.")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), help="USD in all, from its start.")
@click.option("--deadline", help="90s, 45m, 10h or an ISO time.")
@click.option("--lease", help="The box ends itself when this laptop was not seen for so long.")
@yes_option
@json_option
def command(
    instance: int, target: str | None, guard: bool, budget: float | None, deadline: str | None, lease: str | None,
    yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Find the runs on INSTANCE, watch the freshest (or TARGET), meter it from its start. With --guard it also ends
    itself at its limits. After that kill and migrate work on it.

    \b
    tunewatch adopt 31457957
    tunewatch adopt 31457957 /root/proj/runs/x/log.txt --guard --budget 5 --deadline 10h
    """
    from remote.access import opener
    from remote.adopt import adopt
    from remote.arming import Wishes
    from remote.settings import load_settings
    from tui.cloud import open_desk, seconds_from_now

    refuse_if_read_only("adopting a box")
    limits = Wishes(budget, seconds_from_now(deadline), None, seconds_from_now(lease))
    if guard:
        confirm_by_name(
            str(instance), f"A guard on instance {instance} will stop or destroy it at its limits.", yes=yes,
            as_json=as_json,
        )  # fmt: skip
    with open_desk(say_step) as desk:
        python = load_settings(desk.journal.home).text("launch.python")
        result, found = adopt(
            desk, instance, open_pair=opener(desk.journal.home), target=target, wishes=limits, guard=guard,
            python=python,
        )  # fmt: skip
    if as_json:
        emit_json({**result.to_json(), **found})
        return
    for run in found["runs"]:
        click.echo(f"{run['age_s']:>8.0f} s ago  {run['bytes']:>10} bytes  {run['path']}")
    click.echo(f"watch it: tunewatch watch {found['watch']}", err=True)
