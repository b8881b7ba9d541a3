"""What-if over whatever screen is open; its result is the rule to apply, or None."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

from runner.autostop import StopRule
from tui.widgets.whatif import WhatIf

if TYPE_CHECKING:
    from tui.snapshot import RunSnapshot


class WhatIfScreen(ModalScreen[StopRule | None]):
    """The what-if panel of one run."""

    AUTO_FOCUS = "#patience"
    DEFAULT_CSS = """
    WhatIfScreen { align: center middle; background: $background 60%; }
    WhatIfScreen > VerticalScroll {
        width: 74; max-width: 100%; height: auto; max-height: 100%;
        border: round $border; background: $surface; scrollbar-size-vertical: 1;
        border-title-color: $foreground; border-subtitle-color: $text-muted;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Close", show=False)]

    def __init__(self, snapshot: RunSnapshot, *, may_apply: bool = True) -> None:
        super().__init__()
        self.target = snapshot.target
        self._first = snapshot
        self._may_apply = may_apply and snapshot.declared

    def compose(self) -> ComposeResult:
        """One panel in a box that scrolls where there is little room."""
        one = self._first
        with VerticalScroll(can_focus=False) as box:
            box.border_title = "what if the rule were another one"
            box.border_subtitle = "↑ ↓ change · Tab next · Esc closes"
            yield WhatIf(
                one.history,
                one.ruling.rule,
                ended=one.ended,
                effective_sps=one.effective_sps,
                dph=one.dph,
                may_apply=self._may_apply,
            )

    def take(self, snapshot: RunSnapshot) -> None:
        """Try the same rule on what came since."""
        if snapshot.target == self.target and self.is_running:
            self.query_one(WhatIf).take(
                snapshot.history,
                snapshot.ruling.rule,
                ended=snapshot.ended,
                effective_sps=snapshot.effective_sps,
                dph=snapshot.dph,
            )

    @on(WhatIf.Apply)
    def _apply(self, message: WhatIf.Apply) -> None:
        self.dismiss(message.rule)
