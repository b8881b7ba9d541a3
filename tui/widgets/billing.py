"""What bills right now, at the end of the top line of a screen; nothing where nothing is rented."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Static

if TYPE_CHECKING:
    from tui.app import TunewatchApp
    from tui.rental_view import RentalSnapshot


class Billing(Static):
    """The rate in dollars per hour. It takes the news from the application by itself."""

    DEFAULT_CSS = """
    Billing { width: auto; height: 1; padding: 0 1 0 0; background: $panel; display: none; }
    """

    def __init__(self) -> None:
        super().__init__(markup=False)

    def on_mount(self) -> None:
        """Show what is known, then what changes."""
        if not hasattr(self.app, "rental_changed"):
            return  # a screen shown by itself, without the control room around it
        control = cast("TunewatchApp", self.app)
        control.rental_changed.subscribe(self, self.show_rental)
        control.theme_changed_signal.subscribe(self, lambda _: self.show_rental(control.rental))
        self.show_rental(control.rental)

    def show_rental(self, rental: RentalSnapshot | None) -> None:
        """The middle form where the screen is narrow, the whole one elsewhere."""
        forms = rental.forms if rental is not None else ()
        self.display = bool(forms)
        if rental is not None and forms:
            wide = self.app.size.width >= 100
            style = f"{self.app.theme_variables.get(rental.colour, '')} bold".strip()
            self.update(Text(forms[0] if wide else forms[min(1, len(forms) - 1)], style, no_wrap=True))


class Head(Horizontal):
    """A top line of words, with what bills at its end. The words are in the `Static` of the id given."""

    DEFAULT_CSS = """
    Head { height: 1; background: $panel; }
    Head > .-words { width: 1fr; }
    Head > .-looks { width: auto; height: 1; padding: 0 1; background: $panel; color: $warning; display: none; }
    """

    def __init__(self, text: str = "", *, of: str = "head") -> None:
        super().__init__()
        self._text = text
        self._of = of

    def compose(self) -> ComposeResult:
        """The words, then the rate."""
        yield Static(self._text, id=self._of, markup=False, classes="-words")
        yield Static("read-only", classes="-looks", markup=False)
        yield Billing()
