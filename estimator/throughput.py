"""How fast the run goes: seconds per training step, per evaluation and per save, kept apart."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass

import numpy as np

from estimator.view import RunView

LEVEL_SD = 0.015
"""Log sd that remains however much was measured."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Speed of the box the run is on."""

    step_s: float
    """Seconds per training step, evals and saves excluded."""
    eval_s: float
    """Seconds per evaluation; 0 when there are none."""
    save_s: float
    """Seconds per checkpoint; 0 when none was seen."""
    eval_every: int | None
    save_every: int | None
    log_sd: float
    """Spread of the log of the coming mean step time."""
    n: int
    """Steps that were measured."""
    source: str
    drift: float = 0.0
    """Relative change of the step time from the first to the second half of what was measured."""

    @property
    def effective_sps(self) -> float:
        """Steps per second with evals and saves in."""
        extra = 0.0
        if self.eval_every:
            extra += self.eval_s / self.eval_every
        if self.save_every:
            extra += self.save_s / self.save_every
        return 1.0 / (self.step_s + extra)

    def seconds(self, steps: float) -> float:
        """Expected wall seconds for the next `steps` steps on this box."""
        return steps / self.effective_sps


def throughput(view: RunView) -> Throughput | None:
    """Measure the run; None before two readings of progress."""
    evals = [p[2] for p in view.pauses if p[1] == "eval"] or [e[2] for e in view.evals if e[2] is not None]
    saves = [p for p in view.pauses if p[1] == "save"]
    eval_s = statistics.median(evals) if evals else 0.0
    save_s = statistics.median(p[2] for p in saves) if saves else 0.0
    save_every = _rhythm(sorted({p[0] for p in saves}))
    slopes, weights = _slopes(view, eval_s)
    if not slopes:
        if not view.elapsed_s or view.step < 1:
            return None
        busy = view.elapsed_s - eval_s * len(view.evals) - save_s * len(saves)
        step_s = max(busy, 0.5 * view.elapsed_s) / view.step
        return Throughput(step_s, eval_s, save_s, view.eval_every, save_every, 0.05, view.step, "elapsed")
    half = len(slopes) // 2
    step_s = statistics.median(slopes[half:])
    early = statistics.median(slopes[:half]) if half else step_s
    return Throughput(
        step_s=step_s,
        eval_s=eval_s,
        save_s=save_s,
        eval_every=view.eval_every,
        save_every=save_every,
        log_sd=math.hypot(LEVEL_SD, float(np.std(np.log(slopes))) / math.sqrt(len(slopes))),
        n=sum(weights),
        source="frames",
        drift=step_s / early - 1.0,
    )


def _slopes(view: RunView, eval_s: float) -> tuple[list[float], list[int]]:
    slopes: list[float] = []
    weights: list[int] = []
    for process in sorted({f[2] for f in view.frames}):
        frames = sorted(f for f in view.frames if f[2] == process)
        block = max(1, len(frames) // 20)
        for (s0, t0, _), (s1, t1, _) in zip(frames[::block], frames[block::block], strict=False):
            pause = sum(p[2] for p in view.pauses if s0 <= p[0] < s1 and p[3] == process)
            if not view.pauses:
                pause = eval_s * sum(1 for e in view.evals if s0 <= e[0] < s1)
            if s1 > s0 and t1 - t0 - pause > 0:
                slopes.append((t1 - t0 - pause) / (s1 - s0))
                weights.append(s1 - s0)
    return slopes, weights


def _rhythm(steps: list[int]) -> int | None:
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    return round(statistics.median(gaps)) if gaps else None
