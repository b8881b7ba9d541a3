"""Stages 1 to 5 of the full study, in small: a stock checkpoint, a JSONL set, offline lm-eval tasks."""

import json
import signal

import pytest
import torch

from runner import rundir
from runner.__main__ import main
from runner.errors import RunExit
from runner.metrics import MetricsReader
from runner.report import read_report
from runner.rundir import RunDir
from runner.study.load import read_mask
from runner.study.stages import Study
from tests.support.study import save_checkpoint, stock_model, tiny_model, tiny_recipe
from tests.test_study_evaluate import CHOICE

pytestmark = pytest.mark.study


@pytest.fixture(autouse=True)
def keep_signals():
    """A trainer takes over SIGTERM and SIGINT of its process; this one is pytest's."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A stock base model, a training set and two tasks."""
    root = tmp_path_factory.mktemp("ground")
    save_checkpoint(stock_model(), root / "base")
    rows = [{"instruction": f"Say number {n}", "input": "" if n % 2 else "please", "output": str(n)} for n in range(80)]
    (root / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "tasks").mkdir()
    for name in ("letters", "words"):
        items = [{"question": f"{name} {n}?", "choices": [" a", " bc", " def"], "gold": n % 3} for n in range(9)]
        data = root / "tasks" / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, items)))
        (root / "tasks" / f"{name}.yaml").write_text(CHOICE.format(name=name, data=data))
    return root


def run(kind, run_dir, ground, *more):
    settings = {
        "base": ground / "base", "dataset": ground / "set.jsonl", "task_path": ground / "tasks",
        "tasks": "letters,words",
        "dtype": "float32", "optimizer": "adamw", "precision": "fp32", "max_steps": 8, "eval_steps": 2, "save_steps": 2,
        "logging_steps": 1, "grad_accum": 2, "batch_size": 2, "train_samples": 40, "eval_samples": 8, "max_length": 64,
        "loss_chunk": 16,
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return main([kind, "--run-dir", str(run_dir), *words, *more])


def metrics(run_dir, name="metrics.json"):
    return json.loads((run_dir / name).read_text())


def history(run_dir):
    reader = MetricsReader()
    reader.feed((run_dir / "metrics.jsonl").read_bytes())
    return reader.history()


def test_stages_1_and_2_measure_the_same_weights_under_two_masks(ground, tmp_path):
    assert run("stage1", tmp_path / "1", ground) == 0
    assert run("stage2", tmp_path / "2", ground) == 0
    one, two = metrics(tmp_path / "1"), metrics(tmp_path / "2")
    assert (one["mask"], two["mask"]) == ("causal", "prompt_bidirectional")
    assert set(one["tasks"]) == set(two["tasks"]) == {"letters", "words"}
    assert one["macro"] == pytest.approx(sum(t["acc"] for t in one["tasks"].values()) / 2)
    assert one["metrics"] == {"letters": "acc,none", "words": "acc,none"}
    assert one["reported"]["letters"]["acc,none"] == one["tasks"]["letters"]["acc"]
    assert history(tmp_path / "1").ended == "finished"


def test_stage_3_trains_from_jsonl_and_stage_4_evaluates_its_checkpoint_under_its_mask(ground, tmp_path):
    assert run("stage3", tmp_path / "3", ground) == 0
    seen = history(tmp_path / "3")
    assert (seen.step, seen.rule) == (8, None)
    checkpoint = rundir.newest_whole_checkpoint(tmp_path / "3" / "checkpoints")
    assert read_mask(checkpoint) == "prompt_bidirectional"
    assert run("stage4", tmp_path / "4", ground, "--set", f"checkpoint={checkpoint}") == 0
    assert metrics(tmp_path / "4")["mask"] == "prompt_bidirectional"
    assert metrics(tmp_path / "4", "metrics-non_prefill.json")["mask"] == "causal"
    assert set(read_report([tmp_path / "4"]).stages) == {"stage4", "non_prefill"}


def test_stage_5_stops_itself_and_runs_stage_4_and_the_comparison(ground, tmp_path):
    rule = ["--set", "patience=1", "--set", "min_delta=50", "--set", "min_steps=2"]
    assert run("stage5", tmp_path, ground, *rule) == RunExit.AUTO_STOPPED
    summary = metrics(tmp_path, "summary.json")
    assert summary["stage5"]["stop_step"] == 4
    assert summary["stages"]["stage1"] is None
    assert summary["deltas"]["gain"] is None
    assert {"stage4", "non_prefill"} <= {name for name, stage in summary["stages"].items() if stage}
    assert metrics(tmp_path, "metrics-non_prefill.json")["mask"] == "causal"


def test_a_checkpoint_of_another_mask_cannot_be_evaluated_by_accident(ground, tmp_path, capsys):
    save_checkpoint(tiny_model("causal"), tmp_path / "causal")
    assert run("stage4", tmp_path / "run", ground, "--set", f"checkpoint={tmp_path / 'causal'}") == 2
    said = capsys.readouterr().err
    assert "made under the mask 'causal' and is asked for under 'prompt_bidirectional'" in said
    assert history(tmp_path / "run").ended == "crashed"
    assert history(tmp_path / "run").end_reason.startswith("refused")


def test_a_stop_that_was_asked_for_before_the_first_stage_is_heard(ground, tmp_path):
    rundir.write_stop_request(tmp_path, "not today")
    assert run("stage1", tmp_path, ground) == RunExit.STOPPED
    assert history(tmp_path).end_reason == "asked: not today"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Tried to allocate 2.00 GiB. GPU 0 has 39.4 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
    ],
    ids=["torch", "cublas", "driver"],
)
def test_cuda_out_of_memory_has_its_code_the_account_and_three_ways_out(ground, tmp_path, capsys, error):
    """The error itself is raised by hand: no card is here to run out of."""

    class TooSmall(Study):
        def _run(self):
            self._plan()
            raise error

    study = TooSmall(tiny_recipe(ground / "base"), RunDir(tmp_path))
    assert study.main() is RunExit.CUDA_OOM
    said = capsys.readouterr().out
    assert "memory: needs about" in said
    assert said.count("\n  - ") == 3
    assert history(tmp_path).end_reason == "CUDA out of memory"


