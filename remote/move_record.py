"""How the moves of the past came out against what was said before them: the record that the next forecast is read by.

Everything is in the journal: the decision that was shown, the one after the rehearsal, and what the move truly cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from remote.decision import usd
from remote.journal import DeedRecord, Journal


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """One move that was carried out."""

    deed: str
    run: str
    opened: float
    """Seconds since the epoch."""
    by_itself: bool
    """A recovery; nobody was asked, and nothing was forecast."""
    forced: bool
    """Although it was not expected to pay."""
    saves_usd: tuple[float, float, float] | None
    """P10, P50, P90 of what moving would save, as it was said before."""
    p_saves: float | None
    saved_usd: float | None
    """What it saves to the horizon by the true set-up, pause, speed and prices."""
    setup_h: float | None
    """Forecast hours until the new box trains."""
    ready_h: float | None
    """True ones."""
    speed: float | None
    measured_speed: float | None
    pause_s: float | None
    lost_steps: int | None

    @property
    def within(self) -> bool | None:
        """Whether what it saves lies in the interval; None where one of them is not known."""
        if self.saves_usd is None or self.saved_usd is None:
            return None
        return self.saves_usd[0] <= self.saved_usd <= self.saves_usd[2]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "within": self.within}

    def lines(self) -> list[str]:
        """For people."""
        said = [f"{self.run}, {self.deed}" + (", by itself" if self.by_itself else ", forced" if self.forced else "")]
        if self.saves_usd is not None:
            low, _, high = self.saves_usd
            true = "not known" if self.saved_usd is None else usd(self.saved_usd)
            where = {True: ", within", False: ", outside", None: ""}[self.within]
            said.append(f"  saving: {usd(low)} to {usd(high)} were expected, {true} it is to the horizon{where}")
        if self.setup_h is not None and self.ready_h is not None:
            said.append(f"  set-up: {self.setup_h * 60:.0f} min were expected, {self.ready_h * 60:.1f} min it took")
        if self.speed is not None and self.measured_speed is not None:
            said.append(f"  speed: {self.speed:.2f} was expected, {self.measured_speed:.2f} was measured")
        lost = f"{self.lost_steps} steps were done again" if self.lost_steps else "no step was done again"
        if self.pause_s is not None:
            said.append(f"  training stood still for {self.pause_s:.1f} s, {lost}")
        elif self.lost_steps is not None:
            said.append(f"  its box was lost; {lost}")
        return said


def moves(journal: Journal) -> list[MoveRecord]:
    """Every move that came to its end, oldest first."""
    deeds = [row.deed for row in journal.rows() if row.kind == "migrate" and row.phase == "close" and row.deed]
    found = [journal.deed(deed) for deed in dict.fromkeys(deeds)]
    return [_record(deed) for deed in found if deed.outcome == "migrated"]


def summary(found: Sequence[MoveRecord]) -> str:
    """One sentence over all of them."""
    known, s = [move.within for move in found if move.within is not None], "" if len(found) == 1 else "s"
    if not known:
        return f"{len(found)} move{s}; none of them with a forecast and a true saving."
    return f"{len(found)} move{s}; the true saving was within the interval in {sum(known)} of {len(known)}."


def _record(deed: DeedRecord) -> MoveRecord:
    data = deed.data
    request: Mapping[str, Any] = data.get("request") or {}
    before: Mapping[str, Any] = request.get("decision") or {}
    after: Mapping[str, Any] = data.get("decision_after_rehearsal") or {}
    interval = before.get("saves_usd")
    return MoveRecord(
        deed.id, deed.run, deed.opened, bool(request.get("recovery")), bool(request.get("forced")),
        None if interval is None else (float(interval[0]), float(interval[1]), float(interval[2])),
        before.get("p_saves"), data.get("saves_to_horizon_usd"), before.get("setup_h"), data.get("ready_h"),
        before.get("speed"), after.get("speed"), data.get("pause_s"), data.get("lost_steps"),
    )  # fmt: skip
