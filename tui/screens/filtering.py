"""The filter line of a list: opened by its key, obeyed while it is typed, put away when it is empty.

A screen that derives from `Filtering` has an `Input` and a `DataTable`, knows its fields, and shows what passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import on
from textual.screen import Screen
from textual.widgets import DataTable, Input

if TYPE_CHECKING:
    from tui.run_filter import Query


class Filtering(Screen[None]):
    """The actions and events of the `Input` with the id `filter`."""

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
