"""From a snapshot and what the person chose to see, to the charts: which curves, lines, shades and marks.

Pure. The step of an eval, of a stop and of a projection is data x on every chart, so one cursor reads them all.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from runner.autostop import Phase
from runner.history import EvalPoint, Frame, RunHistory
from tui import words
from tui.axes import ChartSpec, HLine, Mark, Series, Span, VLine, series, smooth
from tui.snapshot import RunSnapshot

XMode = Literal["step", "time", "log", "tokens", "epoch"]
"""By epoch where a log tells no steps; each other one needs them."""
PaneName = Literal["loss", "eval", "speed"]
PANES: tuple[PaneName, ...] = ("loss", "eval", "speed")
SMOOTHING = (0.0, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99)
Clock = tuple[Sequence[float], Sequence[float]]
"""Ascending steps, and for each how far the run was then: seconds of training, or tokens."""
X_WORDS: Mapping[XMode, str] = {
    "step": "by step", "time": "over time", "log": "log x", "tokens": "by tokens", "epoch": "by epoch",
}  # fmt: skip
GUTTER = 6
"""Columns left of the plots, at least: charts above each other stay in line."""


@dataclass(frozen=True, slots=True)
class View:
    """What the person chose: the same for all charts of a screen, so that they can be read against each other."""

    smoothing: int = 3
    """Index into SMOOTHING."""
    x_mode: XMode = "step"
    window: tuple[float, float] | None = None
    cursor: float | None = None
    log_y: frozenset[str] = frozenset()
    """Panes with a logarithmic y axis."""

    @property
    def weight(self) -> float:
        """The weight of the moving average."""
        return SMOOTHING[self.smoothing]

    def smoother(self, by: int) -> View:
        """One step more or less smoothing."""
        return replace(self, smoothing=min(max(self.smoothing + by, 0), len(SMOOTHING) - 1))

    def suited(self, *histories: RunHistory) -> View:
        """The same with an axis that the runs have: by epoch where no log of them tells steps, and only there."""
        by_epoch = bool(histories) and all(history.stepless for history in histories)
        if by_epoch == (self.x_mode == "epoch"):
            return self
        return replace(self, x_mode="epoch" if by_epoch else "step", window=None, cursor=None)

    def next_x_mode(self, *, tokens: bool = False) -> View:
        """step, time, log, tokens where they are counted, and round again; by epoch there is no other.

        A window of other units makes no sense and is dropped.
        """
        if self.x_mode == "epoch":
            return self
        order: tuple[XMode, ...] = ("step", "time", "log", "tokens") if tokens else ("step", "time", "log")
        at = order.index(self.x_mode) if self.x_mode in order else -1
        return replace(self, x_mode=order[(at + 1) % len(order)], window=None, cursor=None)


@dataclass(slots=True)
class CurveCache:
    """Curves of one history, kept while the history is the same: redrawing for a cursor must not smooth again."""

    _history: RunHistory | None = None
    _made: dict[tuple[object, ...], Series] = field(default_factory=dict)
    _clocks: dict[XMode, Clock] = field(default_factory=dict)

    def clock(self, history: RunHistory, x_mode: XMode = "time") -> Clock:
        """Steps with the seconds of training at them, or with the tokens seen until then."""
        self._fresh(history)
        if x_mode not in self._clocks:
            self._clocks[x_mode] = step_tokens(history) if x_mode == "tokens" else step_clock(history)
        return self._clocks[x_mode]

    def x_of(self, history: RunHistory, step: float, x_mode: XMode) -> float:
        """Where a step lies on the x axis."""
        return seconds_at(self.clock(history, x_mode), step) if x_mode in ("time", "tokens") else step

    def step_of(self, history: RunHistory, x: float, x_mode: XMode) -> int:
        """The step at a place of the x axis."""
        if x_mode in ("time", "tokens"):
            steps, reached = self.clock(history, x_mode)
            x = seconds_at((reached, steps), x)
        return round(x)

    def curve(self, history: RunHistory, name: str, x_mode: XMode) -> Series:
        """A raw curve: `loss`, `eval` or `speed`."""
        self._fresh(history)
        key = (name, x_mode)
        if key not in self._made:
            self._made[key] = self._raw(history, name, x_mode)
        return self._made[key]

    def smoothed(self, history: RunHistory, name: str, x_mode: XMode, weight: float) -> Series:
        """The curve's moving average."""
        raw = self.curve(history, name, x_mode)
        key = (name, x_mode, weight)
        if key not in self._made:
            self._made[key] = smooth(raw, weight)
        return self._made[key]

    def _fresh(self, history: RunHistory) -> None:
        if self._history is not history:
            self._history = history
            self._clocks.clear()
            self._made.clear()

    def _raw(self, history: RunHistory, name: str, x_mode: XMode) -> Series:
        points: list[tuple[float | None, float | None]]
        if x_mode == "epoch":
            points = _by_epoch(history, name)
        elif name == "loss":
            points = [(p.step, diverged(p.loss, p.grad_norm)) for p in history.train]
        elif name == "eval":
            points = [(e.step, e.eval_loss) for e in history.evals]
        else:
            points = list(step_times(history))
        if x_mode == "tokens" and not counts_tokens(history):
            points = []
        elif x_mode in ("time", "tokens"):
            clock = self.clock(history, x_mode)
            points = [(None if x is None else seconds_at(clock, x), y) for x, y in points]
        return series(points, "line" if name == "eval" else "raw", dots=name == "eval")


