"""How fast the run goes: seconds per training step, per evaluation and per save, kept apart.

Readings of progress (step, elapsed) are turned into busy time, elapsed without the pauses, inside each process: a
resumed run starts its clock anew, and appended logs hold several processes. Busy time is cut into blocks long enough
that a clock of whole seconds does not matter; the step time is the mean of the newer half of the blocks, stalls left
out, or of the blocks since a change of regime (another tenant on the host, a changed clock). The first steps of a
process (compilation, caches) are left out where there are enough others.

The spread is not sampling noise: on recorded runs the resampling intervals cover 2 to 40 %. What moves the remaining
time is drift and change, so the spread has a floor that was set on recorded runs (59 of them, `BASE_SD`), and grows
with drift, scatter and the coarseness of the clock.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from estimator.simulate import Floats
from estimator.view import RunView

BASE_SD = 0.008
"""Log sd of the coming mean step time over a run's remaining nine tenths, however well the first tenth was measured."""
DRIFT_SHARE = 0.5
"""Share of the drift seen so far that counts as spread of what is to come."""
DRIFT_CAP = 0.06
REGIME_JUMP = 0.03
"""Log change of the step time that is taken for a change of regime, when it also stands out of the scatter."""
NEAR = 0.01
"""Log distance from the median pace within which a block is never a stall."""
WARM_UP_STEPS = 10
MAX_BLOCKS = 40


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
    """Steps between evals."""
    save_every: int | None
    """Steps between saves."""
    log_sd: float
    """Spread of the log of the coming mean step time."""
    n: int
    """Steps that were measured."""
    source: str
    """frames, elapsed (only the total was known), after a change of speed, or given."""
    drift: float = 0.0
    """Relative change of the step time over what was measured; above 0 is getting slower."""

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

    def interval(self, steps: float) -> tuple[float, float, float]:
        """P10, P50 and P90 of the wall seconds for the next `steps` steps."""
        middle = self.seconds(steps)
        reach = math.exp(1.2816 * self.log_sd)
        return middle / reach, middle, middle * reach


