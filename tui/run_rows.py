"""A known run as a row of the home screen: its cells, and how rows are sorted. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rich.text import Text

from tui import words
from tui.snapshot import RunSnapshot
from tui.widgets.status_line import STATE_COLOURS, STATE_GLYPHS

BLOCKS = "▁▂▃▄▅▆▇█"
MARKS = ("a", "b", "c", "d", "e")
"""Roles of the marked runs, in the order of marking; their colours stay as long as the marks."""


class RunRow(NamedTuple):
    """One run of the list."""

    target: str
    name: str
    recipe: str = ""
    instance_id: int | None = None
    noted: float = 0.0
    """Seconds since the epoch when it was last noted."""
    snapshot: RunSnapshot | None = None
    rented_gpu: str = ""
    """The GPU of its box as the provider names it; empty for a run on no rented box."""

    @property
    def rented(self) -> bool:
        """Whether it is on a box of the provider."""
        return self.instance_id is not None or self.target.startswith("vast:")

    @property
    def gpu(self) -> str:
        """Its GPUs with their use, as measured; else the name of the rented one."""
        from tui.widgets.box_text import gpu_cell

        measured = gpu_cell(self.snapshot.health, running=self.state == "running") if self.snapshot else ""
        return measured or self.rented_gpu

    @property
    def gpu_name(self) -> str:
        """Every name of its GPUs, for filters."""
        measured = (gpu.get("name", "") for gpu in self.snapshot.health.get("gpus") or ()) if self.snapshot else ()
        return " ".join(dict.fromkeys(name for name in (*measured, self.rented_gpu) if name))

    @property
    def state(self) -> str:
        """The state in one word; `unread` before the first look."""
        return self.snapshot.state if self.snapshot else "unread"

    @property
    def last_eval(self) -> float | None:
        """The newest eval_loss."""
        evals = self.snapshot.history.evals if self.snapshot else ()
        return evals[-1].eval_loss if evals else None

    @property
    def best_eval(self) -> float | None:
        """The lowest eval_loss."""
        return self.snapshot.ruling.state.best if self.snapshot else None


COLUMNS: tuple[tuple[str, str], ...] = (
    ("state", "state"),
    ("name", "run"),
    ("step", "step"),
    ("eval", "eval_loss"),
    ("best", "best"),
    ("curve", "curve"),
    ("speed", "s/step"),
    ("price", "$/h"),
    ("spent", "$ so far"),
    ("gpu", "GPU"),
    ("age", "age"),
)


NARROW = 100
"""Columns of the terminal below which some columns of the list are left out: the preview has them."""
LESS = ("curve", "speed", "best", "price")


def columns_for(width: int) -> tuple[tuple[str, str], ...]:
    """The columns of the list on a terminal of this width: whatever the width, state, money and age are there."""
    return tuple(column for column in COLUMNS if width >= NARROW or column[0] not in LESS)


def spark(values: Sequence[float], width: int = 12) -> str:
    """The newest values as a row of blocks; a value that is not finite is a gap.

    >>> spark([3.0, 2.0, 1.0])
    '█▅▁'
    """
    shown = list(values)[-width:]
    finite = [v for v in shown if math.isfinite(v)]
    if not finite:
        return ""
    # halves: the difference of two floats may be no float any more
    lo, hi = min(finite) / 2, max(finite) / 2
    top = len(BLOCKS) - 1
    # a quotient never exceeds 1; a product with the inverse does, by a hair, and would point behind the last block
    shares = [(v / 2 - lo) / (hi - lo) if hi > lo else 0.0 for v in shown]
    return "".join(BLOCKS[math.ceil(s * top)] if math.isfinite(v) else " " for v, s in zip(shown, shares, strict=True))


def cells(row: RunRow, colours: Mapping[str, str], mark: str | None, now: float, width: int = NARROW) -> list[Text]:
    """The cells of a row, one for each of COLUMNS. `now` is seconds since the epoch, `width` the terminal's columns."""
    snapshot = row.snapshot
    colour = colours.get(STATE_COLOURS.get(row.state, ""), "")
    glyph = STATE_GLYPHS.get(row.state, "·")
    name = Text(no_wrap=True)
    if mark is not None:
        name.append("◆ ", colours.get(f"tw-{mark}", ""))
    name.append(words.shorten(row.name, 34 if width >= NARROW else 18))
    history = snapshot.history if snapshot else None
    step = "" if history is None or history.step is None else words.count(history.step)
    if history is not None and history.max_steps:
        step += f"/{words.count(history.max_steps)}"
    evals = [e.eval_loss for e in history.evals] if history else []
    return [
        Text(f"{glyph} {row.state}", style=colour),
        name,
        Text(step, justify="right"),
        Text(words.loss(row.last_eval), justify="right"),
        Text(words.loss(row.best_eval), justify="right"),
        Text(spark(evals), style=colours.get("tw-line") or colours.get("primary", "")),
        Text("" if snapshot is None or snapshot.step_s is None else words.per_step(snapshot.step_s).split("/")[0]),
        Text("" if snapshot is None or not snapshot.dph else f"{snapshot.dph:.3f}", justify="right"),
        Text("" if snapshot is None or not snapshot.dph else words.usd(snapshot.usd_spent), justify="right"),
        Text(row.gpu, no_wrap=True),
        age_cell(row, now),
    ]


def age_cell(row: RunRow, now: float) -> Text:
    """How long ago it was last noted. `now` is seconds since the epoch."""
    return Text(words.age(max(now - row.noted, 0.0)) if row.noted else "", justify="right", style="dim")


def sort_key(column: str) -> Callable[[RunRow], tuple[bool, float | str]]:
    """The order by one column: unknown values last, running runs before ended ones by state, newest first by age."""
    order = ("running", "starting", "silent", "unreachable", "crashed", "stopped", "finished", "unread")

    def number(value: float | None, sign: float = 1.0) -> tuple[bool, float | str]:
        return (value is None or not math.isfinite(value), 0.0 if value is None else sign * value)

    keys: dict[str, Callable[[RunRow], tuple[bool, float | str]]] = {
        "state": lambda r: (False, float(order.index(r.state)) if r.state in order else 99.0),
        "name": lambda r: (False, r.name),
        "step": lambda r: number(r.snapshot.step if r.snapshot else None, -1.0),
        "eval": lambda r: number(r.last_eval),
        "best": lambda r: number(r.best_eval),
        "speed": lambda r: number(r.snapshot.step_s if r.snapshot else None),
        "gpu": lambda r: (not r.gpu_name, r.gpu_name),
        "price": lambda r: number(r.snapshot.dph if r.snapshot else None, -1.0),
        "spent": lambda r: number(r.snapshot.usd_spent if r.snapshot else None, -1.0),
        "age": lambda r: number(r.noted or None, -1.0),
    }
    return keys.get(column, keys["age"])
