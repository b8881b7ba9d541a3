"""What another auto-stop rule would have done with the evals so far, and would do with the rest of the run. Pure.

`try_rule` runs the one machine of `runner.autostop` over the run's evals; `ahead` asks the forecast, which tries the
rule on the same futures as the rule in force, so the two rows differ only by the rule. `sentences` says both in words.
Steps and dollars are saved against what the rule in force would do, never against steps that are trained already.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from runner.autostop import Judgement, Phase, StopRule, StopState, judge, replay
from runner.errors import UsageError
from runner.history import RunHistory
from tui import words
from tui.stop_words import by_number, ordinal

if TYPE_CHECKING:
    from estimator.whatif import RuleOutcome
    from tui.snapshot import RunSnapshot

FIELDS = ("patience", "min_delta", "min_steps")
Tone = Literal["plain", "good", "bad", "quiet", "strong"]
Said = tuple[str, Tone]


def rule_of(typed: Mapping[str, str], *, from_start: bool) -> StopRule:
    """Make a rule of what was typed. Raises UsageError with one sentence that names the field."""
    numbers: dict[str, float] = {}
    for name in FIELDS:
        text = typed.get(name, "").strip().replace(",", "")
        try:
            numbers[name] = float(text)
        except ValueError:
            said = f"not '{words.shorten(text, 20)}'" if text else "and nothing is there"
            raise UsageError(f"{name} needs a number, {said}.") from None
        if name != "min_delta" and numbers[name] != round(numbers[name] if math.isfinite(numbers[name]) else 0):
            raise UsageError(f"{name} is counted: a whole number, not {text}.")
    try:
        return StopRule(
            int(numbers["patience"]),
            numbers["min_delta"],
            int(numbers["min_steps"]),
            "start" if from_start else "min_steps",
        )
    except ValueError as error:
        raise UsageError(f"{error}.") from None


def why_not(snapshot: RunSnapshot) -> str:
    """Why another rule cannot be applied to a run; empty when it can be asked for."""
    history = snapshot.history
    if snapshot.ended:
        return "The run is over: there is nothing to apply a rule to."
    if history.source == "none":
        return "Nothing was read of the run yet."
    if history.rule is None and history.source == "log":
        return "Cannot be applied: somebody else's trainer wrote this log; it takes no requests, the rule is assumed."
    if history.rule is None:
        return "Cannot be applied: this run was started without auto-stop."
    if "rule" not in history.obeys:
        return "Cannot be applied: this run takes no requests; an older tunewatch started it."
    return ""


def last_answer(history: RunHistory) -> str:
    """What the run said when it was last asked for another rule; empty when it never was."""
    ack = next((ack for ack in reversed(history.acks) if ack.kind == "rule"), None)
    if ack is None:
        return ""
    return f"{'Changed' if ack.accepted else 'Refused'} at step {ack.step}: {ack.detail}"


@dataclass(frozen=True, slots=True)
class Trial:
    """One rule tried on one run."""

    rule: StopRule
    in_force: StopRule
    state: StopState
    """Of the machine after the evals so far."""
    judgements: tuple[Judgement, ...]
    step: int
    max_steps: int | None
    ended: bool
    best: float | None
    """Lowest eval_loss of the whole run so far."""
    saved_usd: float | None = None
    """Of an ended run: what the steps after the stop have cost, USD."""
    now: RuleOutcome | None = None
    """The rule in force, on the forecast."""
    then: RuleOutcome | None = None
    """The tried rule, on the same futures."""
    counted: StopState | None = None
    """Where the log tells no steps: of the machine over the evals counted from 1 on, without min_steps."""

    @property
    def stops_at_once(self) -> bool:
        """Whether the rule, applied to the living run, has fired already."""
        return self.state.phase is Phase.FIRED and not self.ended


def try_rule(
    history: RunHistory,
    in_force: StopRule,
    rule: StopRule,
    *,
    ended: bool = False,
    effective_sps: float | None = None,
    dph: float | None = None,
    outcomes: Mapping[StopRule, RuleOutcome] | None = None,
) -> Trial:
    """Replay `rule` over the run. `effective_sps` is steps per second, `dph` USD per hour, `outcomes` of `ahead`."""
    pairs = history.eval_pairs()
    state = replay(rule, pairs)
    step = history.step or (pairs[-1][0] if pairs else 0)
    saved = None
    if ended and state.stopped_at is not None and effective_sps and dph is not None:
        saved = max(0, step - state.stopped_at) / effective_sps / 3600 * dph
    best = min((loss for _, loss in pairs if math.isfinite(loss)), default=None)
    found = outcomes or {}
    return Trial(
        rule, in_force, state, tuple(judge(rule, pairs)), step, history.max_steps, ended, best, saved,
        found.get(in_force), found.get(rule),
        replay(replace(rule, min_steps=0), by_number(history)) if history.stepless else None,
    )  # fmt: skip


def ahead(
    history: RunHistory, in_force: StopRule, rule: StopRule, *, dph: float | None = None
) -> dict[StopRule, RuleOutcome]:
    """What both rules would do with the rest of the run; empty where nothing can be said. About 12 ms.

    The first call imports the estimator: for a thread.
    """
    from remote.forecast import forecast_run, other_rules

    forecast = forecast_run(history, in_force, (), dph=dph or None)
    wanted = [in_force] if rule == in_force else [in_force, rule]
    return {row.rule: row for row in other_rules(forecast, wanted)}


def sentences(trial: Trial) -> list[Said]:
    """The trial in words, the verdict first."""
    if trial.rule == trial.in_force:
        return [("This is the rule in force.", "quiet"), *_so_far(trial), *_table(trial)]
    return [*_so_far(trial), *_table(trial), *_difference(trial)]


def _so_far(trial: Trial) -> list[Said]:
    state, rule = trial.state, trial.rule
    if trial.counted is not None:
        at = trial.counted.stopped_at
        fires = "it does not fire" if at is None else f"it fires at the {ordinal(at)}"
        return [(f"This log tells no steps; counted in evals, {fires}.", "strong")]
    if not trial.judgements:
        return [("No eval yet to try it on.", "quiet")]
    if state.phase is Phase.FIRED:
        why = "an eval that is not a number" if state.reason == "non-finite" else f"best {words.loss(state.best)}"
        said: list[Said] = [(f"Would have stopped at step {state.stopped_at:,} ({why}).", "strong")]
        if trial.stops_at_once:
            said.append(("Applied now, it stops the run at once.", "bad"))
        if trial.ended and state.stopped_at is not None:
            said.append(_hindsight(trial, state.stopped_at))
        return said
    if trial.ended:
        return [(f"Would not have stopped the run before its end at step {trial.step:,}.", "strong")]
    if state.phase is Phase.WAITING:
        return [(f"Waits for the first eval from step {rule.min_steps:,} on.", "plain")]
    if state.phase is Phase.ARMED:
        return [(f"Armed: reference {words.loss(state.reference)} of step {state.reference_step:,}.", "plain")]
    return [(f"{state.bad} of {rule.patience} without gain since step {state.reference_step:,}.", "plain")]


def _hindsight(trial: Trial, stop: int) -> Said:
    steps = max(0, trial.step - stop)
    money = f" and {words.usd(trial.saved_usd)}" if trial.saved_usd else ""
    best, lowest = trial.state.best, trial.best
    if best is None or lowest is None or best <= lowest:
        return f"Saves {steps:,} steps{money} and misses nothing: the best eval comes before.", "good"
    return f"Saves {steps:,} steps{money} and misses {best - lowest:.4f} of eval_loss.", "bad"


def _table(trial: Trial) -> list[Said]:
    if trial.ended or trial.now is None:
        return []
    head = f"{'':<9} {'stop':>7} {'10 – 90 %':>15} {'best':>8} {'h left':>7} {'$ left':>7}"
    rows: list[Said] = [(head, "quiet"), (_row("in force", trial.now), "plain")]
    if trial.then is not None and trial.then.rule != trial.now.rule:
        rows.append((_row("this rule", trial.then), "strong"))
    return rows


def _row(name: str, row: RuleOutcome) -> str:
    spread = f"{row.p10:,} – {row.p90:,}"
    money = words.usd(row.usd) if math.isfinite(row.usd) else "–"
    best, left = words.loss(row.best_loss), words.hours(row.hours)
    return f"{name:<9} {row.p50:>7,} {spread:>15} {best:>8} {left:>7} {money:>7}"


def _difference(trial: Trial) -> list[Said]:
    now, then = trial.now, trial.then
    if trial.ended or now is None or then is None:
        return []
    steps = max(now.stop, trial.step) - max(then.stop, trial.step)
    usd = now.usd - then.usd
    loss = then.best_loss - now.best_loss
    if abs(steps) < 1:
        return [("Stops where the rule in force is expected to.", "quiet")]
    verb = "Saves" if steps > 0 else "Trains"
    money = (
        f", {words.usd(abs(usd))} {'less' if usd > 0 else 'more'}" if math.isfinite(usd) and abs(usd) >= 0.005 else ""
    )
    more = "" if steps > 0 else " more"
    quality = "the same best eval_loss expected"
    if math.isfinite(loss) and abs(loss) >= 5e-5:
        quality = f"best eval_loss {abs(loss):.4f} {'higher' if loss > 0 else 'lower'} expected"
    sentence = f"{verb} {abs(steps):,.0f} steps{more} on average{money}; {quality}."
    said: list[Said] = [(sentence, "good" if steps > 0 else "plain")]
    if math.isfinite(then.p_false_stop) and then.p_false_stop >= 0.1:
        said.append((f"In {then.p_false_stop:.0%} of the futures it stops although a gain was still to come.", "bad"))
    return said
