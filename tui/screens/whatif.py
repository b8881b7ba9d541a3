"""What-if over whatever screen is open: try another rule, and ask the run to go on under it.

Applying asks once more, with the focus on Cancel; then it is `tunewatch rule`, run beside the screen. What stands below
the fields is always where it got to: requested, acknowledged at a step, refused, or not answered yet.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from remote.deeds import DeedStep
from tui import words
from tui.deeds import DeedEnd, Told, rule_deed
from tui.screens.deed import begin_deed
from tui.what_if import Tone, last_answer, why_not
from tui.widgets.whatif import COLOURS, WhatIf

if TYPE_CHECKING:
    from tui.snapshot import RunSnapshot


class WhatIfScreen(ModalScreen[None]):
    """The what-if panel of one run."""

    AUTO_FOCUS = "#patience"
    DEFAULT_CSS = """
    WhatIfScreen { align: center middle; background: $background 60%; }
    WhatIfScreen > VerticalScroll {
        width: 74; max-width: 100%; height: auto; max-height: 100%;
        border: round $border; background: $surface; scrollbar-size-vertical: 1;
        border-title-color: $foreground; border-subtitle-color: $text-muted;
    }
    WhatIfScreen #answer { width: 1fr; height: auto; padding: 0 1; display: none; margin-top: 1; }
    WhatIfScreen #confirm { height: 1; padding: 0 1; margin-top: 1; display: none; }
    WhatIfScreen #confirm Button { margin-right: 2; min-width: 12; }
    WhatIfScreen.-asking #confirm { display: block; }
    WhatIfScreen.-asking #buttons { display: none; }
    WhatIfScreen.-under-way #buttons { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close", show=False),
        Binding("left", "app.focus_previous", "Previous", show=False),
        Binding("right", "app.focus_next", "Next", show=False),
    ]

    def __init__(self, snapshot: RunSnapshot, *, refusal: str = "") -> None:
        """`refusal` is a reason of the session's (read-only, a recording) why nothing may be applied."""
        super().__init__()
        self.target = snapshot.target
        self.snapshot = snapshot
        self.refusal = refusal
        self._since: float | None = None
        """When the request was sent, monotonic s; None while none is under way."""

    def compose(self) -> ComposeResult:
        """One panel in a box that scrolls where there is little room."""
        one = self.snapshot
        with VerticalScroll(can_focus=False) as box:
            box.border_title = "what if the rule were another one"
            box.border_subtitle = "↑ ↓ change · Tab next · Esc closes"
            yield WhatIf(
                one.history,
                one.history.rule or one.ruling.rule,
                ended=one.ended,
                effective_sps=one.effective_sps,
                dph=one.dph,
                may_apply=not self._why_not(),
            )
            yield Static("", id="answer", markup=False)
            with Horizontal(id="confirm"):
                yield Button("Cancel", id="keep", compact=True)
                yield Button("Apply", id="apply-now", compact=True, variant="warning")

    def on_mount(self) -> None:
        """Say at once why the run cannot be asked, or what it answered last."""
        self._timer = self.set_interval(0.5, self._turn, pause=True)
        if why := self._why_not():
            self._say(why, "quiet")
        elif told := last_answer(self.snapshot.history):
            self._say(told, "quiet")

    def _why_not(self) -> str:
        return self.refusal or why_not(self.snapshot)

    def take(self, snapshot: RunSnapshot) -> None:
        """Try the same rule on what came since."""
        if snapshot.target != self.target or not self.is_running:
            return
        before, self.snapshot = self._why_not(), snapshot
        panel = self.query_one(WhatIf)
        panel.may_apply = not self._why_not()
        panel.take(
            snapshot.history,
            snapshot.history.rule or snapshot.ruling.rule,
            ended=snapshot.ended,
            effective_sps=snapshot.effective_sps,
            dph=snapshot.dph,
        )
        panel.query_one("#apply").display = panel.may_apply and not snapshot.ended
        if self._since is None and not self.has_class("-asking") and self._why_not() != before:
            self._say(self._why_not(), "quiet")

    def _say(self, text: str, tone: Tone) -> None:
        box = self.query_one("#answer", Static)
        box.display = bool(text)
        colour = self.app.theme_variables.get("error" if tone == "strong" else COLOURS[tone], "")
        box.update(Text(text, "dim" if tone == "quiet" else f"bold {colour}" if not colour.startswith("auto") else ""))
        self.call_after_refresh(box.scroll_visible, animate=False)

    @on(WhatIf.Apply)
    def _ask(self, message: WhatIf.Apply) -> None:
        """Say once more what will happen; a careless Enter changes nothing."""
        self._rule = message.rule
        at_once = "  It stops the run at its next step." if message.trial.stops_at_once else ""
        self._say(f"{self.snapshot.name} goes on: {message.rule.in_words()}.{at_once}", "bad")
        self.add_class("-asking")
        self.query_one("#keep", Button).focus()

    @on(Button.Pressed, "#keep")
    def _keep(self) -> None:
        self.remove_class("-asking")
        self._say("", "quiet")
        self.query_one("#patience").focus()

    @on(Button.Pressed, "#apply-now")
    def _go(self) -> None:
        if self._since is not None or not self.has_class("-asking"):
            return
        self.remove_class("-asking")
        self.add_class("-under-way")
        self._since = time.monotonic()
        self._timer.resume()
        self._turn()
        self.query_one("#patience").focus()
        begin_deed(self.app, rule_deed(self.snapshot.name, self.target, self._rule), self._told, self._ended)

    _doing = "asking"

    def _told(self, told: Told) -> None:
        if isinstance(told, DeedStep) and told.ok is None:
            self._doing = {"look": "asking", "request": "asking", "answer": "requested"}.get(told.name, told.name)
            if self.is_attached:
                self._turn()

    def _turn(self) -> None:
        if self._since is None:
            return
        waited = words.duration(time.monotonic() - self._since)
        more = "the run takes it up between two steps" if self._doing == "requested" else "looking at the run"
        self._say(f"▸ {self._doing} … {waited} ({more})", "plain")

    def _ended(self, end: DeedEnd) -> None:
        self._since = None
        text, tone = how_it_ended(end)
        if not self.is_attached:
            self.app.notify(
                text, title="another rule", severity="information" if tone == "good" else "error", timeout=20
            )
            return
        self._timer.pause()
        self.remove_class("-under-way")
        self._say(text, tone)

    def action_leave(self) -> None:
        """Close; a question is cancelled first, a request that is under way goes on."""
        if self.has_class("-asking"):
            self._keep()
            return
        if self._since is not None:
            self.app.notify("The request goes on; its answer will be told here.")
        self.dismiss()


def how_it_ended(end: DeedEnd) -> tuple[str, Tone]:
    """The end of `tunewatch rule` in words."""
    ack = end.document.get("ack")
    if end.ok and isinstance(ack, dict):
        return f"✓ requested → acknowledged at step {ack.get('step')}: {ack.get('detail')}", "good"
    if end.ok:
        return "That is the rule in force already.", "quiet"
    if end.state == "running":
        return "… requested; the run has not answered yet. The request stays: it is answered between two steps.", "bad"
    return f"✗ {end.text}", "strong"