def _by_epoch(history: RunHistory, name: str) -> list[tuple[float | None, float | None]]:
    """Values over the epoch that the trainer printed with them: exact in transformers 5, to 2 decimals before."""
    if name == "loss":
        return [(p.epoch, diverged(p.loss, p.grad_norm)) for p in history.train]
    return [(e.epoch, e.eval_loss) for e in history.evals] if name == "eval" else []


def best_eval(history: RunHistory) -> EvalPoint | None:
    """The lowest finite eval, whether or not its step is known."""
    return min((e for e in history.evals if math.isfinite(e.eval_loss)), key=lambda e: e.eval_loss, default=None)


def diverged(loss: float | None, grad_norm: float | None) -> float | None:
    """The loss as it was: transformers prints 0 in place of a NaN loss, and the gradient norm gives it away."""
    if loss == 0 and grad_norm is not None and not math.isfinite(grad_norm):
        return math.nan
    return loss


def step_times(history: RunHistory, *, blocks: int = 400) -> list[tuple[float, float]]:
    """`(step, seconds per step)` between readings of progress, evals and saves taken out.

    A log tells whole seconds, so readings are joined until at least eight of them lie between two; readings of
    metrics.jsonl are finer and are joined only to bound their number.
    """
    whole = all(float(f.elapsed_s).is_integer() for f in history.frames[:50])
    least_s = 8.0 if whole else 0.0
    out: list[tuple[float, float]] = []
    for process in dict.fromkeys(f.process for f in history.frames):
        frames = [f for f in history.frames if f.process == process]
        least_steps = max(1, (frames[-1].step - frames[0].step) // blocks)
        pauses = sorted((p.step, p.seconds) for p in history.pauses if p.process == process)
        kept: list[Frame] = [frames[0]]
        for frame in frames[1:]:
            if frame.step - kept[-1].step >= least_steps and frame.elapsed_s - kept[-1].elapsed_s >= least_s:
                kept.append(frame)
        at = [p[0] for p in pauses]
        for a, b in pairwise(kept):
            # a pause at step n lies after the reading of step n
            lost = sum(p[1] for p in pauses[bisect_left(at, a.step) : bisect_left(at, b.step)])
            seconds = b.elapsed_s - a.elapsed_s - lost
            if b.step > a.step and seconds > 0:
                out.append((b.step, seconds / (b.step - a.step)))
    return out


def step_clock(history: RunHistory) -> Clock:
    """Ascending steps, and the seconds of training at each, over all processes."""
    steps: list[float] = [0.0]
    seconds: list[float] = [0.0]
    offset, process, last = 0.0, None, 0.0
    for frame in history.frames:
        if frame.process != process:
            offset, process, first = offset + last, frame.process, frame.elapsed_s
            last = 0.0
            if process:
                offset -= first
        last = frame.elapsed_s
        while steps and frame.step <= steps[-1] and len(steps) > 1:
            steps.pop()
            seconds.pop()
        if frame.step > steps[-1]:
            steps.append(float(frame.step))
            seconds.append(max(offset + frame.elapsed_s, seconds[-1]))
    return steps, seconds


def counts_tokens(history: RunHistory) -> bool:
    """Whether the run tells how many tokens it has seen."""
    # the newest points first: a trainer counts from its start or not at all
    return any(point.tokens for point in reversed(history.train))


def step_tokens(history: RunHistory) -> Clock:
    """Ascending steps, and the tokens seen until each; from (0, 0) on, never falling."""
    told = {float(p.step): p.tokens for p in history.train if p.step and p.tokens and math.isfinite(p.tokens)}
    steps, tokens = [0.0], [0.0]
    for step in sorted(told):
        steps.append(step)
        tokens.append(max(told[step], tokens[-1]))
    return steps, tokens


def seconds_at(clock: Clock, step: float) -> float:
    """Seconds of training (or tokens) at a step: between readings in proportion, beyond them at the mean pace."""
    steps, seconds = clock
    i = bisect_left(steps, step)
    if i < len(steps) and steps[i] == step:
        return seconds[i]
    if 0 < i < len(steps):
        share = (step - steps[i - 1]) / (steps[i] - steps[i - 1])
        return seconds[i - 1] + share * (seconds[i] - seconds[i - 1])
    return step * seconds[-1] / steps[-1] if steps[-1] else step


def charts(snapshot: RunSnapshot, view: View, cache: CurveCache) -> Mapping[PaneName, ChartSpec]:
    """The three charts of a run."""
    history = snapshot.history
    if view.x_mode == "epoch":
        return _charts_by_epoch(snapshot, view, cache)
    clock = cache.clock(history, view.x_mode) if view.x_mode in ("time", "tokens") else None
    reach = _reach(snapshot)
    return {
        "loss": _finish(_loss(snapshot, view, cache), "loss", view, clock, reach),
        "eval": _finish(_eval(snapshot, view, cache), "eval", view, clock, reach),
        "speed": _finish(_speed(snapshot, view, cache), "speed", view, clock, reach),
    }


def _charts_by_epoch(snapshot: RunSnapshot, view: View, cache: CurveCache) -> Mapping[PaneName, ChartSpec]:
    """The charts of a log that tells no steps: no line that stands at a step has a place on them."""
    best = best_eval(snapshot.history)
    marks = (Mark(best.epoch, best.eval_loss, "★", "best"),) if best is not None and best.epoch is not None else ()
    curve = cache.curve(snapshot.history, "eval", view.x_mode)
    specs: dict[PaneName, ChartSpec] = {
        "loss": replace(_loss(snapshot, view, cache), vlines=()),
        "eval": ChartSpec((curve,), marks=marks, empty="no eval yet"),
        "speed": ChartSpec(empty="this log tells no steps, so no step time"),
    }
    return {name: _finish(spec, name, view, None, None) for name, spec in specs.items()}


def _reach(snapshot: RunSnapshot) -> float | None:
    """How far right the full view goes: the end of the projection, as long as it is not far beyond the data."""
    step = snapshot.step
    projection = snapshot.ruling.projection
    if snapshot.ended or step is None or projection is None:
        return None
    first = snapshot.ruling.rule.min_steps
    if snapshot.history.max_steps is not None and snapshot.history.max_steps < first:
        first = 0
    return float(min(max(projection.p90, first, step), max(3 * step, first * 1.1, 20)))


def _finish(
    spec: ChartSpec,
    name: str,
    view: View,
    clock: Clock | None,
    reach: float | None,
) -> ChartSpec:
    spec = replace(
        spec,
        x_range=view.window,
        x_reach=reach,
        log_x=view.x_mode == "log",
        log_y=name in view.log_y,
        x_time=view.x_mode == "time",
        cursor=view.cursor,
        gutter=GUTTER,
    )
    if clock is None:
        return spec
    return replace(
        spec,
        x_reach=None if reach is None else seconds_at(clock, reach),
        vlines=tuple(v._replace(x=seconds_at(clock, v.x)) for v in spec.vlines),
        spans=tuple(s._replace(lo=seconds_at(clock, s.lo), hi=seconds_at(clock, s.hi)) for s in spec.spans),
        marks=tuple(m._replace(x=seconds_at(clock, m.x)) for m in spec.marks),
    )


def _loss(snapshot: RunSnapshot, view: View, cache: CurveCache) -> ChartSpec:
    raw = cache.curve(snapshot.history, "loss", view.x_mode)
    curves: tuple[Series, ...] = (raw,)
    if view.weight and len(raw.xs) > 2:
        curves = (raw, cache.smoothed(snapshot.history, "loss", view.x_mode, view.weight))
    else:
        curves = (replace(raw, role="line"),)
    return ChartSpec(curves, vlines=_stop_line(snapshot), empty="no training loss yet")


def _eval(snapshot: RunSnapshot, view: View, cache: CurveCache) -> ChartSpec:
    ruling, history = snapshot.ruling, snapshot.history
    rule, state = ruling.rule, ruling.state
    vlines = [*_stop_line(snapshot)]
    if rule.min_steps:
        vlines.insert(0, VLine(rule.min_steps, f"min_steps {rule.min_steps}", "min_steps"))
    spans: list[Span] = []
    hlines: list[HLine] = []
    pending = [VLine(step, "value pending", "min_steps") for step in history.pending_evals]
    if state.reference is not None and state.reference_step is not None and state.bad:
        spans.append(Span(state.reference_step, state.last_step or state.reference_step, "patience"))
    if state.reference is not None and not snapshot.ended and state.phase is not Phase.FIRED:
        level = state.reference - rule.min_delta
        hlines.append(HLine(level, f"to beat {words.loss(level)}", "patience"))
    if ruling.projection and not snapshot.ended and state.phase is not Phase.FIRED:
        projection = ruling.projection
        spans.append(Span(projection.p10, projection.p90, "projected"))
        vlines.append(VLine(projection.p50, f"stop ~{words.count(projection.p50)}", "projected"))
    marks: tuple[Mark, ...] = ()
    if state.best is not None and state.best_step is not None:
        marks = (Mark(state.best_step, state.best, "★", "best"),)
    curve = cache.curve(history, "eval", view.x_mode)
    empty = "no eval yet" if history.evals or not history.pending_evals else "eval done, value pending"
    return ChartSpec((curve,), (*vlines, *pending), tuple(hlines), tuple(spans), marks, empty=empty)


def _speed(snapshot: RunSnapshot, view: View, cache: CurveCache) -> ChartSpec:
    raw = cache.curve(snapshot.history, "speed", view.x_mode)
    curves: tuple[Series, ...] = (replace(raw, role="second"),)
    if len(raw.xs) > 8:
        trend = cache.smoothed(snapshot.history, "speed", view.x_mode, 0.8)
        curves = (raw, replace(trend, role="second"))
    return ChartSpec(curves, empty="no step time yet")


def _stop_line(snapshot: RunSnapshot) -> tuple[VLine, ...]:
    stopped = snapshot.ruling.state.stopped_at
    if stopped is None:
        return ()
    word = "stopped" if snapshot.declared else "would stop"
    return (VLine(stopped, f"{word} {stopped}", "stop"),)


def x_words(x: float, x_mode: XMode) -> str:
    """A place of the x axis as a person says it: `step 400`, `21m47s`, `1.5M tokens`, `epoch 0.48`."""
    if x_mode == "time":
        return words.duration(x)
    if x_mode == "epoch":
        return f"epoch {x:.4g}"
    return f"{words.count(x)} tokens" if x_mode == "tokens" else f"step {x:.0f}"


def reading(curve: Series, x: float) -> tuple[float, float] | None:
    """The point of a curve nearest to x; None when it has none."""
    if not curve.xs:
        return None
    i = bisect_left(curve.xs, x)
    near = min((j for j in (i - 1, i) if 0 <= j < len(curve.xs)), key=lambda j: abs(curve.xs[j] - x))
    return curve.xs[near], curve.ys[near]
