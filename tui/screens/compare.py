"""Up to five runs over each other, by step, by time, or by logarithm of the step."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer, Static

from tui import words
from tui.axes import ChartSpec, Role, Series
from tui.curves import GUTTER, CurveCache, View
from tui.run_rows import MARKS
from tui.snapshot import RunSnapshot
from tui.widgets.billing import Head
from tui.widgets.chart_pane import ChartPane

if TYPE_CHECKING:
    from tui.app import TunewatchApp


class CompareScreen(Screen[None]):
    """Two charts: eval_loss and smoothed training loss of the chosen runs."""

    CSS_PATH = "runs.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "app.back", "Back"),
        Binding("x", "x_mode", "x axis"),
        Binding("y", "log_y", "log y"),
        Binding("right_square_bracket", "smooth(1)", "Smoother", key_display="]"),
        Binding("left_square_bracket", "smooth(-1)", "Rougher", key_display="["),
    ]
    place = "compare"

    def __init__(self, snapshots: list[RunSnapshot]) -> None:
        super().__init__()
        self.snapshots = {s.target: s for s in snapshots}
        self.caches = {s.target: CurveCache() for s in snapshots}
        self.view = View()

    def compose(self) -> ComposeResult:
        """Head, legend, two charts."""
        yield Head("comparison")
        yield Static("", id="legend", markup=False)
        yield ChartPane(id="eval")
        yield ChartPane(id="loss")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Draw once; snapshots redraw."""
        self._draw()

    def take(self, snapshot: RunSnapshot) -> None:
        """A compared run was read again."""
        if snapshot.target in self.snapshots and self.is_running:
            self.snapshots[snapshot.target] = snapshot
            self._draw()

    def _draw(self) -> None:
        app = cast("TunewatchApp", self.app)
        legend = Text()
        curves: dict[str, list[Series]] = {"eval": [], "loss": []}
        for mark, (target, snapshot) in zip(MARKS, self.snapshots.items(), strict=False):
            role = cast("Role", mark)
            history, cache = snapshot.history, self.caches[target]
            curves["eval"].append(replace(cache.curve(history, "eval", self.view.x_mode), role=role))
            smoothed = cache.smoothed(history, "loss", self.view.x_mode, self.view.weight)
            curves["loss"].append(replace(smoothed, role=role))
            state = snapshot.ruling.state
            legend.append("━━ ", app.palette.roles[role])
            legend.append(
                f"{snapshot.name:<36} {snapshot.state:<10} best {words.loss(state.best)} @{state.best_step}\n"
            )
        self.query_one("#legend", Static).update(legend)
        for name, title in (("eval", "eval_loss"), ("loss", f"train loss, smoothed {self.view.weight:g}")):
            pane = self.query_one(f"#{name}", ChartPane)
            pane.palette = app.palette
            pane.border_title = title
            pane.spec = ChartSpec(
                tuple(curves[name]),
                log_x=self.view.x_mode == "log",
                log_y=bool(self.view.log_y),
                x_time=self.view.x_mode == "time",
                gutter=GUTTER,
            )

    def action_x_mode(self) -> None:
        """X as step, time, logarithm."""
        self.view = self.view.next_x_mode()
        self._draw()

    def action_log_y(self) -> None:
        """Logarithmic y axes."""
        self.view = replace(self.view, log_y=self.view.log_y ^ {"all"})
        self._draw()

    def action_smooth(self, by: int) -> None:
        """More or less smoothing."""
        self.view = self.view.smoother(by)
        self._draw()
