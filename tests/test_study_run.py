"""The trainer's command line as a box runs it: supervised, stopped, killed, resumed, on a full disk, in two ranks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli

from runner import rundir
from runner.config import load_recipe
from runner.errors import RunExit
from runner.log import LogReader
from runner.metrics import MetricsReader
from tests.support.study import save_checkpoint, stock_model, trainer_environment
from tests.test_study_evaluate import CHOICE

pytestmark = [pytest.mark.study, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
SMALL = {
    "train_samples": 200, "eval_samples": 40, "downstream_samples": 40, "batch_size": 8, "eval_steps": 5,
    "save_steps": 5, "logging_steps": 1, "max_steps": 30, "min_steps": 5, "patience": 2, "min_delta": 5.0,
    "learning_rate": 1e-3,
}  # fmt: skip
"""Stops itself at step 15: reference at 5, and no gain over 5.0 at 10 and 15."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_checkpoint(stock_model(), tmp_path_factory.mktemp("base"))


def command(run_dir, base, *more, **changes):
    settings = [
        word for key, value in {**SMALL, "base": base, **changes}.items() for word in ("--set", f"{key}={value}")
    ]
    return [sys.executable, "-m", "runner", "demo", "--run-dir", str(run_dir), *settings, *more]


def supervised(run_dir, arguments):
    return [sys.executable, "-m", "runner.box.supervise", "--run-dir", str(run_dir), "--", *arguments]


def finish(arguments, **more):
    return subprocess.run(
        arguments, cwd=ROOT, env=trainer_environment(), capture_output=True, text=True, check=False, timeout=240, **more
    )


def history(run_dir):
    reader = MetricsReader()
    reader.feed((run_dir / "metrics.jsonl").read_bytes())
    return reader.history()


def wait_for_step(run_dir, step, process):
    """Until the metrics say that `step` was trained."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the trainer ended early:\n{(run_dir / 'log.txt').read_text()[-3000:]}"
        if (run_dir / "metrics.jsonl").exists() and (history(run_dir).step or 0) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was never reached")


def wait_for_state(run_dir, state):
    """Until the supervisor says `state`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = rundir.read_status(run_dir / "status.json")
        if status is not None and status.state == state:
            return
        time.sleep(0.02)
    raise AssertionError(f"the state {state} was never reached")


@pytest.fixture(scope="module")
def demo(base, tmp_path_factory):
    """One small study from beginning to end under the supervisor."""
    run_dir = tmp_path_factory.mktemp("runs") / "demo"
    done = finish(supervised(run_dir, command(run_dir, base)))
    return run_dir, done


def test_the_study_stops_itself_and_says_so_everywhere(demo):
    run_dir, done = demo
    assert done.returncode == RunExit.AUTO_STOPPED, (run_dir / "log.txt").read_text()[-3000:]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["stage5"]["stop_step"] == 15
    assert summary["stage5"]["reason"] == "plateau"
    assert [row["step"] for row in summary["stage5"]["trajectory"]] == [5, 10, 15]
    seen = history(run_dir)
    assert seen.ended == "stopped"
    assert seen.end_reason == "plateau"
    assert (seen.declared_stop.stopped_at, seen.declared_stop.bad) == (15, 2)
    status = rundir.read_status(run_dir / "status.json")
    assert (status.state, status.rc) == ("stopped", 10)


def test_five_macros_and_their_deltas_add_up(demo):
    run_dir, _ = demo
    summary = json.loads((run_dir / "summary.json").read_text())
    stages, deltas = summary["stages"], summary["deltas"]
    for stage in stages.values():
        assert set(stage["tasks"]) == {"sum", "reverse", "largest", "lookup"}
        assert stage["macro"] == pytest.approx(sum(stage["tasks"].values()) / 4)
    assert deltas["damage"] == stages["stage2"]["macro"] - stages["stage1"]["macro"]
    assert deltas["gain"] == stages["stage4"]["macro"] - stages["stage2"]["macro"]
    assert deltas["side_effect"] == stages["non_prefill"]["macro"] - stages["stage1"]["macro"]
    assert [stage.name for stage in history(run_dir).stages] == ["stage1", "stage2", "stage4", "non_prefill"]
    details = json.loads((run_dir / "metrics-stage4.json").read_text())
    assert details["mask"] == "prompt_bidirectional"
    assert json.loads((run_dir / "metrics-non_prefill.json").read_text())["mask"] == "causal"


def test_the_console_log_alone_tells_the_same_story_as_the_metrics(demo):
    run_dir, _ = demo
    reader = LogReader()
    reader.feed((run_dir / "log.txt").read_bytes())
    log, exact = reader.history(), history(run_dir)
    assert log.run_id == exact.run_id
    assert log.max_steps == exact.max_steps == 30
    assert [e.step for e in log.evals] == [e.step for e in exact.evals]
    for ours, theirs in zip(log.evals, exact.evals, strict=True):
        assert ours.eval_loss == pytest.approx(theirs.eval_loss, rel=1e-3), "four digits are printed"
    assert [p.step for p in log.train] == [p.step for p in exact.train]


