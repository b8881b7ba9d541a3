"""The results of the study for a terminal of eighty columns; documents have the Markdown of `runner.report`."""

from __future__ import annotations

from runner.report import STAGES, Report, span
from tui import words


def study_lines(report: Report) -> list[str]:
    """Stage table, deltas and how the long fine-tune ended, one line each."""
    out = []
    for name, meaning in STAGES.items():
        stage = report.stages.get(name)
        if stage is None:
            out.append(f"{name:<12}{'–':>6}  {meaning}, not measured")
            continue
        out.append(f"{name:<12}{stage.macro:.4f}  {meaning}")
        out.append(" " * 20 + "  ".join(f"{task} {score.value:.3f}" for task, score in stage.tasks.items()))
    deltas = report.deltas
    out.append("")
    for value, meaning in (
        (deltas.damage, "damage: what taking the prompt mask away cost"),
        (deltas.gain, "gain: what the fine-tune under that mask won back"),
        (deltas.side_effect, "side effect: the tuned model under its old mask"),
    ):
        out.append(f"{words.signed(value):>9}  {meaning}")
    kept = "–" if deltas.retention is None else f"{deltas.retention:.4f}x"
    out.append(f"{kept:>9}  retention: tuned over untouched")
    run = report.stage5
    if run is not None:
        took = f" after {span(run.runtime_s)}" if run.runtime_s is not None else ""
        out += ["", f"the fine-tune ended at step {run.stop_step} of {run.max_steps}{took}: {run.reason}"]
        if run.best is not None:
            out.append(f"best eval_loss {words.loss(run.best[1])} at step {run.best[0]}")
    return out
