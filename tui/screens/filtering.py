"""The filter line of a list: opened by its key, obeyed while it is typed, put away when it is empty. Esc empties it.

A screen that derives from `Filtering` has a `FilterLine` and a `DataTable`, knows its fields, and shows what passes. As
the list is left, with its order and its filter, it is found again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import DataTable, Input

from tui.layout import ListLayout

if TYPE_CHECKING:
    from tui.app import TunewatchApp
    from tui.run_filter import Query


class FilterLine(Input):
    """The line that is typed into; its id is `filter`."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "put_away", "No filter", show=False)]

    def __init__(self, placeholder: str) -> None:
        super().__init__(placeholder=placeholder, id="filter")

    async def action_put_away(self) -> None:
        """Show everything again."""
        self.value = ""
        await self.action_submit()


class OpenTable(DataTable[Text]):
    """The list; Enter on a row is told among the keys, which Textual's own table keeps to itself."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Open", key_display="Enter")]


class RentTable(DataTable[Text]):
    """The same, where Enter leads to renting."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Rent", key_display="Enter")]


class Filtering(Screen[None]):
    """The actions and events of the `FilterLine`."""

    place: str = ""
    order: str = ""
    """The column that the list is sorted by."""

    def recall_list(self, orders: tuple[str, ...]) -> None:
        """Begin as the list was left; `orders` are the columns that it can be sorted by."""
        left = cast("TunewatchApp", self.app).session.layout.list_of(self.place)
        if left.order in orders:
            self.order = left.order
        if left.filter:
            box = self.query_one(FilterLine)
            box.add_class("-open")
            box.value = left.filter

    def keep_list(self) -> None:
        """Remember how the list stands."""
        left = ListLayout(self.order, self.query_one(FilterLine).value)
        cast("TunewatchApp", self.app).session.layout.keep_list(self.place, left)

    if TYPE_CHECKING:

        def filter_fields(self) -> tuple[str, ...]:
            """The fields that can be asked for; each screen knows its rows."""

        def filter_fault(self, sentence: str) -> None:
            """Say why the filter does not parse, where the eye is; an empty text when it does."""

        def filter_by(self, query: Query) -> None:
            """Show only what passes."""

    def action_filter(self) -> None:
        """Open the filter."""
        box = self.query_one("#filter", Input)
        box.add_class("-open")
        box.focus()

    @on(Input.Changed, "#filter")
    def _filter_typed(self, event: Input.Changed) -> None:
        from tui.run_filter import parse_filter

        try:
            query = parse_filter(event.value, self.filter_fields())
        except ValueError as error:
            self.filter_fault(str(error))
            return
        self.filter_fault("")
        self.filter_by(query)

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        box = self.query_one("#filter", Input)
        box.set_class(bool(box.value), "-open")
        self.query_one(DataTable).focus()
        self.keep_list()
