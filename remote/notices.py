"""What the provider's rows mean for a person: outbid, end of contract, low credit, dearer price, a host that is gone.

Pure: rows in, sentences out. Nothing in a row separates "outbid" from "you pressed stop", so the journal's own record
of stops decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from remote.journal import BoxRecord
from remote.provider import Account, Instance, PriceIncrease, upper

Kind = Literal["outbid", "ended", "ending", "offline", "credit", "price", "unknown", "frozen", "stopped"]
ENDING_H = 24.0
CREDIT_H = 3.0
"""Credit for fewer hours than this is low."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that somebody should know."""

    kind: Kind
    instance: int | None
    text: str
    """What it means."""
    advice: str
    """What can be done."""

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {"kind": self.kind, "instance": self.instance, "text": self.text, "advice": self.advice}


def notices(
    instances: Iterable[Instance], boxes: Iterable[BoxRecord], *, account: Account | None = None,
    increases: Sequence[PriceIncrease] = (), now: float,
) -> list[Notice]:  # fmt: skip
    """Everything worth saying at `now` (seconds since the epoch)."""
    records = {box.instance: box for box in boxes}
    found: list[Notice] = []
    burn = 0.0
    for row in instances:
        burn += row.billing_usd_per_h
        notice = _of_row(row, records.get(row.id), account, now)
        if notice is not None:
            found.append(notice)
        if row.end_date is not None and 0 < row.end_date - now < ENDING_H * 3600 and not row.halted:
            found.append(
                Notice(
                    "ending", row.id,
                    f"The contract of instance {row.id} ends in {(row.end_date - now) / 3600:.1f} h; then it stops and "
                    "may be deleted two days later.",
                    "Let the run end before, or move it: tunewatch migrate.",
                )
            )  # fmt: skip
    found.extend(_of_increase(increase, now) for increase in increases)
    if account is not None and account.credit_usd is not None and burn > 0 and account.credit_usd < burn * CREDIT_H:
        found.append(
            Notice(
                "credit", None,
                f"${account.credit_usd:.2f} of credit last {max(0.0, account.credit_usd / burn):.1f} h at "
                f"${burn:.4f}/h; at zero the provider stops every box.",
                "Add credit in the provider's console, or end a run: tunewatch kill.",
            )
        )  # fmt: skip
    return found


def _of_row(row: Instance, box: BoxRecord | None, account: Account | None, now: float) -> Notice | None:
    disk = f"its disk costs ${row.disk_usd_per_h:.4f}/h until it is destroyed"
    if row.status == "offline":
        return Notice(
            "offline", row.id, f"The host of instance {row.id} is offline; nothing is billed and nothing answers.",
            "Wait, or go on elsewhere from the last uploaded checkpoint: tunewatch migrate.",
        )  # fmt: skip
    if row.status == "frozen":
        return Notice(
            "frozen", row.id, f"Instance {row.id} is frozen: its memory is kept and the GPU is billed.",
            f"Start it: tunewatch instances {row.id} --start. Or end it: tunewatch kill {row.id}.",
        )  # fmt: skip
    if row.status == "unknown":
        return Notice(
            "unknown", row.id,
            f"The provider calls instance {row.id} '{row.status_word or 'unknown'}'; it has no heartbeat of it.",
            "If SSH still answers, the run is well; look again in some minutes.",
        )  # fmt: skip
    if not row.halted:
        if row.status != "exited":
            return None
        return Notice(
            "stopped", row.id,
            f"The container of instance {row.id} ended by itself, or its guard ended it; {disk}.",
            f"Start it: tunewatch instances {row.id} --start. Or end it: tunewatch kill {row.id}.",
        )  # fmt: skip
    if row.end_date is not None and now >= row.end_date:
        return Notice(
            "ended", row.id, f"The contract of instance {row.id} ended; it cannot be started again and {disk}.",
            f"Fetch what is on it, then: tunewatch kill {row.id}.",
        )  # fmt: skip
    if account is not None and account.credit_usd is not None and account.credit_usd <= 0:
        return Notice(
            "credit", row.id, f"Instance {row.id} was stopped because the account is empty; {disk}.",
            f"Add credit in the provider's console, then: tunewatch instances {row.id} --start.",
        )  # fmt: skip
    asked = box is not None and box.state in ("stopped", "destroying")
    if row.spot and not asked:
        return Notice(
            "outbid", row.id,
            f"Instance {row.id} was outbid: its processes were killed, {disk}, and it comes back only if the bid wins.",
            f"{_raise_bid(row)} With --resume its run goes on, too. Or go on elsewhere from the last whole checkpoint: "
            "tunewatch migrate.",
        )  # fmt: skip
    if row.own:
        return Notice(
            "stopped", row.id, f"{upper(row.called)} is in use and idle; nothing is counted for it.",
            f"Give it back: tunewatch kill host:{row.own}.",
        )  # fmt: skip
    return Notice(
        "stopped", row.id, f"Instance {row.id} is stopped; {disk}.",
        f"Start it: tunewatch instances {row.id} --start. Or end it: tunewatch kill {row.id}.",
    )  # fmt: skip


def _raise_bid(row: Instance) -> str:
    """The least bid that would bring a box back, and how it is given."""
    if row.min_bid is None:
        return f"Raise the bid: tunewatch instances {row.id} --bid USD."
    # a hair above: the least bid itself may be somebody else's
    return (
        f"The least bid is ${row.min_bid:.4f}/h now, yours is ${row.dph_base:.4f}/h; raise it: "
        f"tunewatch instances {row.id} --bid {row.min_bid * 1.02:.4f}."
    )


def _of_increase(increase: PriceIncrease, now: float) -> Notice:
    box, more = increase.instance_id, increase.new_usd_per_h - increase.old_usd_per_h
    share = f", {more / increase.old_usd_per_h:+.0%}" if increase.old_usd_per_h > 0 else ""
    when = "from the end of the contract on"
    if increase.contract_end is not None:
        when = f"from the end of the contract in {max(0.0, increase.contract_end - now) / 3600:.1f} h on"
    return Notice(
        "price", box,
        f"The host of instance {box} asks for ${increase.new_usd_per_h:.4f}/h instead of "
        f"${increase.old_usd_per_h:.4f}/h ({more:+.4f} $/h{share}) {when}; until then nothing changes.",
        f"Accept and keep the box longer: tunewatch instances {box} --accept-price. Decline: --reject-price. Without "
        "an answer the contract ends as agreed: let the run end before, or move it: tunewatch migrate.",
    )  # fmt: skip
