"""How events reach the person: list, toast, bell, desktop notice, terminal title, webhook. Each as loud as it is."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from runner.errors import TunewatchError
from tui.alerts import Alerts, Event, Volume, look_at
from tui.rental_alerts import RentalAlerts
from tui.rental_view import RentalSnapshot
from tui.snapshot import RunSnapshot

if TYPE_CHECKING:
    from textual.notifications import Notification

    from tui.announce import Courier
    from tui.app import TunewatchApp

SUPERSEDED = ("best", "link", "budget", "disk")
"""Kinds of which only the newest is true."""


class Notices:
    """The events of one session, and the ways in which they are told."""

    def __init__(self, app: TunewatchApp) -> None:
        self.events: list[Event] = []
        """Oldest first."""
        self._app = app
        self._alerts = Alerts()
        self._rentals = RentalAlerts()
        self._courier: Courier | None = None
        self._title = ""
        self._toasts: dict[tuple[str, str], Notification] = {}
        """The newest of each kind for each run."""

    def begin(self) -> None:
        """A thread for webhook and ntfy where the environment names one; the terminal keeps its title for later."""
        from tui.announce import SAVE_TITLE, Courier, addresses

        try:
            to = addresses(os.environ)
        except TunewatchError as error:
            self._app.notify(str(error), title="notices", severity="warning", timeout=10)
            return
        if to:
            self._courier = Courier(to, self._trouble)
            self._courier.start()
        self._to_terminal(SAVE_TITLE)

    def _trouble(self, words: str) -> None:
        self._app.call_from_thread(self._app.notify, words, severity="warning")

    def take(self, snapshot: RunSnapshot, *, budget: float | None = None) -> None:
        """Tell what happened since the last snapshot of this run. `budget` in USD."""
        look = look_at(snapshot, budget=budget)
        rental = self._app.rental
        if look.state == "crashed" and rental is not None and rental.moving(look.name):
            # its lost box is started once more to read its disk: no news, and no crash
            look = replace(look, state="unreachable")
        for event in self._alerts.take(look):
            self._tell(event)
        if snapshot.target == getattr(self._app.screen, "target", None):
            from tui.announce import terminal_title

            title = terminal_title(f"{snapshot.name} {snapshot.state} {snapshot.step or 0}")
            if title != self._title:
                self._title = title
                self._to_terminal(title)

    def take_rental(self, rental: RentalSnapshot) -> list[Event]:
        """Tell what is new about what is rented, and return it."""
        told = self._rentals.take(rental, time.monotonic())
        for event in told:
            self._tell(event)
        return told

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        if event.volume >= Volume.TOAST:
            self._toast(event)
        if event.volume >= Volume.BELL:
            from tui.announce import desktop_notice

            self._app.bell()
            self._to_terminal(desktop_notice(event, os.environ))
        if self._courier is not None:
            self._courier.send(event)

    def _toast(self, event: Event) -> None:
        """Show it; what it makes old news is taken away, so that a fast run does not pile up its best values."""
        from textual.notifications import Notification, Notify

        old = self._toasts.pop((event.target, event.kind), None)
        if old is not None and event.kind in SUPERSEDED and old in self._app._notifications:
            self._app._unnotify(old, refresh=False)
        toast = Notification(event.text, event.title, event.severity, 8.0, markup=False)
        self._toasts[event.target, event.kind] = toast
        self._app.post_message(Notify(toast))

    def end(self) -> None:
        """Give the terminal its title back; let what waits be sent."""
        from tui.announce import RESTORE_TITLE

        self._to_terminal(RESTORE_TITLE)
        if self._courier is not None:
            self._courier.finish(2.0)

    def _to_terminal(self, sequence: str) -> None:
        """Write a sequence that shows nothing by itself; a browser or a test has no terminal for it."""
        driver = self._app._driver
        if driver is not None and not self._app.is_headless and not self._app.is_web:
            driver.write(sequence)
