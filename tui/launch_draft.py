"""What a person has decided about a launch so far, and what the wizard says of it. It reads the recipe's file alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.errors import TunewatchError
from tui import words
from tui.deeds import Deed
from tui.market import parse_budget, parse_deadline
from tui.snapshot import QuoteRow

if TYPE_CHECKING:
    from runner.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Draft:
    """The fields of the wizard, as they were typed."""

    recipe: str = ""
    settings: str = ""
    """`KEY=VALUE` with blanks between."""
    hub: str = ""
    budget: str = ""
    deadline: str = ""
    idle: str = ""
    offer: QuoteRow | None = None

    @property
    def own(self) -> bool:
        """Whether the offer is a machine of one's own: it is metered, and nothing is rented."""
        return self.offer is not None and self.offer.offer_id.startswith("host:")

    def resolved(self) -> Recipe:
        """The recipe with its settings. Raises TunewatchError with one sentence."""
        from runner.config import load_recipe

        more = [f"hf_repo_id={self.hub}"] if self.hub else []
        return load_recipe(self.recipe, [*self.settings.split(), *more])

    def trouble(self) -> str:
        """What is wrong with the recipe or a limit, in one sentence; empty when nothing is."""
        if not self.recipe:
            return "Which recipe? One of the list, or a file."
        try:
            self.resolved()
            parse_budget(self.budget)
            for text in (self.deadline, self.idle):
                parse_deadline(text)
        except (TunewatchError, ValueError) as error:
            return str(error)
        return ""

    def command(self, *, dry: bool = False) -> tuple[str, ...]:
        """The words after `tunewatch`."""
        offer = self.offer.offer_id if self.offer is not None else "OFFER"
        out = ["launch", self.recipe or "RECIPE", "--offer", offer, "--dry-run" if dry else "--detach"]
        for one in self.settings.split():
            out += ["--set", one]
        if self.hub:
            out += ["--hf-repo-id", self.hub]
        for name in ("budget", "deadline", "idle"):
            if value := getattr(self, name):
                out += [f"--{name}", value]
        return tuple(out)

    def estimate(self) -> str:
        """Hours and dollars of the offer as optimistic, base and pessimistic."""
        offer = self.offer
        if offer is None:
            return ""
        if not all(map(math.isfinite, (*offer.hours, *offer.usd))):
            return f"{words.usd(offer.dph)} an hour; there is no quote for it"
        hours = " / ".join(words.hours(h) for h in offer.hours)
        usd = " / ".join(words.usd(u) for u in offer.usd)
        return f"{hours} h, {usd} (optimistic / base / pessimistic)"

    def limits(self) -> str:
        """What ends the box by itself."""
        said = [f"{self.budget.removeprefix('$')} USD"] if self.budget else []
        said += [self.deadline] if self.deadline else []
        said += [f"{self.idle} without a step"] if self.idle else []
        if said:
            return f"It ends itself at {' or '.join(said)}."
        return f"No budget: it {'trains' if self.own else 'bills'} until the run ends or you end it."

    def review(self, variables: tuple[str, ...]) -> list[tuple[str, str]]:
        """What is about to happen, as names and sentences."""
        offer = self.offer
        if offer is None:
            return []
        what = f"{offer.gpu} at {words.usd(offer.dph)} an hour, offer {offer.offer_id}"
        names = f"{', '.join(variables)} (names alone; the values are shown and kept nowhere)" if variables else "none"
        return [
            ("use" if self.own else "rent", what),
            ("expected", self.estimate()),
            ("limits", self.limits()),
            ("variables", names),
            ("undo", "what fails before training begins is undone: the box is destroyed and proved gone"),
        ]

    def deed(self) -> Deed:
        """The launch itself; the number of the offer has to be typed."""
        assert self.offer is not None  # noqa: S101 - the review comes after the offer
        offer = self.offer
        bill = f"{words.usd(offer.usd[1])} expected" if math.isfinite(offer.usd[1]) else "no quote without a run"
        begin = f"{offer.gpu} at {words.usd(offer.dph)} an hour is rented and bills from now on: {bill}."
        if self.own:
            begin = f"Your {offer.offer_id} will train, metered at {words.usd(offer.dph)} an hour: {bill}."
        says = (begin, self.limits(), "Keys and tokens travel by their names; their values are shown nowhere.")
        return Deed("launch", self.command(), says, "Use" if self.own else "Rent", offer.offer_id)

    def dry_run(self) -> Deed:
        """Everything of it that costs nothing."""
        says = ("Everything that costs nothing is done, with the calls of the launch itself; nothing is rented.",)
        return Deed("dry run", self.command(dry=True), says, "Begin")


def resume_deed(run: str, sentence: str) -> Deed:
    """Carry on a launch that was cut."""
    return Deed("resume the launch", ("launch", run, "--resume"), (sentence, "It goes on where it was cut."), "Resume")


def undo_deed(run: str, sentence: str) -> Deed:
    """Undo a launch that was cut."""
    says = (sentence, "What it rented is destroyed and proved gone; nothing has trained on it.")
    return Deed("undo the launch", ("launch", run, "--undo"), says, "Undo", run.rsplit("/", 1)[-1])
