"""The two documents that close the study, and their pictures."""

import json
import math
import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner

from remote.journal import Journal
from remote.journal_rows import MeterRow
from runner.config import load_recipe, write_resolved
from runner.picture import trajectory_svg
from runner.report import LongRun
from runner.results import FIRST, SEQUEL, Cost, results
from tui.commands.report import command

SEED = {"stage1": 0.6950568562, "stage2": 0.3558976000, "stage4": 0.4086983278, "non_prefill": 0.6199344482}
EVALS = [(200, 1.118), (300, 1.372), (400, 1.4), (500, 1.4)]


def measured(folder, stage, macro, file="metrics.json"):
    """A stage of two tasks around its macro, a hundred items each."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {
        "arc": {"acc": macro + 0.1, "stderr": 0.03, "n": 100},
        "piqa": {"acc": macro - 0.1, "stderr": 0.04, "n": 100},
    }
    (folder / file).write_text(json.dumps({"stage": stage, "macro": macro, "tasks": tasks}))
    return folder


@pytest.fixture
def study(tmp_path):
    """The seed's stages 1 to 4 in their run directories, and a stage 5 that stopped itself."""
    runs = tmp_path / "runs"
    paths = [measured(runs / name / "20260214-000000", name, SEED[name]) for name in ("stage1", "stage2", "stage4")]
    measured(paths[-1], "non_prefill", SEED["non_prefill"], "metrics-non_prefill.json")
    long = measured(runs / "stage5" / "20260215-104518", "stage4", 0.45, "metrics-stage4.json")
    measured(long, "non_prefill", 0.61, "metrics-non_prefill.json")
    stage5 = {
        "stop_step": 1000, "max_steps": 6000, "reason": "plateau", "runtime_s": 3600.0,
        "trajectory": [{"step": step, "eval_loss": loss} for step, loss in EVALS],
    }  # fmt: skip
    (long / "summary.json").write_text(json.dumps({"stages": {}, "stage5": stage5}))
    write_resolved(long / "config.toml", load_recipe("stage5", env={}))
    return [*paths, long]


def test_the_first_document_keeps_the_short_fine_tune_and_the_sequel_has_the_long_one(study):
    files = results(study, Cost(0.7411, "$0.7411/h for 1:00 h of training"))
    assert set(files) == {FIRST, SEQUEL, "macros.svg", "macros-stage5.svg", "eval-loss-stage5.svg"}
    first, sequel = files[FIRST], files[SEQUEL]
    for number in ("0.6950568562", "0.3558976000", "0.4086983278", "-0.3391592562", "0.512x", "+0.0528007278"):
        assert number in first
    assert "stage5" not in first
    assert "| arc | -0.3392 ± 0.0424 | +0.0528 ± 0.0424 | -0.0751 ± 0.0424 |" in first
    assert "+0.0528007278 ± 0.0354" in first, "the macro's error is that of the mean over its tasks"
    for words in (
        "Ended at step 1000 of 6000: plateau", "Runtime: 1:00 h", "Cost: $0.74 ($0.7411/h for 1:00 h of training)",
        "Best eval_loss: 1.118 at step 200", "| 300 | 1.372 | +0.254 |  |", "| 200 | 1.118 |  | best |",
        "patience `4`", "train_samples `50000`", "| arc | 0.5087 | 0.5500 | +0.0413 ± 0.0424 |",
        "![Eval loss of the long fine-tune](eval-loss-stage5.svg)",
    ):  # fmt: skip
        assert words in sequel, words


def test_the_pictures_are_svg_that_says_what_it_shows(study):
    for name, content in results(study).items():
        if name.endswith(".svg"):
            words = "".join(ET.fromstring(content).itertext())
            assert ("0.3559" in words) if name.startswith("macros") else ("best 1.118 at 200" in words)


@pytest.mark.parametrize("trajectory", [(), ((100, 1.0),), ((100, math.nan), (200, 1.0))])
def test_no_picture_is_made_of_fewer_than_two_finite_evals(trajectory):
    assert trajectory_svg(LongRun(200, 1000, "", None, trajectory)) == ""


def test_a_flat_loss_and_an_odd_one_are_drawn_too():
    for losses in ((1.0, 1.0, 1.0), (1e-9, 2e-9), (math.nan, 5e5, -3.0)):
        run = LongRun(30, 30, "", None, tuple((10 * (n + 1), loss) for n, loss in enumerate(losses)))
        ET.fromstring(trajectory_svg(run))


def test_the_command_writes_them_with_the_price_that_was_given(study, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path / "home"))
    words = [*map(str, study), "--write", str(tmp_path / "docs"), "--dph", "0.7411"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    assert "$0.74 ($0.7411/h for 1:00 h of training)" in (tmp_path / "docs" / SEQUEL).read_text()
    assert (tmp_path / "docs" / "macros.svg").read_text().startswith("<svg")
    document = json.loads(CliRunner().invoke(command, [*map(str, study), "--dph", "2", "--json"]).stdout)
    assert document["stage5"]["usd"] == 2.0


def test_without_a_price_the_cost_is_the_bill_of_the_boxes_the_run_was_on(study, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path / "home"))
    journal = Journal(tmp_path / "home")
    for instance, hours in ((31457957, 2.0), (31457612, 0.5)):
        journal.put_box(instance, run="stage5/20260215-104518", label="x", state="destroyed")
        journal.add_meter(MeterRow(instance, 0.0, 3600 * hours, "running", 0.70, 0.04))
    journal.close()
    words = [*map(str, study), "--write", str(tmp_path / "docs")]
    assert CliRunner().invoke(command, words).exit_code == 0
    said = (tmp_path / "docs" / SEQUEL).read_text()
    assert "Cost: $1.85 (the bill of instance 31457612 and instance 31457957)" in said


def test_without_any_price_it_says_so(study, tmp_path):
    assert "Cost: not recorded" in results(study)[SEQUEL]


def test_one_run_that_measured_everything_gives_both_documents(tmp_path):
    folder = measured(tmp_path / "demo" / "20260101-000000", "stage1", 0.9, "metrics-stage1.json")
    for stage, macro in (("stage2", 0.3), ("stage4", 0.6), ("non_prefill", 0.8)):
        measured(folder, stage, macro, f"metrics-{stage}.json")
    stage5 = {"stop_step": 10, "max_steps": 20, "reason": "plateau", "runtime_s": 5.0, "trajectory": []}
    (folder / "summary.json").write_text(json.dumps({"stages": {}, "stage5": stage5}))
    files = results([folder])
    assert "-0.6000000000" in files[FIRST]
    assert "No evaluation was recorded." in files[SEQUEL]


def test_standard_errors_survive_where_only_the_events_were_brought_home(tmp_path):
    from runner.metrics import MetricsWriter
    from runner.report import read_report

    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        writer.write("stage", name="stage1", macro=0.5, tasks={"arc": 0.5}, stderr={"arc": 0.05})
        writer.write("stage", name="stage2", macro=0.2, tasks={"arc": 0.2}, stderr={"arc": 0.04})
    (delta,) = read_report([tmp_path]).task_deltas("stage1", "stage2")
    assert delta.stderr == pytest.approx(math.hypot(0.05, 0.04))
