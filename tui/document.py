"""`watch --once`: a snapshot as the JSON document of the command-line contract, and as lines for people. Pure."""

from __future__ import annotations

import math
from typing import Any

from tui import stop_words, words
from tui.snapshot import Ruling, RunSnapshot


def watch_document(snapshot: RunSnapshot) -> dict[str, Any]:
    """The shape of `watch --once --json`; numbers that are not finite become null and are told in `warnings`."""
    history = snapshot.history
    document: dict[str, Any] = {
        "run": {
            "target": snapshot.target,
            "name": snapshot.name,
            "state": snapshot.state,
            "reason": snapshot.reason,
            "run_id": history.run_id,
        },
        "progress": {
            "step": history.step,
            "max_steps": history.max_steps,
            "elapsed_s": history.elapsed_s,
            "step_s": snapshot.step_s,
            "effective_steps_per_s": snapshot.effective_sps,
            "eta_s": snapshot.eta_s,
            "eta_stop_s": snapshot.eta_stop_s,
        },
        "train": [
            {
                "step": p.step,
                "loss": p.loss,
                "grad_norm": p.grad_norm,
                "learning_rate": p.learning_rate,
                "epoch": p.epoch,
            }
            for p in history.train
        ],
        "evals": [
            {"step": e.step, "eval_loss": e.eval_loss, "eval_runtime": e.eval_runtime, "epoch": e.epoch}
            for e in history.evals
        ],
        "pending_evals": list(history.pending_evals),
        "autostop": _ruling(snapshot.ruling, declared=snapshot.declared),
        "autostop_other": None if snapshot.other is None else _ruling(snapshot.other, declared=False),
        "stages": [{"name": s.name, "macro": s.macro, "tasks": dict(s.tasks)} for s in history.stages],
        "quotes": [dict(q.document) for q in snapshot.quotes],
        "stay": dict(snapshot.stay.document) if snapshot.stay else None,
        "link": {"state": snapshot.link.word, "age_s": snapshot.link.age_s, "detail": snapshot.link.detail},
        "warnings": [*snapshot.warnings, *_not_finite(snapshot)],
    }
    return document


def _ruling(ruling: Ruling, *, declared: bool) -> dict[str, Any]:
    rule, state = ruling.rule, ruling.state
    return {
        "state": str(state.phase),
        "declared": declared,
        "best": state.best,
        "best_step": state.best_step,
        "bad": state.bad,
        "patience": rule.patience,
        "min_delta": rule.min_delta,
        "min_steps": rule.min_steps,
        "count_from": rule.count_from,
        "stop_step": state.stopped_at,
        "reason": state.reason,
        "projected": None if ruling.projection is None else ruling.projection.to_json(),
        "judgements": [
            {"step": j.step, "eval_loss": j.loss, "gain": j.gain, "judged": j.judged, "bad": j.bad, "why": j.why}
            for j in ruling.judgements
        ],
    }


def _not_finite(snapshot: RunSnapshot) -> list[str]:
    """One sentence for each kind of value that JSON cannot hold."""
    out: list[str] = []
    evals = [e for e in snapshot.history.evals if not math.isfinite(e.eval_loss)]
    out.extend(f"eval_loss at step {e.step} is {e.eval_loss}: written as null" for e in evals)
    for name in ("loss", "grad_norm"):
        steps = [p.step for p in snapshot.history.train if (v := getattr(p, name)) is not None and not math.isfinite(v)]
        if steps:
            more = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
            out.append(f"{name} at step {steps[0]}{more} is not finite: written as null")
    return out


def watch_lines(snapshot: RunSnapshot) -> list[str]:
    """What a person wants to know at one look, without a screen."""
    history = snapshot.history
    reason = f": {snapshot.reason}" if snapshot.reason else ""
    of = f"{history.step}/{history.max_steps}" if history.max_steps else f"{history.step or 'no'} step"
    lines = [f"{snapshot.name}  {snapshot.state}{reason}"]
    if history.step is None and history.max_steps is None and not history.evals and not history.train:
        return [*lines, *(f"  {w}" for w in snapshot.warnings)]
    pace = words.per_step(snapshot.step_s) if snapshot.step_s is not None else "no speed yet"
    lines.append(f"  progress   {of}, {words.duration(history.elapsed_s)} so far, {pace}")
    if snapshot.eta_s is not None:
        lines.append(f"  left       {words.duration(snapshot.eta_s)} to the last step")
    if history.train:
        lines.append(f"  loss       {words.loss(history.train[-1].loss)} at step {history.train[-1].step}")
    said = "declared by the run" if snapshot.declared else "assumed"
    lines.append(f"  auto-stop  {snapshot.ruling.rule.in_words()} ({said})")
    lines.append(f"             {stop_words.phase_words(snapshot, snapshot.ruling)[0]}")
    if not snapshot.ended and snapshot.ruling.state.stopped_at is None:
        lines.append(f"             {stop_words.projection_words(snapshot.ruling.projection, snapshot)}")
    if snapshot.other is not None:
        lines.append("           " + stop_words.other_words(snapshot, snapshot.other))
    if snapshot.ruling.judgements:
        lines.append(f"  {'step':>8}  {'eval_loss':>9}  {'gain':>8}  why")
        lines += [
            f"  {j.step:>8}  {words.loss(j.loss):>9}  {words.signed(j.gain):>8}  {j.why}"
            for j in snapshot.ruling.judgements
        ]
    lines += [f"  {step:>8}    pending" for step in history.pending_evals]
    lines += [f"  warning: {w}" for w in snapshot.warnings]
    return lines
