"""Keeps the bets that a forecast makes while a run is watched, so that later forecasts know how wide to be.

One for a session, shared by its polling threads. A recording is no bet, and a rule that the watcher assumed is none
either: the run does not obey it, so its end would say nothing. A file that cannot be written is a warning.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.history import RunHistory

if TYPE_CHECKING:
    from estimator.plateau import StopForecast
    from estimator.speed import OwnRun
    from remote.bets import BetBook


class Calibrating:
    """The book of bets, opened by the thread that first needs it."""

    def __init__(self) -> None:
        self.trouble = ""
        """Why bets are not kept; empty while they are."""
        self._book: BetBook | None = None
        self._widen: float | None = None
        self._recipes: dict[str, str] = {}
        self._lock = threading.Lock()

    def widen(self) -> float:
        """How much wider than modelled the forecast's range has to be, from the bets that came true."""
        with self._lock:
            if self._widen is None:
                book = self._open()
                self._widen = book.calibration().widen if book is not None else 0.0
            return self._widen

    def own_runs(self) -> Sequence[OwnRun]:
        """How fast finished runs were."""
        with self._lock:
            book = self._open()
            return book.own_runs() if book is not None else ()

    def recipe(self, target: str) -> str:
        """The recipe of a known run; empty for a foreign one."""
        with self._lock:
            if target not in self._recipes:
                from remote.home import home
                from remote.known import known_runs

                known = (r.recipe for r in known_runs(home()) if target in (r.target, r.name))
                self._recipes[target] = next(known, None) or ""
            return self._recipes[target]

    def follow(self, history: RunHistory, stop: StopForecast | None) -> None:
        """Place the present forecast, or settle what was placed when the run has ended."""
        with self._lock:
            book = self._open()
            if book is None:
                return
            try:
                book.follow(history, stop)
            except OSError as error:
                self._fail(error)
            if history.ended is not None:
                self._widen = None

    def note_rate(self, recipe: str, gpu: str, steps_per_s: float) -> None:
        """Remember how fast a run was that was seen to finish."""
        with self._lock:
            book = self._open()
            if book is None:
                return
            try:
                book.note_rate(recipe, gpu, steps_per_s)
            except OSError as error:
                self._fail(error)

    def _open(self) -> BetBook | None:
        if self._book is None and not self.trouble:
            from remote.bets import BetBook

            try:
                self._book = BetBook()
            except OSError as error:
                self._fail(error)
        return self._book

    def _fail(self, error: OSError) -> None:
        self._book = None
        self.trouble = f"forecasts are not kept for calibration: {error.strerror or error}"


def past_forecasts() -> str:
    """How past forecasts came true, in one sentence; empty while none is settled. Reads the book: not for a tick."""
    from remote.bets import BetBook

    try:
        found = BetBook().calibration()
    except OSError:
        return ""
    return f"Past forecasts: {found.in_words()}" if found.runs else ""
