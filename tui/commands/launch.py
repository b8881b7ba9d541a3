"""`tunewatch launch`: rent, boot, ship, arm the guard, start, first log line."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from tui.commands.common import (
    confirm_by_name,
    emit_json,
    json_option,
    refuse_if_read_only,
    refuse_processes,
    say_step,
    yes_option,
)


@click.command(short_help="Rent, boot, ship, start, arm the guard.")
@click.argument("recipe")
@click.option("--offer", "offer_text", help="Number, or host:NAME: tunewatch offers.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting; wins over everything.")
@click.option("--config", "config_file", type=click.Path(), help="TOML with settings that lie over the recipe's.")
@click.option("--hf-repo-id", metavar="REPO", help="Upload checkpoints to this Hub repository.")
@click.option("--max-price", type=click.FloatRange(min=0), help="USD per hour at most, the disk in it.")
@click.option("--bid", type=click.FloatRange(min=0.001), help="USD per hour for the GPU of an interruptible contract.")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), help="USD; the box ends itself before.")
@click.option("--deadline", help="90s, 45m, 10h or an ISO time; the box ends itself then.")
@click.option("--idle", help="90s, 45m, 10h without a step and with an idle GPU end the box.")
@click.option("--lease", help="The box ends itself when this laptop was not seen for so long.")
@click.option("--keep", is_flag=True, help="Keep the box when the run has finished.")
@click.option("--nproc", type=click.IntRange(min=1), default=1, show_default=True, help="Processes, one per GPU.")
@click.option("--disk", type=click.FloatRange(min=8), help="GB; by default what the recipe needs.")
@click.option("--image", default="", help="Container image; by default one with torch for the host's driver.")
@click.option("--boot-timeout", default="25m", show_default=True, help="Give the box back when it is not up by then.")
@click.option("--detach", is_flag=True, help="Leave when it runs; no screen.")
@click.option("--dry-run", is_flag=True, help="Do what costs nothing, say what would happen, rent nothing.")
@click.option("--resume", is_flag=True, help="Go on with a launch that was cut; RECIPE is its run.")
@click.option(
    "--undo", is_flag=True, help="Undo a launch that was cut: what it rented is destroyed; RECIPE is its run."
)
@yes_option
@json_option
def command(
    recipe: str,
    offer_text: str | None,
    settings: tuple[str, ...],
    config_file: str | None,
    hf_repo_id: str | None,
    max_price: float | None,
    bid: float | None,
    budget: float | None,
    deadline: str | None,
    idle: str | None,
    lease: str | None,
    keep: bool,
    nproc: int,
    disk: float | None,
    image: str,
    boot_timeout: str,
    detach: bool,
    dry_run: bool,
    resume: bool,
    undo: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Rent offer --offer and run RECIPE on it. The box ends its own rental at finish, budget or deadline, this laptop
    open or closed; that it can is proved before anything is started. Ctrl-C undoes what was rented. On a machine of
    your own (host:NAME) nothing is rented, and the guard ends the run instead.

    \b
    tunewatch launch stage5 --offer 7000001 --budget 5 --deadline 10h
    tunewatch launch mine.toml --offer 7000001 --set train.max_steps=200 --yes --json
    tunewatch launch stage5 --offer 7000001 --dry-run
    tunewatch launch stage5/20260215-104518 --resume
    """
    from remote.access import opener, own_key
    from remote.arming import Wishes
    from remote.hosts import parse_offer
    from remote.launch import Launch, launch, onstart
    from remote.remote_run import Order, resolve_order
    from remote.rent import Plan
    from remote.settings import load_settings
    from remote.sizing import disk_gb
    from runner.errors import RefusedError, TunewatchError
    from runner.rundir import STAMP
    from tui.cloud import dollars, open_desk, seconds_from_now

    if (given := [f"--{name}" for name, on in (("resume", resume), ("undo", undo)) if on]) or offer_text is None:
        if len(given) != 1 or offer_text is not None or dry_run:
            raise click.UsageError("Give one of --offer, --resume and --undo.")
        return _settle(recipe, undo=undo, yes=yes, as_json=as_json)
    if not dry_run:
        refuse_if_read_only("renting a box")
    offer_id = parse_offer(offer_text)
    named = str(Path(recipe).resolve()) if Path(recipe).is_file() else recipe
    config = str(Path(config_file).resolve()) if config_file is not None else None
    order = Order(named, config, tuple(settings), hf_repo_id or "", nproc)
    resolved = resolve_order(order, os.environ)
    refuse_processes(nproc, resolved)
    gigabytes = disk if disk is not None else disk_gb(resolved)
    with open_desk(say_step) as desk:
        chosen = load_settings(desk.journal.home)
        offer = desk.provider.offer(offer_id, disk_gb=gigabytes, spot=bid is not None)
        if offer.own and lease:
            raise RefusedError("--lease is for a rented box: a machine of your own goes on being yours.")
        if nproc > offer.num_gpus:
            raise RefusedError(f"--nproc {nproc}, and this offer has {offer.num_gpus} GPU: one process each.")
        price = offer.dph_total if bid is None else bid + offer.dph_total - offer.dph_base
        limit = [f"at most {dollars(budget)}" if budget is not None else "", f"until {deadline}" if deadline else ""]
        limits = ", ".join(part for part in limit if part) or "no limit but the end of the run"
        what = f"{offer.num_gpus}x {offer.gpu_name} will be rented at ${price:.4f}/h with {gigabytes:g} GB of disk"
        if offer.own:
            what = f"Your host {offer.own} ({offer.gpu_name}) will train, metered at ${price:.4f}/h"
        if not dry_run:
            confirm_by_name(offer_text, f"{what} ({limits}).", yes=yes, as_json=as_json)
        name = f"{resolved.name}/{time.strftime(STAMP)}"
        _, public = own_key(desk.journal.home)
        request = Launch(
            order=Order(named, config, tuple(settings), hf_repo_id or "", nproc, name=name),
            plan=Plan(
                name, offer_id, gigabytes, image, onstart(public),
                # without a cap of the user's: the price that was just shown, and two per cent
                max_price if max_price is not None else price * 1.02, bid, budget,
                boot_deadline_s=seconds_from_now(boot_timeout) or 1500.0,
            ),
            wishes=Wishes(budget, seconds_from_now(deadline), seconds_from_now(idle), seconds_from_now(lease), keep),
            python=chosen.text("launch.python"),
            grace_s=chosen.number("launch.grace"),
        )  # fmt: skip
        if dry_run:
            from remote.launch_check import dry_run as rehearse

            done = rehearse(desk, request, os.environ)
            if as_json:
                emit_json(done.to_json())
            else:
                click.echo("Nothing was rented.", err=True)
            return 0
        try:
            result = launch(desk, request, opener(desk.journal.home))
        except TunewatchError as error:
            if as_json:
                state = "unconfirmed" if error.exists or int(error.exit_code) == 7 else "failed"
                failed = desk.result(ok=False, state=state, run=name, instance_id=None)  # type: ignore[arg-type]
                emit_json({**failed.to_json(), "error": error.message})
            raise
        if as_json:
            box = desk.journal.box(result.instance_id) if result.instance_id is not None else None
            where = f"vast:{result.instance_id}:{box.data.get('run_dir')}" if box is not None else None
            where = name if offer.own else where
            emit_json({**result.to_json(), "target": where})
    if as_json:
        return 0
    on = f"host {offer.own}" if offer.own else f"instance {result.instance_id}"
    click.echo(f"{name} runs on {on}; end it with: tunewatch kill {name}", err=True)
    if not detach and sys.stdin.isatty() and sys.stdout.isatty():
        from tui.commands.run import _show

        _show(name)
    return 0