def test_what_was_resolved_is_in_config_toml(demo):
    run_dir, _ = demo
    recipe = load_recipe(run_dir / "config.toml", env={})
    assert (recipe.kind, recipe.mask, recipe.max_steps) == ("demo", "prompt_bidirectional", 30)
    assert tomli.loads((run_dir / "config.toml").read_text())["stop"]["patience"] == 2


def test_a_second_run_with_the_same_seed_gives_the_same_numbers(demo, base, tmp_path):
    run_dir, _ = demo
    finish(command(tmp_path, base))
    first, again = (json.loads((path / "summary.json").read_text()) for path in (run_dir, tmp_path))
    assert first["stages"] == again["stages"]
    assert first["stage5"]["trajectory"] == again["stage5"]["trajectory"]


@pytest.mark.parametrize("how", ["sigterm", "sigkill", "stop.request"])
def test_stopped_or_killed_and_resumed_it_ends_as_if_nothing_had_been(demo, base, tmp_path, how):
    """SIGTERM and stop.request: a checkpoint and exit 11. SIGKILL: nothing. Then --resume, and the same end."""
    settings = {"patience": 1000}  # runs to the horizon, so that there is time to interfere
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen(
            supervised(tmp_path, command(tmp_path, base, **settings)), cwd=ROOT, env=trainer_environment(), stdout=out
        )
        wait_for_step(tmp_path, 6, process)
        trainer = rundir.read_status(tmp_path / "status.json").pid
        os.kill(trainer, signal.SIGSTOP)  # or a quick machine reaches the horizon before anybody is heard
        if how == "sigkill":
            os.kill(trainer, signal.SIGKILL)
        else:
            if how == "sigterm":
                process.send_signal(signal.SIGTERM)
            else:
                rundir.write_stop_request(tmp_path, "enough")
            wait_for_state(tmp_path, "stopping")
            os.kill(trainer, signal.SIGCONT)
        code = process.wait(timeout=400)
    whole = rundir.newest_whole_checkpoint(tmp_path / "checkpoints")
    assert whole is not None
    if how == "sigkill":
        assert code not in (0, 10, 11)
    else:
        assert code == RunExit.STOPPED
        assert rundir.checkpoint_step(whole) == history(tmp_path).step
    (tmp_path / rundir.STOP_REQUEST).unlink(missing_ok=True)
    done = finish(supervised(tmp_path, command(tmp_path, base, "--resume", **settings)))
    assert done.returncode == 0, (tmp_path / "log.txt").read_text()[-3000:]
    straight, seen = history(demo[0]), history(tmp_path)
    assert seen.step == 30
    assert {p.step: p.loss for p in straight.train}.items() <= {p.step: p.loss for p in seen.train}.items()
    assert seen.eval_pairs()[:3] == straight.eval_pairs()
    assert [stage.name for stage in seen.stages] == ["stage1", "stage2", "stage4", "non_prefill"]
    log = (tmp_path / "log.txt").read_text()
    assert log.count("from an earlier process of this run") == 2, "stages 1 and 2 are not run again"


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def two(request, base, tmp_path_factory):
    """One small study on two gloo processes, half of the batch each: a copy of the model on both, or one divided."""
    run_dir = tmp_path_factory.mktemp(request.param)
    done = finish(command(run_dir, base, "--nproc", "2", batch_size=4, keep_local=9, parallel=request.param))
    return request.param, run_dir, done


def test_two_processes_train_together_and_stop_together(two):
    how, run_dir, done = two
    assert done.returncode == RunExit.AUTO_STOPPED, done.stderr[-3000:]
    assert ("one model divided" in done.stdout) == (how == "fsdp")
    seen = history(run_dir)
    assert seen.facts["world_size"] == "2"
    assert [p.step for p in seen.train] == list(range(1, 16))
    assert [e.step for e in seen.evals] == [5, 10, 15]
    whole = rundir.read_manifest(rundir.newest_whole_checkpoint(run_dir / "checkpoints"))
    assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "optimizer.pt"} <= set(whole)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["stage5"]["stop_step"] == 15
    assert summary["stages"]["stage4"]["macro"] is not None, "what was saved is evaluated by the same processes"


def test_a_divided_model_learns_what_copies_learn_and_what_one_process_learns(two, demo):
    """Same samples in each step, so the same losses but for the order of sums."""
    _, run_dir, _ = two
    ours, alone = history(run_dir), history(demo[0])
    assert [p.loss for p in ours.train] == pytest.approx([p.loss for p in alone.train], rel=1e-4)
    assert [p.grad_norm for p in ours.train] == pytest.approx([p.grad_norm for p in alone.train], rel=1e-3)
    assert [e.eval_loss for e in ours.evals] == pytest.approx([e.eval_loss for e in alone.evals], rel=1e-4)


