"""One run: is it learning, when will it stop, what will it cost, is the link alive.

The screen shows snapshots and nothing else: it reads no file and calls no host. What the person chose to see (`View`)
and the newest snapshot together make the charts; every key and every mouse gesture changes one of the two.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from tui import words
from tui.keys import bindings
from tui.screens.live_actions import LiveActions
from tui.widgets.chart_pane import ChartPane
from tui.widgets.key_line import KeyLine
from tui.widgets.panes import PaneTabs, TextPane, stage_line, tail_text
from tui.widgets.status_line import StatusLine

if TYPE_CHECKING:
    from tui.axes import Geometry, Role
    from tui.curves import CurveCache, PaneName, View
    from tui.snapshot import RunSnapshot

# what draws and words a run is imported when there is one to show: the first frame does not wait for it

CHARTS: dict[str, str] = {"loss": "train loss", "eval": "eval_loss", "speed": "s/step"}
TITLES = (
    ("loss", "loss"),
    ("eval", "eval_loss"),
    ("speed", "s/step"),
    ("stop", "auto-stop"),
    ("quotes", "quotes"),
    ("tail", "log"),
)
ROOM = (100, 30)
"""Columns and rows from which on all panes stand side by side."""
LEAST = (40, 10)


class LiveScreen(LiveActions):
    """A run, live."""

    CSS_PATH = "live.tcss"
    BINDINGS: ClassVar[list[BindingType]] = bindings("live")

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.chosen = "loss"
        self._solo = False

    @cached_property
    def view(self) -> View:
        """What the person chose to see."""
        from tui.curves import View

        return View()

    @cached_property
    def cache(self) -> CurveCache:
        """The curves of the newest history."""
        from tui.curves import CurveCache

        return CurveCache()

    def compose(self) -> ComposeResult:
        """Charts left, verdict and money right."""
        yield StatusLine(id="status")
        yield Static(id="stages", markup=False)
        yield Static(id="banner", markup=False)
        yield Static(id="summary", markup=False)
        yield PaneTabs(id="tabs")
        yield Static("tunewatch needs 40 columns and 10 rows", id="small", markup=False)
        with Horizontal(id="body"):
            with Vertical(id="left"):
                for name, title in CHARTS.items():
                    yield ChartPane(title, id=name, classes="-chosen" if name == self.chosen else "")
                yield TextPane("log", id="tail", classes="-cut")
            with Vertical(id="right", classes="-empty"):
                yield TextPane("auto-stop", id="stop")
                yield TextPane("finish and bill", id="quotes")
        yield KeyLine(id="keys")

    def on_mount(self) -> None:
        """Show what is known at once."""
        self.control.theme_changed_signal.subscribe(self, lambda _: self._new_theme())
        self.query_one("#loss", ChartPane).focus()
        known = self.control.snapshots.get(self.target)
        if known is not None:
            self.take(known)

    def _new_theme(self) -> None:
        if self.snapshot is not None:
            self.take(self.snapshot)

    def on_resize(self, event: events.Resize) -> None:
        """Choose between all panes and one by the room there is."""
        width, height = event.size
        self.set_class(width < ROOM[0] or height < ROOM[1], "-compact")
        self.set_class(width < LEAST[0] or height < LEAST[1], "-tiny")
        self.set_class(height < 16, "-short")
        self.set_class(width >= 170, "-huge")
        self._arrange()
        self.call_after_refresh(self._texts)

    # what is shown ------------------------------------------------------------------------------------------------

    def take(self, snapshot: RunSnapshot) -> None:
        """Show a snapshot of this run; others are ignored."""
        if snapshot.target != self.target or not self.is_running:
            return
        before, self.snapshot = self.snapshot, snapshot
        if self._covered():
            return
        self.query_one(StatusLine).snapshot = snapshot
        self._study_done(before, snapshot)
        self._redraw()
        self._texts()

    def _covered(self) -> bool:
        """Whether another screen hides all of this one: then nothing is drawn until it is back."""
        stack = self.app.screen_stack
        above = stack[stack.index(self) + 1 :] if self in stack else []
        return any(not isinstance(screen, ModalScreen) for screen in above)

    def on_screen_resume(self) -> None:
        """Show what came while another screen was open."""
        if self.snapshot is not None and self.is_running:
            self.take(self.snapshot)

    def _study_done(self, before: RunSnapshot | None, after: RunSnapshot) -> None:
        """A study that ends while it is watched shows its results by itself."""
        if before is not None and not before.ended and after.ended and len(after.history.stages) > 1:
            self.action_results()

    def _redraw(self) -> None:
        if self.snapshot is None:
            return
        from tui.curves import charts

        for name, spec in charts(self.snapshot, self.view, self.cache).items():
            pane = self.query_one(f"#{name}", ChartPane)
            pane.palette, pane.spec = self.control.palette, spec
            pane.border_title, pane.border_subtitle = self._captions(name)

    def _captions(self, name: PaneName) -> tuple[Text, Text]:
        """Title with a swatch, and the value at the cursor or the newest one."""
        assert self.snapshot is not None  # noqa: S101 - only called with one
        history, palette = self.snapshot.history, self.control.palette
        curve = self.cache.curve(history, name, self.view.x_mode)
        role: Role = "second" if name == "speed" else "line"
        swatch = "--" if palette.marker == "ascii" else "⣀⣀"
        head = Text.assemble((f"{swatch} ", palette.roles[role]), CHARTS[name])
        notes = []
        if name == "loss" and self.view.weight:
            notes.append(f"smoothed {self.view.weight:g}")
        if name in self.view.log_y:
            notes.append("log y")
        if self.view.x_mode != "step":
            notes.append("over time" if self.view.x_mode == "time" else "log x")
        if notes:
            head.append(f"  {' · '.join(notes)}", palette.text)
        if self.view.cursor is not None:
            return head, Text(self._at_cursor(name, self.view.cursor))
        return head, Text(self._newest(name, curve.ys))

    def _at_cursor(self, name: PaneName, x: float) -> str:
        from tui.curves import reading

        assert self.snapshot is not None  # noqa: S101 - only called with one
        history, mode = self.snapshot.history, self.view.x_mode
        point = reading(self.cache.curve(history, name, mode), x)
        if point is None:
            return ""
        where = words.duration(point[0]) if mode == "time" else f"step {point[0]:.0f}"
        said = words.per_step(point[1]) if name == "speed" else words.loss(point[1])
        if name == "loss" and self.view.weight:
            smoothed = reading(self.cache.smoothed(history, name, mode, self.view.weight), x)
            said += f" (smoothed {words.loss(smoothed[1])})" if smoothed else ""
        return f"{where}: {said}"

    def _newest(self, name: PaneName, ys: tuple[float, ...]) -> str:
        snapshot = self.snapshot
        if snapshot is None or not ys:
            return ""
        if name == "speed":
            drift = snapshot.drift
            trend = f" · {'▲' if drift > 0 else '▼'} {abs(drift) * 100:.1f}%" if drift and abs(drift) >= 0.005 else ""
            evals = f" · eval {words.duration(snapshot.eval_s)}" if snapshot.eval_s else ""
            return f"{words.per_step(snapshot.step_s)}{trend}{evals}"
        if name == "eval":
            state = snapshot.ruling.state
            best = f" · ★ {words.loss(state.best)} @{state.best_step}" if state.best is not None else ""
            return f"{words.loss(ys[-1])}{best}"
        return words.loss(ys[-1])

    def _texts(self) -> None:
        snapshot = self.snapshot
        if snapshot is None or not self.is_running:
            return
        from tui import quote_words, stop_words

        colours = self.control.theme_variables
        stages = stage_line(snapshot.history, colours)
        self.query_one("#stages", Static).display = stages is not None
        self.query_one("#stages", Static).update(stages or "")
        banner = self._banner(snapshot)
        self.query_one("#banner", Static).display = bool(banner)
        self.query_one("#banner", Static).update(banner)
        self.query_one("#summary", Static).update(self._summary(snapshot))
        quoted = "the whole run elsewhere" if snapshot.ended else "finish and bill"
        self.query_one("#quotes", TextPane).border_title = f"{quoted}: opt / base / pess"
        for pane_id, make in (("stop", stop_words.panel), ("quotes", quote_words.panel)):
            pane = self.query_one(f"#{pane_id}", TextPane)
            if pane.display and pane.content_size.width:
                pane.show(make(snapshot, colours, pane.content_size.width - 1))
        tail = self.query_one("#tail", TextPane)
        if tail.display:
            tail.show_end(tail_text(snapshot.tail[-max(tail.content_size.height, 1) :], colours))

    def _banner(self, snapshot: RunSnapshot) -> str:
        """What the person should know before anything else: a fault of the link, a crash, a warning."""
        if snapshot.link.word != "live" and snapshot.link.detail:
            return f"⚠ {snapshot.link.detail}"
        if snapshot.state in ("crashed", "silent", "unreachable"):
            return f"⚠ {snapshot.reason}"
        if snapshot.link.detail:
            return snapshot.link.detail
        return f"⚠ {snapshot.warnings[-1]}" if snapshot.warnings else ""

    def _summary(self, snapshot: RunSnapshot) -> Text:
        """Three lines for a small terminal: loss, verdict, money."""
        from tui import quote_words, stop_words

        history, ruling = snapshot.history, snapshot.ruling
        last = history.train[-1].loss if history.train else None
        out = Text(no_wrap=True, overflow="ellipsis")
        out.append("loss ", "dim").append(words.loss(last), "bold")
        if history.evals:
            out.append("   eval ", "dim").append(words.loss(history.evals[-1].eval_loss), "bold")
        if ruling.state.best is not None:
            out.append(f"   ★ {words.loss(ruling.state.best)} @{ruling.state.best_step}", "dim")
        line, colour = stop_words.phase_words(snapshot, ruling)
        out.append(f"\n{stop_words.meter(ruling)} ", "dim")
        out.append(line, self.control.theme_variables.get(colour, ""))
        rows = quote_words.ordered(snapshot)
        if rows:
            best = rows[0]
            said = f"{words.hours(best.hours[1])} h {words.usd(best.usd[1])}"
            out.append(f"\n{quote_words.name(best)}: ", "dim").append(said, "bold")
            out.append(f"   ({words.usd(best.usd[0])} … {words.usd(best.usd[2])})", "dim")
        return out

    # panes --------------------------------------------------------------------------------------------------------

    def _arrange(self) -> None:
        alone = self._solo or self.has_class("-compact")
        self.set_class(alone, "-solo")
        for name, _ in TITLES:
            self.query_one(f"#{name}").set_class(name == self.chosen, "-chosen")
        self.query_one("#left").set_class(self.chosen in ("stop", "quotes"), "-empty")
        self.query_one("#right").set_class(self.chosen not in ("stop", "quotes"), "-empty")
        self.query_one(PaneTabs).show_tabs(TITLES, self.chosen)

    def action_pane(self, name: str) -> None:
        """Open or focus one pane."""
        self.chosen = name
        self._arrange()
        self.query_one(f"#{name}").focus()
        self.call_after_refresh(self._texts)

    def action_solo(self) -> None:
        """One pane alone, or all of them."""
        focused = self.focused
        if focused is not None and focused.id in dict(TITLES):
            self.chosen = focused.id
        self._solo = not self._solo
        self._arrange()
        self.call_after_refresh(self._texts)

    # view ---------------------------------------------------------------------------------------------------------

    def _look(self, view: View) -> None:
        self.view = view
        self._redraw()

    def _geometry(self) -> Geometry | None:
        for pane in self.query(ChartPane):
            geometry = pane.geometry() if pane.display and pane.size.width else None
            if geometry is not None:
                return geometry
        return None

    def action_cursor(self, by: int) -> None:
        """Move the cursor by one column, on all charts."""
        geometry = self._geometry()
        if geometry is None:
            return
        at = geometry.columns - 1 if self.view.cursor is None else geometry.column_of(self.view.cursor)
        column = min(max((at if at is not None else geometry.columns // 2) + by, 0), geometry.columns - 1)
        self._look(replace(self.view, cursor=geometry.x_at(column)))

    def action_zoom(self, direction: int) -> None:
        """Zoom around the cursor, or around the newest step."""
        geometry = self._geometry()
        if geometry is not None:
            self._zoom(geometry, direction, self.view.cursor if self.view.cursor is not None else geometry.x_hi)

    def _zoom(self, geometry: Geometry, direction: int, around: float) -> None:
        factor = 0.7 if direction > 0 else 1 / 0.7
        around = min(max(around, geometry.x_lo), geometry.x_hi)
        lo = around - (around - geometry.x_lo) * factor
        hi = around + (geometry.x_hi - around) * factor
        self._look(replace(self.view, window=self._within(lo, hi)))

    def _within(self, lo: float, hi: float) -> tuple[float, float] | None:
        """A window inside what there is to see; None when it is all of it."""
        from tui.axes import layout

        spec = self.query_one("#loss", ChartPane).spec
        full = layout(replace(spec, x_range=None), 100, 10) if spec is not None else None
        if full is None or (lo <= full.x_lo and hi >= full.x_hi):
            return None
        width = max(hi - lo, (full.x_hi - full.x_lo) * 1e-4)
        lo = min(max(lo, full.x_lo), max(full.x_hi - width, full.x_lo))
        return lo, min(lo + width, full.x_hi)

    def action_pan(self, by: int) -> None:
        """Move the window by a quarter of its width."""
        self._pan(by * 0.25)

    def _pan(self, share: float) -> None:
        geometry = self._geometry()
        if geometry is None or self.view.window is None:
            return
        width = geometry.x_hi - geometry.x_lo
        window = self._within(geometry.x_lo + share * width, geometry.x_hi + share * width)
        self._look(replace(self.view, window=window))

    def action_reset_view(self) -> None:
        """All steps, no cursor."""
        self._look(replace(self.view, window=None, cursor=None))

    def action_smooth(self, by: int) -> None:
        """More or less smoothing."""
        self._look(self.view.smoother(by))

    def action_x_mode(self) -> None:
        """X as step, time, logarithm."""
        self._look(self.view.next_x_mode())

    def action_log_y(self) -> None:
        """Logarithmic y of the focused chart, else of the chosen one."""
        focused = self.focused
        name = focused.id if isinstance(focused, ChartPane) and focused.id else self.chosen
        self._look(replace(self.view, log_y=self.view.log_y ^ {name}))

    def cursor_to(self, step: int | None) -> None:
        """Put the cursor of all charts on a step."""
        if step is None or self.snapshot is None:
            return
        from tui.curves import seconds_at

        clock = self.cache.clock(self.snapshot.history) if self.view.x_mode == "time" else None
        self._look(replace(self.view, cursor=float(step) if clock is None else seconds_at(clock, step)))

    @on(ChartPane.Pointed)
    def _pointed(self, event: ChartPane.Pointed) -> None:
        self._look(replace(self.view, cursor=event.x))

    @on(ChartPane.Zoomed)
    def _zoomed(self, event: ChartPane.Zoomed) -> None:
        geometry = self._geometry()
        if geometry is not None:
            self._zoom(geometry, event.direction, event.x)

    @on(ChartPane.Dragged)
    def _dragged(self, event: ChartPane.Dragged) -> None:
        self._pan(event.share)