def test_out_of_memory_in_an_evaluation_names_what_an_evaluation_can_do(ground, tmp_path, capsys, monkeypatch):
    def too_small(*_):
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    monkeypatch.setattr("runner.study.stages.downstream", too_small)
    assert run("stage1", tmp_path, ground) == RunExit.CUDA_OOM
    said = capsys.readouterr().out
    assert said.count("\n  - ") == 3
    assert "halve eval_batch_size (now 4)" in said
    assert "batch_size (now 2)" not in said


def test_a_misspelt_task_is_said_before_anything_is_trained(ground, tmp_path, capsys):
    assert run("stage5", tmp_path, ground, "--set", "tasks=letters,wrods") == 2
    assert "lm-eval knows no task 'wrods'" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()
    assert history(tmp_path).step is None


def test_what_is_wrong_with_data_or_settings_is_said_before_the_weights_are_read(ground, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("runner.study.stages.load_model", None)
    assert run("stage3", tmp_path / "a", ground, "--set", "max_length=2") == 2
    assert "No sample is left after filtering (80 read, 80 answer too long)." in capsys.readouterr().err
    assert run("stage3", tmp_path / "b", ground, "--set", "attention=flex_attention") == 2
    assert "flex_attention trains on a CUDA GPU only" in capsys.readouterr().err


@pytest.mark.slow
def test_no_tasks_and_no_data_are_sentences(ground, tmp_path, capsys):
    assert run("stage1", tmp_path / "a", ground, "--set", "tasks=") == 2
    assert "evaluate.tasks is empty" in capsys.readouterr().err
    assert run("stage1", tmp_path / "b", ground, "--set", "tasks=letter") == 2
    assert "lm-eval knows no task 'letter'" in capsys.readouterr().err
    assert run("stage3", tmp_path / "c", ground, "--set", "dataset=") == 2
    assert "data.dataset is empty" in capsys.readouterr().err
    assert run("stage3", tmp_path / "d", ground, "--set", "prompt_field=question") == 2
    assert "there is no column 'question' (found: instruction, input, output)" in capsys.readouterr().err
