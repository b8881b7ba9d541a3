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
from textual.widgets import DataTable, Static

from runner.errors import TunewatchError
from tui import stop_words
from tui.curves import CurveCache, View, charts
from tui.keys import bindings
from tui.run_rows import COLUMNS, MARKS, RunRow, age_cell, cells, columns_for, sort_key
from tui.screens.filtering import Filtering, FilterLine, OpenTable
from tui.session import WatchPlan
from tui.snapshot import RunSnapshot
from tui.widgets.billing import Head
from tui.widgets.chart_pane import ChartPane
from tui.widgets.key_line import KeyLine
from tui.widgets.panes import TextPane

if TYPE_CHECKING:
    from tui.app import TunewatchApp
    from tui.rental_view import RentalSnapshot
    from tui.run_filter import Query

WATCHED = 40
"""Local runs, the newest, that are read for the list; the others are read when they are opened."""
ELSEWHERE = 8
"""Runs on hosts, the newest, that are read for the list."""
FRESH_S = 86400.0
"""A run on a host that was noted longer ago is read when it is opened: who knows whether that host still answers."""
AGAIN_S = 5.0
"""Seconds between two looks at what runs there are."""
ORDERS = tuple(key for key, _ in COLUMNS if key != "curve")
"""The columns that the list can be sorted by."""
WELCOME = """\
No run is known here yet.

  tunewatch demo                      a real fine-tune on this machine, watched to its auto-stop
  tunewatch watch box:/root/log.txt   any Hugging Face Trainer log, over SSH
  tunewatch run RECIPE                a stage of the study, or a recipe of your own

Here: n rents a box for a run, o shows the market, ? lists the keys, Ctrl+P finds every action by name.
"""


