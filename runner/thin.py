"""Series that never grow without bound: a long run is thinned as it is read, and its extremes stay.

What is kept depends on the points alone and not on when somebody looked, so a log read in any pieces gives the same
series. A series holds at most `LIMIT` points; each time it is full, groups of neighbours are replaced by a few of
them, which costs an amortised constant per point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from runner.history import Frame, TrainPoint

LIMIT = 8192
"""Points a series may hold before it is thinned to at most half of that."""

T = TypeVar("T")


class Thinned(Generic[T]):
    """A list that is passed through `thin` each time it holds LIMIT points; the newest point is always the last."""

    def __init__(self, thin: Callable[[Sequence[T]], list[T]], limit: int = LIMIT) -> None:
        self._thin = thin
        self._limit = limit
        self._points: list[T] = []
        self._frozen: tuple[T, ...] | None = ()

    def append(self, point: T) -> None:
        """Add the newest point."""
        self._points.append(point)
        self._frozen = None
        if len(self._points) >= self._limit:
            self._points = [*self._thin(self._points[:-1]), self._points[-1]]

    def pop(self) -> None:
        """Take the newest point out again."""
        self._points.pop()
        self._frozen = None

    def drop_where(self, unwanted: Callable[[T], bool]) -> None:
        """Take out the points for which `unwanted` is true (a resumed run trains them again)."""
        self._points = [p for p in self._points if not unwanted(p)]
        self._frozen = None

    def change(self, new: Callable[[T], T]) -> None:
        """Put another point in the place of each."""
        self._points = [new(p) for p in self._points]
        self._frozen = None

    def items(self) -> tuple[T, ...]:
        """The points kept so far; the same tuple while nothing was added."""
        if self._frozen is None:
            self._frozen = tuple(self._points)
        return self._frozen

    def __len__(self) -> int:
        return len(self._points)


def thin_train(points: Sequence[TrainPoint]) -> list[TrainPoint]:
    """Of each eight neighbours keep the lowest loss, the highest, the first that is not finite, and the first.

    The lowest and the highest loss of the whole series survive any number of passes.
    """
    kept: list[TrainPoint] = []
    for start in range(0, len(points), 8):
        group = points[start : start + 8]
        chosen = {0}
        finite = [(p.loss, i) for i, p in enumerate(group) if p.loss is not None and math.isfinite(p.loss)]
        if finite:
            chosen |= {min(finite)[1], max(finite)[1]}
        odd = next((i for i, p in enumerate(group) if p.loss is not None and not math.isfinite(p.loss)), None)
        if odd is not None:
            chosen.add(odd)
        kept.extend(group[i] for i in sorted(chosen))
    return kept


def thin_frames(frames: Sequence[Frame]) -> list[Frame]:
    """Keep every second reading of progress, and the first and last of each process."""
    last = len(frames) - 1
    return [
        frame
        for i, frame in enumerate(frames)
        if i % 2 == 0 or i == last or frames[i - 1].process != frame.process or frames[i + 1].process != frame.process
    ]
