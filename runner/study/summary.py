"""summary.json and summary.md at the end of a run of several stages: the report of this one run directory."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from runner import rundir
from runner.metrics import MetricsReader
from runner.recipe import Recipe
from runner.report import LongRun, read_report
from runner.rundir import RunDir
from runner.study.train import Outcome


def write_summary(run: RunDir, recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    """Write both files and return the document, in the shape of `report --json` without quotes.

    The stages are those that metrics-*.json and metrics.jsonl know, of every process of this run; the trajectory is
    every eval, the runtime the seconds of training over all processes.
    """
    reader = MetricsReader()
    reader.feed(run.metrics.read_bytes())
    history = reader.history()
    runtime = history.elapsed_s if history.elapsed_s is not None else outcome.runtime_s
    long_run = LongRun(outcome.step, recipe.max_steps, outcome.reason, runtime, tuple(history.eval_pairs()))
    report = replace(read_report([run.path]), stage5=long_run)
    document = report.to_json()
    del document["quotes"]
    rundir.write_atomic(run.summary, json.dumps(document, indent=1, allow_nan=False).encode())
    title = recipe.title or recipe.name
    rundir.write_atomic(run.summary_md, f"# {title}\n\n{report.to_markdown()}".encode())
    return document
