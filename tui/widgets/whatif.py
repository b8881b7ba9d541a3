"""The auto-stop rule as four fields: change one, and the run is replayed under the new rule at once.

The widget tries; it never writes. `Apply` carries the rule to whoever may ask the run for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import Button, Input, Label, Static
from textual.worker import get_current_worker

from runner.autostop import StopRule
from runner.errors import UsageError
from runner.history import RunHistory
from tui.calibrating import past_forecasts
from tui.what_if import FIELDS, Said, Tone, Trial, ahead, rule_of, sentences, try_rule

if TYPE_CHECKING:
    from estimator.whatif import RuleOutcome

COLOURS: dict[Tone, str] = {"plain": "", "good": "success", "bad": "warning", "quiet": "text-muted", "strong": ""}


class RuleInput(Input):
    """A number that the arrow keys move."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "nudge(1)", "More", show=False),
        Binding("down", "nudge(-1)", "Less", show=False),
    ]

    def __init__(self, field: str, unit: float) -> None:
        super().__init__(id=field, compact=True)
        self.unit = unit
        """What one press adds."""

    def action_nudge(self, way: int) -> None:
        """One unit more or less; what is no number stays as it is."""
        try:
            value = float(self.value) + way * self.unit
        except ValueError:
            return
        least = 1 if self.id == "patience" else 0
        self.value = f"{max(least, round(value, 9)):.9g}"
        self.cursor_position = len(self.value)


