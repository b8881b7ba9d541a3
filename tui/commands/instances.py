"""`tunewatch instances`: what is rented, what it has cost, what is still billing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from tui.commands.common import emit_json, json_option

if TYPE_CHECKING:
    from remote.desk import Desk


@click.command(short_help="What is rented, and what is still billing.")
@click.option("--history", is_flag=True, help="Also what was rented before, with its bill.")
@click.option("--charges", is_flag=True, help="Ask for the provider's own bill, too.")
@json_option
def command(history: bool, charges: bool, as_json: bool) -> None:
    """List every box on the account by one call, with the dollars so far and the dollars per hour at this moment.

    \b
    tunewatch instances
    tunewatch instances --history --json
    """
    from remote.access import opener
    from remote.arming import overdue
    from remote.notices import notices
    from remote.own_host import settle_all
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
        emit_json([*rows, *past])
        return
    burn = sum(row["billing"] for row in rows)
    for row in rows:
        mine = "" if row["ours"] else "  (not ours)"
        click.echo(
            f"{row['name']:>9}  {row['state']:<12} {row['gpu']:<15.15} ${row['dph']:.4f}/h  so far "
            f"{dollars(row['usd_so_far']):>8}  now ${row['billing']:.4f}/h  {row['run'] or row['label']}{mine}".rstrip()
        )
    for row in past:
        click.echo(
            f"{row['name']:>9}  {row['state']:<12} {row['gpu']:<15.15} cost {dollars(row['usd_so_far'])}  {row['run']}"
        )
    credit = "" if account is None or account.credit_usd is None else f", {dollars(account.credit_usd)} of credit"
    click.echo(f"{len(rows)} rented, billing ${burn:.4f}/h now{credit}", err=True)
    for box in late:
        name = desk.called(box.instance).capitalize()
        click.echo(f"! {name} bills past its limit: {box.reason}. End it: tunewatch kill.", err=True)
    for notice in said:
        click.echo(f"! {notice.text} {notice.advice}", err=True)


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
    keep_charges(desk.journal, desk.provider.charges(now - 30 * 86400, now))
