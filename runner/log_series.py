"""The series of a log, put together over its processes; what can no longer change is taken in once.

A look costs what came since the last one, not what the log holds: of the evaluations that are settled, and of the loss
lines of earlier processes, the result is kept. The same log gives the same series however often somebody looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain as joined
from operator import itemgetter

from runner.history import EvalPoint, Frame, Pause, TrainPoint
from runner.log_process import Entry, Process, eval_point, train_point

_STEP = itemgetter(0)


@dataclass(frozen=True, slots=True)
class Evals:
    """The evaluations of a run, with what is asked of them at each look."""

    points: tuple[EvalPoint, ...]
    unplaced: int
    """How many have no step."""
    odd: bool
    """Whether some value may not be finite."""


class _Taken:
    """Evaluations in the order of the log. One at a step that is there already takes its place: it is newer."""

    def __init__(self) -> None:
        self.points: list[EvalPoint] = []
        self.places: dict[int, int] = {}
        self.unplaced = 0
        self.odd = False

    def copy(self) -> _Taken:
        """Another one, to which more can be added."""
        other = _Taken()
        other.points, other.places = self.points.copy(), self.places.copy()
        other.unplaced, other.odd = self.unplaced, self.odd
        return other

    def add(self, point: EvalPoint | None) -> None:
        """Take the next evaluation; None is one that printed no eval_loss."""
        if point is None:
            return
        self.odd = self.odd or not abs(point.eval_loss) < float("inf")
        if point.step is None:
            self.unplaced += 1
        elif point.step in self.places:
            self.points[self.places[point.step]] = point
            return
        else:
            self.places[point.step] = len(self.points)
        self.points.append(point)


class Series:
    """What is kept between two looks at one log."""

    def __init__(self) -> None:
        self._chain: list[Process] = []
        self._done = 0
        """Processes at the head of the chain whose evaluations are all taken in."""
        self._next = 0
        """The first evaluation of the process after them that is not."""
        self._taken = _Taken()
        self._heads: tuple[tuple[TrainPoint, ...], ...] = ()
        self._cut: int | None = None
        self._head: tuple[TrainPoint, ...] = ()

    def evals(self, chain: list[Process]) -> Evals:
        """The evaluations of the processes in `chain`, oldest first."""
        if chain[: len(self._chain)] != self._chain:
            self._done = self._next = 0
            self._taken = _Taken()
        self._chain = chain
        rest = self._advance()
        taken = self._taken
        if rest:
            taken = taken.copy()
            for process, entry in rest:
                taken.add(entry.point or eval_point(entry, process.infer(entry)))
        points = taken.points
        if len(chain) > 1 and not taken.unplaced:
            points = sorted(points, key=_STEP)
        return Evals(tuple(points), taken.unplaced, taken.odd)

    def _advance(self) -> list[tuple[Process, Entry]]:
        """Take in what is settled; returns what comes after the first evaluation that is not."""
        chain = self._chain
        while self._done < len(chain):
            entries = chain[self._done].evals
            while self._next < len(entries) and entries[self._next].settled:
                self._taken.add(entries[self._next].point)
                self._next += 1
            if self._next < len(entries) or self._done == len(chain) - 1:
                break
            self._done, self._next = self._done + 1, 0
        rest = [(process, entry) for process in chain[self._done + 1 :] for entry in process.evals]
        here = chain[self._done]
        return [(here, entry) for entry in here.evals[self._next :]] + rest

    def train(self, chain: list[Process]) -> tuple[TrainPoint, ...]:
        """The loss lines kept; what a resumed process trains again is dropped from the ones before it."""
        lines = tuple(_lines(process) for process in chain)
        last = lines[-1]
        start = next((p.step for p in last if p.step is not None), None)
        heads = lines[:-1]
        same = len(heads) == len(self._heads) and all(a is b for a, b in zip(heads, self._heads, strict=True))
        if not same or start != self._cut:
            self._heads, self._cut = heads, start
            head: tuple[TrainPoint, ...] = ()
            for more in heads:
                head = _before(head, more) + more
            self._head = _before(head, last)
        return self._head + last if self._head else last


def frames(chain: list[Process]) -> tuple[Frame, ...]:
    """The readings of progress, each with the place of its process in the chain."""
    _number(chain)
    return chain[0].frames.items() if len(chain) == 1 else tuple(joined.from_iterable(p.frames.items() for p in chain))


def pauses(chain: list[Process]) -> tuple[Pause, ...]:
    """Evaluations and saves by process and step, as far as their length is known."""
    _number(chain)
    return tuple(joined.from_iterable(p.pauses for p in chain))


def _number(chain: list[Process]) -> None:
    for place, process in enumerate(chain):
        process.renumber(place)


def _lines(process: Process) -> tuple[TrainPoint, ...]:
    """The loss lines of one process, with those that wait for their event where their step can be told."""
    kept = process.train.items()
    late = [(train_point(entry), process.infer(entry)) for entry in process.waiting]
    placed = [p._replace(step=step) for p, step in late if p is not None and step is not None]
    if not placed:
        return kept
    return tuple(sorted(kept + tuple(placed), key=lambda p: -1 if p.step is None else p.step))


def _before(points: tuple[TrainPoint, ...], more: Sequence[TrainPoint]) -> tuple[TrainPoint, ...]:
    """Those of `points` that the lines after them do not train again."""
    start = next((p.step for p in more if p.step is not None), None)
    return points if start is None else tuple(p for p in points if p.step is None or p.step < start)