class Tick(Static, can_focus=True):
    """Yes or no, told apart without colour: Textual's own check box draws its cross either way."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("space,enter", "turn", "Turn over", show=False)]
    value: reactive[bool] = reactive(False)

    @dataclass
    class Changed(Message):
        """It was turned over."""

        tick: Tick

    def __init__(self, label: str, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)
        self.label = label

    def render(self) -> str:
        """The box and what it means."""
        return f"[{'x' if self.value else ' '}] {self.label}"

    def watch_value(self) -> None:
        """Tell it."""
        self.post_message(self.Changed(self))

    def action_turn(self) -> None:
        """Turn it over."""
        self.value = not self.value

    def on_click(self) -> None:
        """The mouse may too."""
        self.action_turn()


class WhatIf(Vertical):
    """Four fields, what comes of them, and two buttons."""

    DEFAULT_CSS = """
    WhatIf {
        height: auto; padding: 0 1;
        & #fields { height: auto; layout: grid; grid-size: 3; grid-gutter: 0 2; grid-rows: auto; }
        & .field { height: 2; }
        & .field Label { height: 1; color: $text-muted; }
        & .field RuleInput { height: 1; background: $primary 12%; }
        & .field RuleInput:focus, & Tick:focus { background: $primary 35%; }
        & .field RuleInput.-wrong { color: $error; text-style: bold; }
        & Tick { height: auto; margin: 1 0 0 0; }
        & #said { height: auto; margin: 1 0 0 0; }
        & #buttons { height: 1; margin: 1 0 0 0; }
        & #buttons Button { margin: 0 2 0 0; }
    }
    """

    @dataclass
    class Apply(Message):
        """The person wants the run to go on under this rule."""

        rule: StopRule
        trial: Trial
        """What it does, for the question that is asked before."""

    @dataclass
    class _Foreseen(Message):
        history: RunHistory
        rule: StopRule
        outcomes: dict[StopRule, RuleOutcome]
        past: str
        """How past forecasts came true."""

    def __init__(
        self,
        history: RunHistory,
        in_force: StopRule,
        *,
        ended: bool = False,
        effective_sps: float | None = None,
        dph: float | None = None,
        may_apply: bool = True,
        id: str | None = None,  # noqa: A002
    ) -> None:
        super().__init__(id=id)
        self.history = history
        self.in_force = in_force
        self.ended = ended
        self.effective_sps = effective_sps
        self.dph = dph
        self.may_apply = may_apply
        self.trial: Trial | None = None
        """What is shown; None while what is typed makes no rule."""
        self._outcomes: dict[StopRule, RuleOutcome] = {}
        self._past = ""

    def compose(self) -> ComposeResult:
        """Fields, words, buttons."""
        gaps = [b - a for (a, _), (b, _) in zip(self.history.eval_pairs(), self.history.eval_pairs()[1:], strict=False)]
        units = {"patience": 1.0, "min_delta": 0.001, "min_steps": float(min(gaps, default=100))}
        with Vertical(id="fields"):
            for name in FIELDS:
                with Vertical(classes="field"):
                    yield Label(name)
                    yield RuleInput(name, units[name])
        yield Tick("count evals before min_steps too", id="from_start")
        yield Static(id="said", markup=False)
        with Horizontal(id="buttons"):
            yield Button("Apply to the run", id="apply", compact=True, variant="warning")
            yield Button("Back to the rule in force", id="reset", compact=True)

    def on_mount(self) -> None:
        """Begin with the rule in force."""
        self.query_one("#apply").display = self.may_apply and not self.ended
        self.reset()

    def reset(self) -> None:
        """Put the rule in force into the fields."""
        with self.prevent(Input.Changed, Tick.Changed):
            for name in FIELDS:
                self.query_one(f"#{name}", Input).value = f"{getattr(self.in_force, name):g}"
            self.query_one("#from_start", Tick).value = self.in_force.count_from == "start"
        self._try()

    def take(
        self,
        history: RunHistory,
        in_force: StopRule,
        *,
        ended: bool = False,
        effective_sps: float | None = None,
        dph: float | None = None,
    ) -> None:
        """Take what is newly known of the run; what was typed stays."""
        known = history is self.history and in_force == self.in_force and ended == self.ended
        self.effective_sps, self.dph = effective_sps, dph
        if known:
            return
        self.history, self.in_force, self.ended = history, in_force, ended
        self._outcomes = {}
        self.query_one("#apply").display = self.may_apply and not ended
        self._try()

    @on(Input.Changed)
    @on(Tick.Changed)
    def _changed(self, event: Message) -> None:
        event.stop()
        self._try()

    def _try(self) -> None:
        """Replay what is in the fields; a rule that makes no sense is a sentence in place of the result."""
        fields = {name: self.query_one(f"#{name}", Input) for name in FIELDS}
        from_start = self.query_one("#from_start", Tick).value
        try:
            rule = rule_of({name: field.value for name, field in fields.items()}, from_start=from_start)
        except UsageError as error:
            self.trial = None
            for name, field in fields.items():
                field.set_class(error.message.startswith(name), "-wrong")
            self._say([(error.message, "bad")])
            self.query_one("#apply", Button).disabled = True
            return
        for field in fields.values():
            field.remove_class("-wrong")
        self._show(rule)
        if not self.ended and rule not in self._outcomes:
            self._foresee(self.history, self.in_force, rule, self.dph)

    def _show(self, rule: StopRule) -> None:
        self.trial = try_rule(
            self.history,
            self.in_force,
            rule,
            ended=self.ended,
            effective_sps=self.effective_sps,
            dph=self.dph,
            outcomes=self._outcomes,
        )
        self.query_one("#apply", Button).disabled = rule == self.in_force
        past: list[Said] = [(self._past, "quiet")] if self._past and self._outcomes else []
        self._say([*sentences(self.trial), *past])

    def _say(self, lines: list[Said]) -> None:
        out = Text()
        for number, (text, tone) in enumerate(lines):
            colour = self.app.theme_variables.get(COLOURS[tone], "")
            style = " ".join(x for x in ("bold" if tone == "strong" else "", colour) if x and not x.startswith("auto"))
            out.append("\n" if number else "").append(text, style or ("dim" if tone == "quiet" else ""))
        self.query_one("#said", Static).update(out)

    @work(thread=True, exclusive=True, group="foresee")
    def _foresee(self, history: RunHistory, in_force: StopRule, rule: StopRule, dph: float | None) -> None:
        outcomes = ahead(history, in_force, rule, dph=dph)
        if not get_current_worker().is_cancelled:
            self.post_message(self._Foreseen(history, rule, outcomes, past_forecasts()))

    def on_what_if__foreseen(self, message: _Foreseen) -> None:
        """The forecast of a rule has come; it may be one that was typed over since."""
        if message.history is not self.history:
            return
        self._outcomes.update(message.outcomes)
        self._past = message.past
        if self.trial is not None and self.trial.rule == message.rule:
            self._show(message.rule)

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        """Enter leads on to the button, and does not press it."""
        event.stop()
        self.query_one("#apply" if self.may_apply and not self.ended else "#reset").focus()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "reset":
            self.reset()
        elif self.trial is not None and self.trial.rule != self.in_force:
            self.post_message(self.Apply(self.trial.rule, self.trial))

    def on_key(self, event: events.Key) -> None:
        """Arrows go from button to button."""
        if isinstance(self.screen.focused, Button) and event.key in ("left", "right"):
            self.screen.focus_next() if event.key == "right" else self.screen.focus_previous()
            event.stop()
