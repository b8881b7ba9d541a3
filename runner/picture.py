"""Two pictures for a report, as SVG text: the macros of the stages, and the eval loss on its way to the stop. Pure.

Drawn by hand, because two charts are not worth a plotting library on every laptop and box. A white ground and plain
shapes: they read the same in a browser, on GitHub and on paper.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from runner.report import STAGES, LongRun, Report

_WIDTH, _INK, _PALE, _LINE, _MARK = 760, "#24292f", "#d0d7de", "#0969da", "#bc4c00"
_COLOURS = {"stage1": "#57606a", "stage2": "#cf222e", "stage4": "#1a7f37", "non_prefill": "#8250df"}


def macros_svg(report: Report) -> str:
    """A bar per measured stage from 0 to 1, with the macro's standard error where its tasks have one."""
    rows = [(name, what, report.stages[name]) for name, what in STAGES.items() if name in report.stages]
    left, right, top, step = 250, 90, 46, 44
    height, scale = top + step * len(rows) + 34, _WIDTH - left - right
    parts = [_text(16, 26, "Macro accuracy by stage", size=16, weight="600")]
    for tick in range(0, 11, 2):
        x = left + scale * tick / 10
        parts += [_rule(x, top - 6, x, height - 30, _PALE), _text(x, height - 12, f"{tick / 10:g}", anchor="middle")]
    for n, (name, what, stage) in enumerate(rows):
        y, end = top + step * n, left + scale * max(0.0, min(1.0, stage.macro))
        parts += [
            _text(left - 12, y + 13, name, anchor="end", weight="600"),
            _text(left - 12, y + 28, what, anchor="end", size=11),
            f'<rect x="{left}" y="{y + 4}" width="{end - left:.1f}" height="24" fill="{_COLOURS.get(name, _LINE)}"/>',
            _text(_WIDTH - 12, y + 21, f"{stage.macro:.4f}", anchor="end"),
        ]
        if stage.macro_stderr is not None:
            low, high = end - scale * stage.macro_stderr, end + scale * stage.macro_stderr
            parts += [_rule(low, y + 16, high, y + 16, _INK, 2)]
            parts += [_rule(x, y + 11, x, y + 21, _INK, 2) for x in (low, high)]
    return _page(height, "Macro accuracy by stage", parts)


def trajectory_svg(run: LongRun) -> str:
    """The eval loss over the steps; the best one and the stop are marked. Empty without two finite evaluations."""
    points = [(step, loss) for step, loss in run.trajectory if math.isfinite(loss)]
    if len(points) < 2:
        return ""
    left, right, top, bottom, height = 70, 24, 46, 52, 340
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    last = max(points[-1][0], run.stop_step or 0)

    def x(step: float) -> float:
        return left + (_WIDTH - left - right) * step / last

    def y(loss: float) -> float:
        return top + (height - top - bottom) * (high - loss) / (high - low)

    parts = [_text(16, 26, "Eval loss of the long fine-tune", size=16, weight="600")]
    for loss in _ticks(low, high):
        parts += [
            _rule(left, y(loss), _WIDTH - right, y(loss), _PALE),
            _text(left - 8, y(loss) + 4, f"{loss:g}", "end"),
        ]
    for step in _ticks(0, last):
        parts.append(_text(x(step), height - bottom + 18, f"{step:,.0f}", "middle"))
    parts.append(_text(left + (_WIDTH - left - right) / 2, height - 12, "optimizer step", "middle", size=11))
    line = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{_LINE}" stroke-width="2"/>')
    parts += [f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="3" fill="{_LINE}"/>' for s, v in points]
    if run.stop_step is not None:
        at = x(run.stop_step)
        parts.append(f'<path d="M{at:.1f} {top}V{height - bottom}" stroke="{_MARK}" stroke-dasharray="5 4"/>')
        parts.append(_text(at - 6, top + 12, f"ended at {run.stop_step:,}", "end", fill=_MARK))
    if run.best is not None:
        step, loss = run.best
        anchor = "start" if x(step) < _WIDTH / 2 else "end"
        parts.append(
            f'<circle cx="{x(step):.1f}" cy="{y(loss):.1f}" r="6" fill="none" stroke="{_MARK}" stroke-width="2"/>'
        )
        parts.append(_text(x(step), y(loss) + 22, f"best {loss:.4g} at {step:,}", anchor, fill=_MARK))
    return _page(height, "Eval loss of the long fine-tune", parts)


def _ticks(low: float, high: float) -> Sequence[float]:
    """Round numbers within [low, high], five or so."""
    rough = (high - low) / 5
    size = 10 ** math.floor(math.log10(rough))
    unit = next(size * k for k in (1, 2, 5, 10) if size * k >= rough)
    first = math.ceil(low / unit)
    return [round(unit * n, 10) for n in range(first, math.floor(high / unit) + 1)]


def _text(
    x: float, y: float, words: str, anchor: str = "start", *, size: int = 12, weight: str = "400", fill: str = _INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{fill}">{html.escape(words)}</text>'
    )


def _rule(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _page(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
        f'height="{height:.0f}" font-family="DejaVu Sans, Verdana, sans-serif" role="img"><title>{title}</title>'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )
