"""summary.json and summary.md: how a run of several stages ended, in the shape of `report --json` without quotes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runner import rundir
from runner.metrics import MetricsReader, to_json
from runner.recipe import Recipe
from runner.rundir import RunDir
from runner.study.train import Outcome

STAGES = ("stage1", "stage2", "stage4", "non_prefill")


def summary_document(recipe: Recipe, outcome: Outcome, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Stages, deltas and the fine-tune's end; a stage that was not run is None, and so is a delta that needs it."""
    macro = {name: stages[name]["macro"] if name in stages else None for name in STAGES}

    def minus(left: str, right: str) -> float | None:
        a, b = macro[left], macro[right]
        return None if a is None or b is None else a - b

    whole, tuned = macro["stage1"], macro["stage4"]
    return {
        "stages": {name: dict(stages[name]) if name in stages else None for name in STAGES},
        "deltas": {
            "damage": minus("stage2", "stage1"),
            "gain": minus("stage4", "stage2"),
            "retention": tuned / whole if tuned is not None and whole else None,
            "side_effect": minus("non_prefill", "stage1"),
        },
        "stage5": {
            "stop_step": outcome.step,
            "max_steps": recipe.max_steps,
            "reason": outcome.reason,
            "runtime_s": outcome.runtime_s,
            "best_step": outcome.machine.best_step if outcome.machine else None,
            "best_eval_loss": outcome.machine.best if outcome.machine else None,
        },
    }


def write_summary(
    run: RunDir, recipe: Recipe, outcome: Outcome, stages: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Write both files and return the document. The trajectory is every eval that metrics.jsonl knows."""
    document = summary_document(recipe, outcome, stages)
    reader = MetricsReader()
    reader.feed(run.metrics.read_bytes())
    history = reader.history()
    # of all processes of the run, not of the last one alone
    document["stage5"]["runtime_s"] = history.elapsed_s if history.elapsed_s is not None else outcome.runtime_s
    document["stage5"]["trajectory"] = [{"step": e.step, "eval_loss": e.eval_loss} for e in history.evals]
    document = dict(to_json(document))
    rundir.write_atomic(run.summary, json.dumps(document, indent=1).encode())
    rundir.write_atomic(run.summary_md, as_markdown(recipe, document).encode())
    return document


def as_markdown(recipe: Recipe, document: Mapping[str, Any]) -> str:
    """The same for a person."""
    lines = [f"# {recipe.title or recipe.name}", "", "| stage | macro | tasks |", "| --- | --- | --- |"]
    for name, stage in document["stages"].items():
        if stage is not None:
            tasks = ", ".join(f"{task} {value:.3f}" for task, value in stage["tasks"].items())
            lines.append(f"| {name} | {stage['macro']:.4f} | {tasks} |")
    deltas = {key: value for key, value in document["deltas"].items() if value is not None}
    lines += ["", *(f"- {key}: {value:+.4f}" if key != "retention" else f"- {key}: {value:.4f}x"
                    for key, value in deltas.items())]  # fmt: skip
    end = document["stage5"]
    lines += ["", f"Fine-tune ended at step {end['stop_step']} of {end['max_steps']}: {end['reason']}, "
                  f"after {end['runtime_s']:.0f} s."]  # fmt: skip
    return "\n".join(lines) + "\n"
