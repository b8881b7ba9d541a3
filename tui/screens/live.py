"""One run: is it learning, when will it stop, what will it cost, is the link alive.

The screen shows snapshots and nothing else: it reads no file and calls no host. What the person chose to see (`View`)
and the newest snapshot together make the charts; every key and every mouse gesture changes one of the two.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from tui import words
from tui.keys import bindings
from tui.layout import RunLayout
from tui.screens.chart_keys import ChartKeys, view_of
from tui.screens.live_actions import LiveActions
from tui.widgets.chart_pane import ChartPane
from tui.widgets.key_line import KeyLine
from tui.widgets.panes import PaneTabs, TextPane, stage_line, tail_text
from tui.widgets.status_line import StatusLine

if TYPE_CHECKING:
    from tui.axes import Role
    from tui.curves import CurveCache, PaneName, View
    from tui.last_seen import LastSeen
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
    ("box", "box"),
)
RIGHT = ("stop", "quotes", "box")
"""The panes of the right column."""
ROOM = (100, 30)
"""Columns and rows from which on all panes stand side by side."""
LEAST = (40, 10)


class LiveScreen(LiveActions, ChartKeys):
    """A run, live."""

    CSS_PATH = "live.tcss"
    BINDINGS: ClassVar[list[BindingType]] = bindings("live")
    AUTO_FOCUS = ""
    """The pane that was left has the focus, not the first one."""

    def __init__(self, target: str, *, memory: LastSeen | None = None, left: RunLayout | None = None) -> None:
        """`memory` is what the screen said when the run was last looked at, `left` how it was looked at."""
        super().__init__(target)
        self._memory = memory
        left = left or RunLayout()
        self._left = left
        self.chosen = left.pane if left.pane in dict(TITLES) else "loss"
        self._solo = left.solo

    @cached_property
    def cache(self) -> CurveCache:
        """The curves of the newest history."""
        from tui.curves import CurveCache

        return CurveCache()

    @cached_property
    def view(self) -> View:
        """What the person chose to see, as it was left."""
        return view_of(self._left)

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
                yield TextPane("box", id="box", classes="-cut")
        yield KeyLine(id="keys")

    def on_mount(self) -> None:
        """Show what is known at once."""
        self.control.theme_changed_signal.subscribe(self, lambda _: self._new_theme())
        self.query_one(f"#{self.chosen}").focus()
        known = self.control.snapshots.get(self.target)
        if known is not None:
            self.take(known)
        elif self._memory is not None:
            self.query_one(StatusLine).memory = self._memory
            for name in self._memory.panes.keys() & {"stop", "quotes"}:
                self.query_one(f"#{name}", TextPane).show(Text(self._memory.panes[name], style="dim"))

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

        self.view = self.view.suited(self.snapshot.history)

        for name, spec in charts(self.snapshot, self.view, self.cache).items():
            pane = self.query_one(f"#{name}", ChartPane)
            pane.palette, pane.spec = self.control.palette, spec
            pane.border_title, pane.border_subtitle = self._captions(name)

    def _captions(self, name: PaneName) -> tuple[Text, Text]:
        """Title with a swatch, and the value at the cursor or the newest one."""
        assert self.snapshot is not None  # noqa: S101 - only called with one
        from tui.curves import X_WORDS

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
            notes.append(X_WORDS[self.view.x_mode])
        if notes:
            head.append(f"  {' · '.join(notes)}", palette.text)
        if self.view.cursor is not None:
            return head, Text(self._at_cursor(name, self.view.cursor))
        return head, Text(self._newest(name, curve.ys))

    def _at_cursor(self, name: PaneName, x: float) -> str:
        from tui.curves import reading, x_words

        assert self.snapshot is not None  # noqa: S101 - only called with one
        history, mode = self.snapshot.history, self.view.x_mode
        point = reading(self.cache.curve(history, name, mode), x)
        if point is None:
            return ""
        where = x_words(point[0], mode)
        said = words.per_step(point[1]) if name == "speed" else words.loss(point[1])
        if name == "loss" and self.view.weight:
            smoothed = reading(self.cache.smoothed(history, name, mode, self.view.weight), x)
            said += f" (smoothed {words.loss(smoothed[1])})" if smoothed else ""
        return f"{where}: {said}"

    def _newest(self, name: PaneName, ys: tuple[float, ...]) -> str:
        from tui.curves import best_eval

        snapshot = self.snapshot
        if snapshot is None or not ys:
            return ""
        if name == "speed":
            drift = snapshot.drift
            trend = f" · {'▲' if drift > 0 else '▼'} {abs(drift) * 100:.1f}%" if drift and abs(drift) >= 0.005 else ""
            evals = f" · eval {words.duration(snapshot.eval_s)}" if snapshot.eval_s else ""
            return f"{words.per_step(snapshot.step_s)}{trend}{evals}"
        if name == "eval":
            if snapshot.history.stepless:
                lowest = best_eval(snapshot.history)
                return f"{words.loss(ys[-1])} · ★ {words.loss(lowest.eval_loss if lowest else None)}"
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
        stages = stage_line(snapshot.history, colours, self.size.width - 2)
        self.query_one("#stages", Static).display = stages is not None
        self.query_one("#stages", Static).update(stages or "")
        banner = self._banner(snapshot)
        self.query_one("#banner", Static).display = bool(banner)
        self.query_one("#banner", Static).update(banner)
        self.query_one("#summary", Static).update(self._summary(snapshot))
        quoted = "the whole run elsewhere" if snapshot.ended else "finish and bill"
        self.query_one("#quotes", TextPane).border_title = f"{quoted}: opt / base / pess"
        self.query_one("#quotes", TextPane).border_subtitle = self.control.price_words()
        for pane_id, make in (("stop", stop_words.panel), ("quotes", quote_words.panel)):
            pane = self.query_one(f"#{pane_id}", TextPane)
            if pane.display and pane.content_size.width:
                pane.show(make(snapshot, colours, pane.content_size.width - 1))
        self._box(snapshot)
        tail = self.query_one("#tail", TextPane)
        if tail.display:
            tail.show_end(tail_text(snapshot.tail[-max(tail.content_size.height, 1) :], colours))

    def _box(self, snapshot: RunSnapshot) -> None:
        """The box beside verdict and money, where it is measured at all; alone it says why it is not."""
        from tui.widgets.box_text import box_text, measured_words, pane_text

        pane = self.query_one("#box", TextPane)
        health, colours, now = snapshot.health, self.control.theme_variables, time.monotonic()
        if health and not self.has_class("-measured"):
            self.call_after_refresh(self._texts)  # the pane has no width before it is shown
        self.set_class(bool(health), "-measured")
        pane.border_subtitle = measured_words(health, now) if health else ""
        if not pane.content_size.width:
            return
        if self.has_class("-solo"):
            pane.show(box_text(health, colours, now))
        else:
            running = snapshot.state == "running"
            pane.show(pane_text(health, colours, now, pane.content_size.width, running=running))

    def _banner(self, snapshot: RunSnapshot) -> str:
        """What the person should know before anything else: a fault of the link, a crash, a warning."""
        rental = self.control.rental
        if snapshot.lost and rental is not None and (why := rental.moving(snapshot.name)):
            return f"⇄ {why}"
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
        out.append("\n" if history.stepless else f"\n{stop_words.meter(ruling)} ", "dim")
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
        self.query_one("#left").set_class(self.chosen in RIGHT, "-empty")
        self.query_one("#right").set_class(self.chosen not in RIGHT, "-empty")
        self.query_one(PaneTabs).show_tabs(TITLES, self.chosen)

    def action_pane(self, name: str) -> None:
        """Open or focus one pane."""
        self.chosen = name
        self._arrange()
        self.query_one(f"#{name}").focus()
        self._keep()
        self.call_after_refresh(self._texts)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """The pane that has the focus, by key, Tab or mouse, is the chosen one."""
        if event.widget.id in dict(TITLES) and event.widget.id != self.chosen:
            self.chosen = event.widget.id
            self._arrange()
            self._keep()

    def action_solo(self) -> None:
        """One pane alone, or all of them."""
        self._solo = not self._solo
        self._arrange()
        self._keep()
        self.call_after_refresh(self._texts)

    # view ---------------------------------------------------------------------------------------------------------

    def redraw(self) -> None:
        """Draw the charts as the person chose to see them."""
        self._redraw()
        self._keep()

    def _keep(self) -> None:
        """Remember what was chosen: the next start begins with it."""
        view = self.view
        # the axis of a log without steps was nobody's choice
        mode = "step" if view.x_mode == "epoch" else view.x_mode
        left = RunLayout(mode, view.smoothing, tuple(sorted(view.log_y)), self.chosen, self._solo)
        if left != self._left:
            self._left = left
            self.control.session.layout.keep_run(self.target, left)

    def counts_tokens(self) -> bool:
        """Whether the run tells how many tokens it has seen."""
        from tui.curves import counts_tokens

        return self.snapshot is not None and counts_tokens(self.snapshot.history)

    def cursor_to(self, step: int | None) -> None:
        """Put the cursor of all charts on a step."""
        if step is None or self.snapshot is None or self.view.x_mode == "epoch":
            return
        x = self.cache.x_of(self.snapshot.history, float(step), self.view.x_mode)
        self.look(replace(self.view, cursor=x))

    def step_at_cursor(self) -> int | None:
        """The step that the cursor of the charts stands on; None without a cursor."""
        if self.view.cursor is None or self.snapshot is None or self.view.x_mode == "epoch":
            return None
        return self.cache.step_of(self.snapshot.history, self.view.cursor, self.view.x_mode)
