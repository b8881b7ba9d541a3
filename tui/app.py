"""The application: themes, keys that work everywhere, and snapshots handed to the screens that show them."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from textual import on
from textual.app import App, SystemCommand
from textual.binding import BindingType
from textual.command import CommandPalette
from textual.events import Resize
from textual.message import Message
from textual.notifications import SeverityLevel
from textual.screen import Screen
from textual.signal import Signal

from runner.errors import TunewatchError
from tui.keys import KEYS, bindings
from tui.leaving import fault, goodbye
from tui.session import Session, WatchPlan
from tui.themes import DEFAULT_THEME, THEMES, default_marker, palette_of
from tui.turns import ScreenFirst

if TYPE_CHECKING:
    from tui.alerts import Event
    from tui.axes import Marker
    from tui.live_prices import LivePrices
    from tui.market import LiveMarket
    from tui.notices import Notices
    from tui.palette import Palette
    from tui.rental_view import RentalSnapshot
    from tui.rentals import Rentals
    from tui.seat import Seat
    from tui.snapshot import RunSnapshot


PALETTE_ROOM = (40, 10)
"""Columns and rows that the palette needs."""
SETTLED_S = 1.0
"""Seconds after the first frame that what nobody waits for leaves to the first curve, at most."""
SWITCH_S = 0.001
"""Seconds that a thread which computes keeps the screen waiting; five times that, as Python begins with, adds up."""


@dataclass
class SnapshotArrived(Message):
    """A poller read a run."""

    snapshot: RunSnapshot

    def can_replace(self, message: Message) -> bool:
        """A newer snapshot of one run takes the place of one that was not shown yet."""
        return isinstance(message, SnapshotArrived) and message.snapshot.target == self.snapshot.target


@dataclass
class RentalArrived(Message):
    """What bills was looked at."""

    rental: RentalSnapshot


@runtime_checkable
class ShowsRuns(Protocol):
    """A screen that wants snapshots."""

    def take(self, snapshot: RunSnapshot) -> None:
        """Show it, or ignore it."""


class TunewatchApp(App[None]):
    """The control room."""

    TITLE = "tunewatch"
    # the first screen's rules are read with the application's own: a screen that brings new ones has all parsed again
    CSS_PATH = Path(__file__).parent / "screens" / "live.tcss"
    BINDINGS: ClassVar[list[BindingType]] = bindings("everywhere")
    ENABLE_COMMAND_PALETTE = True

    def __init__(
        self, session: Session, *, plan: WatchPlan | None = None, marker: Marker | None = None, seat: Seat | None = None
    ) -> None:
        """`seat` decides which of several screens on one home may act; None: this one may."""
        super().__init__()
        self._seat = seat
        self.session = session
        self.first = plan
        self.marker: Marker = marker or default_marker()
        self.snapshots: dict[str, RunSnapshot] = {}
        self.rental: RentalSnapshot | None = None
        """What is rented; None before it was looked at, and where nothing is."""
        self.rental_changed: Signal[RentalSnapshot] = Signal(self, "rental")
        self._rentals: Rentals | None = None
        self._settled = False
        self.live_prices = True
        """Whether the market is asked by itself for the quotes beside a run."""
        self._prices: LivePrices | None = None
        self._notices: Notices | None = None
        self._palette: tuple[str, Palette] | None = None
        for theme in THEMES:
            self.register_theme(theme)
        left = session.layout.theme if session.layout.theme in self.available_themes else ""
        wanted = os.environ.get("TEXTUAL_THEME") or session.theme or left or DEFAULT_THEME
        if wanted in self.available_themes:
            self._begin_with(wanted)
        else:
            self._begin_with(DEFAULT_THEME)
            session.notice = f"There is no theme '{wanted}'. There are: {', '.join(sorted(self.available_themes))}."

    def _begin_with(self, theme: str) -> None:
        """Have a theme from the start. Ours are set before a sheet is read: a change reads all of them again."""
        if theme not in {ours.name for ours in THEMES}:
            self.theme = theme
            return
        self.set_reactive(App.theme, theme)
        self.stylesheet.set_variables(self.get_css_variables())
        self.update_classes(
            {"-dark-mode": self.current_theme.dark, "-light-mode": not self.current_theme.dark}, update=False
        )

    @property
    def notices(self) -> Notices:
        """What happened, and how it is told; made when the first frame stands."""
        if self._notices is None:
            from tui.notices import Notices

            self._notices = Notices(self)
        return self._notices

    @property
    def palette(self) -> Palette:
        """The colours of the charts under the present theme."""
        if self._palette is None or self._palette[0] != self.theme:
            self._palette = (self.theme, palette_of(self.theme_variables, marker=self.marker))
        return self._palette[1]

    @cached_property
    def market(self) -> LiveMarket:
        """The live market, kept for as long as the program: reopening its screen asks nobody again."""
        from tui.market import LiveMarket

        return LiveMarket()

    def on_mount(self) -> None:
        """Open the first screen, then begin to read."""
        if self.first is None:
            from tui.screens.runs import RunsScreen

            self.push_screen(RunsScreen())
        else:
            self.open_run(self.first)

    def on_ready(self) -> None:
        """The first frame stands: now read. Reading imports the forecast and competes for the processor."""
        self.theme_changed_signal.subscribe(self, lambda theme: self.session.layout.keep_theme(theme.name))
        self.notices.begin()
        sys.setswitchinterval(SWITCH_S)
        self.session.between = ScreenFirst(asyncio.get_running_loop())
        self.session.start(self._post_snapshot)
        self.set_timer(SETTLED_S, self._settle)
        self._sit()
        if self.session.notice:
            self.notify(self.session.notice, severity="warning", timeout=10)

    def _settle(self) -> None:
        """The first curve stands, or it takes its time: now look at all the rest, and collect garbage again."""
        if self._settled:
            return
        self._settled = True
        gc.freeze()
        gc.enable()
        self._watch_rentals()
        self._watch_prices()

    def _watch_prices(self) -> None:
        """Keep the quotes those of the live market, unless a file of offers was given."""
        from tui.live_prices import LivePrices

        if self.live_prices and not self.session.recorded and not self.session.offers_from:
            self._prices = LivePrices(self.market, self._front_run, self.session.use_offers)
            self._prices.start()

    def _front_run(self) -> RunSnapshot | None:
        """The run that a person looks at, the newest one otherwise."""
        target = next((t for s in reversed(self.screen_stack) if (t := getattr(s, "target", None))), None)
        return self.snapshots.get(target) if target else None

    def price_words(self) -> str:
        """Where the prices beside a run come from, and how old they are; empty where nothing is quoted."""
        from tui import words

        if self.session.offers_from:
            return f"prices from {Path(self.session.offers_from).name}"
        if "market" in self.__dict__ and self.market.known:
            trouble = ", the market does not answer" if self.market.trouble else ""
            return f"live prices, {words.age(self.market.age_s)} old{trouble}"
        return "example prices" if any(o.example for o in self.session.offers) else ""

    def _post_snapshot(self, snapshot: RunSnapshot) -> None:
        if self.is_running:
            self.post_message(SnapshotArrived(snapshot))

    def on_snapshot_arrived(self, message: SnapshotArrived) -> None:
        """Remember it, tell what changed, hand it to the screens."""
        snapshot = message.snapshot
        self.snapshots[snapshot.target] = snapshot
        self.notices.take(snapshot, budget=self.session.budget)
        for screen in self.screen_stack:
            if isinstance(screen, ShowsRuns):
                screen.take(snapshot)
        if not snapshot.estimated:
            self.call_after_refresh(self.session.look_now)
        self.call_after_refresh(self._settle)

    def _sit(self) -> None:
        """Act, or look while another screen acts; whoever asked for read-only keeps to it."""
        from tui.commands.common import read_only
        from tui.seat import AGAIN_S

        if self._seat is None or (read_only() and not self.has_class("-second")):
            self.set_class(read_only(), "-read-only")
            return
        said = self._seat.take()
        if said:
            self.notify(said, title="read-only" if read_only() else "", severity="warning", timeout=10)
        if not self._seat.taken:
            self.set_timer(AGAIN_S, self._sit)
        self.set_class(not self._seat.taken, "-second")
        self.set_class(read_only(), "-read-only")

    @property
    def looks_only(self) -> str:
        """Why nothing can be done from here, as the end of a sentence; empty when it can."""
        from tui.seat import why_refused

        return why_refused(second=self.has_class("-second"))

    def _watch_rentals(self) -> None:
        """Look at what bills and end what is past its limit, whatever screen is open."""
        from tui.commands.common import read_only
        from tui.rentals import Rentals

        def post(rental: RentalSnapshot) -> None:
            if self.is_running:
                self.post_message(RentalArrived(rental))

        self._rentals = Rentals(post, read_only=read_only())
        self._rentals.start()

    @on(RentalArrived)
    def _rental_arrived(self, message: RentalArrived) -> None:
        self.show_rental(message.rental)

    def show_rental(self, rental: RentalSnapshot) -> None:
        """Tell what is new about what is rented, and hand it to the top line of every screen."""
        self.rental = rental
        told = self.notices.take_rental(rental)
        self.rental_changed.publish(rental)
        for event in told:
            if event.kind == "moved":
                self._follow(event.target)

    def _follow(self, run: str) -> None:
        """A run whose box was lost goes on elsewhere: who looks at it goes on looking, at the new box."""
        from tui.screens.live import LiveScreen

        screen = self.screen
        if not isinstance(screen, LiveScreen) or run not in (screen.target, screen.snapshot and screen.snapshot.name):
            return
        for old in (screen.target, run):
            self.session.forget(old)
            self.snapshots.pop(old, None)
        self.pop_screen()
        self.open_run(WatchPlan(run))

    def open_run(self, plan: WatchPlan) -> None:
        """Show a run, and begin to watch it if nobody does yet."""
        from tui.screens.live import LiveScreen

        try:
            self.session.watch(plan)
            self.session.bring_to_front(plan.target)
        except TunewatchError as error:
            self.notify(str(error), title="cannot watch", severity="error")
            return
        memory, left = self.session.recall(plan.target), self.session.layout.run_of(plan.target)
        self.push_screen(LiveScreen(plan.target, memory=memory, left=left))

    def on_unmount(self) -> None:
        """Give the terminal its title back; let what waits be sent. However the screen ended, nothing looks on."""
        self._settled = True  # a timer that is due right now begins nothing any more
        gc.enable()
        self.session.stop()
        if self._rentals is not None:
            self._rentals.stop()
        if self._seat is not None:
            self._seat.leave()
        if self._prices is not None:
            self._prices.stop()
        if self._notices is not None:
            self._notices.end()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Every action of the key table, by name, beside those of Textual's own that the table has not."""
        for command in super().get_system_commands(screen):
            if command.title in ("Theme", "Screenshot"):
                yield command
        place = getattr(screen, "place", "live")
        for key in KEYS:
            if key.place in ("everywhere", place) and key.action != "command_palette":
                target: Screen[object] | App[None] = self if key.place == "everywhere" else screen
                yield SystemCommand(
                    f"{key.footer} ({key.label()})", key.sentence, lambda k=key, t=target: self._do(k.action, t)
                )

    def _do(self, action: str, target: Screen[object] | App[None]) -> None:
        self.call_later(self.run_action, action, target)

    async def action_quit(self) -> None:
        """Leave; say that the runs go on."""
        going = [s for s in self.snapshots.values() if not s.ended and not self.session.recorded]
        self.session.stop()
        self.exit(message=goodbye(going))

    def _fatal_error(self) -> None:
        """A fault of ours ends the screen with a sentence; its traceback, without local values, goes into a file."""
        from rich.text import Text

        error = sys.exc_info()[1] or self._exception
        self.bell()
        self._exit_renderables.append(Text(fault(error or RuntimeError("no word of it"))))
        self._close_messages_no_wait()

    def open_shell(self, target: str) -> None:
        """Hand the terminal to a shell where the run is; coming back brings the same screen."""
        import subprocess

        try:
            words = self.session.shell_of(target)
        except TunewatchError as error:
            self.notify(str(error), title="no shell", severity="error")
            return
        if self.is_web or self._driver is None or self.is_headless:
            self.notify(f"In a terminal this opens: {' '.join(words)}", severity="warning")
            return
        with self.suspend():
            subprocess.run(words, check=False)
        self.session.look_now()

    def action_help(self) -> None:
        """All keys."""
        from tui.screens.help import HelpScreen

        self.push_screen(HelpScreen())

    def action_show_events(self) -> None:
        """What happened."""
        from tui.screens.events import EventsScreen

        self.push_screen(EventsScreen(), self._to_event)

    def _to_event(self, event: Event | None) -> None:
        """Go to where an event happened."""
        from tui.screens.live import LiveScreen

        if event is None:
            return
        if not (isinstance(self.screen, LiveScreen) and self.screen.target == event.target):
            self.open_run(WatchPlan(event.target))
        if isinstance(self.screen, LiveScreen):
            self.screen.cursor_to(event.step)

    def action_show_runs(self) -> None:
        """The list of runs."""
        from tui.screens.runs import RunsScreen

        if any(isinstance(screen, RunsScreen) for screen in self.screen_stack):
            while not isinstance(self.screen, RunsScreen):
                self.pop_screen()
        else:
            self.push_screen(RunsScreen())

    def action_show_offers(self) -> None:
        """The market."""
        from tui.screens.offers import OffersScreen

        self.push_screen(OffersScreen(getattr(self.screen, "target", None)))

    def action_launch(self) -> None:
        """The launch wizard."""
        from tui.screens.launch import LaunchScreen

        if self.looks_only:
            self.notify(f"renting is refused: {self.looks_only}", severity="warning")
        else:
            self.push_screen(LaunchScreen())

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = False,
    ) -> None:
        """Show a toast, as it is written: what a run, a box or a file is called may look like markup."""
        super().notify(message, title=title, severity=severity, timeout=timeout, markup=False)

    def action_next_theme(self) -> None:
        """Our three themes in turn."""
        names = [theme.name for theme in THEMES]
        at = names.index(self.theme) if self.theme in names else -1
        self.theme = names[(at + 1) % len(names)]

    def action_command_palette(self) -> None:
        """Every action by name, where there is room for a list: without a row, the palette fails at a page key."""
        if self.size.width >= PALETTE_ROOM[0] and self.size.height >= PALETTE_ROOM[1]:
            super().action_command_palette()

    def on_resize(self, event: Resize) -> None:
        """A terminal that becomes too small for the palette closes it."""
        small = event.size.width < PALETTE_ROOM[0] or event.size.height < PALETTE_ROOM[1]
        if small and isinstance(self.screen, CommandPalette):
            self.screen.dismiss(None)

    async def action_back(self) -> None:
        """One layer out; the outermost stays."""
        if len(self.screen_stack) > 2:
            self.pop_screen()
