"""The auto-stop panel in words: the rule, where its machine stands, what every eval did to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rich.text import Text

from runner.autostop import Judgement, Phase, StopRule, earliest_stop, judge, replay
from runner.history import RunHistory
from tui import words
from tui.snapshot import Projection, Ruling, RunSnapshot

Colours = Mapping[str, str]


def phase_words(snapshot: RunSnapshot, ruling: Ruling) -> tuple[str, str]:
    """One line for the state of the machine, and the theme colour that goes with it."""
    rule, state, step = ruling.rule, ruling.state, snapshot.step or 0
    if snapshot.history.stepless:
        return _stepless_words(snapshot, rule), "foreground"
    if state.phase is Phase.FIRED:
        did = "stopped" if snapshot.declared else "would have stopped"
        why = "an eval that is not a number" if state.reason == "non-finite" else f"plateau, best {_best(ruling)}"
        return f"fired: {did} at step {state.stopped_at} ({why})", "error"
    if snapshot.ended:
        return f"did not fire: the run {snapshot.state} at step {step}", "foreground"
    if before_training(snapshot):
        return "waiting for the first step", "foreground"
    if state.phase is Phase.WAITING:
        last = snapshot.history.max_steps
        if last is not None and last < rule.min_steps:
            return f"cannot fire: the run ends at step {last}, before step {rule.min_steps}", "foreground"
        left = rule.min_steps - step
        if left > 0:
            soon = words.duration(left / snapshot.effective_sps) if snapshot.effective_sps else "?"
            return f"waiting for step {rule.min_steps} ({left} steps, ~{soon})", "foreground"
        return f"waiting for the first eval from step {rule.min_steps} on", "foreground"
    if state.phase is Phase.ARMED:
        return f"armed: reference {words.loss(state.reference)} of step {state.reference_step}", "success"
    return f"{state.bad} of {rule.patience} without gain since step {state.reference_step}", "warning"


def _stepless_words(snapshot: RunSnapshot, rule: StopRule) -> str:
    """The verdict over a log that tells no steps: its evals are counted, and min_steps says nothing."""
    state = replay(replace(rule, min_steps=0), by_number(snapshot.history))
    if state.phase is Phase.FIRED:
        return f"counted in evals it would have fired at the {ordinal(state.stopped_at or 0)}"
    if state.reference_step is None:
        return "its log tells no steps: evals will be counted"
    if snapshot.ended:
        return "counted in evals it would not have fired"
    if not state.bad:
        return f"counted in evals: the newest, the {ordinal(state.reference_step)}, was a gain"
    return f"counted in evals: {state.bad} of {rule.patience} without gain since the {ordinal(state.reference_step)}"


def by_number(history: RunHistory) -> list[tuple[int, float]]:
    """The evals of a log without steps, each with its number from 1 on in place of the step."""
    return [(number, e.eval_loss) for number, e in enumerate(history.evals, 1)]


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `11th`.

    >>> [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 102)]
    ['1st', '2nd', '3rd', '4th', '11th', '12th', '13th', '21st', '102nd']
    """
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def before_training(snapshot: RunSnapshot) -> bool:
    """Whether nothing is known of the run yet: neither its rule, nor how long it will be, nor a step of it."""
    history = snapshot.history
    nothing = history.step is None and history.max_steps is None and not history.evals and not history.pending_evals
    return snapshot.state == "starting" and nothing and not snapshot.declared


def _best(ruling: Ruling) -> str:
    return f"{words.loss(ruling.state.best)} @{ruling.state.best_step}"


def meter(ruling: Ruling) -> str:
    """The patience used as boxes: `■■□□`."""
    patience = ruling.rule.patience
    bad = min(ruling.state.bad, patience)
    if patience > 12:
        return f"{bad}/{patience}"
    return "■" * bad + "□" * (patience - bad)


def projection_words(projection: Projection | None, snapshot: RunSnapshot) -> str:
    """Where the run will probably stop."""
    if not snapshot.estimated:
        return "forecasting …"
    if projection is None:
        return "the number of planned steps is unknown: no projection"
    if snapshot.history.max_steps and projection.p_early < 0.05:
        return (
            f"will probably run to step {snapshot.history.max_steps} (early stop {words.percent(projection.p_early)})"
        )
    spread = f"{words.count(projection.p10)}–{words.count(projection.p90)}"
    return f"stops ~{words.count(projection.p50)} ({spread}), before the end {words.percent(projection.p_early)}"


