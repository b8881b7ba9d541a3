"""Series, status page and pictures as files: exact text for the run this project began with."""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from runner.autostop import StopRule, judge, replay
from runner.history import EvalPoint, RunHistory, StageResult, TrainPoint
from tui import export
from tui.snapshot import LinkView, Projection, QuoteRow, Ruling, RunSnapshot

RULE = StopRule(patience=4, min_delta=0.003, min_steps=600)
EVALS = (
    EvalPoint(200, 1.118, 7.737, printed="1.118"),
    EvalPoint(300, 1.372, 7.699, printed="1.372"),
    EvalPoint(400, 1.4, 7.736, printed="1.400"),
)
STAGES = (
    StageResult("stage1", 0.6950568562, {}),
    StageResult("stage2", 0.3558976000, {}),
    StageResult("stage4", 0.4086983278, {}),
    StageResult("non_prefill", 0.6199344482, {}),
)
HISTORY = RunHistory(
    max_steps=6000, step=457, elapsed_s=1307.0, train=(TrainPoint(457, 1.2345),), evals=EVALS, rule=RULE, stages=STAGES
)
PAIRS = HISTORY.eval_pairs()
SNAPSHOT = RunSnapshot(
    "box:/root/x/20260215-104518/log.txt",
    "stage5/20260215-104518",
    HISTORY,
    "running",
    ruling=Ruling(RULE, replay(RULE, PAIRS), tuple(judge(RULE, PAIRS)), Projection(900, 1000, 2400, 0.93)),
    declared=True,
    step_s=2.82,
    effective_sps=0.349,
    eta_s=16455.0,
    dph=0.7411,
    usd_spent=0.27,
    usd_at_end=3.98,
    health={"gpus": [{"name": "A100-SXM4-40GB"}]},
    quotes=(
        QuoteRow("77", "A100 SXM4", 0.6676, (4.96, 5.80, 9.17), (3.31, 3.87, 6.12), notes=("migration risk",)),
        QuoteRow("78", "H100 PCIe", 1.1347, (4.48, 5.18, 7.96), (5.08, 5.87, 9.03)),
    ),
    stay=QuoteRow("stay", "here", 0.7411, (4.58, 5.38, 8.56), (3.39, 3.98, 6.34), stay=True),
)
WHEN = "2026-02-15 11:07:05 UTC"


def test_the_page_is_the_status_file_of_the_first_study() -> None:
    assert (
        export.status_page(SNAPSHOT, when=WHEN)
        == """\
# stage5/20260215-104518 - Status

Written by tunewatch, 2026-02-15 11:07:05 UTC.

## Current State
- State: **running**

## Confirmed Metrics
- Stage 1 baseline eval macro: `0.6950568562`
- Stage 2 ablated eval macro: `0.3558976000`
- Stage 4 post-FT ablated eval macro: `0.4086983278`
- Non-prefill comparison macro: `0.6199344482`
- Stage 2 damage vs Stage 1: `-0.3391592562` (retention `0.512x`)
- Stage 4 gain vs Stage 2: `+0.0528007278`
- Stage 4 retention vs Stage 1: `0.5880x`
- Non-prefill side effect (FT - vanilla): `-0.0751224080`

## Live Run
- Target: `box:/root/x/20260215-104518/log.txt`
- Box: `A100-SXM4-40GB`, `$0.7411/h`
- Progress: `457/6000` at `21m47s` elapsed (`~2.82 s/step`)
- Training loss: `1.2345` at step 457
- To the last step: 4h34m
- Spent: $0.27, $3.98 at the end (base)

## Evals
| step | eval_loss | runtime | gain | auto-stop |
|---:|---:|---:|---:|---|
| 200 | `1.118` ★ | 7.737s | – | not judged: before step 600 |
| 300 | `1.372` | 7.699s | – | not judged: before step 600 |
| 400 | `1.400` | 7.736s | – | not judged: before step 600 |

## Auto-stop
- Rule (declared by the run): RULE
- State: waiting for step 600 (143 steps, ~6m50s)
- Projection: PROJECTION

## Runtime/$ Estimate
Using the measured effective throughput (`~0.349 step/s`).

| offer | $/h | wall h (opt / base / pess) | cost (opt / base / pess) | notes |
|---|---:|---|---|---|
| stay here | `$0.7411` | `4.58 / 5.38 / 8.56` | `$3.39 / $3.98 / $6.34` |  |
| A100 SXM4 `77` | `$0.6676` | `4.96 / 5.80 / 9.17` | `$3.31 / $3.87 / $6.12` | migration risk |
| H100 PCIe `78` | `$1.1347` | `4.48 / 5.18 / 7.96` | `$5.08 / $5.87 / $9.03` |  |
""".replace("RULE", RULE.in_words()).replace("PROJECTION", _projection())
    )


