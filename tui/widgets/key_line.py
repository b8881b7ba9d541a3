"""The keys of a screen in its last row; a click on one presses it.

One widget draws the whole row. A footer of one widget for each key is made anew at each change of the focus, which is
most of what a first frame and a press of Tab would cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.app import RenderResult
from textual.widget import Widget

if TYPE_CHECKING:
    from textual.binding import ActiveBinding
    from textual.screen import Screen

GAP = " "
LAST = ("quit", "back", "help")
"""The actions that stand at the end of the row however little room there is: who knows these finds the others."""


class KeyLine(Widget):
    """The bindings that are to be shown, in their order, as many as fit; leaving and help at the end."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES = {"key-line--key", "key-line--word"}  # noqa: RUF012 - a set, as Textual has it
    DEFAULT_CSS = """
    KeyLine { dock: bottom; height: 1; text-wrap: nowrap; background: $footer-background; pointer: pointer; }
    KeyLine > .key-line--key { color: $footer-key-foreground; background: $footer-background; text-style: bold; }
    KeyLine > .key-line--word { color: $footer-description-foreground; background: $footer-background; }
    """

    def on_mount(self) -> None:
        """Follow the bindings, which change with the focus."""
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, screen: Screen[object]) -> None:
        self.refresh()

    def keys(self) -> list[tuple[int, str, ActiveBinding]]:
        """What is shown: the column it begins at, how its key is written, and the binding."""
        found: dict[str, ActiveBinding] = {}
        for active in self.screen.active_bindings.values():
            if active.binding.show:
                found.setdefault(active.binding.action, active)
        last = [active for action, active in found.items() if action.removeprefix("app.") in LAST]
        rest = [active for action, active in found.items() if action.removeprefix("app.") not in LAST]
        room = self.size.width - sum(self._width(active) + len(GAP) for active in last)
        out, column = [], 0
        for active in rest:
            if column + self._width(active) > room:
                break
            out.append((column, self.app.get_key_display(active.binding), active))
            column += self._width(active) + len(GAP)
        for active in last:
            if column + self._width(active) <= self.size.width:
                out.append((column, self.app.get_key_display(active.binding), active))
                column += self._width(active) + len(GAP)
        return out

    def _width(self, active: ActiveBinding) -> int:
        """Columns of one key with its word."""
        return cell_len(self.app.get_key_display(active.binding)) + 1 + cell_len(active.binding.description)

    def render(self) -> RenderResult:
        """Keys bright, words quiet; what cannot be done now is dim."""
        key_style = self.get_component_rich_style("key-line--key")
        word_style = self.get_component_rich_style("key-line--word")
        line = Text(no_wrap=True, overflow="crop", end="")
        for number, (_, key, active) in enumerate(self.keys()):
            line.append(GAP if number else "")
            start = len(line)
            line.append(key, key_style).append(f" {active.binding.description}", word_style)
            if not active.enabled:
                line.stylize("dim", start)
        return line

    def _under(self, event: events.MouseEvent) -> ActiveBinding | None:
        """The binding at the mouse."""
        for column, key, active in self.keys():
            if column <= event.x < column + cell_len(key) + 1 + cell_len(active.binding.description):
                return active
        return None

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Press the key under the mouse."""
        active = self._under(event)
        if active is not None and active.enabled:
            self.app.simulate_key(active.binding.key)
        elif active is not None:
            self.app.bell()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Say what the key under the mouse does."""
        active = self._under(event)
        words = (active.tooltip or active.binding.description) if active is not None else None
        if self.tooltip != words:
            self.tooltip = words
