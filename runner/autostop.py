"""The auto-stop rule as one pure state machine: when does a run end by itself because eval_loss no longer falls?

The trainer's callback, the screens, the what-if and the forecast all call `advance`; nothing else in the project
decides about a plateau. No I/O, no clock, no dependency.

The rules of this file:

- An eval *improves* when `value < reference - min_delta`. The reference moves only on a counted improvement, so a
  slow creep (0.002 an eval against a min_delta of 0.003) does not reset the patience.
- Best-checkpoint tracking (`best`, `best_step`) is separate: over all finite evals, on any decrease.
- `count_from = "min_steps"`: an eval before `min_steps` is not judged; the first one at or after it sets the reference.
- `count_from = "start"`: every eval is judged, only the stop itself is held back until `min_steps`.
- A non-finite eval stops at once, with its own reason.
- An eval at a step that was already seen, or before it, changes nothing: a resumed run repeats its last eval.
- A stopped state stays stopped.

Comparison carries a tolerance of 1e-9 relative, because 1.118 - 1.115 > 0.003 in binary floating point and a gain of
exactly min_delta is not an improvement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any, Literal, NamedTuple

CountFrom = Literal["min_steps", "start"]
StopReason = Literal["plateau", "non-finite"]

_TOLERANCE = 1e-9


class Phase(StrEnum):
    """Where the machine stands, in the words of the screens."""

    WAITING = "waiting"
    """No eval at or after min_steps yet: nothing can stop the run."""
    ARMED = "armed"
    """Judging, and the last judged eval improved (or set the reference)."""
    COUNTING = "counting"
    """Judging, with one or more evals in a row that did not improve."""
    FIRED = "fired"


@dataclass(frozen=True, slots=True)
class StopRule:
    """Stop after `patience` evals in a row without a gain of more than `min_delta`, not before `min_steps`.

    Raises ValueError, in words for the user, when a field makes no sense.
    """

    patience: int = 4
    """Evals in a row without improvement that end the run; at least 1."""
    min_delta: float = 0.003
    """Loss, absolute; a gain has to exceed it. Not negative."""
    min_steps: int = 600
    """Steps; no stop before. Not negative."""
    count_from: CountFrom = "min_steps"
    """Whether evals before `min_steps` are judged ("start") or not ("min_steps")."""

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience must be at least 1 evaluation, not {self.patience}")
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise ValueError(f"min_delta must be a loss of 0 or more, not {self.min_delta}")
        if self.min_steps < 0:
            raise ValueError(f"min_steps must be 0 or more steps, not {self.min_steps}")
        if self.count_from not in ("min_steps", "start"):
            raise ValueError(f"count_from must be 'min_steps' or 'start', not {self.count_from!r}")

    def in_words(self) -> str:
        """Say the rule as one sentence for a person."""
        evals = "eval" if self.patience == 1 else "evals"
        since = "judged from then on" if self.count_from == "min_steps" else "counted from the start"
        return (
            f"stop after {self.patience} {evals} in a row without a gain over {self.min_delta:g}, "
            f"not before step {self.min_steps} ({since})"
        )


@dataclass(frozen=True, slots=True)
class StopState:
    """Everything the machine remembers; small enough to be saved in every checkpoint."""

    reference: float | None = None
    """The loss that the next eval has to beat by more than min_delta; None until an eval was judged."""
    reference_step: int | None = None
    bad: int = 0
    """Judged evals in a row without improvement."""
    best: float | None = None
    """Lowest finite eval_loss over all evals, judged or not."""
    best_step: int | None = None
    armed_at: int | None = None
    """Step of the first eval at or after min_steps."""
    last_step: int | None = None
    """Step of the newest eval taken in; older or equal steps are ignored."""
    stopped_at: int | None = None
    reason: StopReason | None = None

    @property
    def phase(self) -> Phase:
        """The state in one word."""
        if self.stopped_at is not None:
            return Phase.FIRED
        if self.armed_at is None:
            return Phase.WAITING
        return Phase.COUNTING if self.bad else Phase.ARMED

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StopState:
        """Read what `to_dict` wrote; keys of later versions are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in data.items() if k in known})


class Judgement(NamedTuple):
    """What the machine made of one eval; a row of the table on the screen."""

    step: int
    loss: float
    gain: float | None
    """reference - loss before this eval; None when there was no reference or the loss is not finite."""
    judged: bool
    improved: bool
    bad: int
    """Count after this eval."""
    why: str
    """One short sentence: why it counted, or why not."""


