"""Another rule tried on a run: against the machine itself, and on the screen."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Button, Input, Static

from estimator.whatif import RuleOutcome
from runner.autostop import StopRule, replay
from runner.errors import UsageError
from runner.history import EvalPoint, RunHistory
from tests.support.tui import history, snapshot
from tui.screens.whatif import WhatIfScreen
from tui.themes import DEFAULT_THEME, THEMES
from tui.what_if import Trial, ahead, rule_of, sentences, try_rule
from tui.widgets.whatif import Tick, WhatIf

RULE = StopRule(patience=4, min_delta=0.003, min_steps=600)
FLAT = RunHistory(
    step=1000,
    max_steps=6000,
    evals=tuple(EvalPoint(s, {200: 1.118, 300: 1.372}.get(s, 1.4)) for s in range(200, 1001, 100)),
)


def said(trial: Trial) -> str:
    return "\n".join(text for text, _ in sentences(trial))


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ({"patience": "0"}, "patience must be at least 1 evaluation, not 0."),
        ({"patience": "2.5"}, "patience is counted: a whole number, not 2.5."),
        ({"patience": ""}, "patience needs a number, and nothing is there."),
        ({"min_delta": "-0.1"}, "min_delta must be a loss of 0 or more, not -0.1."),
        ({"min_delta": "nan"}, "min_delta must be a loss of 0 or more, not nan."),
        ({"min_delta": "abc"}, "min_delta needs a number, not 'abc'."),
        ({"min_steps": "-1"}, "min_steps must be 0 or more steps, not -1."),
        ({"min_steps": "inf"}, "min_steps is counted: a whole number, not inf."),
    ],
)
def test_nonsense_is_one_sentence_that_names_the_field(typed: dict[str, str], sentence: str) -> None:
    fields = {"patience": "4", "min_delta": "0.003", "min_steps": "600"} | typed
    with pytest.raises(UsageError) as caught:
        rule_of(fields, from_start=False)
    assert caught.value.message == sentence


def test_what_is_typed_becomes_the_rule() -> None:
    fields = {"patience": " 6 ", "min_delta": "1e-3", "min_steps": "1,200"}
    assert rule_of(fields, from_start=True) == StopRule(6, 0.001, 1200, "start")


@given(
    losses=st.lists(st.floats(0.5, 2, allow_nan=False) | st.just(math.nan), max_size=12),
    patience=st.integers(1, 4),
    min_steps=st.sampled_from([0, 300, 600]),
    count_from=st.sampled_from(["min_steps", "start"]),
)
def test_the_trial_is_what_the_machine_says(
    losses: list[float], patience: int, min_steps: int, count_from: Any
) -> None:
    run = RunHistory(step=100 * len(losses), evals=tuple(EvalPoint(100 * (n + 1), x) for n, x in enumerate(losses)))
    rule = StopRule(patience, 0.003, min_steps, count_from)
    trial = try_rule(run, RULE, rule)
    assert trial.state == replay(rule, run.eval_pairs())
    text = said(trial)
    assert (f"Would have stopped at step {trial.state.stopped_at:,}" in text) if trial.state.stopped_at else True
    assert trial.stops_at_once is (trial.state.stopped_at is not None)


def test_the_two_ways_to_count_stop_the_first_study_at_1000_and_600() -> None:
    assert try_rule(FLAT, RULE, RULE).state.stopped_at == 1000
    other = try_rule(FLAT, RULE, StopRule(4, 0.003, 600, "start"))
    assert said(other).splitlines()[:2] == [
        "Would have stopped at step 600 (best 1.1180).",
        "Applied now, it stops the run at once.",
    ]


def test_of_an_ended_run_hindsight_says_what_was_saved_and_what_was_missed() -> None:
    losses = {100: 1.5, 200: 1.5, 300: 1.5, 400: 1.2}
    run = RunHistory(step=1000, max_steps=1000, evals=tuple(EvalPoint(s, x) for s, x in losses.items()))
    hasty = try_rule(run, RULE, StopRule(2, 0.003, 0), ended=True, effective_sps=0.5, dph=0.72)
    assert hasty.saved_usd == pytest.approx(700 / 0.5 / 3600 * 0.72)
    assert said(hasty) == (
        "Would have stopped at step 300 (best 1.5000).\nSaves 700 steps and $0.28 and misses 0.3000 of eval_loss."
    )
    patient = try_rule(run, RULE, StopRule(9, 0.003, 0), ended=True)
    assert said(patient) == "Would not have stopped the run before its end at step 1,000."


def outcome(rule: StopRule, stop: float, usd: float, best: float, false: float = 0.0) -> RuleOutcome:
    return RuleOutcome(rule, stop, 900, 1000, 2400, 0.9, best, usd, usd, false)


def test_the_difference_is_counted_from_where_the_run_is() -> None:
    run = RunHistory(step=457, max_steps=6000, evals=(EvalPoint(400, 1.4),))
    hasty, now = StopRule(2, 0.003, 600), outcome(RULE, 1700, 1.0, 1.05)
    then = outcome(hasty, 1000, 0.6, 1.1, 0.25)
    text = said(try_rule(run, RULE, hasty, outcomes={RULE: now, hasty: then}))
    assert "Saves 700 steps on average, $0.40 less; best eval_loss 0.0500 higher expected." in text
    assert "In 25% of the futures it stops although a gain was still to come." in text
    back = said(try_rule(run, hasty, RULE, outcomes={RULE: now, hasty: then}))
    assert "Trains 700 steps more on average, $0.40 more; best eval_loss 0.0500 lower expected." in back
    # a rule that would have stopped in the past saves nothing of what is trained already
    gone = outcome(hasty, 300, 0.0, 1.4)
    past = said(try_rule(run, RULE, hasty, outcomes={RULE: now, hasty: gone}))
    assert f"Saves {1700 - 457:,} steps on average, $1.00 less" in past


def test_the_forecast_tries_both_rules_on_the_same_futures() -> None:
    run = history(1500)
    patient = StopRule(8, 0.003, 600)
    found = ahead(run, RULE, patient, dph=0.7411)
    assert set(found) == {RULE, patient}
    assert found[patient].stop > found[RULE].stop
    assert found[patient].best_loss <= found[RULE].best_loss
    assert ahead(run, RULE, RULE, dph=0.7411)[RULE] == found[RULE]
    assert ahead(RunHistory(), RULE, patient) == {}


# -- on the screen -------------------------------------------------------------------------------------------------


class Room(App[None]):
    def __init__(self, steps: int = 1500, **read: Any) -> None:
        super().__init__()
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = DEFAULT_THEME
        self.snapshot = snapshot(replace(history(steps), obeys=("rule", "save")), **read)

    def on_mount(self) -> None:
        self.push_screen(WhatIfScreen(self.snapshot))

    @property
    def asked(self) -> bool:
        """Whether the last question before applying stands open."""
        return self.screen.has_class("-asking")

    @property
    def panel(self) -> WhatIf:
        return self.screen.query_one(WhatIf)

    def answer(self) -> str:
        """What stands below the fields of where the request got to."""
        box = self.screen.query_one("#answer", Static)
        return str(box.render()) if box.display else ""

    def said(self) -> str:
        return str(self.panel.query_one("#said", Static).render())


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    while not holds():
        await pilot.pause()
        await asyncio.sleep(0.01)
    await pilot.pause()


async def opened(pilot: Pilot[None], app: Room) -> None:
    await until(pilot, lambda: isinstance(app.screen, WhatIfScreen) and app.panel.is_mounted)


async def test_arrow_keys_replay_at_once_and_the_forecast_follows() -> None:
    app = Room()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        assert "This is the rule in force." in app.said()
        assert app.panel.query_one("#apply", Button).disabled
        await pilot.press("up", "up")
        assert app.panel.trial is not None
        assert app.panel.trial.rule == StopRule(6, 0.003, 600)
        await until(pilot, lambda: "this rule" in app.said())
        assert "steps more" in app.said()
        await pilot.press("tab", "down", "tab", "up", "tab", "space")
        await pilot.pause()
        assert app.panel.trial.rule == StopRule(6, 0.002, 700, "start")


async def test_how_past_forecasts_came_true_stands_below_the_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path))
    bet = {"run": "old", "step": 100, "horizon": 1000, "p10": 200, "p50": 300, "p90": 400, "p_early": 0.9}
    (tmp_path / "bets.jsonl").write_text(json.dumps(bet) + "\n" + json.dumps({"run": "old", "truth": 700}) + "\n")
    app = Room()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        await until(pilot, lambda: "Past forecasts: 1 run settled: the interval held the end in 0%" in app.said())


async def test_nonsense_is_said_in_place_and_cannot_be_applied() -> None:
    app = Room()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        await pilot.press("end", "backspace", "0")
        assert app.said() == "patience must be at least 1 evaluation, not 0."
        assert app.panel.query_one("#patience", Input).has_class("-wrong")
        await pilot.press("enter", "enter")
        await pilot.pause()
        assert not app.asked
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, WhatIfScreen))


async def test_enter_leads_to_the_button_and_what_it_asks_is_on_cancel() -> None:
    app = Room()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        await pilot.press("up", "enter")
        await pilot.pause()
        assert not app.asked
        await pilot.press("enter")
        await until(pilot, lambda: app.asked)
        assert app.focused is not None
        assert app.focused.id == "keep"
        assert "goes on: stop after 5 evals" in app.answer()
        await pilot.press("enter")
        await until(pilot, lambda: not app.asked)
        assert app.answer() == ""
        await pilot.press("enter", "enter", "escape")
        await until(pilot, lambda: not app.asked)
        assert isinstance(app.screen, WhatIfScreen), "Esc takes back the question, then closes"


async def test_the_mouse_can_do_it_too() -> None:
    app = Room()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        await pilot.click(Tick)
        await pilot.pause()
        assert app.panel.trial is not None
        assert app.panel.trial.rule.count_from == "start"
        await pilot.click("#reset")
        await pilot.pause()
        assert app.panel.trial.rule == RULE
        await pilot.click(Tick)
        await pilot.pause()
        await pilot.click("#apply")
        await until(pilot, lambda: app.asked)
        await pilot.click("#keep")
        await until(pilot, lambda: not app.asked)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ended": "finished"}, "The run is over"),
        ({"rule": None, "source": "log"}, "somebody else's trainer wrote this log"),
        ({"rule": None}, "started without auto-stop"),
        ({"obeys": ()}, "an older tunewatch started it"),
    ],
)
async def test_a_run_that_cannot_be_asked_says_why_in_place_of_the_button(change: dict[str, Any], why: str) -> None:
    app = Room(2000)
    over = {"state": "finished"} if "ended" in change else {}
    app.snapshot = snapshot(replace(history(2000), **{"obeys": ("rule",), **change}), **over)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, app)
        assert not app.panel.query_one("#apply").display
        assert why in app.answer()
        await pilot.press("down", "down", "down", "enter", "enter")
        await pilot.pause()
        assert not app.asked


async def test_new_evals_are_replayed_and_what_was_typed_stays() -> None:
    app = Room(457)
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(pilot, app)
        await pilot.press("up")
        assert isinstance(app.screen, WhatIfScreen)
        app.screen.take(snapshot(history(1500)))
        await pilot.pause()
        assert app.panel.trial is not None
        assert app.panel.trial.rule.patience == 5
        assert app.panel.trial.step == 1500
