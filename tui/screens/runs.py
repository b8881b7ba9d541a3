"""Home: every run known here, one line each, with a preview of the one under the cursor."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Input, Static

from runner.errors import TunewatchError
from tui import stop_words
from tui.curves import CurveCache, View, charts
from tui.keys import bindings
from tui.run_rows import COLUMNS, MARKS, RunRow, cells, sort_key
from tui.session import WatchPlan
from tui.snapshot import RunSnapshot
from tui.widgets.billing import Head
from tui.widgets.chart_pane import ChartPane
from tui.widgets.panes import TextPane

if TYPE_CHECKING:
    from tui.app import TunewatchApp

WATCHED = 40
"""Local runs, the newest, that are read for the list; the others are read when they are opened."""
WELCOME = """\
No run is known here yet.

  tunewatch demo                      a real fine-tune on this machine, watched to its auto-stop
  tunewatch watch box:/root/log.txt   any Hugging Face Trainer log, over SSH
  tunewatch run RECIPE                a stage of the study, or a recipe of your own
"""


class RunsScreen(Screen[None]):
    """The list of runs."""

    CSS_PATH = "runs.tcss"
    BINDINGS: ClassVar[list[BindingType]] = bindings("runs")
    place = "runs"

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, RunRow] = {}
        self.marked: list[str] = []
        self.order = "age"
        self.accepts: Callable[[RunRow], bool] = lambda row: True
        self._cache = CurveCache()

    @property
    def control(self) -> TunewatchApp:
        """The application, by its own type."""
        return cast("TunewatchApp", self.app)

    def compose(self) -> ComposeResult:
        """The list over the preview."""
        yield Head("tunewatch")
        yield Input(placeholder="state:running gpu:A100 loss<1.2", id="filter")
        yield Static("", id="trouble", markup=False)
        yield Static(WELCOME, id="nothing", markup=False)
        table: DataTable[Text] = DataTable(cursor_type="row", zebra_stripes=False)
        for key, title in COLUMNS:
            table.add_column(title, key=key)
        yield table
        with Horizontal(id="preview"):
            yield ChartPane(id="eval")
            yield TextPane("auto-stop", id="verdict")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Ask for the list; show what is known already."""
        self.query_one(ChartPane).can_focus = False
        self.query_one(DataTable).focus()
        self.control.theme_changed_signal.subscribe(self, lambda _: self._fill())
        self._load()

    def on_resize(self, event: events.Resize) -> None:
        """The preview needs room."""
        self.set_class(event.size.height < 26, "-short")
        self.set_class(event.size.width < 100, "-narrow")

    @work(thread=True, exclusive=True, group="runs")
    def _load(self) -> None:
        """Read the registry and the run directories, beside the screen's own thread."""
        self.app.call_from_thread(self._loaded, self.control.session.known())

    def _loaded(self, rows: list[RunRow]) -> None:
        watched = 0
        for row in rows:
            self.rows[row.target] = row
            if watched < WATCHED and ":" not in row.target:
                watched += 1
                try:
                    self.control.session.watch(WatchPlan(row.target, row.name))
                except TunewatchError as error:
                    self.notify(str(error), severity="warning")
        for snapshot in self.control.snapshots.values():
            self._keep(snapshot)
        self._fill()

    def take(self, snapshot: RunSnapshot) -> None:
        """A run was read."""
        if not self.is_running:
            return
        self._keep(snapshot)
        table = self.query_one(DataTable)
        row = self.rows[snapshot.target]
        if not self.accepts(row):
            if row.target in table.rows:
                table.remove_row(row.target)
            return
        if row.target in table.rows:
            for (column, _), cell in zip(COLUMNS, self._cells(row), strict=True):
                if table.get_cell(row.target, column) != cell:
                    table.update_cell(row.target, column, cell, update_width=True)
        else:
            self._fill()
        if self._at_cursor() == snapshot.target:
            self._preview()

    def _keep(self, snapshot: RunSnapshot) -> None:
        from dataclasses import replace

        known = self.rows.get(snapshot.target) or RunRow(snapshot.target, snapshot.name, noted=time.time())
        self.rows[snapshot.target] = replace(known, snapshot=snapshot)

    def _cells(self, row: RunRow) -> list[Text]:
        mark = MARKS[self.marked.index(row.target)] if row.target in self.marked else None
        return cells(row, self.control.theme_variables, mark, time.time())

    def _fill(self) -> None:
        table = self.query_one(DataTable)
        here = self._at_cursor()
        shown = sorted((r for r in self.rows.values() if self.accepts(r)), key=sort_key(self.order))
        table.clear()
        for row in shown:
            table.add_row(*self._cells(row), key=row.target)
        if here is not None and here in table.rows:
            table.move_cursor(row=table.get_row_index(here))
        self.query_one("#nothing").display = not self.rows
        table.display = bool(self.rows)
        self.query_one("#preview").set_class(not self.rows, "-empty")
        self.query_one("#preview").display = bool(self.rows) and not self.has_class("-short")
        noun = "run" if len(self.rows) == 1 else "runs"
        running = sum(1 for r in self.rows.values() if r.state == "running")
        count = f"{len(shown)} of {len(self.rows)}" if len(shown) < len(self.rows) else f"{len(self.rows)}"
        self.query_one("#head", Static).update(f"tunewatch   {count} {noun}, {running} running, by {self.order}")
        self._preview()

    def _at_cursor(self) -> str | None:
        table = self.query_one(DataTable)
        if not table.row_count or table.cursor_row >= table.row_count:
            return None
        return table.ordered_rows[table.cursor_row].key.value

    @on(DataTable.RowHighlighted)
    def _preview(self) -> None:
        """The curve and the verdict of the run under the cursor."""
        target = self._at_cursor()
        row = self.rows.get(target) if target else None
        if row is None or row.snapshot is None:
            return
        pane = self.query_one(ChartPane)
        pane.palette = self.control.palette
        pane.border_title = f"{row.name}  eval_loss"
        pane.spec = charts(row.snapshot, View(), self._cache)["eval"]
        verdict = self.query_one("#verdict", TextPane)
        verdict.show(stop_words.panel(row.snapshot, self.control.theme_variables, 39))

    @on(DataTable.RowSelected)
    def _chosen(self, event: DataTable.RowSelected) -> None:
        self.action_open()

    def action_open(self) -> None:
        """Open the run under the cursor."""
        target = self._at_cursor()
        if target is not None:
            self.control.open_run(WatchPlan(target, self.rows[target].name))

    def action_sort(self) -> None:
        """Sort by the next column."""
        names = [key for key, _ in COLUMNS if key != "curve"]
        self.order = names[(names.index(self.order) + 1) % len(names)]
        self._fill()

    def action_mark(self) -> None:
        """Mark for comparison, or take the mark away."""
        target = self._at_cursor()
        if target is None:
            return
        if target in self.marked:
            self.marked.remove(target)
        elif len(self.marked) < len(MARKS):
            self.marked.append(target)
        else:
            self.notify(f"{len(MARKS)} runs are marked; take a mark away first.", severity="warning")
            return
        self._fill()

    def action_compare(self) -> None:
        """The curves of the marked runs over each other."""
        from tui.screens.compare import CompareScreen

        chosen = [self.rows[t].snapshot for t in self.marked]
        known = [s for s in chosen if s is not None]
        if len(known) < 2:
            self.notify("Mark two to five runs with Space, then compare them.", severity="warning")
            return
        self.control.push_screen(CompareScreen(known))

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
            query = parse_filter(event.value, tuple(fields(RunRow("", ""))))
        except ValueError as error:
            trouble.update(str(error))
            trouble.display = True
            return
        trouble.display = False
        self.accepts = lambda row: query.matches(fields(row))
        self._fill()

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        self.query_one("#filter", Input).set_class(bool(self.query_one("#filter", Input).value), "-open")
        self.query_one(DataTable).focus()


def fields(row: RunRow) -> dict[str, object]:
    """What the filter language can ask of a run."""
    snapshot = row.snapshot
    return {
        "name": row.name,
        "target": row.target,
        "recipe": row.recipe,
        "state": row.state,
        "step": snapshot.step if snapshot else None,
        "max_steps": snapshot.history.max_steps if snapshot else None,
        "loss": row.last_eval,
        "eval_loss": row.last_eval,
        "best": row.best_eval,
        "dph": snapshot.dph if snapshot else None,
        "usd": snapshot.usd_spent if snapshot else None,
        "gpu": str(snapshot.health.get("gpu", "")) if snapshot else "",
        "instance": row.instance_id,
    }