def changed_rule(rule: StopRule, fields_given: Mapping[str, Any]) -> StopRule:
    """`rule` with the fields that were given, from JSON. Raises ValueError, in words, for what makes no sense."""
    known = {f.name for f in fields(StopRule)}
    for name, value in fields_given.items():
        if name not in known:
            raise ValueError(f"an auto-stop rule has no '{name}'; it has {', '.join(sorted(known))}")
        if name in ("patience", "min_steps") and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{name} is counted: a whole number, not {value!r}")
        if name == "min_delta" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"min_delta is a loss: a number, not {value!r}")
    return replace(rule, **fields_given)


def is_improvement(reference: float, value: float, min_delta: float) -> bool:
    """`value < reference - min_delta`, with equality up to rounding not an improvement."""
    slack = _TOLERANCE * max(abs(reference), abs(value), min_delta)
    return reference - value > min_delta + slack


def advance(rule: StopRule, state: StopState, step: int, loss: float) -> StopState:
    """Take in one eval and return the new state; `state` itself is never changed.

    `step` is the optimiser step of the eval, `loss` its eval_loss (NaN and infinities allowed).
    """
    if state.stopped_at is not None or (state.last_step is not None and step <= state.last_step):
        return state
    armed_at = state.armed_at
    if armed_at is None and step >= rule.min_steps:
        armed_at = step
    state = replace(state, last_step=step, armed_at=armed_at)
    if not math.isfinite(loss):
        return replace(state, stopped_at=step, reason="non-finite")
    if state.best is None or loss < state.best:
        state = replace(state, best=loss, best_step=step)
    if rule.count_from == "min_steps" and armed_at is None:
        return state
    if state.reference is None or is_improvement(state.reference, loss, rule.min_delta):
        return replace(state, reference=loss, reference_step=step, bad=0)
    state = replace(state, bad=state.bad + 1)
    if state.bad >= rule.patience and armed_at is not None:
        return replace(state, stopped_at=step, reason="plateau")
    return state


def replay(rule: StopRule, evals: Iterable[tuple[int, float]], state: StopState | None = None) -> StopState:
    """Run the machine over `(step, eval_loss)` pairs, from `state` or from the beginning."""
    current = state or StopState()
    for step, loss in evals:
        current = advance(rule, current, step, loss)
    return current


def judge(rule: StopRule, evals: Iterable[tuple[int, float]]) -> list[Judgement]:
    """The same replay, with the reason for each eval that was taken in."""
    rows: list[Judgement] = []
    state = StopState()
    for step, loss in evals:
        before, state = state, advance(rule, state, step, loss)
        if state is before:
            continue
        rows.append(_explain(rule, before, state, step, loss))
    return rows


def _explain(rule: StopRule, before: StopState, after: StopState, step: int, loss: float) -> Judgement:
    finite = math.isfinite(loss)
    gain = before.reference - loss if finite and before.reference is not None else None
    judged = not finite or rule.count_from == "start" or after.armed_at is not None
    improved = finite and judged and after.bad == 0
    if not finite:
        why = "not a finite number: stops at once"
    elif not judged:
        why = f"not judged: before step {rule.min_steps}"
    elif before.reference is None:
        why = "sets the reference"
    elif improved:
        why = f"gain {gain:.4g} over {rule.min_delta:g}: the new reference"
    elif after.stopped_at is not None:
        why = f"{after.bad} of {rule.patience} without gain: stops"
    elif after.bad >= rule.patience:
        why = f"{after.bad} without gain, held back until step {rule.min_steps}"
    else:
        why = f"{after.bad} of {rule.patience} without gain"
    return Judgement(step, loss, gain, judged, improved, after.bad, why)


def earliest_stop(rule: StopRule, state: StopState, eval_steps: Iterable[int]) -> int | None:
    """The first of the coming `eval_steps` at which a plateau could stop the run, None if none of them can.

    Found by the machine itself: no coming sequence stops sooner than one that never improves.
    """
    if state.stopped_at is not None:
        return state.stopped_at
    flat = state.reference if state.reference is not None else (state.best if state.best is not None else 0.0)
    for step in eval_steps:
        state = advance(rule, state, step, flat)
        if state.stopped_at is not None:
            return state.stopped_at
    return None
