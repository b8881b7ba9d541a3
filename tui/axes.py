"""What a chart shows and where each value falls on its cells: frozen values and pure arithmetic, no drawing.

The rules of this file:

- A spike is never hidden: a column of many points is drawn from its lowest to its highest value.
- A value that is not finite is a gap, and never enters the bounds of an axis.
- `Geometry` is the one place that maps values to cells and back; drawing, cursor and mouse all ask it.

Columns and rows count from 0 at the upper left of the plot area, which lies right of the gutter of y labels. The
first and the last column stand for the two ends of the x range (centre of the cell), as plotext draws them.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

Role = Literal["raw", "line", "second", "best", "min_steps", "patience", "projected", "stop", "a", "b", "c", "d", "e"]
"""What a thing on the chart means; the palette gives each meaning its colour."""

Marker = Literal["braille", "blocks", "ascii"]

_HUGE = 1e100
"""Beyond this a value counts as not finite: differences of two such values overflow."""
_TINY = 1e-100
_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: equally long x and y, x ascending. Build it with `series`, which sorts and finds the gaps."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    role: Role = "line"
    label: str = ""
    points: bool = False
    """Draw a dot at each value too: for curves of few points, such as evals."""
    gaps: tuple[int, ...] = ()
    """Indices whose y is not finite."""


class VLine(NamedTuple):
    """A dotted vertical line at data x, with a label at the top of the plot."""

    x: float
    label: str
    role: Role


class HLine(NamedTuple):
    """A dashed horizontal line at data y, with a label at its right end."""

    y: float
    label: str
    role: Role


class Span(NamedTuple):
    """A shaded stretch of x, for the patience window and the projected stop between P10 and P90."""

    lo: float
    hi: float
    role: Role


class Mark(NamedTuple):
    """One glyph at a data point."""

    x: float
    y: float
    glyph: str
    role: Role


@dataclass(frozen=True, slots=True)
class ChartSpec:
    """Everything one chart shows. Two equal specs of one size give the same picture."""

    series: tuple[Series, ...] = ()
    vlines: tuple[VLine, ...] = ()
    hlines: tuple[HLine, ...] = ()
    spans: tuple[Span, ...] = ()
    marks: tuple[Mark, ...] = ()
    x_range: tuple[float, float] | None = None
    """The window zoomed to; None shows everything."""
    x_reach: float | None = None
    """An x that the full view has to reach (the projected stop), when no window is set."""
    log_x: bool = False
    log_y: bool = False
    x_time: bool = False
    """x is in seconds and its labels read as durations."""
    cursor: float | None = None
    """Data x of the cursor."""
    gutter: int = 0
    """Fewest columns left of the plot: equal ones put charts of one screen in line."""
    empty: str = "no data yet"
    """What stands in the middle while there is nothing to draw."""


def series(
    points: Iterable[tuple[float | None, float | None]], role: Role = "line", *, label: str = "", dots: bool = False
) -> Series:
    """Make a curve of `(x, y)` pairs: without x a pair is left out, without y it is a gap; sorted by x if need be."""
    pairs = [
        (x, (y if abs(y) > _TINY else 0.0) if y is not None and -_HUGE < y < _HUGE else math.nan)
        for x, y in points
        if x is not None and -_HUGE < x < _HUGE
    ]
    if any(pairs[i][0] > pairs[i + 1][0] for i in range(len(pairs) - 1)):
        pairs.sort(key=lambda p: p[0])
    ys = tuple(p[1] for p in pairs)
    return Series(
        tuple(p[0] for p in pairs), ys, role, label, dots, tuple(i for i, y in enumerate(ys) if not math.isfinite(y))
    )


def smooth(curve: Series, weight: float, role: Role = "line") -> Series:
    """Exponential moving average with the usual start-up correction; `weight` in [0, 1), 0 returns the values.

    Gaps stay gaps and do not touch the average. The correction divides by 1 - weight**n, so that the first values
    are not pulled to zero (Kingma and Ba 2015, section 3).
    """
    if not weight:
        return Series(curve.xs, curve.ys, role, curve.label, curve.points, curve.gaps)
    out: list[float] = []
    average, mass = 0.0, 1.0
    for y in curve.ys:
        if math.isfinite(y):
            average = weight * average + (1 - weight) * y
            mass *= weight
            out.append(average / (1 - mass))
        else:
            out.append(math.nan)
    return Series(curve.xs, tuple(out), role, curve.label, curve.points, curve.gaps)


def decimate(curve: Series, lo: float, hi: float, columns: int, *, log_x: bool = False) -> list[tuple[int, int]]:
    """The runs of indices to draw between `lo` and `hi`, as pairs (index, run number).

    At most two points per column are kept: its lowest and its highest, in their order. One point beyond each end is
    kept so that lines enter and leave the window. A gap ends a run.
    """
    first = max(bisect_left(curve.xs, lo) - 1, 0)
    last = min(bisect_right(curve.xs, hi) + 1, len(curve.xs))
    if last - first <= 2 * columns:
        return _with_runs(curve, range(first, last))
    kept: list[int] = []
    edges = [bisect_left(curve.xs, _edge(lo, hi, i / columns, log_x), first, last) for i in range(columns + 1)]
    edges[0], edges[-1] = first, last
    for start, end in pairwise(edges):
        if start < end:
            kept.extend(_extremes(curve, start, end))
    return _with_runs(curve, kept)


def _edge(lo: float, hi: float, share: float, log_x: bool) -> float:
    if log_x:
        return float(lo * (hi / lo) ** share)
    return lo + (hi - lo) * share


def _extremes(curve: Series, start: int, end: int) -> list[int]:
    """Indices of the lowest and highest finite value of a column, and one gap if there is any, in order."""
    gap_at = bisect_left(curve.gaps, start)
    has_gap = gap_at < len(curve.gaps) and curve.gaps[gap_at] < end
    if not has_gap:
        chunk = curve.ys[start:end]
        low, high = start + chunk.index(min(chunk)), start + chunk.index(max(chunk))
        return sorted({low, high})
    finite = [i for i in range(start, end) if math.isfinite(curve.ys[i])]
    if not finite:
        return [curve.gaps[gap_at]]
    low, high = min(finite, key=curve.ys.__getitem__), max(finite, key=curve.ys.__getitem__)
    return sorted({low, high, curve.gaps[gap_at]})


def _with_runs(curve: Series, indices: Iterable[int]) -> list[tuple[int, int]]:
    run, out = 0, []
    for i in indices:
        if math.isfinite(curve.ys[i]):
            out.append((i, run))
        else:
            run += 1
    return out


@dataclass(frozen=True, slots=True)
class Geometry:
    """The cells of one chart: its plot area, its ranges and its ticks."""

    width: int
    height: int
    gutter: int
    """Columns left of the plot, for labels and the axis."""
    columns: int
    rows: int
    x_lo: float
    x_hi: float
    y_lo: float
    y_hi: float
    log_x: bool = False
    log_y: bool = False
    x_ticks: tuple[tuple[float, str], ...] = ()
    y_ticks: tuple[tuple[float, str], ...] = ()
    drawn: tuple[tuple[tuple[int, int], ...], ...] = field(default=(), repr=False)
    """Per series what `decimate` kept."""

    def share_x(self, x: float) -> float:
        """Where x lies between the ends of the axis: 0 at the left end, 1 at the right."""
        return _share(x, self.x_lo, self.x_hi, self.log_x)

    def share_y(self, y: float) -> float:
        """Where y lies between the ends of the axis: 0 at the bottom, 1 at the top."""
        return _share(y, self.y_lo, self.y_hi, self.log_y)

    def column_of(self, x: float) -> int | None:
        """The plot column of a data x, None outside the window."""
        share = self.share_x(x)
        if not -0.5 / self.columns <= share <= 1 + 0.5 / self.columns:
            return None
        return min(max(round(share * (self.columns - 1)), 0), self.columns - 1)

    def row_of(self, y: float) -> int | None:
        """The plot row of a data y, None outside the axis."""
        share = self.share_y(y)
        if not -0.01 <= share <= 1.01:
            return None
        return min(max(self.rows - 1 - round(share * (self.rows - 1)), 0), self.rows - 1)

    def x_at(self, column: float) -> float:
        """The data x of a plot column (the inverse of `column_of`)."""
        share = column / max(self.columns - 1, 1)
        return _edge(self.x_lo, self.x_hi, share, self.log_x)


def _share(value: float, lo: float, hi: float, log: bool) -> float:
    if log:
        if value <= 0:
            return -1.0
        value, lo, hi = math.log10(value), math.log10(lo), math.log10(hi)
    return (value - lo) / (hi - lo)


def layout(spec: ChartSpec, width: int, height: int) -> Geometry | None:
    """Find ranges, ticks and gutter for a chart of `width` x `height` cells; None when there is nothing to draw."""
    bounds = _x_bounds(spec)
    if bounds is None or width < 12 or height < 3:
        return None
    x_lo, x_hi = bounds
    rows = height - 1
    drawn = tuple(tuple(decimate(s, x_lo, x_hi, width, log_x=spec.log_x)) for s in spec.series)
    y_bounds = _y_bounds(spec, drawn, x_lo, x_hi)
    if y_bounds is None:
        return None
    y_lo, y_hi = y_bounds
    y_ticks = ticks(y_lo, y_hi, max(2, round(rows / 2.6)), log=spec.log_y)
    if max((len(label) for _, label in y_ticks), default=0) > width // 3:
        y_ticks = ()
    gutter = max((len(label) for _, label in y_ticks), default=1) + 1
    gutter = max(gutter, min(spec.gutter, width // 3))
    columns = max(width - gutter - 1, 2)
    x_ticks = ticks(x_lo, x_hi, max(2, columns // 11), log=spec.log_x, time=spec.x_time)
    return Geometry(
        width, height, gutter, columns, rows, x_lo, x_hi, y_lo, y_hi, spec.log_x, spec.log_y, x_ticks, y_ticks, drawn
    )


def _x_bounds(spec: ChartSpec) -> tuple[float, float] | None:
    lows = [s.xs[0] for s in spec.series if s.xs]
    highs = [s.xs[-1] for s in spec.series if s.xs]
    if not lows:
        return None
    lo: float
    hi: float
    if spec.x_range:
        lo, hi = spec.x_range
    else:
        lo, hi = min(lows), max(highs)
        if spec.x_reach is not None:
            hi = max(hi, spec.x_reach)
        if not spec.log_x and 0 < lo < 0.25 * hi:
            lo = 0.0
    if spec.log_x:
        positive = [x for s in spec.series for x in s.xs[:2] if x > 0]
        lo = max(lo, min(positive, default=1.0), 1e-9)
        hi = max(hi, lo)
    if hi <= lo:
        lo, hi = (lo / 1.5, lo * 1.5) if spec.log_x else (lo - 1, lo + 1)
    return lo, hi


def _y_bounds(
    spec: ChartSpec, drawn: Sequence[Sequence[tuple[int, int]]], x_lo: float, x_hi: float
) -> tuple[float, float] | None:
    values = [
        s.ys[i]
        for s, kept in zip(spec.series, drawn, strict=True)
        for i, _ in kept
        if x_lo <= s.xs[i] <= x_hi and (s.ys[i] > 0 or not spec.log_y)
    ]
    if not values:
        # zoomed between two points: the line through the window is all there is
        values = [
            s.ys[i] for s, k in zip(spec.series, drawn, strict=True) for i, _ in k if s.ys[i] > 0 or not spec.log_y
        ]
    if not values:
        return None
    lo, hi = min(values), max(values)
    if spec.log_y:
        if hi / lo < 1.05:
            lo, hi = lo / 1.05, hi * 1.05
        margin = (hi / lo) ** 0.04
        return lo / margin, hi * margin
    span = hi - lo
    if span < 1e-9 * max(abs(hi), abs(lo), 1e-9):
        span = max(abs(hi) * 0.1, 1e-6)
    lo_out, hi_out = lo - 0.06 * span, hi + 0.06 * span
    return (0.0 if lo >= 0 > lo_out else lo_out), hi_out


def ticks(lo: float, hi: float, wanted: int, *, log: bool = False, time: bool = False) -> tuple[tuple[float, str], ...]:
    """At most about `wanted` round values between `lo` and `hi` with their labels (`1k`, `0.25`, `10m`)."""
    if log:
        return _log_ticks(lo, hi, wanted)
    step = _time_step((hi - lo) / max(wanted, 1)) if time else _nice_step((hi - lo) / max(wanted, 1))
    start = math.ceil(lo / step - 1e-9)
    values = [i * step for i in range(start, math.floor(hi / step + 1e-9) + 1)]
    if time:
        return tuple((v, _time_label(v, step)) for v in values)
    return tuple((v, number_label(v, step)) for v in values)


def _nice_step(raw: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(raw))
    return next(n * magnitude for n in _NICE if n * magnitude >= raw * 0.9 or n == 10)


def _time_step(raw: float) -> float:
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
    return next((float(s) for s in steps if s >= raw), _nice_step(raw / 86400) * 86400)


def _time_label(seconds: float, step: float) -> str:
    total = round(seconds)
    if step >= 3600:
        return f"{total // 3600}h"
    if step >= 60:
        hours, minutes = divmod(total // 60, 60)
        return f"{hours}h{minutes:02d}" if hours else f"{minutes}m"
    minutes, rest = divmod(total, 60)
    return f"{minutes}:{rest:02d}" if minutes else f"{rest}s"


def _log_ticks(lo: float, hi: float, wanted: int) -> tuple[tuple[float, str], ...]:
    first, last = math.floor(math.log10(lo)), math.ceil(math.log10(hi))
    digits: tuple[float, ...] = (1, 2, 5) if last - first <= max(wanted // 2, 1) else (1,)
    values = [d * 10.0**e for e in range(first, last + 1) for d in digits if lo <= d * 10.0**e <= hi]
    if len(values) < 2:
        return ticks(lo, hi, wanted)
    thin = max(1, math.ceil(len(values) / max(wanted * 1.5, 2)))
    return tuple((v, number_label(v, v)) for v in values[::thin])


def number_label(value: float, step: float) -> str:
    """A tick label short enough for a gutter, with as many decimals as `step` needs: `0.25`, `1.5k`, `2e-05`."""
    size = abs(value)
    if size < step * 1e-6:
        return "0"
    if size < 1e-3 or size >= 1e9:
        return f"{value:.3g}"
    if step >= 100 and size >= 1000:
        for unit, name in ((1e6, "M"), (1e3, "k")):
            if size >= unit:
                return f"{value / unit:.6g}{name}"
    decimals = next((d for d in range(8) if abs(round(step, d) - step) < step * 1e-6), 8)
    return f"{value:.{decimals}f}"
