"""Judges the reading of a captured log against its truth file, by the rules of tests/data/trainer-logs/README.md."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from runner.history import RunHistory
from runner.log import LogReader
from runner.state import judge_state

HERE = Path(__file__).parent.parent / "data" / "trainer-logs"


def read(data: bytes, chunk: int | None = None) -> RunHistory:
    """Read a log, whole or in pieces of `chunk` bytes."""
    reader = LogReader()
    for start in range(0, len(data), chunk or max(1, len(data))):
        reader.feed(data[start : start + (chunk or len(data))])
    return reader.history()


def state(history: RunHistory) -> str:
    """The word for a log that nobody writes to any more."""
    return judge_state(history, None, log_age_s=1e6, alive=None)[0]


def complaints(history: RunHistory, truth: dict[str, Any]) -> list[str]:
    """Everything in which a reading differs from the truth; empty when it is right."""
    found = []
    want, have = truth["evals"], history.evals
    if len(want) != len(have):
        found.append(f"{len(have)} evaluations, should be {len(want)}")
    for true, read_ in zip(want, have, strict=False):
        known = truth["steps_in_log"]
        if read_.step != true["step"] and (known or read_.step is not None):
            found.append(f"evaluation at {read_.step}, should be {true['step']}")
        if read_.printed != true["printed"] or not _same(read_.eval_loss, float(true["printed"])):
            found.append(f"{read_.printed} read as {read_.eval_loss}, printed was {true['printed']}")
        timed = true["eval_runtime"] is not None and read_.eval_runtime is not None
        if timed and not math.isclose(read_.eval_runtime or 0, true["eval_runtime"], rel_tol=1e-3, abs_tol=1e-4):
            found.append(f"runtime {read_.eval_runtime}, should be {true['eval_runtime']}")
    if history.max_steps != truth["max_steps"] and (truth["steps_in_log"] or history.max_steps is not None):
        found.append(f"max_steps {history.max_steps}, should be {truth['max_steps']}")
    low, high = truth["last_step"]
    if history.step is None:
        if truth["steps_in_log"]:
            found.append(f"no step, should be {low} to {high}")
    elif not low <= history.step <= high:
        found.append(f"step {history.step}, should be {low} to {high}")
    if state(history) not in truth["state"]:
        found.append(f"state {state(history)}, should be one of {truth['state']}")
    allowed = {e if isinstance(e, int) else e["step"] for e in truth.get("evals_without_text", [])}
    if not set(history.pending_evals) <= allowed:
        found.append(f"pending {history.pending_evals}, only {allowed} may be")
    return found + _train_complaints(history, truth)


def _train_complaints(history: RunHistory, truth: dict[str, Any]) -> list[str]:
    """The loss lines are held to the Trainer's own record, where the log has their steps."""
    if not truth["steps_in_log"]:
        return []
    record = {e["step"]: e for e in truth["log_history"] if "loss" in e}
    found = []
    for point in history.train:
        true = record.get(point.step)
        if true is None:
            found.append(f"a loss line at step {point.step}: there was none")
        elif true["loss"] is not None and not math.isclose(point.loss, true["loss"], rel_tol=2e-3, abs_tol=1e-4):
            found.append(f"loss {point.loss} at step {point.step}, should be {true['loss']}")
    return found


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def load(path: Path) -> tuple[bytes, dict[str, Any]]:
    """A log and its truth."""
    truth = path.with_name(path.name.removesuffix(".txt") + ".truth.json")
    return path.read_bytes(), json.loads(truth.read_text())
