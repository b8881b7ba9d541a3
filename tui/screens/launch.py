"""The launch wizard: recipe, checks, offer, review; then the launch itself with its phases.

Nothing is rented before the number of the offer was typed back on the last page. A launch that was cut (a crash, a
laptop that was closed) stands on the first page: to be carried on, or undone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from rich.table import Table
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, ContentSwitcher, DataTable, Input, Label, OptionList, Static

from tui import words
from tui.launch_draft import Draft, resume_deed, undo_deed
from tui.screens.deed import DeedScreen
from tui.snapshot import QuoteRow

if TYPE_CHECKING:
    from remote.doctor import Check
    from remote.launch_check import Unfinished
    from runner.recipe import Recipe
    from tui.app import TunewatchApp

T = TypeVar("T")
PAGES = ("recipe", "checks", "offer", "review")
FIELDS = (
    ("recipe", "recipe", "stage5, or a recipe file"),
    ("set", "--set", "max_steps=2000 eval_steps=100"),
    ("hub", "--hf-repo-id", "you/your-model: checkpoints are uploaded there"),
    ("budget", "--budget", "USD; the box ends itself before"),
    ("deadline", "--deadline", "10h, or an ISO time"),
    ("idle", "--idle", "30m without a step ends the box"),
)
MARKS = {"good": ("✓", "success"), "note": ("·", "warning"), "bad": ("✗", "error")}
SHOWN = 40
"""Offers on the third page, the cheapest first; the market screen has all of them with a filter."""


class LaunchScreen(ModalScreen[None]):
    """One run, on one offer."""

    DEFAULT_CSS = """
    LaunchScreen { align: center middle; background: $background 60%; }
    LaunchScreen > Vertical {
        width: 92; max-width: 100%; height: auto; max-height: 100%;
        border: round $border; background: $surface; padding: 0 1;
        border-title-color: $foreground; border-subtitle-color: $text-muted;
    }
    LaunchScreen Static { width: 1fr; height: auto; }
    LaunchScreen #pages { height: auto; }
    LaunchScreen .page { height: auto; padding: 1 0 0 0; }
    LaunchScreen .row { height: 1; }
    LaunchScreen .row Label { width: 14; color: $text-muted; }
    LaunchScreen Input { width: 1fr; height: 1; border: none; padding: 0 1; background: $boost; }
    LaunchScreen Input:focus { background: $primary 25%; }
    LaunchScreen OptionList { height: auto; max-height: 8; margin-top: 1; border: none; background: $surface; }
    LaunchScreen #cut { display: none; margin-bottom: 1; height: auto; }
    LaunchScreen #cut Horizontal { height: 1; }
    LaunchScreen #cut Button { margin-left: 2; min-width: 10; }
    LaunchScreen #cut-says { color: $warning; text-style: bold; width: 1fr; }
    LaunchScreen DataTable { height: auto; max-height: 14; background: $surface; }
    LaunchScreen #trouble { color: $warning; margin-top: 1; }
    LaunchScreen #command { margin-top: 1; }
    LaunchScreen.-short .page { padding: 0; }
    LaunchScreen.-short DataTable { max-height: 10; }
    LaunchScreen.-short VerticalScroll { max-height: 14; }
    LaunchScreen #buttons { height: 1; align-horizontal: right; margin-top: 1; }
    LaunchScreen #buttons Button { margin-left: 2; min-width: 10; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("left", "app.focus_previous", "Previous", show=False),
        Binding("right", "app.focus_next", "Next", show=False),
        Binding("down", "app.focus_next", "Next", show=False),
        Binding("up", "app.focus_previous", "Previous", show=False),
    ]

    def __init__(self, offer: QuoteRow | None = None) -> None:
        super().__init__()
        self.given = offer
        """The offer that was chosen on the market; None to choose it here."""
        self.offer = offer
        self.page = "recipe"
        self.found: list[Check] = []
        self.cut: Unfinished | None = None
        self._checked: Draft | None = None
        """What the checks were made for."""
        self._rows: list[QuoteRow] = []
        self._quoted_for: Draft | None = None
        self._busy: set[str] = set()
        self._faults: dict[str, str] = {}

    @property
    def control(self) -> TunewatchApp:
        """The application, by its own type."""
        return cast("TunewatchApp", self.app)

    def compose(self) -> ComposeResult:
        """Four pages and the way through them."""
        with Vertical() as box:
            box.border_subtitle = "Tab next · Esc back"
            with ContentSwitcher(id="pages", initial="page-recipe"):
                with Vertical(id="page-recipe", classes="page"):
                    with Horizontal(id="cut"):
                        yield Static("", id="cut-says", markup=False)
                        yield Button("Resume", id="resume", compact=True, variant="warning")
                        yield Button("Undo", id="undo", compact=True)
                    for name, label, hint in FIELDS:
                        with Horizontal(classes="row"):
                            yield Label(label)
                            yield Input(placeholder=hint, id=name, compact=True)
                    yield OptionList(id="recipes", compact=True)
                with VerticalScroll(id="page-checks", classes="page", can_focus=False):
                    yield Static("", id="checks", markup=False)
                with Vertical(id="page-offer", classes="page"):
                    yield Static("", id="market", markup=False)
                    table: DataTable[Text] = DataTable(cursor_type="row", id="offers")
                    for title in ("GPU", "$/h", "hours", "$", "fits", "place", "offer"):
                        table.add_column(title, key=title)
                    yield table
                with VerticalScroll(id="page-review", classes="page", can_focus=False):
                    yield Static("", id="review", markup=False)
                    yield Static("", id="command", markup=False)
            yield Static("", id="trouble", markup=False)
            with Horizontal(id="buttons"):
                yield Button("Cancel", id="cancel", compact=True)
                yield Button("Back", id="back", compact=True)
                yield Button("Dry run", id="dry", compact=True)
                yield Button("Next", id="next", compact=True, variant="primary", disabled=True)

    def on_mount(self) -> None:
        """Begin with the recipe, and with what was cut."""
        from remote.launch_check import recipes_here

        self.set_class(self.size.height < 30, "-short")
        self.query_one("#recipes", OptionList).add_options(recipes_here(Path()))
        self.query_one("#recipe", Input).focus()
        self._turn_to("recipe")
        self._aside("cut", _cut, self._show_cut)

    # -- what waits ---------------------------------------------------------------------------------------------------

    def _aside(self, name: str, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Do `work` in a thread, `then` on the screen. A daemon: leaving never waits for a provider that hangs."""
        from runner.errors import TunewatchError

        app = self.app

        def act() -> None:
            try:
                result = work()
            except (TunewatchError, OSError) as error:
                fault = str(error)
                if app.is_running:
                    app.call_later(lambda: self._done(name, lambda: self._fault(name, fault)))
                return
            if app.is_running:
                app.call_later(lambda: self._done(name, lambda: then(result)))

        self._busy.add(name)
        threading.Thread(target=act, name=f"launch {name}", daemon=True).start()

    def _done(self, name: str, then: Callable[[], None]) -> None:
        self._busy.discard(name)
        if self.is_attached:
            then()
            self._state()

    def _fault(self, name: str, sentence: str) -> None:
        self._faults[name] = sentence

    def _show_cut(self, cut: Unfinished | None) -> None:
        self.cut = cut
        self.query_one("#cut").display = cut is not None
        if cut is not None:
            self.query_one("#cut-says", Static).update(cut.in_words())

    # -- pages ---------------------------------------------------------------------------------------------------------

    @property
    def draft(self) -> Draft:
        """What was typed so far."""
        value = {name: self.query_one(f"#{name}", Input).value.strip() for name, _, _ in FIELDS}
        return Draft(
            value["recipe"], value["set"], value["hub"], value["budget"], value["deadline"], value["idle"], self.offer
        )

    def _turn_to(self, page: str) -> None:
        self.page = page
        self.query_one(ContentSwitcher).current = f"page-{page}"
        if page == "checks":
            self._check()
        elif page == "offer":
            self._list()
            self.query_one("#offers", DataTable).focus()
        elif page == "review":
            self._review()
            self.query_one("#cancel", Button).focus()
        self._state()

    def _state(self) -> None:
        """Title, trouble and buttons of the page that is open."""
        box = self.query_one(Vertical)
        title = Text("launch   ")
        for number, page in enumerate(PAGES, 1):
            title.append(f"{number} {page}", "bold reverse" if page == self.page else "dim")
            title.append("  ›  " if number < len(PAGES) else "", "dim")
        box.border_title = title
        draft = self.draft
        trouble, may = self._trouble(draft)
        self.query_one("#trouble", Static).update(trouble)
        self.query_one("#trouble").display = bool(trouble)
        self.query_one("#back").display = self.page != "recipe"
        self.query_one("#dry").display = self.page == "review"
        following = self.query_one("#next", Button)
        following.label = ("Use" if draft.own else "Rent") if self.page == "review" else "Next"
        following.variant = "error" if self.page == "review" else "primary"
        following.disabled = not may

    def _trouble(self, draft: Draft) -> tuple[str, bool]:
        """A sentence about the page, and whether one may go on from it."""
        if self.page == "recipe":
            said = draft.trouble()
            return said, not said
        if self.page == "checks":
            bad = [one for one in self.found if one.finding == "bad"]
            if "checks" in self._busy:
                return "", False
            if fault := self._faults.get("checks"):
                return fault, False
            return " ".join(f"{one.mend}" for one in bad), not bad
        if self.page == "offer":
            fault = self._faults.get("offers", "") or self.control.market.trouble
            return fault, self.offer is not None
        if any(offer.example and offer.id == self._offer_id() for offer in self.control.session.offers):
            return "An example cannot be rented; a key for the provider brings the live market.", False
        return "", True

    def _offer_id(self) -> str:
        return self.offer.offer_id if self.offer is not None else ""

    @on(Input.Changed)
    def _changed(self) -> None:
        self._state()

    @on(OptionList.OptionSelected)
    def _picked(self, event: OptionList.OptionSelected) -> None:
        self.query_one("#recipe", Input).value = str(event.option.prompt)
        self.query_one("#set", Input).focus()

    @on(Input.Submitted)
    @on(Button.Pressed, "#next")
    def _next(self) -> None:
        if self.query_one("#next", Button).disabled:
            return
        if self.page == "review":
            self.app.switch_screen(DeedScreen(self.draft.deed()))
            return
        pages = [page for page in PAGES if page != "offer" or self.given is None]
        self._turn_to(pages[pages.index(self.page) + 1])

    @on(Button.Pressed, "#back")
    def _previous(self) -> None:
        self.action_back()

    def action_back(self) -> None:
        """One page back; from the first one out."""
        if self.page == "recipe":
            self.dismiss()
            return
        pages = [page for page in PAGES if page != "offer" or self.given is None]
        self._turn_to(pages[pages.index(self.page) - 1])
        if self.page == "recipe":
            self.query_one("#recipe", Input).focus()

    @on(Button.Pressed, "#cancel")
    def _cancel(self) -> None:
        self.dismiss()

    @on(Button.Pressed, "#resume")
    def _resume(self) -> None:
        if self.cut is not None:
            self.app.switch_screen(DeedScreen(resume_deed(self.cut.run, self.cut.in_words())))

    @on(Button.Pressed, "#undo")
    def _undo(self) -> None:
        if self.cut is not None:
            self.app.switch_screen(DeedScreen(undo_deed(self.cut.run, self.cut.in_words())))

    @on(Button.Pressed, "#dry")
    def _dry(self) -> None:
        self.app.push_screen(DeedScreen(self.draft.dry_run()))

    # -- checks --------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Look at everything that would stop it, one line as each is found."""
        draft = self.draft
        if self._checked == draft and not self._faults.get("checks"):
            self.query_one("#next", Button).focus()
            return
        self._checked, self.found = draft, []
        self._faults.pop("checks", None)
        app = self.app

        def look() -> None:
            for one in _checks(draft):
                if app.is_running:
                    app.call_later(self._one_check, draft, one)

        self._aside("checks", look, self._all_checked)
        self._show_checks()

    def _all_checked(self, _: None) -> None:
        self._show_checks()
        self.call_after_refresh(self.query_one("#next", Button).focus)

    def _one_check(self, draft: Draft, one: Check) -> None:
        if self.is_attached and draft == self._checked:
            self.found.append(one)
            self._show_checks()

    def _show_checks(self) -> None:
        colours = self.app.theme_variables
        rows = []
        for one in self.found:
            mark, colour = MARKS[one.finding]
            name = Text.assemble((f"{mark} ", f"bold {colours.get(colour, '')}"), (one.name, "bold"))
            rows.append((name, Text(one.found, colours.get(colour, "") if one.finding == "bad" else "")))
        if "checks" in self._busy:
            rows.append((Text("▸ looking …", "dim"), Text("")))
        self.query_one("#checks", Static).update(_pairs(rows))

    # -- offers --------------------------------------------------------------------------------------------------------

    def _list(self) -> None:
        """The cheapest offers for this recipe: the live market where there is one."""
        market, session = self.control.market, self.control.session
        live = market.configured() and not session.recorded and not session.offers_from
        if self._checked != self._quoted_for and "offers" not in self._busy:
            self._quoted_for = self._checked
            recipe = self.draft.resolved()
            self._aside("offers", lambda: _quoted(self.control, recipe, live), self._take_offers)
        self._show_offers()

    def _take_offers(self, rows: list[QuoteRow]) -> None:
        self._rows = sorted(rows, key=lambda r: ((u := r.usd[1]) != u, u if u == u else r.dph))[:SHOWN]
        self._show_offers()

    def _show_offers(self) -> None:
        market = self.control.market
        which = f"live, {words.age(market.age_s)} old" if market.known else "examples or a file"
        if "offers" in self._busy:
            which = "asking the market …"
        self.query_one("#market", Static).update(Text(f"the cheapest to the end of the run; prices: {which}", "dim"))
        table = self.query_one("#offers", DataTable)
        table.clear()
        for row in self._rows:
            hours = words.hours(row.hours[1]) if row.hours[1] == row.hours[1] else "–"
            usd = words.usd(row.usd[1]) if row.usd[1] == row.usd[1] else "–"
            table.add_row(
                words.shorten(row.gpu, 20), f"{row.dph:.4f}", hours, usd, row.fits, words.shorten(row.place, 16),
                row.offer_id, key=row.offer_id,
            )  # fmt: skip

    @on(DataTable.RowHighlighted)
    def _over(self, event: DataTable.RowHighlighted) -> None:
        if event.row_key.value is not None:
            self.offer = next((r for r in self._rows if r.offer_id == event.row_key.value), None)
            self._state()

    @on(DataTable.RowSelected)
    def _chosen(self) -> None:
        self._next()

    # -- review --------------------------------------------------------------------------------------------------------

    def _review(self) -> None:
        from remote.launch_check import travelling

        draft = self.draft
        said = [(Text(name, "bold"), Text(words)) for name, words in draft.review(travelling(os.environ))]
        self.query_one("#review", Static).update(_pairs(said))
        self.query_one("#command", Static).update(Text(f"$ {draft.deed().as_typed()}", "dim"))


def _pairs(rows: list[tuple[Text, Text]]) -> Table:
    """Names and sentences, each in its column."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(*row)
    return table


def _cut() -> Unfinished | None:
    from remote.home import home
    from remote.journal import Journal
    from remote.launch_check import unfinished_launches

    journal = Journal(home())
    try:
        known = unfinished_launches(journal)
    finally:
        journal.close()
    return known[-1] if known else None


def _checks(draft: Draft) -> Any:
    from remote.launch_check import checks
    from tui.cloud import open_desk
    from tui.market import parse_budget

    def credit() -> float | None:
        with open_desk() as desk:
            return desk.provider.account().credit_usd

    return checks(draft.resolved(), credit, os.environ, budget=parse_budget(draft.budget))


def _quoted(control: TunewatchApp, recipe: Recipe, live: bool) -> list[QuoteRow]:
    """What a new run of the recipe would take and cost on each offer, the disk that it needs in the price."""
    from remote.sizing import disk_gb
    from tui.market import STALE_S, Limits

    market = control.market
    if live and (market.age_s > STALE_S or market.disk_gb != disk_gb(recipe)) and not market.wait_s:
        market.ask(None, recipe)
    offers = market.offers if live and market.known else control.session.offers
    return list(market.quote(offers, None, Limits(), recipe).rows)