def _projection() -> str:
    from tui.stop_words import projection_words

    return projection_words(SNAPSHOT.ruling.projection, SNAPSHOT)


def test_a_run_of_which_nothing_is_known_has_a_page_too() -> None:
    page = export.status_page(RunSnapshot("box:/x", link=LinkView("offline", 300.0)), when=WHEN)
    assert "- Link: offline, last answer 5m ago" in page
    assert "## Live Run" not in page
    assert "## Evals" not in page


def test_names_and_reasons_cannot_break_the_page() -> None:
    nasty = replace(SNAPSHOT, name="a|b`c`\n# d", reason="x | <b> [l](u)\n\n# no", warnings=("```", "w|w"))
    page = export.status_page(nasty, when=WHEN)
    assert page.splitlines()[0] == r"# a\|b\`c\` \# d - Status"
    assert not [line for line in page.splitlines() if line.startswith("# no")]
    assert page.count("```") == 0


def test_a_traceback_is_fenced_and_cannot_leave_its_fence() -> None:
    history = replace(HISTORY, traceback="Traceback\n```\nRuntimeError: CUDA out of memory")
    page = export.status_page(replace(SNAPSHOT, history=history), when=WHEN)
    assert page.count("```") == 2
    assert page.rstrip().endswith("```")


def test_the_training_series_survives_a_round_trip_nan_included() -> None:
    points = (TrainPoint(10, 1.5, 0.7, 2e-5, 0.1, 99.5), TrainPoint(None, math.nan), TrainPoint(30, 0.0, math.inf))
    rows = list(csv.DictReader(io.StringIO(export.train_csv(RunHistory(train=points)))))
    assert rows[0] == {
        "step": "10", "loss": "1.5", "grad_norm": "0.7", "learning_rate": "2e-05", "epoch": "0.1", "wall_s": "99.5",
    }  # fmt: skip
    assert (rows[1]["step"], rows[1]["loss"], rows[2]["grad_norm"]) == ("", "nan", "inf")
    assert [float(row["loss"]) for row in rows[::2]] == [1.5, 0.0]


def test_every_eval_has_its_verdict_beside_it() -> None:
    rows = list(csv.DictReader(io.StringIO(export.eval_csv(HISTORY, SNAPSHOT.ruling.judgements))))
    assert [row["eval_loss"] for row in rows] == ["1.118", "1.372", "1.4"]
    assert rows[2]["printed"] == "1.400"
    assert {row["why"] for row in rows} == {"not judged: before step 600"}
    assert [row["why"] for row in csv.DictReader(io.StringIO(export.eval_csv(HISTORY)))] == ["", "", ""]


SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><rect width="40" height="20" fill="#f00"/></svg>'


def test_everything_is_written_and_nothing_is_overwritten(tmp_path: Path) -> None:
    done = export.write_all(SNAPSHOT, tmp_path / "out", when=WHEN, svg=SVG)
    stem = "stage5-20260215-104518-20260215110705"
    names = [f"{stem}-train.csv", f"{stem}-evals.csv", f"{stem}.md", f"{stem}.svg", f"{stem}.png"]
    assert [path.name for path in done.paths] == names
    assert done.paths[4].read_bytes().startswith(b"\x89PNG")
    assert done.in_words().endswith(f"in {tmp_path / 'out'}")
    again = export.write_all(SNAPSHOT, tmp_path / "out", when=WHEN)
    assert [path.name for path in again.paths] == [re.sub(r"\.(csv|md)$", r"-2.\1", name) for name in names[:3]]
    assert len(list((tmp_path / "out").iterdir())) == 8


def test_without_resvg_there_is_the_svg_and_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = export.write_all(SNAPSHOT, tmp_path, when=WHEN, svg=SVG)
    assert [path.suffix for path in done.paths] == [".csv", ".csv", ".md", ".svg"]
    assert "pip install resvg_py" in done.in_words()


def test_a_name_that_is_no_file_name_becomes_one(tmp_path: Path) -> None:
    odd = replace(SNAPSHOT, name="../../etc/pass wd\x00é")
    (path,) = export.write_all(replace(odd, history=RunHistory()), tmp_path, when=WHEN).paths
    assert path == tmp_path / "etc-pass-wd-20260215110705.md"


def test_what_is_too_long_for_the_clipboard_is_said() -> None:
    assert export.clipboard_words("x" * 50) == "Copied 50 characters."
    assert "more than most terminals take" in export.clipboard_words("x" * 60_000)