def _settle(run: str, *, undo: bool, yes: bool, as_json: bool) -> int:
    """Carry on or undo a launch that was cut."""
    from remote.access import opener
    from remote.launch import resume_launch, undo_launch
    from remote.launch_check import unfinished_launch
    from runner.errors import Exit
    from tui.cloud import open_desk

    refuse_if_read_only("undoing a launch" if undo else "renting a box")
    with open_desk(say_step) as desk:
        cut = unfinished_launch(desk.journal, run)
        if undo:
            name = cut.run.rsplit("/", 1)[-1]
            confirm_by_name(
                name, f"{cut.in_words()} It will be undone: the box is destroyed.", yes=yes, as_json=as_json
            )
            result = undo_launch(desk, cut.deed, opener(desk.journal.home))
        else:
            result = resume_launch(desk, cut.deed, opener(desk.journal.home))
    if as_json:
        emit_json(result.to_json())
    elif undo:
        done = (
            "nothing of it bills" if result.ok else "UNCONFIRMED: a box may still bill. Repeat, or: tunewatch reconcile"
        )
        click.echo(f"{cut.run}: {done}", err=True)
    else:
        click.echo(f"{cut.run} runs on instance {result.instance_id}; end it with: tunewatch kill {cut.run}", err=True)
    return 0 if result.ok else int(Exit.UNCONFIRMED)
