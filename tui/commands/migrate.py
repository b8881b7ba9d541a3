"""`tunewatch migrate`: move a live run to a better box with a proved checkpoint, if that pays."""

from __future__ import annotations

import click

from tui.commands.common import confirm_by_name, emit_json, json_option, refuse_if_read_only, say_step, yes_option


def _number(context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """The offer's number. Raises UsageError for anything else, a machine of one's own included."""
    if text is None:
        return None
    from remote.hosts import parse_offer
    from remote.provider import is_own
    from runner.errors import UsageError

    number = parse_offer(text)
    if is_own(number):
        raise UsageError(
            "A run is moved between rented boxes, not onto a machine of your own.",
            hint=f"A new run begins there with: tunewatch launch RECIPE --offer {text}.",
        )
    return number


@click.command(short_help="Move a live run to a better box.")
@click.argument("run")
@click.option("--to", "offer_id", callback=_number, metavar="OFFER", help="Number of the offer: tunewatch offers.")
@click.option("--force", is_flag=True, help="Move although it does not pay.")
@click.option("--max-price", type=click.FloatRange(min=0), help="USD per hour at most, the disk in it.")
@click.option("--resume", is_flag=True, help="Go on with a migration that was cut.")
@click.option("--abort", is_flag=True, help="Undo a migration that was cut: the run stays on its old box.")
@click.option("--account", "show_account", is_flag=True, help="What its moves were expected to bring, and brought.")
@click.option("--recover", is_flag=True, help="Go on elsewhere if its box was lost and its policy allows it.")
@click.option("--dry-run", is_flag=True, help="With --recover: only say what would be done.")
@click.option("--auto", type=click.Choice(["on", "off"]), help="Whether a lost box is replaced without asking.")
@click.option("--times", type=click.IntRange(min=1), help="With --auto on: recoveries of this run at most.")
@click.option("--max-total", type=click.FloatRange(min=0), help="With --auto on: USD the run may cost in all.")
@click.option("--after", help="With --auto on: 90s, 5m, ... that a box has to have been lost.")
@yes_option
@json_option
def command(
    run: str,
    offer_id: int | None,
    force: bool,
    max_price: float | None,
    resume: bool,
    abort: bool,
    show_account: bool,
    recover: bool,
    dry_run: bool,
    auto: str | None,
    times: int | None,
    max_total: float | None,
    after: str | None,
    yes: bool,
    as_json: bool,
) -> int:
    """Move RUN to offer --to. The new box is rented, made ready and rehearsed on the run's checkpoint while the old one
    trains on; then the last step is carried over, the new one is seen to train, and the old box is destroyed and proved
    gone. Whether it pays is said first; when it does not, it is refused (exit code 4) without --force.

    \b
    tunewatch migrate stage5/20260215-104518 --to 7000002
    tunewatch migrate stage5/20260215-104518 --resume
    tunewatch migrate stage5/20260215-104518 --auto on --max-price 0.80 --times 2
    """
    from remote.access import opener
    from remote.migrate import abort_migration, account, last_migration, migrate, resume_migration, unfinished
    from remote.migrate_plan import plan_move, refuse_if_it_does_not_pay
    from runner.errors import Exit, RefusedError
    from tui.cloud import dollars, open_desk, seconds_from_now
    from tui.commands import recovering

    if (offer_id is not None) + resume + abort + show_account + recover + (auto is not None) != 1:
        raise click.UsageError("Give one of --to OFFER, --resume, --abort, --account, --auto and --recover.")
    if auto != "on" and (times, max_total, after) != (None, None, None):
        raise click.UsageError("--times, --max-total and --after belong to --auto on.")
    if dry_run and not recover:
        raise click.UsageError("--dry-run belongs to --recover.")
    if show_account:
        return recovering.tell_account(run, as_json=as_json)
    if auto is not None:
        wait = seconds_from_now(after)
        terms = {"most": times, "usd_per_h": max_price, "usd_total": max_total, "after_s": wait}
        return recovering.allow(run, auto == "on", terms, as_json=as_json)
    if recover:
        return recovering.recover_run(run, dry=dry_run, yes=yes, as_json=as_json)
    refuse_if_read_only("moving a run")
    with open_desk(say_step) as desk:
        open_pair = opener(desk.journal.home)
        if offer_id is None:
            record = unfinished(desk.journal, run)
            if abort:
                what = f"The migration of {record.run} will be undone: its new box is destroyed."
                confirm_by_name(record.run, what, yes=yes, as_json=as_json)
            result = (abort_migration if abort else resume_migration)(desk, record.id, open_pair)
        else:
            proposal = plan_move(desk, run, offer_id, open_pair, forced=force, max_usd_per_h=max_price)
            request, offer, decision = proposal.request, proposal.offer, proposal.decision
            said = decision.lines() if decision is not None else ["The old box trains no more: this is a recovery."]
            click.echo("\n".join(said), err=True)
            try:
                refuse_if_it_does_not_pay(proposal)
            except RefusedError:
                if as_json:
                    refused = {"ok": False, "state": "refused", "run": request.run, "instance_id": request.old_id}
                    emit_json({**refused, "steps": [], "migration": {"decision": request.decision}})
                raise
            confirm_by_name(
                request.run,
                f"{request.run} moves from {proposal.old} to offer {offer.id} ({offer.num_gpus}x {offer.gpu_name}, "
                f"${offer.dph_total:.4f}/h); the old box is destroyed at the end.",
                yes=yes,
                as_json=as_json,
            )
            result = migrate(desk, request, open_pair)
        cost = account(last_migration(desk.journal, result.run or run))
    if as_json:
        emit_json({**result.to_json(), "migration": cost})
    elif result.state == "running":
        overlap = dollars(cost["overlap_usd"])
        click.echo(f"{result.run} trains on instance {result.instance_id}; overlap {overlap}", err=True)
    elif result.ok:
        click.echo(f"{result.run} is on its old box, instance {result.instance_id}; the new one is destroyed", err=True)
    else:
        click.echo("The new box is UNCONFIRMED and may still bill. Repeat, or: tunewatch reconcile", err=True)
    return 0 if result.ok else int(Exit.UNCONFIRMED)