def throughput(view: RunView) -> Throughput | None:
    """Measure the run; None before two readings of progress."""
    evals = [p[2] for p in view.pauses if p[1] == "eval"] or [e[2] for e in view.evals if e[2] is not None]
    saves = [p for p in view.pauses if p[1] == "save"]
    eval_s = statistics.median(evals) if evals else 0.0
    save_s = statistics.median(p[2] for p in saves) if saves else 0.0
    gaps = [b - a for a, b in pairwise(sorted({p[0] for p in saves}))]
    save_every = round(statistics.median(gaps)) if gaps else None
    blocks = _blocks(view, eval_s)
    if not blocks:
        if not view.elapsed_s or view.step < 1:
            return None
        busy = view.elapsed_s - eval_s * len(view.evals) - save_s * len(saves)
        step_s = max(busy, 0.5 * view.elapsed_s) / view.step
        whole = 1.0 if view.elapsed_s == int(view.elapsed_s) else 0.0
        sd = math.hypot(0.03, 0.4 * whole / view.elapsed_s)
        return Throughput(step_s, eval_s, save_s, view.eval_every, save_every, sd, view.step, "elapsed")
    pace = np.log([seconds / steps for steps, seconds in blocks])
    weight = np.array([steps for steps, _ in blocks], dtype=np.float64)
    since = _regime(pace)
    # the block in which the change fell is half of each
    newest = slice(since + 1, None) if since else slice(len(pace) // 2, None)
    tick = _coarseness(view) * len(blocks) / sum(seconds for _, seconds in blocks)
    level = _level(pace[newest], weight[newest], tick)
    scatter = _scatter(pace[newest])
    drift = _drift(pace if since is None else pace[since:])
    coarse = _coarseness(view) / sum(seconds for _, seconds in blocks[newest])
    sd = math.sqrt(
        BASE_SD**2
        + (scatter**2 / max(1, len(pace[newest])))
        + min(DRIFT_CAP, DRIFT_SHARE * abs(drift)) ** 2
        + (0.4 * coarse) ** 2
        + (0.02**2 if since else 0.0)
    )
    return Throughput(
        step_s=math.exp(level),
        eval_s=eval_s,
        save_s=save_s,
        eval_every=view.eval_every,
        save_every=save_every,
        log_sd=sd,
        n=int(weight.sum()),
        source="after a change of speed" if since else "frames",
        drift=math.expm1(drift),
    )


def given_rate(rate: float, eval_every: int | None = None) -> Throughput:
    """A throughput that somebody typed: steps/s with evals and saves in. Raises ValueError unless it is above 0."""
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate has to be above 0 steps per second, not {rate!r}")
    return Throughput(1.0 / rate, 0.0, 0.0, eval_every, None, 0.0, 0, "given")


def _blocks(view: RunView, eval_s: float) -> list[tuple[int, float]]:
    """(steps, busy seconds) of each block, in the order of time."""
    blocks: list[tuple[int, float]] = []
    coarse = _coarseness(view)
    for process in sorted({f[2] for f in view.frames}):
        readings = _busy(view, process, eval_s)
        if len(readings) < 2:
            continue
        first = readings[0][0]
        if readings[-1][0] - first >= 4 * WARM_UP_STEPS:
            readings = [r for r in readings if r[0] >= first + WARM_UP_STEPS] or readings
        elif len(readings) > 3:
            readings = readings[1:]
        total = readings[-1][1] - readings[0][1]
        count = max(1, min(MAX_BLOCKS, len(readings) - 1, int(total / (20 * coarse)) if coarse else MAX_BLOCKS))
        blocks += _cut(readings, count)
    return blocks


def _busy(view: RunView, process: int, eval_s: float) -> list[tuple[int, float]]:
    """(step, busy seconds) of one process, rising in both."""
    frames = sorted((f[0], f[1]) for f in view.frames if f[2] == process)
    pauses = sorted((p[0], p[2]) for p in view.pauses if p[3] == process)
    if not any(p[1] == "eval" for p in view.pauses):
        first = frames[0][0] if frames else 0
        pauses += [(e[0], eval_s) for e in view.evals if e[0] >= first]
        pauses.sort()
    readings: list[tuple[int, float]] = []
    paused, at = 0.0, 0
    for step, elapsed in frames:
        # the first reading of a step is taken before the pause that follows it
        while at < len(pauses) and pauses[at][0] < step:
            # a pause before the first reading lies in another process or before the clock
            paused += pauses[at][1] if readings and pauses[at][0] >= readings[0][0] else 0.0
            at += 1
        busy = elapsed - paused
        if not readings or (step > readings[-1][0] and busy > readings[-1][1]):
            readings.append((step, busy))
    return readings


def _cut(readings: Sequence[tuple[int, float]], count: int) -> list[tuple[int, float]]:
    """Cut into about `count` blocks of equal busy time."""
    begin, end = readings[0][1], readings[-1][1]
    blocks: list[tuple[int, float]] = []
    last = readings[0]
    for reading in readings[1:]:
        if reading[1] - begin >= (len(blocks) + 1) * (end - begin) / count - 1e-9:
            blocks.append((reading[0] - last[0], reading[1] - last[1]))
            last = reading
    return blocks


def _coarseness(view: RunView) -> float:
    """1 second where the clock shows whole seconds (a tqdm bar), else 0."""
    return 1.0 if view.frames and all(f[1] == int(f[1]) for f in view.frames) else 0.0


def _regime(pace: Floats) -> int | None:
    """Index of the block since which the pace is another, None when it never changed; needs four blocks each side."""
    best, where = 0.0, None
    for split in range(4, len(pace) - 3):
        before, after = pace[:split], pace[split:]
        jump = abs(float(np.median(after) - np.median(before)))
        noise = max(_scatter(before), _scatter(after), 1e-4)
        if jump > REGIME_JUMP and jump > 4 * noise and jump / noise > best:
            best, where = jump / noise, split
    return where


def _drift(pace: Floats) -> float:
    """Log change from the first to the last block, by the median of the slopes between the halves (Theil-Sen)."""
    n = len(pace)
    if n < 2:
        return 0.0
    pairs = [(pace[j] - pace[i]) / (j - i) for i in range(n) for j in range(i + max(1, n // 2), n)]
    return float(np.median(pairs)) * (n - 1)


def _scatter(values: Floats) -> float:
    """Robust sd: 1.4826 times the median distance from the median."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if len(values) else 0.0


def _level(pace: Floats, weight: Floats, quantum: float) -> float:
    """Log of the mean pace of the blocks that are no stalls.

    `quantum` is what one tick of the clock means for the log pace of a block. With a clock of whole seconds the blocks
    take only a few values, so a median would be up to a percent off; the mean of all that lie near it is not.
    """
    middle = float(np.median(pace))
    near = np.abs(pace - middle) <= max(3 * _scatter(pace), 1.5 * quantum, NEAR)
    return math.log(float((np.exp(pace[near]) * weight[near]).sum() / weight[near].sum()))