def panel(snapshot: RunSnapshot, colours: Colours, width: int) -> Text:
    """The whole panel for `width` cells; `colours` are the variables of the theme."""
    ruling = snapshot.ruling
    out = Text()
    dim = colours.get("text-muted-hex", "") or "dim"
    if before_training(snapshot):
        out.append(f"{phase_words(snapshot, ruling)[0]}\n", "bold")
        out.append("A run of ours says its rule when training begins; for any other one this is assumed:\n", dim)
        out.append(f"{ruling.rule.in_words()}\n", dim)
        return out
    said = "" if snapshot.declared else "assumed: "
    out.append(f"{said}{ruling.rule.in_words()}\n", dim)
    changed = next((ack for ack in reversed(snapshot.history.acks) if ack.kind == "rule" and ack.accepted), None)
    if changed is not None and snapshot.declared:
        out.append(f"changed at step {changed.step}, while it ran\n", colours.get("accent", "") or dim)
    line, colour = phase_words(snapshot, ruling)
    if snapshot.history.stepless:
        out.append(f"{line}\n", "bold")
        out.append("min_steps says nothing here: the log has no progress bar\n\n", dim)
        counted = replace(ruling.rule, min_steps=0)
        out.append_text(table(tuple(judge(counted, by_number(snapshot.history))), snapshot, colours, width))
        return out
    out.append(f"{meter(ruling)} ", colours.get("warning", ""))
    out.append(f"{line}\n", f"bold {colours.get(colour, '')}".strip())
    if ruling.state.best is not None and ruling.state.phase is not Phase.FIRED:
        out.append("★ ", colours.get("tw-best") or colours.get("success", ""))
        out.append(f"best {words.loss(ruling.state.best)} at step {ruling.state.best_step}\n")
    if not snapshot.ended and ruling.state.phase is not Phase.FIRED:
        out.append("◇ ", colours.get("tw-projected") or colours.get("accent", ""))
        out.append(f"{projection_words(ruling.projection, snapshot)}\n")
        soonest = _soonest(snapshot, ruling)
        if soonest is not None:
            out.append(f"  not before step {soonest}\n", dim)
    if snapshot.other is not None:
        out.append(f"{other_words(snapshot, snapshot.other)}\n", dim)
    out.append("\n")
    out.append_text(table(ruling.judgements, snapshot, colours, width))
    return out


def _soonest(snapshot: RunSnapshot, ruling: Ruling) -> int | None:
    steps = [s for s, _ in snapshot.history.eval_pairs()]
    if len(steps) < 2:
        return None
    every = steps[-1] - steps[-2]
    if every <= 0:
        return None
    coming = [steps[-1] + every * i for i in range(1, 1 + ruling.rule.patience + 1 + ruling.rule.min_steps // every)]
    return earliest_stop(ruling.rule, ruling.state, coming)


def other_words(snapshot: RunSnapshot, other: Ruling) -> str:
    """The second reading of a rule that the run did not declare."""
    how = "from the start" if other.rule.count_from == "start" else f"from step {other.rule.min_steps}"
    if other.state.phase is Phase.FIRED:
        said = f"would have stopped at step {other.state.stopped_at}"
    elif snapshot.ended:
        said = "would not have fired"
    else:
        said = projection_words(other.projection, snapshot)
    return f"  counted {how}: {said}"


def table(judgements: tuple[Judgement, ...], snapshot: RunSnapshot, colours: Colours, width: int) -> Text:
    """Every eval, newest first: step, loss, gain over the reference, and why it counted."""
    dim = colours.get("text-muted-hex", "") or "dim"
    out = Text()
    stepless = snapshot.history.stepless
    out.append(f"{'eval' if stepless else 'step':>6}  {'eval_loss':>9}  {'gain':>8}  why\n", dim)
    best = snapshot.ruling.state.best_step
    if stepless:
        best = replay(snapshot.ruling.rule, by_number(snapshot.history)).best_step
    for step in reversed(snapshot.history.pending_evals):
        out.append(f"{step:>6}  {'pending':>9}\n", dim)
    for row in reversed(judgements):
        style = "" if row.judged else dim
        if row.improved:
            style = colours.get("success", "")
        elif row.judged and row.bad:
            style = colours.get("warning", "")
        out.append(f"{row.step:>6}", "")
        out.append("★ " if row.step == best else "  ", colours.get("tw-best") or colours.get("success", ""))
        room = max(width - 29, 8)
        out.append(f"{words.loss(row.loss):>9}  {words.signed(row.gain):>8}  ", "" if row.judged else dim)
        out.append(f"{short_why(row, room)}\n", style)
    if not judgements and not snapshot.history.pending_evals:
        out.append("no eval yet\n", dim)
    return out


def short_why(row: Judgement, room: int) -> str:
    """The reason in full where there is room, in a few words where there is not."""
    if len(row.why) <= room:
        return row.why
    if row.loss != row.loss or row.loss in (float("inf"), float("-inf")):
        return "not finite"[:room]
    if not row.judged:
        return "not judged"[:room]
    if row.gain is None:
        return "reference"[:room]
    return ("gain" if row.improved else f"no gain {row.bad}")[:room]
