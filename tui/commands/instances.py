"""`tunewatch instances`: what is rented, what it has cost, what is still billing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from tui.commands.common import confirm_by_name, emit_json, json_option, refuse_if_read_only, say_step, yes_option

if TYPE_CHECKING:
    from remote.contract import Kind
    from remote.desk import Desk


@click.command(short_help="What is rented, and what is still billing.")
@click.argument("instance", type=int, required=False)
@click.option("--bid", type=click.FloatRange(min=0, min_open=True), help="Bid so many USD/h for INSTANCE's GPU.")
@click.option("--accept-price", "kind", flag_value="accept price", help="Agree to the higher price its host asks for.")
@click.option("--reject-price", "kind", flag_value="reject price", help="Decline it: the contract ends as agreed.")
@click.option("--start", "kind", flag_value="start", help="Take the GPU of a stopped INSTANCE again.")
@click.option("--resume", is_flag=True, help="Then start its run again there, from its newest whole checkpoint.")
@click.option("--history", is_flag=True, help="Also what was rented before, with its bill.")
@click.option("--charges", is_flag=True, help="Ask for the provider's own bill, too.")
@yes_option
@json_option
def command(
    instance: int | None, bid: float | None, kind: Kind | None, resume: bool, history: bool, charges: bool, yes: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """List every box on the account by one call, with the dollars so far and the dollars per hour at this moment, and
    what is wrong with each. With INSTANCE and one of --bid, --accept-price, --reject-price and --start, do that. A box
    that comes back has lost its processes: with --resume its guard is armed again and its run goes on.

    \b
    tunewatch instances
    tunewatch instances --history --json
    tunewatch instances 31457957 --bid 0.42 --resume
    """
    if instance is not None or bid is not None or kind is not None or resume:
        if instance is None or (bid is not None and kind is not None) or (bid is None and kind is None and not resume):
            raise click.UsageError("Give INSTANCE and one of --bid, --accept-price, --reject-price and --start.")
        if resume and kind not in (None, "start"):
            raise click.UsageError("--resume goes with --start or --bid, or stands alone.")
        return _change(instance, "bid" if bid is not None else kind, bid, resume=resume, yes=yes, as_json=as_json)
    from remote.access import opener
    from remote.arming import overdue
    from remote.notices import notices
    from remote.own_host import settle_all
    from remote.provider import upper
    from runner.errors import TunewatchError
    from tui.cloud import dollars, open_desk

    with open_desk() as desk:
        settle_all(desk, opener(desk.journal.home))
        live = desk.listing(for_s=6.0)
        if charges:
            _refresh(desk)
        rows = [_row(desk, instance) for instance in live]
        account = None
        try:
            account = desk.provider.account()
            increases = desk.provider.price_increases() if live else []
        except TunewatchError:
            increases = []  # the list stands without what is only said beside it
        said = notices(live, desk.journal.boxes(), account=account, increases=increases, now=desk.clock())
        late = overdue(desk.journal, desk.clock())
        past = _past(desk, {instance.id for instance in live}) if history else []
    if as_json:
        emit_json([{**row, "notices": [n.to_json() for n in said if n.instance == row["id"]]} for row in rows] + past)
        return 0
    burn = sum(row["billing"] for row in rows)
    for row in rows:
        mine = "" if row["ours"] else "  (not ours)"
        click.echo(
            f"{row['name']:>9}  {row['state']:<12} {row['gpu']:<15.15} ${row['dph']:.4f}/h  so far "
            f"{dollars(row['usd_so_far']):>8}  now ${row['billing']:.4f}/h  {row['run'] or row['label']}{mine}".rstrip()
        )
    for row in past:
        state = "given back" if row["name"].startswith("host:") else row["state"]
        click.echo(f"{row['name']:>9}  {state:<12} {row['gpu']:<15.15} cost {dollars(row['usd_so_far'])}  {row['run']}")
    credit = "" if account is None or account.credit_usd is None else f", {dollars(account.credit_usd)} of credit"
    click.echo(f"{len(rows)} rented, billing ${burn:.4f}/h now{credit}", err=True)
    for box in late:
        name = upper(desk.called(box.instance))
        click.echo(f"! {name} bills past its limit: {box.reason}. End it: tunewatch kill.", err=True)
    for notice in said:
        click.echo(f"! {notice.text}\n  {notice.advice}", err=True)
    return 0


def _change(instance: int, kind: Kind | None, bid: float | None, *, resume: bool, yes: bool, as_json: bool) -> int:
    """One deed on one box, after the question."""
    from remote.access import opener
    from remote.contract import ALONE, carry_out, plan_change
    from tui.cloud import open_desk

    refuse_if_read_only("changing a contract")
    with open_desk(say_step) as desk:
        change = None if kind is None else plan_change(desk, instance, kind, bid=bid)
        said = [] if change is None else [change.text]
        if resume:
            from remote.resume import plan_resume, resume_run

            said = [text.replace(ALONE, "") for text in said]
            said.append(plan_resume(desk, instance).text)
        confirm_by_name(str(instance), " ".join(said), yes=yes, as_json=as_json)
        if resume:
            result = resume_run(desk, instance, opener(desk.journal.home), change=change)
        elif change is not None:
            result = carry_out(desk, change, opener(desk.journal.home))
    if as_json:
        emit_json(result.to_json())
    return 0


def _row(desk: Desk, instance: Any) -> dict[str, Any]:
    from remote.labels import read_label
    from remote.money import bill

    box = desk.journal.box(instance.id)
    ours = box is not None or read_label(instance.label) is not None
    cost = bill(desk.journal, instance.id, desk.clock(), current=instance)
    state = instance.status
    if box is not None and box.state == "unconfirmed":
        state = "unconfirmed"
    return {
        "id": instance.id, "name": f"host:{instance.own}" if instance.own else str(instance.id),
        "label": instance.label, "state": state, "gpu": instance.gpu_name,
        "dph": instance.dph_total, "usd_so_far": cost.total, "ours": ours, "billing": instance.billing_usd_per_h,
        "run": box.run if box is not None else "", "bill": cost.to_json(), "spot": instance.spot,
        "guard": str(box.data.get("guard") or "") if box is not None else "",
    }  # fmt: skip


def _past(desk: Desk, living: set[int]) -> list[dict[str, Any]]:
    from remote.money import bill

    rows = []
    for box in desk.journal.boxes():
        if box.instance in living:
            continue
        cost = bill(desk.journal, box.instance)
        rows.append(
            {
                "id": box.instance, "name": box.as_typed, "label": box.label, "state": box.state,
                "gpu": str(box.data.get("gpu_name") or ""),
                "dph": float(box.data.get("dph_total") or 0.0), "usd_so_far": cost.total, "ours": True, "billing": 0.0,
                "run": box.run, "bill": cost.to_json(),
            }
        )  # fmt: skip
    return rows


def _refresh(desk: Desk) -> None:
    from remote.money import keep_charges

    now = time.time()
    # the whole life of the oldest box: a bill of its last month alone would be taken for all that it has cost
    begun = [rows[0].start for box in desk.journal.boxes() if (rows := desk.journal.meter(box.instance))]
    keep_charges(desk.journal, desk.provider.charges(min([now - 30 * 86400, *(at - 86400 for at in begun)]), now))
