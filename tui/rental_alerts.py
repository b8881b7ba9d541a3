"""Which alarms about what is rented are news: each is told once while it lasts, and again only after it was over."""

from __future__ import annotations

from tui.alerts import Event, Volume
from tui.rental_view import MOVED, RentalSnapshot


class RentalAlerts:
    """Remembers what stands. Pure: snapshots in, events out."""

    def __init__(self) -> None:
        self._standing: set[str] = set()

    def take(self, snapshot: RentalSnapshot, at: float = 0.0) -> list[Event]:
        """The events between the last snapshot and this one, which was taken at `at` (monotonic, seconds)."""
        fresh = [alarm for alarm in snapshot.alarms if alarm.key not in self._standing]
        self._standing = {alarm.key for alarm in snapshot.alarms}
        return [
            Event(
                alarm.target, "moved" if alarm.key.startswith(MOVED) else "billing", alarm.title, alarm.text,
                alarm.severity, Volume.BELL if alarm.loud else Volume.TOAST, at=at,
            )
            for alarm in fresh
        ]  # fmt: skip
