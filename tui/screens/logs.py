"""The whole log of a run: follow, search, filter, wrap, go to a step, copy, save.

The screen draws and asks; `LogWork` reads. Choosing an evaluation tells its step, so that the charts can move their
cursor there (`EvalChosen`); Enter on one leaves the screen with that step as its result.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Footer, Input, Static
from textual.worker import get_current_worker

from runner.errors import UsageError
from runner.history import RunHistory
from tui import log_words, words
from tui.keys import bindings
from tui.logindex import Change, LogIndex
from tui.logscan import Search, StepSearch, eval_of_line, step_near
from tui.logwork import LogWork, Report, save_lines
from tui.screens.log_asking import EVAL_LINE, LogAsking
from tui.widgets.billing import Head
from tui.widgets.log_view import LogView

if TYPE_CHECKING:
    from tui.snapshot import RunSnapshot

TOLD_S = 5.0
"""Seconds that a passing word stays."""


class LogsScreen(LogAsking):
    """The log at `path` (the file itself or its mirror); its result is the step of the evaluation that was entered."""

    CSS_PATH = "logs.tcss"
    place = "logs"
    AUTO_FOCUS = "LogView"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("logs"), Binding("escape", "back", "Back", show=False)]

    @dataclass
    class EvalChosen(Message):
        """An evaluation line was selected; charts may move their cursor to `step`."""

        target: str
        step: int | None
        """None where the log cannot say."""
        eval_loss: float

    @dataclass
    class News(Message):
        """The thread has something to tell."""

        report: Report

        def can_replace(self, message: Message) -> bool:
            """A report that tells no change of its own may be overtaken by the next one."""
            return isinstance(message, LogsScreen.News) and self.report in (Report(), Report(busy=True))

    def __init__(
        self,
        path: Path | None,
        *,
        target: str = "",
        name: str = "",
        history: RunHistory | None = None,
        step: int | None = None,
    ) -> None:
        """`step` is where to begin, for a chart whose cursor stands there; None begins at the end."""
        super().__init__()
        self.path = path
        self.target = target
        self.label = name or target
        self.history = history or RunHistory()
        self.index = LogIndex(path or Path())
        self.work = LogWork(self.index, self._post)
        self.evals = Search(self.index, EVAL_LINE)
        self._first_step = step
        self._fading: Timer | None = None
        self._trouble = ""
        self._busy = False
        self._told = ""

    def compose(self) -> ComposeResult:
        """Where, the lines, what was asked, how it stands."""
        yield Head(of="where")
        yield LogView(self.index, id="log")
        yield Static(id="none", markup=False)
        yield Static(id="fault", markup=False)
        with Horizontal(id="ask"):
            yield Static(id="what", markup=False)
            yield Input(id="prompt", compact=True)
        yield Static(id="state", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to read."""
        self.set_class(True, "-none")
        self.query_one("#none", Static).update("The log has not been found yet." if self.path is None else "")
        if self.path is not None:
            self.work.start()

    def on_unmount(self) -> None:
        """End the thread; it closes the file."""
        self.work.stop()

    # -- news ----------------------------------------------------------------------------------------------------

    def take(self, snapshot: RunSnapshot) -> None:
        """Take what is newly known of this run: its evals, and where its log is if that changed."""
        if snapshot.target != self.target or not self.is_running:
            return
        self.history = snapshot.history
        path = Path(snapshot.log_path) if snapshot.log_path else self.path
        if path is not None and path != self.path:
            self.work.stop()
            self.path = path
            self.index = LogIndex(path)
            self.work = LogWork(self.index, self._post)
            self.view.index = self.index
            self._rebuild()
            self.work.start()

    def _post(self, report: Report) -> None:
        if self.is_running:
            self.post_message(self.News(report))

    @on(News)
    def _news(self, message: News) -> None:
        report = message.report
        if report.jump is None:
            self._busy = report.busy
        if report.change is Change.RESTARTED:
            if self.index.generation > 1:
                self._tell("the log was replaced or cut: this is the new one")
            self._rebuild()
            if self._first_step is not None:
                self.go_to_step(self._first_step)
                self._first_step = None
        self._trouble = report.trouble
        if report.change is Change.MISSING and not report.trouble:
            self._trouble = "the file is gone; this is what was read of it"
        self.view.sync()
        if report.jump is not None:
            self._jumped(*report.jump)
        empty = self.view.row_count == 0
        self.set_class(empty, "-none")
        if empty:
            self.query_one("#none", Static).update(self._why_empty())
        if self._seek:
            self._go_to_first_hit()
        self._say()

    def _why_empty(self) -> str:
        if self._trouble:
            return self._trouble
        if self.index.line_count:
            return "reading …" if self._busy else "No line passes the filters."
        return "The log is empty so far."

    def _tell(self, sentence: str, *, keep: bool = False) -> None:
        """Say something that is true for a moment (or, with `keep`, until the next word)."""
        self._told = sentence
        if self._fading is not None:
            self._fading.stop()
        if sentence and not keep:
            self._fading = self.set_timer(TOLD_S, lambda: self._tell(""))
        self._say()

    @on(LogView.Moved)
    def _say(self) -> None:
        """Bring both lines of words up to date."""
        width = max(20, self.size.width - 2)
        path = str(self.path or "")
        label = f"{self.label}  " if self.label and self.label not in path else ""
        self.query_one("#where", Static).update(words.shorten(f"{label}{path}", width))
        self.query_one("#state", Static).update(self._state(width))

    def _state(self, width: int) -> Text:
        """How it stands, the most important first: what does not fit falls off the end."""
        view, index = self.view, self.index
        parts: list[log_words.Part] = []
        if self._trouble or self._told:
            parts.append((self._trouble or self._told, "bold"))
        if view.follow:
            parts.append(("following", "bold"))
        elif view.new_rows:
            parts.append((f"{view.new_rows:,} new line{'s' * (view.new_rows != 1)}, End to follow", "bold reverse"))
        if not index.numbered:
            parts.append((f"numbering {words.percent(index.progress)}", ""))
        elif index.line_count:
            parts.append((f"{min(view.cursor + 1, index.line_count):,}/{index.line_count:,}", ""))
        if self.search is not None:
            parts.append((log_words.hits(self.search, view.cursor), "bold"))
        if view.filter is not None:
            parts.append((log_words.filters(view.filter), ""))
        if view.wrap:
            parts.append(("wrapped", "dim"))
        elif view.scroll_offset.x:
            parts.append((f"from column {view.scroll_offset.x + 1}", "dim"))
        return log_words.one_line(parts, width)

    async def action_back(self) -> None:
        """Out of the prompt, as it was before; then out of search, filters and screen, one after the other."""
        if self._asking is not None:
            if self._settle is not None:
                self._settle.stop()
            text, cursor, follow = self._before
            if self._asking != "step":
                self._apply(text)
            self._close_prompt()
            if follow:
                self.view.action_follow()
            else:
                self.view.show_line(cursor)
        elif self.search is not None:
            self.search = self.view.pattern = None
            self.work.look_for(None)
            self._say()
        elif self.view.filter is not None:
            self.include = self.exclude = None
            self.bars = True
            self._rebuild()
        else:
            self.dismiss(self._step_here())

    def _step_here(self) -> int | None:
        """The step of the line that is looked at, for the cursor of the charts; None while the end is followed."""
        if self.view.follow or not self.target or not self.index.numbered:
            return None
        loss = eval_of_line(self.view.text_of(self.view.cursor))
        if loss is not None:
            step = log_words.step_of_eval(self.history, loss, self.evals.row_at_or_after(self.view.cursor))
            if step is not None:
                return step
        return step_near(self.index, self.view.cursor, self.history.max_steps)

    # -- going ---------------------------------------------------------------------------------------------------

    def _go_to_step(self, text: str) -> None:
        digits = text.strip().lower().removeprefix("step").strip().replace(",", "")
        if not digits:
            return
        if not digits.isdecimal() or len(digits) > 12:
            raise UsageError(f"A step is a whole number, not '{words.shorten(text.strip(), 30)}'.")
        self._tell(f"looking for step {int(digits):,} …", keep=True)
        self.work.find_step(StepSearch(self.index, int(digits), self.history.max_steps))

    def go_to_step(self, step: int) -> None:
        """Put the cursor on the line of a step, when it has been found; for a chart whose cursor moved."""
        self.work.find_step(StepSearch(self.index, step, self.history.max_steps))

    def _jumped(self, step: int, found: tuple[int, int] | None) -> None:
        if found is None:
            self._tell(f"the log does not reach step {step:,}")
        else:
            line, at = found
            self._tell("" if at == step else f"no line for step {step:,}, the next one is {at:,}")
            self.view.show_line(line)

    @on(LogView.Chosen)
    def _chosen(self, message: LogView.Chosen) -> None:
        if message.eval_loss is None:
            return
        ordinal = self.evals.row_at_or_after(message.line)
        step = log_words.step_of_eval(self.history, message.eval_loss, ordinal)
        self.post_message(self.EvalChosen(self.target, step, message.eval_loss))
        if message.entered and step is not None and self.target:
            self.dismiss(step)
            return
        self._tell(f"eval_loss {words.loss(message.eval_loss)}" + (f" of step {step:,}" if step is not None else ""))

    # -- the rest ------------------------------------------------------------------------------------------------

    def action_wrap(self) -> None:
        """Whole lines, or one row each."""
        self.view.wrap = not self.view.wrap
        self._say()

    def action_bars(self) -> None:
        """Lines that are only a progress bar, shown or not."""
        self.bars = not self.bars
        self._rebuild()

    def action_follow(self) -> None:
        """To the end, and stay there."""
        self._tell("")
        self.view.action_follow()

    def action_top(self) -> None:
        """To the first line."""
        self.view.action_top()

    def action_copy_line(self) -> None:
        """The line under the cursor, to the clipboard of the terminal (OSC 52)."""
        text = self.view.text_of(self.view.cursor)
        self.app.copy_to_clipboard(text)
        self._tell(f"copied {len(text):,} characters")

    def action_save_lines(self) -> None:
        """The lines that are shown, to a file beside where tunewatch was started."""
        stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        self._save(Path.cwd() / f"{self.index.path.stem or 'log'}-{stamp}.txt")

    @work(thread=True, exclusive=True, group="save")
    def _save(self, path: Path) -> None:
        worker = get_current_worker()
        try:
            count = save_lines(self.index, self.view.filter, path, lambda: worker.is_cancelled)
        except OSError as error:
            said, severity = f"{path} cannot be written: {error.strerror}", "error"
        else:
            said, severity = f"{count:,} lines saved as {path}", "information"
        self.app.call_from_thread(self.notify, said, title="log", severity=severity)
