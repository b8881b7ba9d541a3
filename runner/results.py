"""The two documents that close the study: the results of stages 1 to 4, and of stage 5 as their sequel.

Markdown with pictures beside it, made of what `runner.report` reads. Stage 5 measures stage 4 and the comparison again
with its own weights: in the first document these names mean the short fine-tune (stage 3), in the second the long one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from runner.picture import macros_svg, trajectory_svg
from runner.report import Report, Stage, TaskDelta, read_report, span
from runner.rundir import CONFIG

FIRST = "RESULTS_STAGE1_TO_STAGE4.md"
SEQUEL = "RESULTS_STAGE5.md"


class Cost(NamedTuple):
    """What the long fine-tune cost, and how that is known."""

    usd: float
    source: str


def results(paths: Iterable[Path], cost: Cost | None = None) -> dict[str, str]:
    """File name to content: the documents that the run directories `paths` give, and their pictures.

    Raises like `read_report`.
    """
    every = list(paths)
    long = [path for path in every if settings_of(path).get("kind", path.parent.name) in ("stage5", "demo")]
    short = [path for path in every if path not in long]
    whole = read_report(every)
    first = read_report(short) if short else whole
    files: dict[str, str] = {}
    if first.stages:
        files |= {FIRST: _first(first), "macros.svg": macros_svg(first)}
    if whole.stage5 is not None and long:
        if cost is not None:
            whole = replace(whole, stage5=replace(whole.stage5, usd=cost.usd))
        before = first.stages.get("stage4") if short else None
        chart = trajectory_svg(whole.stage5) if whole.stage5 is not None else ""
        files[SEQUEL] = _sequel(whole, before, settings_of(long[-1]), cost, chart=bool(chart))
        files |= {"macros-stage5.svg": macros_svg(whole)} if whole.stages else {}
        files |= {"eval-loss-stage5.svg": chart} if chart else {}
    return files


def settings_of(path: Path) -> Mapping[str, Any]:
    """config.toml of a run directory; empty where there is none that can be read."""
    import tomli

    try:
        return tomli.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _first(report: Report) -> str:
    parts = ["# Results of stages 1 to 4", "![Macro accuracy by stage](macros.svg)", report.stages_markdown()]
    return "\n\n".join([*parts, _sources(report)]) + "\n"


def _sequel(
    report: Report, before: Stage | None, settings: Mapping[str, Any], cost: Cost | None, *, chart: bool
) -> str:
    run = report.stage5
    if run is None:
        return ""
    lines = [f"- Ended at step {run.stop_step} of {run.max_steps}: {run.reason or 'no reason recorded'}"]
    if run.runtime_s is not None:
        lines.append(f"- Runtime: {span(run.runtime_s)}")
    if run.usd is not None:
        lines.append(f"- Cost: ${run.usd:.2f}" + (f" ({cost.source})" if cost is not None else ""))
    else:
        lines.append("- Cost: not recorded (`tunewatch report --dph` takes the price per hour)")
    if run.best is not None:
        lines.append(f"- Best eval_loss: {run.best[1]:.4g} at step {run.best[0]}")
    parts = ["# Results of stage 5: the long fine-tune with auto-stop", "\n".join(lines)]
    if said := _configuration(settings):
        parts.append(said)
    parts.append("## Loss trajectory")
    if chart:
        parts.append("![Eval loss of the long fine-tune](eval-loss-stage5.svg)")
    parts.append(_trajectory(report))
    if report.stages:
        parts += ["## Downstream", "![Macro accuracy by stage](macros-stage5.svg)", report.stages_markdown()]
        if before is not None and "stage4" in report.stages:
            parts.append(_against(before, report.stages["stage4"]))
    return "\n\n".join([*parts, _sources(report)]) + "\n"


_SHOWN = {
    "model": ("base", "mask"),
    "train": ("max_steps", "batch_size", "grad_accum", "learning_rate", "lr_scheduler", "warmup_ratio", "optimizer",
              "eval_steps"),
    "data": ("dataset", "train_samples", "eval_samples", "max_length"),
    "stop": ("patience", "min_delta", "min_steps", "count_from"),
}  # fmt: skip
"""What of config.toml a reader of the results asks for."""


def _configuration(settings: Mapping[str, Any]) -> str:
    rows = []
    for section, keys in _SHOWN.items():
        given = settings.get(section) or {}
        if said := ", ".join(f"{key} `{given[key]}`" for key in keys if given.get(key) not in (None, "")):
            rows.append(f"- {section}: {said}")
    return "\n".join(["## Configuration", "", *rows]) if rows else ""


def _trajectory(report: Report) -> str:
    run = report.stage5
    if run is None or not run.trajectory:
        return "No evaluation was recorded."
    rows, before = ["| step | eval_loss | change | |", "| ---: | ---: | ---: | --- |"], None
    best = run.best
    for step, loss in run.trajectory:
        change = f"{loss - before:+.4g}" if before is not None else ""
        notes = ["best"] if best is not None and step == best[0] else []
        notes += ["end"] if step == run.stop_step else []
        rows.append(f"| {step} | {loss:.4g} | {change} | {', '.join(notes)} |")
        before = loss
    return "\n".join(rows)


def _against(short: Stage, long: Stage) -> str:
    """What the long fine-tune gained over the short one under the mask, task by task."""
    rows = ["| task | short fine-tune | long fine-tune | delta |", "| --- | ---: | ---: | ---: |"]
    for task in [name for name in short.tasks if name in long.tasks]:
        delta = TaskDelta(task, short.tasks[task], long.tasks[task])
        error = f" ± {delta.stderr:.4f}" if delta.stderr is not None else ""
        rows.append(f"| {task} | {delta.before.value:.4f} | {delta.after.value:.4f} | {delta.value:+.4f}{error} |")
    rows.append(f"| **macro** | {short.macro:.4f} | {long.macro:.4f} | {long.macro - short.macro:+.4f} |")
    return "\n".join(["Stage 4, after the short (stage 3) and the long fine-tune (stage 5):", "", *rows])


def _sources(report: Report) -> str:
    return "\n".join(["Made from:", "", *(f"- `{source}`" for source in report.sources)])
