"""What colours a chart is drawn with: a value of its own, so that the application can hold one before it draws any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tui.axes import Marker, Role


class Palette(NamedTuple):
    """Colours of a chart as #rrggbb, and the marker the terminal can show."""

    roles: Mapping[Role, str]
    shades: Mapping[Role, str]
    """Background of a span, by its role; already mixed with the background of the screen."""
    text: str
    grid: str
    cursor: str
    marker: Marker = "braille"
    key: str = ""
    """Names the palette, for caches."""
