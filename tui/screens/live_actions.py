"""What can be done from a run's screen beyond looking: its log, exports, a shell, and the deeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from textual import work
from textual.notifications import SeverityLevel
from textual.screen import Screen

if TYPE_CHECKING:
    from tui.app import TunewatchApp
    from tui.deeds import Deed
    from tui.snapshot import RunSnapshot


class LiveActions(Screen[None]):
    """The actions of `LiveScreen` that open another screen or leave the program."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target
        self.snapshot: RunSnapshot | None = None

    @property
    def control(self) -> TunewatchApp:
        """The application, by its own type."""
        return cast("TunewatchApp", self.app)

    if TYPE_CHECKING:

        def cursor_to(self, step: int | None) -> None:
            """Put the cursor of all charts on a step; `LiveScreen` does it."""

        def step_at_cursor(self) -> int | None:
            """The step under that cursor; `LiveScreen` knows it."""

    def action_logs(self) -> None:
        """The whole log, at the step under the cursor of the charts; their cursor goes to the line that is left."""
        from tui.screens.logs import LogsScreen

        snapshot = self.snapshot
        if snapshot is None:
            return
        path = Path(snapshot.log_path) if snapshot.log_path else None
        screen = LogsScreen(
            path, target=self.target, name=snapshot.name, history=snapshot.history, step=self.step_at_cursor()
        )
        self.app.push_screen(screen, self.cursor_to)

    def action_what_if(self) -> None:
        """Try another rule on this run at once; nothing is changed by it before it is applied."""
        from tui.screens.whatif import WhatIfScreen

        if self.snapshot is None:
            return
        refusal = f"Cannot be applied: {self.control.looks_only}" if self.control.looks_only else ""
        if self.control.session.recorded:
            refusal = "Cannot be applied: this is a recording, nothing trains."
        self.app.push_screen(WhatIfScreen(self.snapshot, refusal=refusal))

    def action_results(self) -> None:
        """Stages of the study and what the mask cost."""
        from tui.screens.study import StudyScreen

        if self.snapshot is not None:
            self.app.push_screen(StudyScreen(self.snapshot))

    def action_box(self) -> None:
        """GPU, memory, disk and network of the box."""
        from tui.screens.box import BoxScreen

        if self.snapshot is not None:
            self.app.push_screen(BoxScreen(self.snapshot))

    def action_copy_summary(self) -> None:
        """Copy what `watch --once` would print."""
        from tui.document import watch_lines

        if self.snapshot is not None:
            self.app.copy_to_clipboard("\n".join(watch_lines(self.snapshot)))
            self.notify("A summary of the run is on the clipboard.")

    @work(thread=True, exclusive=True, group="export")
    def action_export(self) -> None:
        """Save SVG, PNG, CSV and a page of Markdown into the folder `exports`."""
        from datetime import datetime

        from tui.export import write_all
        from tui.svg import settled

        snapshot = self.snapshot
        if snapshot is None:
            return
        svg = settled(self.app.call_from_thread(self.app.export_screenshot, title=snapshot.name))
        when = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        try:
            written = write_all(snapshot, Path("exports"), when=when, svg=svg)
        except OSError as error:
            self.app.call_from_thread(self._exported, f"exports cannot be written: {error.strerror}.", "error")
            return
        self.app.call_from_thread(self._exported, written.in_words(), "information")

    def _exported(self, told: str, severity: SeverityLevel) -> None:
        self.notify(told, title="export", severity=severity, timeout=12)

    def action_shell(self) -> None:
        """A shell where the run is, and back."""
        self.control.open_shell(self.target)

    def action_stop_run(self) -> None:
        """Stop training with a checkpoint; asks first."""
        if self.snapshot is not None and self._may_act("stopping a run"):
            from tui.deeds import stop_deed

            self._ask(stop_deed(self.snapshot))

    def action_kill_run(self) -> None:
        """Stop and destroy the box; the name has to be typed."""
        if self.snapshot is not None and self._may_act("destroying a box", boxed=True):
            from tui.deeds import kill_deed

            self._ask(kill_deed(self.snapshot))

    def action_migrate_run(self) -> None:
        """Choose the offer to move to."""
        if self._may_act("moving a run", boxed=True):
            self.control.action_show_offers()
            self.notify("Enter on an offer asks to move the run there.")

    def _ask(self, deed: Deed) -> None:
        from tui.screens.deed import DeedScreen

        self.app.push_screen(DeedScreen(deed))

    def _may_act(self, what: str, *, boxed: bool = False) -> bool:
        """Whether a deed can be asked for; if not, the reason is told."""
        snapshot = self.snapshot
        if snapshot is None:
            return False
        reason = ""
        if self.control.looks_only:
            reason = f"{what} is refused: {self.control.looks_only}"
        elif snapshot.ended and not boxed:
            reason = f"the run is over already: {snapshot.state}."
        elif boxed and not self.control.session.rented(self.target):
            reason = f"{snapshot.name} is on no box that tunewatch rented or adopted. S stops training."
        if reason:
            self.notify(reason, severity="warning")
        return not reason