def test_a_checkpoint_does_not_say_how_many_processes_wrote_it(two, base, tmp_path):
    """What two copies wrote goes on as one divided model; what a divided one wrote goes on in a single process."""
    how, run_dir, _ = two
    nproc = 2 if how == "ddp" else 1
    shutil.copytree(run_dir / "checkpoints" / "checkpoint-10", tmp_path / "checkpoints" / "checkpoint-10")
    size = {"batch_size": 8 // nproc, "parallel": "fsdp"}
    done = finish(command(tmp_path, base, "--nproc", str(nproc), "--resume", downstream_samples=4, **size))
    assert done.returncode == RunExit.AUTO_STOPPED, done.stderr[-3000:]
    straight = [p.loss for p in history(run_dir).train if p.step > 10]
    assert [p.loss for p in history(tmp_path).train] == pytest.approx(straight, rel=1e-4)


def test_a_stop_of_two_processes_saves_once_and_ends_both(base, tmp_path):
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen(
            supervised(tmp_path, command(tmp_path, base, "--nproc", "2", batch_size=4, patience=1000, max_steps=5000)),
            cwd=ROOT, env=trainer_environment(), stdout=out,
        )  # fmt: skip
        wait_for_step(tmp_path, 6, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=400) == RunExit.STOPPED
    assert rundir.checkpoint_step(rundir.newest_whole_checkpoint(tmp_path / "checkpoints")) == history(tmp_path).step


def test_two_ranks_share_an_evaluation_and_get_the_same_numbers(base, tmp_path):
    """lm-eval requests are dealt out over the ranks and put together again."""
    (tmp_path / "tasks").mkdir()
    choices = [" a", " bc", " def"]
    items = [{"question": f"which {n}" + "?" * (n % 5 + 1), "choices": choices, "gold": n % 3} for n in range(25)]
    data = tmp_path / "tasks" / "letters.jsonl"
    data.write_text("\n".join(map(json.dumps, items)))
    (tmp_path / "tasks" / "letters.yaml").write_text(CHOICE.format(name="letters", data=data))
    found = {}
    for nproc in (1, 2):
        run_dir = tmp_path / str(nproc)
        settings = [f"base={base}", "tasks=letters", f"task_path={tmp_path / 'tasks'}", "dtype=float32"]
        words = [word for setting in settings for word in ("--set", setting)]
        ranks = ["--run-dir", str(run_dir), "--nproc", str(nproc)]
        done = finish([sys.executable, "-m", "runner", "stage1", *ranks, *words])
        assert done.returncode == 0, done.stderr[-3000:]
        found[nproc] = json.loads((run_dir / "metrics.json").read_text())
    assert found[1] == found[2]
    assert found[1]["tasks"]["letters"]["n"] == 25


def test_a_full_disk_ends_with_its_code_and_keeps_the_last_whole_checkpoint(base, tmp_path):
    """A file system of two megabytes, in a mount namespace of its own; checkpoints of 0.6 MB are never pruned."""
    run_dir = tmp_path / "small" / "run"
    run_dir.parent.mkdir()
    arguments = command(run_dir, base, keep_local=100, patience=1000, save_steps=2, eval_steps=2, max_steps=60)
    script = (
        f"mount -t tmpfs -o size=2m none {run_dir.parent} && mkdir {run_dir} && "
        f'{{ "$@" > {tmp_path}/out.txt 2>&1; echo $? > {tmp_path}/rc; cp -r {run_dir} {tmp_path}/left; }}'
    )
    done = finish(["unshare", "-Urm", "sh", "-c", script, "sh", *arguments])
    assert (tmp_path / "rc").read_text().strip() == str(int(RunExit.DISK_FULL)), (
        done.stderr + (tmp_path / "out.txt").read_text()[-3000:]
    )
    whole = rundir.newest_whole_checkpoint(tmp_path / "left" / "checkpoints")
    assert whole is not None
    left = rundir.checkpoints(tmp_path / "left" / "checkpoints")
    assert all((path / rundir.MANIFEST).is_file() for path in left), "what was torn is gone"
    assert "disk full" in (tmp_path / "out.txt").read_text()


def test_without_a_run_directory_it_makes_one_and_supervises_itself(base, tmp_path):
    arguments = [part for part in command("x", base) if part not in ("--run-dir", "x")]
    done = subprocess.run(
        arguments, cwd=tmp_path, env={**trainer_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == RunExit.AUTO_STOPPED, done.stderr[-2000:]
    (run_dir,) = (tmp_path / "runs" / "demo").iterdir()
    assert f"run directory: {run_dir.relative_to(tmp_path)}" in done.stdout
    assert "auto-stop: fired at step 15" in done.stdout, "the log is shown as it grows"
    assert rundir.read_status(run_dir / "status.json").rc == 10
