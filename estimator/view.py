"""What the mathematics needs to know of a run, stripped of files, clocks and words.

`remote.forecast.run_view` makes it from a `RunHistory`; tests make it by hand. Anything odd is put in order here, once:
non-finite steps are dropped, evals are sorted by first appearance of a step, pauses without length are left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

EvalRow = tuple[int, float, float | None]
"""(step, eval_loss, seconds the evaluation took or None)"""
FrameRow = tuple[int, float, int]
"""(step, seconds since its process began, process number)"""
PauseRow = tuple[int, str, float, int]
"""(step, "eval" or "save", seconds, process number)"""


@dataclass(frozen=True, slots=True)
class RunView:
    """One run at one moment."""

    step: int
    """Steps done."""
    horizon: int | None
    """Steps planned; None when the run does not say."""
    elapsed_s: float | None = None
    """Seconds over all processes, evals and saves included."""
    eval_every: int | None = None
    """Steps between evals; None until two evals are known."""
    evals: tuple[EvalRow, ...] = ()
    frames: tuple[FrameRow, ...] = ()
    pauses: tuple[PauseRow, ...] = ()

    @property
    def remaining(self) -> int | None:
        """Steps from now to the horizon, never negative."""
        return None if self.horizon is None else max(0, self.horizon - self.step)

    def eval_pairs(self) -> list[tuple[int, float]]:
        """`(step, eval_loss)` in order, each step once: what the auto-stop machine takes."""
        return [(step, loss) for step, loss, _ in self.evals]

    def coming_evals(self) -> list[int]:
        """The steps at which evals are still to come, by the rhythm of those seen, up to the horizon.

        Empty when the horizon is unknown. Without any rhythm twenty evals over the horizon are assumed, the median
        of the fine-tunes in the curve library.
        """
        if self.horizon is None:
            return []
        every = self.eval_every or max(1, round(self.horizon / 20))
        last = self.evals[-1][0] if self.evals else 0
        offset = last % every
        first = max(last, offset) + every if self.evals else every
        return list(range(first, self.horizon + 1, every))


def make_view(
    *,
    step: int | None,
    horizon: int | None,
    elapsed_s: float | None = None,
    eval_every: int | None = None,
    evals: Iterable[tuple[int | None, float, float | None]] = (),
    frames: Iterable[FrameRow] = (),
    pauses: Iterable[PauseRow] = (),
) -> RunView:
    """Bring raw readings into order: evals by step with repeats dropped, negative or non-finite times dropped.

    A non-finite loss stays: it stops the run and must reach the machine.
    """
    rows: list[EvalRow] = []
    seen: set[int] = set()
    for at, loss, runtime in evals:
        # the first reading of a step counts, as in the machine: a resumed run repeats its last eval
        if at is None or at < 0 or at in seen:
            continue
        seen.add(at)
        rows.append((at, float(loss), runtime if runtime is not None and _is_time(runtime) else None))
    rows.sort(key=lambda row: row[0])
    kept = tuple(f for f in frames if f[0] >= 0 and _is_time(f[1]))
    reached = max([step or 0, *(row[0] for row in rows), 0])
    return RunView(
        step=reached,
        horizon=horizon if horizon is not None and horizon > 0 else None,
        elapsed_s=elapsed_s if elapsed_s is not None and _is_time(elapsed_s) else None,
        eval_every=eval_every or _rhythm([row[0] for row in rows]),
        evals=tuple(rows),
        frames=kept,
        pauses=tuple(p for p in pauses if _is_time(p[2])),
    )


def _is_time(seconds: float) -> bool:
    return math.isfinite(seconds) and seconds >= 0


def _rhythm(steps: list[int]) -> int | None:
    """Median distance of the eval steps; a single eval tells its own step, for the first one falls on the rhythm."""
    if not steps:
        return None
    if len(steps) == 1:
        return steps[0] or None
    gaps = sorted(b - a for a, b in itertools.pairwise(steps))
    return gaps[len(gaps) // 2]
