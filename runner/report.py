"""The study in one table: macros, what the mask cost, what the fine-tune won back, how the long run ended.

Reads the summary.json and metrics.json of run directories and computes; nothing here trains or guesses. The study's
words: macro = unweighted mean over tasks; damage = stage 2 - stage 1; gain = stage 4 - stage 2; retention = stage /
stage 1; side effect = the tuned model under the causal mask - stage 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.atomic import read_object
from runner.errors import NotFoundError, UsageError
from runner.metrics import MetricsReader
from runner.rundir import METRICS, SUMMARY

STAGES: Mapping[str, str] = {
    "stage1": "base model, causal",
    "stage2": "base model, prefill mask ablated",
    "stage4": "tuned model, prefill mask ablated",
    "non_prefill": "tuned model, causal",
}
"""The stages that are measured, in the order of the table."""


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy of one task, 0 to 1."""

    value: float
    stderr: float | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One measured stage."""

    name: str
    macro: float
    tasks: Mapping[str, Score] = field(default_factory=dict)

    @property
    def macro_stderr(self) -> float | None:
        """Standard error of the unweighted mean, the tasks taken as independent; None where one has none."""
        errors = [score.stderr for score in self.tasks.values() if score.stderr is not None]
        if not errors or len(errors) < len(self.tasks):
            return None
        return math.sqrt(sum(error**2 for error in errors)) / len(errors)

    def to_json(self) -> dict[str, Any]:
        """`{"macro", "tasks": {name: value}}`, with `"stderr": {name: value}` where one is known."""
        data: dict[str, Any] = {"macro": self.macro, "tasks": {k: s.value for k, s in self.tasks.items()}}
        stderr = {k: s.stderr for k, s in self.tasks.items() if s.stderr is not None}
        return {**data, "stderr": stderr} if stderr else data


@dataclass(frozen=True, slots=True)
class Deltas:
    """What the four macros say about the mask; None where a stage it needs is missing."""

    damage: float | None
    gain: float | None
    retention: float | None
    """Stage 4 over stage 1."""
    side_effect: float | None
    damage_retention: float | None
    """Stage 2 over stage 1."""

    def to_json(self) -> dict[str, float | None]:
        """As the report's JSON has them."""
        return {
            "damage": self.damage,
            "gain": self.gain,
            "retention": self.retention,
            "side_effect": self.side_effect,
            "damage_retention": self.damage_retention,
        }


@dataclass(frozen=True, slots=True)
class TaskDelta:
    """How one task changed between two stages."""

    task: str
    before: Score
    after: Score

    @property
    def value(self) -> float:
        """After minus before."""
        return self.after.value - self.before.value

    @property
    def stderr(self) -> float | None:
        """Standard error of the difference of two independent means, sqrt(a^2 + b^2); None without both."""
        if self.before.stderr is None or self.after.stderr is None:
            return None
        return math.hypot(self.before.stderr, self.after.stderr)


