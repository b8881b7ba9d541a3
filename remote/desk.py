"""What every deed with a provider works with: the account, the journal, the clocks, and whom to tell of each phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from remote.deeds import DeedResult, DeedState, DeedStep, Progress, silent
from remote.journal import Journal
from remote.money import observe
from remote.provider import AuthError, Instance, NoSuchInstanceError, Provider, RateLimitedError
from runner.errors import ProviderError, TunewatchError, UnreachableError

T = TypeVar("T")


@dataclass
class Desk:
    """One deed's tools. Tests pass clocks that they move themselves."""

    provider: Provider
    journal: Journal
    progress: Progress = silent
    clock: Callable[[], float] = time.time
    """Seconds since the epoch."""
    mono: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    steps: list[DeedStep] = field(default_factory=list)

    def at(self, number: int) -> Desk:
        """The same desk before the one place that lets this box or offer: the others need not answer."""
        part = getattr(self.provider, "part", None)
        return self if part is None else replace(self, provider=part(number))

    def called(self, instance_id: int) -> str:
        """What a box is called within a sentence."""
        return self.provider.called(instance_id)

    @contextmanager
    def step(self, name: str, detail: str = "") -> Iterator[Note]:
        """A phase: told at its start, timed, told at its end, ok unless an exception leaves it."""
        self.progress(DeedStep(name, None, detail))
        note = Note(self, name, detail)
        begun = self.mono()
        try:
            yield note
        except BaseException as error:
            said = error.message if isinstance(error, TunewatchError) else type(error).__name__
            self._tell(DeedStep(name, False, said, self.mono() - begun))
            raise
        self._tell(DeedStep(name, note.ok, note.detail, self.mono() - begun))

    def _tell(self, step: DeedStep) -> None:
        self.steps.append(step)
        self.progress(step)

    def result(self, *, ok: bool, state: DeedState, run: str | None, instance_id: int | None) -> DeedResult:
        """What the deed reports."""
        return DeedResult(ok, state, run, instance_id, tuple(self.steps))

    def patiently(
        self,
        call: Callable[[], T],
        *,
        for_s: float,
        first_wait_s: float = 1.0,
        again_on: tuple[type[TunewatchError], ...] = (UnreachableError, ProviderError),
    ) -> T:
        """Repeat a harmless or idempotent call while trying again may help, at most for `for_s` seconds.

        The last error is raised. A wrong key and an unknown instance are not waited out.
        """
        until = self.mono() + for_s
        wait = first_wait_s
        while True:
            try:
                return call()
            except (AuthError, NoSuchInstanceError):
                raise
            except again_on as error:
                pause = max(wait, error.retry_after_s if isinstance(error, RateLimitedError) else 0.0)
                if self.mono() + pause > until:
                    raise
                self.sleep(pause)
                wait = min(wait * 1.6, 15.0)

    def listing(self, *, for_s: float = 60.0) -> list[Instance]:
        """One successful listing of everything on the account, metered on the way."""
        found = self.patiently(self.provider.instances, for_s=for_s)
        observe(self.journal, found, self.clock())
        return found


class Note:
    """Lets the body of a step say what it found."""

    def __init__(self, desk: Desk, name: str, detail: str) -> None:
        self._desk = desk
        self._name = name
        self.detail = detail
        self.ok: bool | None = True

    def say(self, detail: str) -> None:
        """Progress within the phase."""
        if detail != self.detail:
            self.detail = detail
            self._desk.progress(DeedStep(self._name, None, detail))
