"""The market: every offer with finish time and bill for one run, the box it is on pinned at the top."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Input, Static

from tui.keys import bindings
from tui.offer_rows import COLUMNS, SORTS, cells, front, offer_fields
from tui.snapshot import QuoteRow, RunSnapshot
from tui.widgets.billing import Head

if TYPE_CHECKING:
    from tui.app import TunewatchApp

SHOWN = 100
"""Rows; a table of more is slow to fill and nobody reads it: the filter narrows it."""


_ANY = QuoteRow("", "", 0.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
"""Stands for any offer, to ask what fields there are."""


class OffersScreen(Screen[None]):
    """Quotes for one run, or the bare prices when no run is open."""

    CSS_PATH = "offers.tcss"
    BINDINGS: ClassVar[list[BindingType]] = bindings("offers")
    place = "offers"

    def __init__(self, target: str | None) -> None:
        super().__init__()
        self.target = target
        self.order = "usd" if target else "price"
        self.only_front = False
        self.accepts: Callable[[QuoteRow], bool] = lambda row: True
        self._snapshot: RunSnapshot | None = None

    @property
    def control(self) -> TunewatchApp:
        """The application, by its own type."""
        return cast("TunewatchApp", self.app)

    def compose(self) -> ComposeResult:
        """One table."""
        yield Head()
        yield Input(placeholder="gpu:H100 price<1 vram>=40", id="filter")
        yield Static("", id="trouble", markup=False)
        table: DataTable[Text] = DataTable(cursor_type="row", zebra_stripes=False, fixed_columns=1)
        for key, title in COLUMNS:
            table.add_column(title, key=key)
        yield table
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Show the quotes that are known."""
        self.query_one(DataTable).focus()
        self.control.theme_changed_signal.subscribe(self, lambda _: self._fill())
        self._snapshot = self.control.snapshots.get(self.target) if self.target else None
        self._fill()

    def take(self, snapshot: RunSnapshot) -> None:
        """New quotes for this run."""
        if self.is_running and snapshot.target == self.target:
            old, self._snapshot = self._snapshot, snapshot
            if old is None or old.quotes != snapshot.quotes or old.stay != snapshot.stay:
                self._fill()

    def _rows(self) -> list[QuoteRow]:
        if self._snapshot is not None and self._snapshot.quotes:
            return list(self._snapshot.quotes)
        unknown = (math.nan, math.nan, math.nan)
        return [
            QuoteRow(
                o.id,
                o.gpu,
                o.dph,
                unknown,
                unknown,
                place=o.place,
                reliability=o.reliability,
                vram_gib=o.gpu_ram_gib,
                notes=("example",) if o.example else (),
            )
            for o in self.control.session.offers
        ]

    def _fill(self) -> None:
        rows = self._rows()
        best = front(rows)
        stay = self._snapshot.stay if self._snapshot else None
        shown = [r for r in rows if self.accepts(r) and (not self.only_front or r.offer_id in best)]
        shown.sort(key=SORTS[self.order])
        table = self.query_one(DataTable)
        at = table.cursor_row
        table.clear()
        pinned = [stay] if stay is not None else []
        most = max((r.usd[2] for r in (*pinned, *shown) if math.isfinite(r.usd[2])), default=0.0)
        for row in (*pinned, *shown[:SHOWN]):
            key = "stay" if row.stay else row.offer_id
            colours = self.control.theme_variables
            table.add_row(*cells(row, stay, most, colours, row.offer_id in best), key=key)
        if table.row_count:
            table.move_cursor(row=min(at, table.row_count - 1))
        name = f" for {self._snapshot.name}" if self._snapshot else ""
        some = f"{min(len(shown), SHOWN)} of {len(rows)} offers{name}, by {self.order}"
        extra = ", only the front" if self.only_front else ""
        example = "   example prices, not today's" if any(o.example for o in self.control.session.offers) else ""
        self.query_one("#head", Static).update(f"market   {some}{extra}{example}")

    @on(DataTable.RowSelected)
    def action_rent(self) -> None:
        """Move the run there, or rent it for a recipe. The dialog asks."""
        from tui.commands.common import read_only
        from tui.deeds import migrate_deed
        from tui.screens.deed import DeedScreen
        from tui.screens.launch import LaunchScreen

        table = self.query_one(DataTable)
        if not table.row_count:
            return
        chosen = table.ordered_rows[table.cursor_row].key.value
        offer = next((r for r in self._rows() if r.offer_id == chosen), None)
        if offer is None:
            self.notify("That is the box the run is on.")
        elif read_only():
            self.notify("renting is refused: tunewatch is read-only here.", severity="warning")
        elif any(o.example and o.id == offer.offer_id for o in self.control.session.offers):
            self.notify("An example cannot be rented; tunewatch offers shows the live market.", severity="warning")
        elif self._snapshot is not None and self.control.session.rented(self._snapshot.target):
            self.app.push_screen(DeedScreen(migrate_deed(self._snapshot, offer)))
        else:
            self.app.push_screen(LaunchScreen(offer))

    def action_sort(self) -> None:
        """Sort by the next column."""
        names = list(SORTS)
        self.order = names[(names.index(self.order) + 1) % len(names)]
        self._fill()

    def action_pareto(self) -> None:
        """Only the front, or all."""
        self.only_front = not self.only_front
        self._fill()

    def action_filter(self) -> None:
        """Open the filter."""
        box = self.query_one("#filter", Input)
        box.add_class("-open")
        box.focus()

    @on(Input.Changed, "#filter")
    def _filtered(self, event: Input.Changed) -> None:
        from tui.run_filter import parse_filter

        trouble = self.query_one("#trouble", Static)
        try:
            query = parse_filter(event.value, tuple(offer_fields(_ANY)))
        except ValueError as error:
            trouble.update(str(error))
            trouble.display = True
            return
        trouble.display = False
        self.accepts = lambda row: query.matches(offer_fields(row))
        self._fill()

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        self.query_one("#filter", Input).set_class(bool(self.query_one("#filter", Input).value), "-open")
        self.query_one(DataTable).focus()