@dataclass(frozen=True, slots=True)
class LongRun:
    """How the long fine-tune (stage 5) ended."""

    stop_step: int | None
    max_steps: int | None
    reason: str
    runtime_s: float | None
    trajectory: tuple[tuple[int, float], ...] = ()
    """`(step, eval_loss)` of its evaluations."""
    usd: float | None = None
    """What it cost, where that is known."""

    @property
    def best(self) -> tuple[int, float] | None:
        """`(step, eval_loss)` of the lowest evaluation."""
        finite = [e for e in self.trajectory if math.isfinite(e[1])]
        return min(finite, key=lambda e: e[1]) if finite else None

    def to_json(self) -> dict[str, Any]:
        """As the report's JSON has it."""
        best = self.best
        return {
            "stop_step": self.stop_step,
            "max_steps": self.max_steps,
            "reason": self.reason,
            "runtime_s": self.runtime_s,
            "usd": self.usd,
            "best_step": best[0] if best else None,
            "best_eval_loss": best[1] if best else None,
            "trajectory": [{"step": s, "eval_loss": v if math.isfinite(v) else None} for s, v in self.trajectory],
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The whole study, as far as it was measured."""

    stages: Mapping[str, Stage] = field(default_factory=dict)
    stage5: LongRun | None = None
    sources: tuple[str, ...] = ()
    """The run directories it was made from."""

    @property
    def deltas(self) -> Deltas:
        """Damage, gain, retention and side effect."""
        return compute_deltas({name: stage.macro for name, stage in self.stages.items()})

    def task_deltas(self, before: str, after: str) -> list[TaskDelta]:
        """Task by task from one stage to another, for the tasks that both have."""
        if before not in self.stages or after not in self.stages:
            return []
        old, new = self.stages[before].tasks, self.stages[after].tasks
        return [TaskDelta(task, old[task], new[task]) for task in old if task in new]

    def to_json(self, quotes: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """The document of `report --json`; absent stages are None."""
        return {
            "stages": {name: self.stages[name].to_json() if name in self.stages else None for name in STAGES},
            "deltas": self.deltas.to_json(),
            "stage5": self.stage5.to_json() if self.stage5 else None,
            "quotes": list(quotes),
        }

    def to_markdown(self) -> str:
        """The same for people."""
        return "\n\n".join(p for p in (self.stages_markdown(), _long_run_lines(self.stage5)) if p) + "\n"

    def stages_markdown(self) -> str:
        """Stage table, deltas and the table of tasks."""
        return "\n\n".join(p for p in (_stage_table(self), _delta_lines(self), _task_table(self)) if p)


def compute_deltas(macros: Mapping[str, float]) -> Deltas:
    """The deltas of the study from the macros by stage name.

    >>> d = compute_deltas({"stage1": 0.5, "stage2": 0.25, "stage4": 0.375})
    >>> d.damage, d.gain, d.retention, d.side_effect
    (-0.25, 0.125, 0.75, None)
    """

    def minus(left: str, right: str) -> float | None:
        return macros[left] - macros[right] if left in macros and right in macros else None

    def over(left: str) -> float | None:
        return macros[left] / macros["stage1"] if left in macros and macros.get("stage1") else None

    return Deltas(
        damage=minus("stage2", "stage1"),
        gain=minus("stage4", "stage2"),
        retention=over("stage4"),
        side_effect=minus("non_prefill", "stage1"),
        damage_retention=over("stage2"),
    )


# --- reading --------------------------------------------------------------------------------------------------------


def read_report(paths: Iterable[str | Path]) -> Report:
    """Put the results of run directories together; where two measured the same stage the later one counts.

    Raises NotFoundError for a directory that is not there or holds no result, UsageError for a broken file.
    """
    stages: dict[str, Stage] = {}
    stage5: LongRun | None = None
    sources: list[str] = []
    for path in map(Path, paths):
        found, long_run = _read_run(path)
        stages.update(found)
        stage5 = long_run or stage5
        sources.append(str(path))
    return Report(stages, stage5, tuple(sources))


def _read_run(path: Path) -> tuple[dict[str, Stage], LongRun | None]:
    if not path.is_dir():
        raise NotFoundError(f"There is no run directory {path}.")
    stages: dict[str, Stage] = {}
    long_run: LongRun | None = None
    read_any = False
    for file in sorted(path.glob("metrics*.json")):
        data = _load(file)
        stage = _stage(data, str(data.get("stage") or data.get("name") or ""))
        if stage is not None:
            stages[stage.name], read_any = stage, True
    summary = path / SUMMARY
    if summary.is_file():
        data = _load(summary)
        read_any = True
        for name, entry in _mapping(data.get("stages")).items():
            stage = _stage(_mapping(entry), name)
            if stage is not None:
                known = stages.get(name)
                stages[name] = known if known and known.macro == stage.macro else stage
        long_run = _long_run(_mapping(data.get("stage5")), data)
    elif (path / METRICS).is_file():
        events = _from_events(path / METRICS, stages)
        long_run, read_any = events, read_any or events is not None or bool(stages)
    if not read_any:
        raise NotFoundError(
            f"{path} holds no result.", hint="A run writes summary.json or metrics.json when a stage is done."
        )
    return stages, long_run


def _from_events(path: Path, stages: dict[str, Stage]) -> LongRun | None:
    """What a run that has not ended (or died) recorded so far."""
    reader = MetricsReader()
    reader.feed(path.read_bytes())
    history = reader.history()
    errors = _stderr_of_events(path)
    for result in history.stages:
        known = errors.get(result.name, {})
        tasks = {task: Score(value, number(known.get(task))) for task, value in result.tasks.items()}
        stages.setdefault(result.name, Stage(result.name, result.macro, tasks))
    if history.step is None:
        return None
    reason = history.end_reason or ("ended" if history.ended else "has not ended")
    return LongRun(history.step, history.max_steps, reason, history.elapsed_s, tuple(history.eval_pairs()))


def _stderr_of_events(path: Path) -> dict[str, Mapping[str, Any]]:
    """Stage to task to standard error: all that is left of them where metrics-*.json stayed on a box that is gone."""
    found: dict[str, Mapping[str, Any]] = {}
    for line in path.read_bytes().splitlines():
        if b'"stage"' in line and b'"stderr"' in line:
            event = read_object(line) or {}
            found[str(event.get("name"))] = _mapping(event.get("stderr"))
    return found


def _load(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not JSON: {error}.") from error
    except OSError as error:
        raise NotFoundError(f"{file} cannot be read: {error.strerror}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"{file} should hold a JSON object, not {type(data).__name__}.")
    return data


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _stage(data: Mapping[str, Any], name: str) -> Stage | None:
    """A stage from its JSON; the macro is computed where only tasks are given."""
    tasks = {str(k): s for k, v in _mapping(data.get("tasks")).items() if (s := _score(v)) is not None}
    stderr = _mapping(data.get("stderr"))
    tasks = {k: Score(s.value, s.stderr if s.stderr is not None else number(stderr.get(k))) for k, s in tasks.items()}
    macro = number(data.get("macro"))
    if macro is None and tasks:
        macro = sum(s.value for s in tasks.values()) / len(tasks)
    return Stage(name, macro, tasks) if macro is not None and name else None


def _score(value: Any) -> Score | None:
    """A task's score: a number, or an object of the harness with `acc` (or another metric) and `stderr`."""
    plain = number(value)
    if plain is not None:
        return Score(plain)
    entry = _mapping(value)
    for key in ("acc", "acc_norm", "exact_match", "value"):
        found = number(entry.get(key))
        if found is not None:
            return Score(found, number(entry.get("stderr", entry.get(f"{key}_stderr"))))
    return None


def _long_run(data: Mapping[str, Any], whole: Mapping[str, Any]) -> LongRun | None:
    if not data:
        return None
    trajectory = []
    for point in data.get("trajectory") or ():
        step, loss = number(_mapping(point).get("step")), _mapping(point).get("eval_loss")
        value = math.nan if loss in (None, "nan") else number(loss)
        if step is not None and value is not None:
            trajectory.append((int(step), value))
    stop, horizon = number(data.get("stop_step")), number(data.get("max_steps"))
    return LongRun(
        int(stop) if stop is not None else None,
        int(horizon) if horizon is not None else None,
        str(data.get("reason") or ""),
        number(data.get("runtime_s")),
        tuple(trajectory),
        number(data.get("usd", whole.get("usd"))),
    )


def number(value: Any) -> float | None:
    """A JSON number as a float; None for anything else, booleans and strings included."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


# --- Markdown -------------------------------------------------------------------------------------------------------


def _stage_table(report: Report) -> str:
    if not report.stages:
        return ""
    tasks = list(dict.fromkeys(t for name in STAGES if name in report.stages for t in report.stages[name].tasks))
    rows = [
        f"| stage | what | macro |{''.join(f' {t} |' for t in tasks)}",
        "| --- | --- | ---: |" + " ---: |" * len(tasks),
    ]
    for name, what in STAGES.items():
        stage = report.stages.get(name)
        if stage is not None:
            cells = "".join(f" {_cell(stage.tasks.get(t))} |" for t in tasks)
            rows.append(f"| {name} | {what} | {stage.macro:.10f} |{cells}")
    return "\n".join(rows)


def _cell(score: Score | None) -> str:
    if score is None:
        return "-"
    return f"{score.value:.4f}" + (f" ± {score.stderr:.4f}" if score.stderr is not None else "")


def _delta_lines(report: Report) -> str:
    deltas, stages, lines = report.deltas, report.stages, []

    def error(after: str, before: str) -> str:
        errors = [stages[name].macro_stderr for name in (after, before)]
        return "" if None in errors else f" ± {math.hypot(*(e for e in errors if e is not None)):.4f}"

    if deltas.damage is not None:
        kept = f" (retention {deltas.damage_retention:.3f}x)" if deltas.damage_retention is not None else ""
        lines.append(f"- Damage, stage 2 against stage 1: {deltas.damage:+.10f}{error('stage2', 'stage1')}{kept}")
    if deltas.gain is not None:
        lines.append(f"- Gain, stage 4 against stage 2: {deltas.gain:+.10f}{error('stage4', 'stage2')}")
    if deltas.retention is not None:
        lines.append(f"- Retention, stage 4 over stage 1: {deltas.retention:.4f}x")
    if deltas.side_effect is not None:
        told = f"{deltas.side_effect:+.10f}{error('non_prefill', 'stage1')}"
        lines.append(f"- Side effect, tuned model against stage 1, both causal: {told}")
    return "\n".join(lines)


_PAIRS = (("stage1", "stage2", "damage"), ("stage2", "stage4", "gain"), ("stage1", "non_prefill", "side effect"))


def _task_table(report: Report) -> str:
    columns = [(name, {d.task: d for d in report.task_deltas(a, b)}) for a, b, name in _PAIRS]
    columns = [(name, by_task) for name, by_task in columns if by_task]
    if not columns:
        return ""
    tasks = list(dict.fromkeys(t for _, by_task in columns for t in by_task))
    rows = [
        "| task |" + "".join(f" {name} |" for name, _ in columns),
        "| --- |" + " ---: |" * len(columns),
    ]
    for task in tasks:
        cells = []
        for _, by_task in columns:
            delta = by_task.get(task)
            error = f" ± {delta.stderr:.4f}" if delta is not None and delta.stderr is not None else ""
            cells.append(f" {delta.value:+.4f}{error} |" if delta is not None else " - |")
        rows.append(f"| {task} |" + "".join(cells))
    return "\n".join(rows)


def _long_run_lines(run: LongRun | None) -> str:
    if run is None:
        return ""
    of = f" of {run.max_steps}" if run.max_steps is not None else ""
    lines = [f"- Long fine-tune: ended at step {run.stop_step}{of} ({run.reason or 'no reason recorded'})"]
    if run.runtime_s is not None:
        lines.append(f"- Runtime: {span(run.runtime_s)}")
    if run.usd is not None:
        lines.append(f"- Cost: ${run.usd:.2f}")
    if run.best is not None:
        lines.append(f"- Best eval_loss: {run.best[1]:.4g} at step {run.best[0]}")
    if run.trajectory:
        lines.append("- Trajectory: " + ", ".join(f"{v:.4g} @{s}" for s, v in run.trajectory))
    return "\n".join(lines)


def span(seconds: float) -> str:
    """`12:30 min` or `1:02 h`."""
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d} h"
