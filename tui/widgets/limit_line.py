"""The line in which a budget or a deadline is set: typed, or moved in steps by ↑ and ↓ like a slider."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import DataTable, Input

HINTS = {
    "budget": "USD to stay under from now on, for example 5; empty: no budget",
    "deadline": "time to be done in, 10h or an ISO time; empty: no deadline",
}
SLIDE = 28
"""Columns of the slider."""


def stepped(value: float, by: int) -> float:
    """The next round value above (1) or below (-1): a step is a tenth to a twentieth of where it stands.

    >>> stepped(5.0, 1), stepped(5.0, -1), stepped(0.8, 1), stepped(40.0, 1)
    (5.5, 4.5, 0.85, 42.5)
    """
    size = 10.0 ** math.floor(math.log10(max(value, 0.1)))
    step = size * (0.05 if value / size < 2 else 0.25 if value / size < 5 else 0.5)
    # floating noise would stay in the field: what is shown has at most two digits behind the point
    at = round(value / step)
    on = math.isclose(at * step, value, rel_tol=1e-6)
    further = (at + by) if on else math.ceil(value / step) if by > 0 else math.floor(value / step)
    return max(round(further * step, 3), 0.05)


def slider(value: float, most: float, unit: str) -> str:
    """Where a value stands between nothing and `most`.

    >>> slider(5.0, 10.0, "h")
    '0 ├────────────●─────────────┤ 10 h'
    """
    most = max(most, value, 0.05)
    at = min(round(value / most * (SLIDE - 3)), SLIDE - 3)
    said = f"${most:.3g}" if unit == "$" else f"{most:.3g} {unit}"
    return f"0 ├{'─' * at}●{'─' * (SLIDE - 3 - at)}┤ {said}"


class LimitLine(Input):
    """One line that Esc puts away and ↑ ↓ move."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "put_away", "Cancel", show=False),
        Binding("up", "step(1)", "More", show=False),
        Binding("down", "step(-1)", "Less", show=False),
    ]

    @dataclass
    class Stepped(Message):
        """One step more (1) or less (-1) is wanted."""

        by: int

    def action_put_away(self) -> None:
        """Close it, and give the table the keys again."""
        self.remove_class("-open")
        self.screen.query_one(DataTable).focus()

    def action_step(self, by: int) -> None:
        """Move the limit."""
        self.post_message(self.Stepped(by))