class RunsScreen(Filtering):
    """The list of runs."""

    CSS_PATH = "runs.tcss"
    BINDINGS: ClassVar[list[BindingType]] = bindings("runs")
    place = "runs"

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, RunRow] = {}
        self.marked: dict[str, str] = {}
        """Role of the colour of each marked run: it keeps its colour whatever else is marked."""
        self.order = "age"
        self.accepts: Callable[[RunRow], bool] = lambda row: True
        self._cache = CurveCache()
        self._filled = False
        self._places: dict[str, str] = {}
        """Where each known run is, by its name."""
        self._refused: set[str] = set()
        """Targets that cannot be watched, which was said once."""
        self._columns: tuple[tuple[str, str], ...] = COLUMNS

    @property
    def control(self) -> TunewatchApp:
        """The application, by its own type."""
        return cast("TunewatchApp", self.app)

    def compose(self) -> ComposeResult:
        """The list over the preview."""
        yield Head("tunewatch")
        yield FilterLine("state:running gpu:A100 loss<1.2")
        yield Static("", id="trouble", markup=False)
        yield Static(WELCOME, id="nothing", markup=False)
        yield OpenTable(cursor_type="row", zebra_stripes=False)
        with Horizontal(id="preview"):
            yield ChartPane(id="eval")
            yield TextPane("auto-stop", id="verdict")
        yield KeyLine(id="keys")

    def on_mount(self) -> None:
        """Ask for the list; show what is known already."""
        self.query_one(ChartPane).can_focus = False
        self.query_one(DataTable).focus()
        self.recall_list(ORDERS)
        self.control.theme_changed_signal.subscribe(self, lambda _: self._fill())
        self.control.rental_changed.subscribe(self, self._rented)
        self._load()
        self.set_interval(AGAIN_S, self._look_again)

    def on_resize(self, event: events.Resize) -> None:
        """The preview needs room."""
        self.set_class(event.size.height < 26, "-short")
        self.set_class(event.size.width < 100, "-narrow")
        shown = columns_for(event.size.width)
        if shown != self._columns:
            self._columns = shown
            self._fill()

    @work(thread=True, exclusive=True, group="runs")
    def _load(self) -> None:
        """Read the registry and the run directories, beside the screen's own thread."""
        self.app.call_from_thread(self._loaded, self.control.session.known())

    def _look_again(self) -> None:
        """Runs that began or went since; the others are only older."""
        if not self.is_current:
            return
        self._load()
        table, now = self.query_one(DataTable), time.time()
        for target, row in self.rows.items():
            if target in table.rows and table.get_cell(target, "age") != (age := age_cell(row, now)):
                table.update_cell(target, "age", age)

    def _loaded(self, rows: list[RunRow]) -> None:
        before = set(self.rows)
        self._places = {row.name: row.target for row in reversed(rows)}
        gone = before - {row.target for row in rows} - set(self.control.snapshots) - set(self.marked)
        for target in gone:
            del self.rows[target]
        for row in rows:
            known = self.rows.get(row.target, row)
            self.rows[row.target] = row._replace(snapshot=known.snapshot, rented_gpu=known.rented_gpu)
        now = time.time()
        here = [row for row in rows if ":" not in row.target]
        hosts = [row for row in rows if ":" in row.target and not row.rented and now - row.noted < FRESH_S]
        for row in (*here[:WATCHED], *hosts[:ELSEWHERE]):
            self._watch(row)
        for snapshot in list(self.control.snapshots.values()):
            if self._stands_elsewhere(snapshot):
                self.rows.pop(snapshot.target, None)
                if not any(getattr(screen, "target", None) == snapshot.target for screen in self.app.screen_stack):
                    # nobody looks at it any more: the box that the run has left is asked nothing
                    self.control.session.forget(snapshot.target)
                    self.control.snapshots.pop(snapshot.target, None)
            else:
                self._keep(snapshot)
        if self.control.rental is not None:
            self._rented(self.control.rental)
        if set(self.rows) != before or not self._filled:
            self._fill()

    def _watch(self, row: RunRow) -> None:
        """Read a run for the list. A host has a thread of its own: one that does not answer holds up no other."""
        try:
            self.control.session.watch(WatchPlan(row.target, row.name))
        except TunewatchError as error:
            if row.target not in self._refused:
                self._refused.add(row.target)
                self.notify(str(error), severity="warning")

    def _rented(self, rental: RentalSnapshot) -> None:
        """The provider's name of the GPU of each rented box; its own measurement says more once it comes.

        What runs on a box that exists is read for the list; of one that is gone nothing is asked.
        """
        gpus = {box.instance: box.gpu for box in rental.boxes}
        for row in self.rows.values():
            if row.instance_id in gpus:
                self._watch(row)
        table = self.query_one(DataTable)
        for target, row in self.rows.items():
            gpu = gpus.get(row.instance_id, "") if row.instance_id is not None else ""
            if gpu and gpu != row.rented_gpu:
                self.rows[target] = row._replace(rented_gpu=gpu)
                if target in table.rows:
                    table.update_cell(target, "gpu", Text(self.rows[target].gpu), update_width=True)

    def _stands_elsewhere(self, snapshot: RunSnapshot) -> bool:
        """Whether this is a known run under its bare name, or on the box that it has left: it has a row already."""
        place = self._places.get(snapshot.target)
        if snapshot.target.startswith("vast:"):
            place = self._places.get(snapshot.name)
        return place is not None and place != snapshot.target

    def take(self, snapshot: RunSnapshot) -> None:
        """A run was read."""
        if not self.is_running or self._stands_elsewhere(snapshot):
            return
        self._keep(snapshot)
        table = self.query_one(DataTable)
        row = self.rows[snapshot.target]
        if not self.accepts(row):
            if row.target in table.rows:
                table.remove_row(row.target)
                self._head()
            return
        if row.target in table.rows:
            for column, cell in self._cells(row).items():
                if table.get_cell(row.target, column) != cell:
                    table.update_cell(row.target, column, cell, update_width=True)
            self._head()
        else:
            self._fill()
        if self._at_cursor() == snapshot.target:
            self._preview()

    def _keep(self, snapshot: RunSnapshot) -> None:
        known = self.rows.get(snapshot.target) or RunRow(snapshot.target, snapshot.name, noted=time.time())
        self.rows[snapshot.target] = known._replace(snapshot=snapshot)

    def _cells(self, row: RunRow) -> dict[str, Text]:
        """The cells of the columns there is room for, by column."""
        every = cells(row, self.control.theme_variables, self.marked.get(row.target), time.time(), self.size.width)
        return {column: cell for (column, _), cell in zip(COLUMNS, every, strict=True) if (column, _) in self._columns}

    def _fill(self) -> None:
        self._filled = True
        table = self.query_one(DataTable)
        here = self._at_cursor()
        shown = sorted((r for r in self.rows.values() if self.accepts(r)), key=sort_key(self.order))
        table.clear(columns=True)
        for key, title in self._columns:
            table.add_column(title, key=key)
        for row in shown:
            table.add_row(*self._cells(row).values(), key=row.target)
        if here is not None and here in table.rows:
            table.move_cursor(row=table.get_row_index(here))
        self.query_one("#nothing").display = not self.rows
        table.display = bool(self.rows)
        self.query_one("#preview").set_class(not self.rows, "-empty")
        self.query_one("#preview").display = bool(self.rows) and not self.has_class("-short")
        self._head()
        self._preview()

    def _head(self) -> None:
        """How many runs there are and go on, and their order."""
        shown = self.query_one(DataTable).row_count
        noun = "run" if len(self.rows) == 1 else "runs"
        running = sum(1 for r in self.rows.values() if r.state == "running")
        count = f"{shown} of {len(self.rows)}" if shown < len(self.rows) else f"{len(self.rows)}"
        self.query_one("#head", Static).update(f"tunewatch   {count} {noun}, {running} running, by {self.order}")

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
        self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]
        self._fill()
        self.keep_list()

    def action_mark(self) -> None:
        """Mark for comparison, or take the mark away."""
        target = self._at_cursor()
        if target is None:
            return
        if target in self.marked:
            del self.marked[target]
        elif len(self.marked) < len(MARKS):
            self.marked[target] = next(mark for mark in MARKS if mark not in self.marked.values())
        else:
            self.notify(f"{len(MARKS)} runs are marked; take a mark away first.", severity="warning")
            return
        self._fill()

    def action_compare(self) -> None:
        """The curves of the marked runs over each other."""
        from tui.screens.compare import CompareScreen

        chosen = {mark: self.rows[target].snapshot for target, mark in self.marked.items()}
        known = {mark: snapshot for mark, snapshot in chosen.items() if snapshot is not None}
        if len(known) < 2:
            self.notify("Mark two to five runs with Space, then compare them.", severity="warning")
            return
        self.control.push_screen(CompareScreen(known))

    def filter_fields(self) -> tuple[str, ...]:
        """What can be asked of a run."""
        return tuple(fields(RunRow("", "")))

    def filter_fault(self, sentence: str) -> None:
        """A sentence below the filter."""
        trouble = self.query_one("#trouble", Static)
        trouble.update(sentence)
        trouble.display = bool(sentence)

    def filter_by(self, query: Query) -> None:
        """Show only the runs that pass."""
        self.accepts = lambda row: query.matches(fields(row))
        self._fill()


def fields(row: RunRow) -> dict[str, object]:
    """What the filter language can ask of a run."""
    snapshot = row.snapshot
    return {
        "name": row.name,
        "run": row.name,
        "target": row.target,
        "recipe": row.recipe,
        "state": row.state,
        "step": snapshot.step if snapshot else None,
        "max_steps": snapshot.history.max_steps if snapshot else None,
        "loss": row.last_eval,
        "eval_loss": row.last_eval,
        "best": row.best_eval,
        "speed": snapshot.step_s if snapshot else None,
        "dph": snapshot.dph if snapshot else None,
        "usd": snapshot.usd_spent if snapshot else None,
        "gpu": row.gpu_name,
        "instance": row.instance_id,
    }
