"""`tunewatch watch --once`, as somebody types it: the shapes of the contract, and every bad input one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from runner.metrics import MetricsWriter
from runner.rundir import RunDir


@pytest.fixture
def tunewatch(tmp_path):
    """Run the real command in a process of its own; returns (exit code, stdout, stderr)."""

    def call(*words, **environment):
        env = {**os.environ, "TUNEWATCH_HOME": str(tmp_path / "home"), "COLUMNS": "200", **environment}
        done = subprocess.run(
            [sys.executable, "-m", "tui", *map(str, words)],
            capture_output=True,
            text=True,
            env=env,
            cwd=tmp_path,
            timeout=240,
        )
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.fixture
def run_dir(tmp_path):
    """A run directory of ours: 30 of 100 steps, two evals, a declared rule."""
    run = RunDir.create("stage5", tmp_path / "runs")
    run.open_log()
    writer = MetricsWriter(run.metrics)
    rule = {"patience": 3, "min_delta": 0.01, "min_steps": 20, "count_from": "min_steps"}
    writer.write("start", max_steps=100, rule=rule, run_id=run.run_id())
    for step in range(1, 31):
        writer.write("train", step=step, loss=3.0 / step, grad_norm=1.0, learning_rate=2e-5, step_s=0.1)
        writer.write("progress", step=step, elapsed_s=0.1 * step)
        if step % 10 == 0 and step > 10:
            writer.write("eval", step=step, eval_loss=1.0 + 1 / step, eval_runtime=0.5)
    return run


LINE = "\r  2%|2         | {n}/60 [00:0{n}<00:50,  1.0it/s]"
FOREIGN = "***** Running training *****\n" + "".join(
    LINE.format(n=n)
    + f"\r{' ' * 50}\r{{'loss': '2.{n}', 'grad_norm': '1.1', 'learning_rate': '1e-05', 'epoch': '0.{n}'}}\n"
    + LINE.format(n=n)
    for n in range(1, 7)
)


def test_the_document_of_a_run_of_ours_is_the_contract(tunewatch, run_dir):
    code, out, err = tunewatch("watch", run_dir.path, "--once", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["progress"]["step"] == 30
    assert document["progress"]["max_steps"] == 100
    assert document["progress"]["step_s"] == pytest.approx(0.1, rel=0.2)
    assert [e["step"] for e in document["evals"]] == [20, 30]
    assert document["train"][-1]["loss"] == pytest.approx(0.1)
    verdict = document["autostop"]
    assert (verdict["patience"], verdict["min_delta"], verdict["min_steps"]) == (3, 0.01, 20)
    assert verdict["state"] == "armed"
    assert verdict["declared"]
    assert set(verdict["projected"]) == {"p10", "p50", "p90", "p_early"}
    assert document["autostop_other"] is None
    assert document["quotes"]
    assert set(document["quotes"][0]["usd"]) == {"opt", "base", "pess"}


def test_json_alone_means_once(tunewatch, run_dir):
    code, out, _ = tunewatch("watch", run_dir.path, "--json")
    assert code == 0
    assert json.loads(out)["run"]["target"] == str(run_dir.path)


def test_a_foreign_log_is_read_and_both_stops_are_projected(tunewatch, tmp_path):
    log = tmp_path / "train.log"
    log.write_text(FOREIGN)
    code, out, _ = tunewatch("watch", log, "--once", "--json", "--min-steps", "3", "--patience", "2")
    document = json.loads(out)
    assert code == 0
    assert document["progress"]["max_steps"] == 60
    assert [p["step"] for p in document["train"]] == [1, 2, 3, 4, 5, 6]
    assert document["autostop"]["declared"] is False
    assert document["autostop"]["count_from"] == "min_steps"
    assert document["autostop_other"]["count_from"] == "start"
    assert document["autostop_other"]["patience"] == 2


def test_the_rule_of_the_command_line_wins_over_the_declared_one(tunewatch, run_dir):
    _, out, _ = tunewatch("watch", run_dir.path, "--json", "--patience", "9", "--count-from", "start")
    verdict = json.loads(out)["autostop"]
    assert (verdict["patience"], verdict["count_from"], verdict["declared"]) == (9, "start", False)


def test_the_text_for_people_tells_the_verdict(tunewatch, run_dir):
    code, out, _ = tunewatch("watch", run_dir.path, "--once")
    assert code == 0
    assert "30/100" in out
    assert "armed: reference" in out
    assert "declared by the run" in out


def test_a_value_that_is_no_number_is_null_with_a_warning(tunewatch, run_dir):
    MetricsWriter(run_dir.metrics).write("eval", step=40, eval_loss=float("nan"), eval_runtime=0.5)
    _, out, _ = tunewatch("watch", run_dir.path, "--json")
    document = json.loads(out)
    assert document["evals"][-1]["eval_loss"] is None
    assert document["autostop"]["reason"] == "non-finite"
    assert any("step 40" in w for w in document["warnings"])


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda d: d / "nowhere", 3, "does not exist"),
        (lambda d: (d / "empty").mkdir() or d / "empty", 3, "log"),
        (lambda d: "no-such-host.invalid:/root/log.txt", 5, ""),
        (lambda d: (d / "a.bin").write_bytes(bytes(range(256)) * 40) and d / "a.bin", 2, "not a text file"),
    ],
    ids=["missing file", "directory without a log", "unreachable host", "binary file"],
)
def test_what_cannot_be_read_is_one_sentence_and_its_exit_code(tunewatch, tmp_path, make, code, words):
    got, out, err = tunewatch("watch", make(tmp_path), "--once")
    assert got == code
    assert out == ""
    assert err.startswith("tunewatch: ")
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"Epoch 1/10\n 50/100 [=====>....] - loss: 0.5\n" * 20, "no line of a Hugging Face Trainer"),
    ],
    ids=["empty log", "log of another trainer"],
)
def test_a_log_that_says_nothing_is_told_as_such_and_never_an_exception(tunewatch, tmp_path, content, said):
    log = tmp_path / "log.txt"
    log.write_bytes(content)
    code, out, err = tunewatch("watch", log, "--once", "--json")
    assert "Traceback" not in err
    assert code == 0
    document = json.loads(out)
    assert document["train"] == []
    assert document["evals"] == []
    assert document["progress"]["step"] in (None, 0)
    assert any(said in warning for warning in document["warnings"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--patience", "0"), "patience must be at least 1"),
        (("--min-delta=-1",), "min_delta must be"),
        (("--min-steps=-5",), "min_steps must be"),
        (("--offers", "missing.json"), "no offers file"),
        (("--here", "nobody"), "no offer nobody"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_words(tunewatch, run_dir, words, said):
    code, _, err = tunewatch("watch", run_dir.path, "--once", *words)
    assert code in (2, 3)
    assert said in err


def test_without_a_terminal_the_screen_is_refused_with_the_way_out(tunewatch, run_dir):
    code, _, err = tunewatch("watch", run_dir.path)
    assert code == 2
    assert "--once" in err


def test_serve_listens_on_loopback_alone(tunewatch):
    code, _, err = tunewatch("serve", "--host", "0.0.0.0")
    assert code == 4
    assert "ssh -L" in err


def test_run_names_what_is_wrong_before_it_starts_anything(tunewatch, tmp_path):
    code, _, err = tunewatch("run", "stage55")
    assert code == 3
    assert "stage5" in err
    code, _, err = tunewatch("run", "stage5", "--set", "max_stepz=3")
    assert code == 2
    assert "max_steps" in err
    code, _, err = tunewatch("--read-only", "run", "stage5")
    assert code == 4
    assert not (tmp_path / "runs").exists()


def test_a_recipe_of_ones_own_runs_under_the_supervisor_and_its_exit_code_comes_back(tunewatch, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(f"import time\nprint({FOREIGN!r}, flush=True)\ntime.sleep(0.3)\n")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'kind = "command"\n[foreign]\ncommand = ["{sys.executable}", "{script}"]\n')
    code, _, err = tunewatch("run", recipe, "--headless")
    assert code == 0, err
    (run,) = (tmp_path / "runs" / "mine").iterdir()
    assert "Running training" in (run / "log.txt").read_text()
    code, out, _ = tunewatch("watch", f"mine/{run.name}", "--once", "--json")
    assert code == 0
    assert json.loads(out)["progress"]["max_steps"] == 60
