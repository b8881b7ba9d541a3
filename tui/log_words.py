"""How the Logs screen stands, in words: one line, the most important first. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.text import Text

from runner.history import EvalPoint, RunHistory
from tui import words
from tui.logscan import Filter, Search

Part = tuple[str, str]
"""Words and the style they are written in."""


def one_line(parts: Iterable[Part], width: int) -> Text:
    """Join parts as long as they fit `width` cells; the first always stands, cut if it must be."""
    out = Text(no_wrap=True, overflow="ellipsis")
    for text, style in parts:
        if out and out.cell_len + 3 + len(text) > width:
            continue
        out.append(" · " if out else "").append(text, style)
    return out


def hits(search: Search, cursor: int) -> str:
    """`/loss hit 3 of 12`; while the search goes on, how far it is."""
    what = f"/{words.shorten(search.pattern.text, 24)}"
    count = f"{len(search):,} hit{'s' * (len(search) != 1)}" if len(search) else "no hit"
    if not search.done and search.progress < 1:
        return f"{what} {count}, {words.percent(search.progress)} searched"
    ordinal = search.ordinal(cursor)
    return f"{what} hit {ordinal:,} of {len(search):,}" if ordinal else f"{what} {count}"


def filters(chosen: Filter) -> str:
    """What is shown of the log, and how many lines that are."""
    kinds = []
    if chosen.include is not None:
        kinds.append(f"only {words.shorten(chosen.include.text, 20)}")
    if chosen.exclude is not None:
        kinds.append(f"without {words.shorten(chosen.exclude.text, 20)}")
    if not chosen.bars:
        kinds.append("no bars")
    return f"{', '.join(kinds)}: {len(chosen):,} line{'s' * (len(chosen) != 1)}"


def step_of_eval(history: RunHistory, eval_loss: float, ordinal: int) -> int | None:
    """The step of an evaluation that the log prints as `eval_loss`, the `ordinal`-th one (from 0) in the text.

    Equal values are told apart by their place. The history was read from the same log, or from metrics.jsonl, which has
    more digits than the log prints. None when no evaluation has that value.
    """
    same = [n for n, e in enumerate(history.evals) if e.step is not None and _prints_as(e, eval_loss)]
    return history.evals[min(same, key=lambda n: abs(n - ordinal))].step if same else None


def _prints_as(point: EvalPoint, loss: float) -> bool:
    # transformers 5 prints four significant digits: half a unit of the last one is at most 5e-4 of the value
    if not math.isfinite(loss):
        return str(point.eval_loss) == str(loss)
    return math.isclose(point.eval_loss, loss, rel_tol=6e-4)
