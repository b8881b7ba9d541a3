"""The launch wizard: recipe and limits for one offer, the command as it will run, the question, the phases."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label, Static

from runner.errors import TunewatchError
from tui import words
from tui.deeds import Deed
from tui.screens.deed import DeedScreen
from tui.snapshot import QuoteRow

FIELDS = (
    ("recipe", "recipe", "stage5, or a recipe file"),
    ("set", "--set", "max_steps=2000 eval_steps=100"),
    ("budget", "--budget", "USD; the box ends itself before"),
    ("deadline", "--deadline", "10h, or an ISO time"),
    ("idle", "--idle", "30m without a step ends the box"),
)


class LaunchScreen(ModalScreen[None]):
    """One offer, rented for one recipe."""

    DEFAULT_CSS = """
    LaunchScreen { align: center middle; background: $background 60%; }
    LaunchScreen > Vertical {
        width: 84; max-width: 96%; height: auto; max-height: 96%;
        border: round $border; background: $surface; padding: 1 2;
        border-title-color: $foreground; border-subtitle-color: $text-muted;
    }
    LaunchScreen Static { width: 1fr; height: auto; }
    LaunchScreen .row { height: 1; }
    LaunchScreen .row Label { width: 12; color: $text-muted; }
    LaunchScreen Input { width: 1fr; height: 1; border: none; padding: 0 1; background: $boost; }
    LaunchScreen Input:focus { background: $primary 25%; }
    LaunchScreen #command { margin: 1 0; color: $text-muted; }
    LaunchScreen #trouble { color: $warning; }
    LaunchScreen #buttons { height: 3; align-horizontal: right; }
    LaunchScreen Button { margin-left: 2; min-width: 12; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Cancel")]

    def __init__(self, offer: QuoteRow) -> None:
        super().__init__()
        self.offer = offer

    def compose(self) -> ComposeResult:
        """The offer, five fields, the command, two buttons."""
        offer = self.offer
        with Vertical() as box:
            box.border_title = f"rent {offer.gpu}, {words.usd(offer.dph)}/h, offer {offer.offer_id}"
            box.border_subtitle = "Tab next · Esc cancels"
            for name, label, hint in FIELDS:
                with Horizontal(classes="row"):
                    yield Label(label)
                    yield Input(placeholder=hint, id=name, compact=True)
            yield Static("", id="command", markup=False)
            yield Static("", id="trouble", markup=False)
            with Horizontal(id="buttons"):
                yield Button("Cancel", id="cancel")
                yield Button("Review", id="review", variant="primary", disabled=True)

    def on_mount(self) -> None:
        """Begin with the recipe."""
        self.query_one("#recipe", Input).focus()
        self._changed()

    def command(self) -> tuple[str, ...]:
        """The words after `tunewatch`, as far as they are known."""
        value = {name: self.query_one(f"#{name}", Input).value.strip() for name, _, _ in FIELDS}
        out = ["launch", value["recipe"] or "RECIPE", "--offer", self.offer.offer_id, "--detach"]
        for one in value["set"].split():
            out += ["--set", one]
        for name in ("budget", "deadline", "idle"):
            if value[name]:
                out += [f"--{name}", value[name]]
        return tuple(out)

    @on(Input.Changed)
    def _changed(self) -> None:
        deed = self._deed()
        self.query_one("#command", Static).update(f"$ {deed.as_typed()}")
        trouble = self._trouble()
        self.query_one("#trouble", Static).update(trouble)
        self.query_one("#review", Button).disabled = bool(trouble)

    def _trouble(self) -> str:
        """What is wrong with the recipe, in the words of the command line; empty when nothing is."""
        from runner.config import load_recipe

        name = self.query_one("#recipe", Input).value.strip()
        if not name:
            return "Which recipe? stage1 … stage5, demo, or a file."
        try:
            load_recipe(name, self.query_one("#set", Input).value.split())
        except TunewatchError as error:
            return str(error)
        return ""

    def _deed(self) -> Deed:
        offer, limits = self.offer, self.query_one("#budget", Input).value.strip()
        bill = f"{words.usd(offer.usd[1])} expected" if offer.usd[1] == offer.usd[1] else "no quote without a run"
        says = (
            f"{offer.gpu} at {words.usd(offer.dph)} an hour is rented and bills from now on: {bill}.",
            f"It ends itself at {limits} USD." if limits else "No budget: it bills until the run ends or you end it.",
            "Keys and tokens travel by their names from this environment; their values are shown nowhere.",
        )
        return Deed("launch", self.command(), says, "Rent", offer.offer_id)

    @on(Button.Pressed, "#cancel")
    def _cancel(self) -> None:
        self.dismiss()

    @on(Button.Pressed, "#review")
    @on(Input.Submitted)
    def _review(self) -> None:
        if not self._trouble():
            self.app.switch_screen(DeedScreen(self._deed()))
