"""What is asked of a log from its prompt: search, filters, a step; each takes effect while it is typed.

A mixin of `LogsScreen`: it owns the prompt and what was asked, and hands the work to the thread of the screen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from textual import on
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Input, Static

from runner.errors import UsageError
from tui.logindex import LogIndex
from tui.logscan import Filter, Search
from tui.logtext import Pattern, compile_pattern
from tui.logwork import LogWork
from tui.widgets.log_view import LogView

Asking = Literal["search", "include", "exclude", "step"]
PROMPTS: dict[Asking, tuple[str, str]] = {
    "search": ("search", "regular expression; capitals count when there is one"),
    "include": ("only", "regular expression: only lines that match are shown"),
    "exclude": ("without", "regular expression: lines that match are hidden"),
    "step": ("step", "number of a step"),
}
EVAL_LINE = Pattern("['\"]eval_loss['\"]:")
SETTLE_S = 0.12
"""Seconds without a key before what was typed takes effect."""


class LogAsking(Screen[int | None]):
    """The prompt below the lines."""

    index: LogIndex
    work: LogWork
    evals: Search
    """Every evaluation of the log; the order tells equal ones apart."""

    def __init__(self) -> None:
        super().__init__()
        self.include: Pattern | None = None
        self.exclude: Pattern | None = None
        self.bars = True
        self.search: Search | None = None
        self._asking: Asking | None = None
        self._before: tuple[str, int, bool] = ("", 0, True)
        self._seek = False
        self._settle: Timer | None = None

    if TYPE_CHECKING:

        def _say(self) -> None:
            """Bring the lines of words up to date."""

        def _tell(self, sentence: str, *, keep: bool = False) -> None:
            """Say something for a moment."""

        def _go_to_step(self, text: str) -> None:
            """Look for the step that was typed."""

    @property
    def view(self) -> LogView:
        """The lines."""
        return self.query_one(LogView)

    def _rebuild(self) -> None:
        """Filter and search again, on the index as it is now."""
        if self.include is None and self.exclude is None and self.bars:
            chosen = None
        else:
            chosen = Filter(self.index, self.include, self.exclude, bars=self.bars)
        self.work.let_pass(chosen)
        self.view.set_filter(chosen)
        self.search = Search(self.index, self.search.pattern) if self.search is not None else None
        self.work.look_for(self.search)
        if self.evals.index is not self.index or self.evals.stale():
            self.evals = Search(self.index, EVAL_LINE)
            self.work.count_evals(self.evals)

    def _ask(self, what: Asking) -> None:
        pattern = {"search": self.search.pattern if self.search is not None else None, "include": self.include}.get(
            what, self.exclude
        )
        text = pattern.text if pattern is not None and what != "step" else ""
        self._before = (text, self.view.cursor, self.view.follow)
        self._asking = what
        prompt = self.query_one("#prompt", Input)
        self.add_class("-asking")
        with prompt.prevent(Input.Changed):
            prompt.value = text
        label, prompt.placeholder = PROMPTS[what]
        self.query_one("#what", Static).update(label)
        prompt.focus()

    @on(Input.Changed, "#prompt")
    def _typed(self, event: Input.Changed) -> None:
        if self._settle is not None:
            self._settle.stop()
        if self._asking not in (None, "step"):
            self._settle = self.set_timer(SETTLE_S, lambda: self._apply(event.value))

    def _apply(self, text: str) -> bool:
        """Let what was typed take effect; False, with a sentence above the prompt, when it does not parse."""
        what = self._asking
        try:
            if what == "step":
                self._go_to_step(text)
                return self._fault("")
            pattern = compile_pattern(text)
        except UsageError as error:
            return self._fault(str(error))
        if what == "search" and (self.search is None or self.search.pattern.text != text):
            self.search = Search(self.index, pattern) if pattern else None
            self.view.pattern = pattern
            self.work.look_for(self.search)
        elif what == "include":
            self.include = pattern
            self._rebuild()
        elif what == "exclude":
            self.exclude = pattern
            self._rebuild()
        self._say()
        return self._fault("")

    def _fault(self, sentence: str) -> bool:
        self.query_one("#fault", Static).update(sentence)
        self.set_class(bool(sentence), "-faulty")
        return not sentence

    @on(Input.Submitted, "#prompt")
    def _entered(self, event: Input.Submitted) -> None:
        if self._settle is not None:
            self._settle.stop()
        if not self._apply(event.value):
            return
        if self._asking == "search" and self.search is not None:
            self._seek = True
            self._go_to_first_hit()
        self._close_prompt()

    def _close_prompt(self) -> None:
        self._asking = None
        self._fault("")
        self.remove_class("-asking")
        self.view.focus()

    def action_search(self) -> None:
        """Ask for a regular expression."""
        self._ask("search")

    def action_include(self) -> None:
        """Ask which lines to keep."""
        self._ask("include")

    def action_exclude(self) -> None:
        """Ask which lines to hide."""
        self._ask("exclude")

    def action_goto_step(self) -> None:
        """Ask for a step."""
        self._ask("step")

    def _go_to_first_hit(self) -> None:
        """After a search was entered: the nearest hit ahead, or the last one when the end was being followed."""
        search = self.search
        if search is None or not search.done:
            return
        _, cursor, follow = self._before
        self._seek = False
        hit = (
            search.step(cursor + 1, False, self.view.filter)
            if follow
            else search.step(cursor - 1, True, self.view.filter)
        )
        if hit is not None:
            self.view.show_line(hit[0])
        self._say()

    def action_next_hit(self, way: int = 1) -> None:
        """The next hit (or the one before); round the end with a word about it."""
        if self.search is None:
            self._ask("search")
            return
        hit = self.search.step(self.view.cursor, way > 0, self.view.filter)
        if hit is None:
            self._tell("no hit" if self.view.filter is None else "no hit among the lines shown")
            return
        self._tell(("round the end" if way > 0 else "round the start") if hit[1] else "")
        self.view.show_line(hit[0])
