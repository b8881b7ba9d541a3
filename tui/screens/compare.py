"""Up to five runs over each other, by step, time, logarithm of the step, or tokens; one cursor reads them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from tui import words
from tui.axes import ChartSpec, Role, Series
from tui.curves import GUTTER, X_WORDS, CurveCache, best_eval, counts_tokens, reading, x_words
from tui.keys import CHART_ACTIONS, bindings
from tui.screens.chart_keys import ChartKeys
from tui.snapshot import RunSnapshot
from tui.widgets.billing import Head
from tui.widgets.chart_pane import ChartPane
from tui.widgets.key_line import KeyLine

if TYPE_CHECKING:
    from tui.app import TunewatchApp


class CompareScreen(ChartKeys):
    """Two charts: eval_loss and smoothed training loss of the chosen runs."""

    CSS_PATH = "runs.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("live", CHART_ACTIONS),
        Binding("q", "app.back", "Back"),
    ]
    place = "compare"
    chosen = "eval"

    def __init__(self, snapshots: Mapping[str, RunSnapshot]) -> None:
        """`snapshots` by the mark of each run, which is the role of its colour."""
        super().__init__()
        self.marks = {snapshot.target: mark for mark, snapshot in snapshots.items()}
        self.snapshots = {s.target: s for s in snapshots.values()}
        self.caches = {target: CurveCache() for target in self.snapshots}

    def compose(self) -> ComposeResult:
        """Head, legend, two charts."""
        yield Head("comparison")
        yield Static("", id="legend", markup=False)
        yield ChartPane(id="eval")
        yield ChartPane(id="loss")
        yield KeyLine(id="keys")

    def on_mount(self) -> None:
        """Draw once; snapshots redraw."""
        cast("TunewatchApp", self.app).theme_changed_signal.subscribe(self, lambda _: self.redraw())
        self.query_one("#eval").focus()
        self.redraw()

    def on_resize(self) -> None:
        """The legend is as wide as the screen."""
        self.call_after_refresh(self.redraw)

    def take(self, snapshot: RunSnapshot) -> None:
        """A compared run was read again."""
        if snapshot.target in self.snapshots and self.is_running:
            self.snapshots[snapshot.target] = snapshot
            self.redraw()

    def counts_tokens(self) -> bool:
        """Whether one of the runs tells how many tokens it has seen."""
        return any(counts_tokens(snapshot.history) for snapshot in self.snapshots.values())

    def redraw(self) -> None:
        """Draw both charts and the legend."""
        self.view = self.view.suited(*(snapshot.history for snapshot in self.snapshots.values()))
        app, view = cast("TunewatchApp", self.app), self.view
        curves: dict[str, list[Series]] = {"eval": [], "loss": []}
        for target, snapshot in self.snapshots.items():
            role = cast("Role", self.marks[target])
            history, cache = snapshot.history, self.caches[target]
            curves["eval"].append(replace(cache.curve(history, "eval", view.x_mode), role=role))
            smoothed = cache.smoothed(history, "loss", view.x_mode, view.weight)
            curves["loss"].append(replace(smoothed, role=role))
        self.query_one("#legend", Static).update(self._legend(curves))
        for name, title in (("eval", "eval_loss"), ("loss", f"train loss, smoothed {view.weight:g}")):
            pane = self.query_one(f"#{name}", ChartPane)
            pane.palette = app.palette
            pane.border_title = title + (" · log y" if name in view.log_y else "")
            pane.border_subtitle = "" if view.x_mode == "step" else X_WORDS[view.x_mode]
            pane.spec = ChartSpec(
                tuple(curves[name]),
                x_range=view.window,
                log_x=view.x_mode == "log",
                log_y=name in view.log_y,
                x_time=view.x_mode == "time",
                cursor=view.cursor,
                gutter=GUTTER,
            )

    def _legend(self, curves: Mapping[str, list[Series]]) -> Text:
        """A line for each run: its best eval, and the values under the cursor."""
        app, view = cast("TunewatchApp", self.app), self.view
        wide = max((len(s.name) for s in self.snapshots.values()), default=0)
        room = max(min(wide, self.size.width - 50), 12)
        out = Text(no_wrap=True, overflow="ellipsis")
        for number, snapshot in enumerate(self.snapshots.values()):
            out.append("\n" if number else "")
            out.append("━━ ", app.palette.roles[cast("Role", self.marks[snapshot.target])])
            out.append(f"{words.shorten(snapshot.name, room):<{room}} ")
            if view.x_mode == "tokens" and not counts_tokens(snapshot.history):
                out.append("tells no tokens: left out", "dim")
            elif view.x_mode != "epoch" and snapshot.history.stepless:
                out.append("tells no steps: left out", "dim")
            elif view.cursor is None:
                out.append(f"{snapshot.state:<10} ", "dim").append(_best(snapshot))
            else:
                out.append(self._at_cursor(curves, number, view.cursor))
        return out

    def _at_cursor(self, curves: Mapping[str, list[Series]], number: int, x: float) -> str:
        """The evaluation and the smoothed loss of one run nearest to the cursor."""
        said = []
        for name, word in (("eval", "eval"), ("loss", "loss")):
            point = reading(curves[name][number], x)
            if point is not None:
                said.append(f"{word} {words.loss(point[1])} at {x_words(point[0], self.view.x_mode)}")
        return "   ".join(said) or "nothing there"


def _best(snapshot: RunSnapshot) -> str:
    """The lowest eval, and its place as far as the log tells it."""
    state = snapshot.ruling.state
    if not snapshot.history.stepless:
        return f"best {words.loss(state.best)} @{state.best_step}"
    best = best_eval(snapshot.history)
    return "no eval" if best is None else f"best {words.loss(best.eval_loss)}"
