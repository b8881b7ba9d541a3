"""The report says what the run directories hold: the study's golden numbers, and a refusal in words for broken ones."""

import json
import math

import pytest

from runner.errors import NotFoundError, UsageError
from runner.metrics import MetricsWriter
from runner.report import Score, TaskDelta, compute_deltas, read_report

SEED = {"stage1": 0.6950568562, "stage2": 0.3558976000, "stage4": 0.4086983278, "non_prefill": 0.6199344482}


def write_summary(folder, stages, **more):
    folder.mkdir(parents=True, exist_ok=True)
    document = {"stages": {k: {"macro": v, "tasks": {}} for k, v in stages.items()}, **more}
    (folder / "summary.json").write_text(json.dumps(document))
    return folder


def test_the_seeds_macros_give_the_seeds_deltas():
    deltas = compute_deltas(SEED)
    assert f"{deltas.damage:.10f}" == "-0.3391592562"
    assert f"{deltas.damage_retention:.3f}" == "0.512"
    assert f"{deltas.gain:+.10f}" == "+0.0528007278"
    assert f"{deltas.retention:.4f}" == "0.5880"
    assert f"{deltas.side_effect:.10f}" == "-0.0751224080"


def test_the_seeds_report_reads_as_the_seed_wrote_it(tmp_path):
    text = read_report([write_summary(tmp_path / "study", SEED)]).to_markdown()
    for number in ("0.6950568562", "0.3558976000", "0.4086983278", "0.6199344482"):
        assert number in text
    for words in ("-0.3391592562", "0.512x", "+0.0528007278", "0.5880x", "-0.0751224080"):
        assert words in text


def test_the_json_keeps_its_shape_and_absent_stages_are_null(tmp_path):
    report = read_report([write_summary(tmp_path / "r", {"stage1": 0.5})])
    document = report.to_json(quotes=[{"offer_id": 1}])
    assert set(document) == {"stages", "deltas", "stage5", "quotes"}
    assert document["stages"] == {
        "stage1": {"macro": 0.5, "tasks": {}},
        "stage2": None,
        "stage4": None,
        "non_prefill": None,
    }
    assert document["deltas"]["damage"] is None
    assert document["quotes"] == [{"offer_id": 1}]
    json.dumps(document, allow_nan=False)


def test_stages_from_several_run_directories_come_together_and_the_later_counts(tmp_path):
    for name, stage, macro in (("a", "stage1", 0.7), ("b", "stage2", 0.3), ("c", "stage2", 0.35)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps({"stage": stage, "macro": macro, "tasks": {}}))
    report = read_report([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert report.deltas.damage == pytest.approx(0.35 - 0.7)


def test_a_macro_that_is_not_given_is_the_unweighted_mean_of_the_tasks(tmp_path):
    (tmp_path / "metrics.json").write_text(
        json.dumps({"stage": "stage1", "tasks": {"a": {"acc": 0.5, "stderr": 0.1}, "b": 1.0}})
    )
    stage = read_report([tmp_path]).stages["stage1"]
    assert stage.macro == 0.75
    assert stage.tasks == {"a": Score(0.5, 0.1), "b": Score(1.0)}


def test_a_task_delta_carries_the_standard_error_of_the_difference():
    delta = TaskDelta("sum", Score(0.5, 0.03), Score(0.9, 0.04))
    assert delta.value == pytest.approx(0.4)
    assert delta.stderr == pytest.approx(0.05)
    assert TaskDelta("sum", Score(0.5), Score(0.9, 0.04)).stderr is None


def test_task_by_task_deltas_stand_in_the_markdown(tmp_path):
    stages = {
        "stage1": {"macro": 0.9, "tasks": {"sum": {"acc": 0.9, "stderr": 0.03}}},
        "stage2": {"macro": 0.4, "tasks": {"sum": {"acc": 0.4, "stderr": 0.04}}},
    }
    (tmp_path / "summary.json").write_text(json.dumps({"stages": stages}))
    assert "| sum | -0.5000 ± 0.0500 |" in read_report([tmp_path]).to_markdown()


def test_the_long_runs_end_is_told_with_trajectory_best_and_cost(tmp_path):
    stage5 = {
        "stop_step": 1000,
        "max_steps": 6000,
        "reason": "plateau",
        "runtime_s": 3725.0,
        "trajectory": [{"step": 200, "eval_loss": 1.118}, {"step": 300, "eval_loss": "nan"}],
    }
    report = read_report([write_summary(tmp_path / "r", {}, stage5=stage5, usd=0.77)])
    assert report.stage5.best == (200, 1.118)
    assert math.isnan(report.stage5.trajectory[1][1])
    text = report.to_markdown()
    for words in ("step 1000 of 6000 (plateau)", "1:02 h", "$0.77", "1.118 at step 200", "nan @300"):
        assert words in text
    assert report.to_json()["stage5"]["trajectory"][1] == {"step": 300, "eval_loss": None}


def test_a_run_that_died_is_reported_from_its_events(tmp_path):
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        writer.write("start", run_id="x", max_steps=100, resumed_from=None)
        writer.write("stage", name="stage1", macro=0.8, tasks={"sum": 0.8})
        writer.write("eval", step=20, eval_loss=1.5, eval_runtime=0.1)
    report = read_report([tmp_path])
    assert report.stages["stage1"].macro == 0.8
    assert report.stage5.stop_step == 20
    assert report.stage5.reason == "has not ended"


@pytest.mark.parametrize(("content", "words"), [("{", "not JSON"), ("[1]", "should hold a JSON object")])
def test_a_broken_summary_is_named(tmp_path, content, words):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UsageError, match=words) as caught:
        read_report([tmp_path])
    assert "summary.json" in str(caught.value)


def test_a_missing_or_empty_directory_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="no run directory"):
        read_report([tmp_path / "nowhere"])
    with pytest.raises(NotFoundError, match="holds no result"):
        read_report([tmp_path])


def test_odd_values_in_a_summary_are_absent_and_not_an_error(tmp_path):
    document = {"stages": {"stage1": None, "stage2": {"macro": "high"}, "stage4": 3}, "stage5": []}
    (tmp_path / "summary.json").write_text(json.dumps(document))
    report = read_report([tmp_path])
    assert report.stages == {}
    assert report.stage5 is None
