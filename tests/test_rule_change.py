"""Another auto-stop rule for a run that goes on: asked here and across a real sshd, answered by a real Trainer.

What the trainer makes of a request is in test_study_requests.py.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from remote.asking import Asked, change_rule
from remote.bootstrap import prepare
from remote.deeds import DeedStep
from remote.feed import RunFeed
from remote.remote_run import Order, resolve_order, start_run
from remote.target import parse_host
from runner.autostop import StopRule
from runner.errors import NotFoundError, RefusedError, UsageError
from runner.requests import pending
from tests.support.sshd import Sshd
from tests.support.study import history, save_checkpoint, tiny_model, trainer_environment, write_recipe
from tui.cli import cli

pytestmark = pytest.mark.study

ROOT = Path(__file__).parent.parent


def wait_for(what: Callable[[], Any], seconds: float = 240.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.1)
    return found


def evals(run_dir: Path, count: int) -> Callable[[], bool]:
    return lambda: (run_dir / "metrics.jsonl").exists() and len(history(run_dir).evals) >= count


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    base = save_checkpoint(tiny_model(), folder / "base")
    # no eval improves by 10: it stops as soon as the patience is shorter than what it has seen
    return write_recipe(folder / "mini.toml", base, eval_samples=16, save_steps=1000, patience=500, min_delta=10.0)


@pytest.fixture
def local_run(tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A supervised run on this machine that has judged some evals."""
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path / "home"))
    run_dir = tmp_path / "runs/mini/20260215-104518"
    run_dir.mkdir(parents=True)
    words = [sys.executable, "-m", "runner.box.supervise", "--run-dir", str(run_dir), "--grace", "60", "--"]
    words += [sys.executable, "-m", "runner", str(recipe), "--run-dir", str(run_dir)]
    supervisor = subprocess.Popen(
        words, cwd=ROOT, env=trainer_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    wait_for(evals(run_dir, 4))
    yield run_dir
    if supervisor.poll() is None:
        supervisor.send_signal(signal.SIGTERM)
    supervisor.wait(timeout=240)


def said(run: str, *words: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(cli, ["rule", run, *words, "--yes", "--json"], standalone_mode=False)
    return int(done.return_value or 0), json.loads(done.stdout)


@pytest.mark.slow
def test_a_run_on_this_machine_takes_another_rule_then_refuses_nonsense_then_stops_by_it(local_run: Path) -> None:
    code, shown = said(str(local_run))
    assert code == 0
    assert shown["rule"] == {"patience": 500, "min_delta": 10.0, "min_steps": 20, "count_from": "min_steps"}
    assert shown["takes_another"] is True

    code, done = said(str(local_run / "log.txt"), "--patience", "400", "--count-from", "start")
    assert code == 0
    assert (done["ok"], done["state"]) == (True, "done")
    assert [step["name"] for step in done["steps"]] == ["look", "request", "answer"]
    assert done["ack"]["accepted"] is True
    assert done["ack"]["detail"] == StopRule(400, 10.0, 20, "start").in_words()
    assert history(local_run).rule == StopRule(400, 10.0, 20, "start")
    assert pending(local_run) == []

    with pytest.raises(UsageError, match="patience must be at least 1 evaluation, not 0"):
        change_rule(str(local_run), {"patience": 0})
    assert len(history(local_run).acks) == 1, "nonsense is not even asked"

    told: list[DeedStep] = []
    last = change_rule(str(local_run), {"patience": 2}, progress=told.append)
    assert last.ack is not None
    assert "it sees a plateau since step" in last.ack.detail
    assert [(step.name, step.ok) for step in told if step.ok is not None] == [
        ("look", True), ("request", True), ("answer", True),
    ]  # fmt: skip
    feed = RunFeed(str(local_run))
    ended = wait_for(lambda: (state := feed.tick()).state == "stopped" and state)
    feed.close()
    assert ended.history.declared_stop.stopped_at == last.ack.step
    with pytest.raises(RefusedError, match="The run is over"):
        change_rule(str(local_run), {"patience": 3})


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "box") as made:
        yield made


@pytest.mark.slow
def test_a_run_behind_ssh_takes_another_rule_although_the_link_breaks_meanwhile(
    box: Sshd, tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "home"
    with box.connect(state) as host:
        order = Order(str(recipe))
        run = start_run(
            host, prepare(host), order, resolve_order(order, {}), target=parse_host("box"), home=state,
            environment={"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    run_dir = Path(run.run_dir)
    wait_for(evals(run_dir, 4))
    monkeypatch.setattr("remote.asking.open_transport", lambda *_, **__: box.connect(state))
    cut: list[int] = []

    def cut_once(step: DeedStep) -> None:
        if step.name == "answer" and step.ok is None:
            for pid in box.session_pids():
                cut.append(pid)
                subprocess.run(["kill", "-9", str(pid)], check=False)

    asked = change_rule(run.name, {"patience": 3, "min_steps": 30}, home=state, progress=cut_once)
    assert cut, "the session was there to be cut"
    assert isinstance(asked, Asked)
    assert asked.rule == StopRule(3, 10.0, 30)
    assert asked.ack is not None
    assert asked.ack.accepted
    wait_for(lambda: history(run_dir).ended is not None)
    ended = history(run_dir)
    assert (ended.ended, ended.end_reason) == ("stopped", "plateau")
    assert ended.rule == StopRule(3, 10.0, 30)


def test_a_log_of_somebody_elses_is_told_why_it_cannot_be_asked(tmp_path: Path) -> None:
    log = tmp_path / "train/log.txt"
    log.parent.mkdir()
    log.write_text("{'loss': 1.2, 'epoch': 0.1}\n")
    with pytest.raises(RefusedError, match="was not written by tunewatch's runner: its trainer takes no requests"):
        change_rule(str(log), {"patience": 2})
    with pytest.raises(NotFoundError):
        change_rule(str(tmp_path / "nowhere"), {"patience": 2})
    assert [path.name for path in log.parent.iterdir()] == ["log.txt"], "and nothing was written"


@pytest.mark.parametrize(
    ("start", "why"),
    [
        ({"rule": None, "obeys": ["save"]}, "started without auto-stop"),
        ({"rule": {"patience": 4}}, "started by an older tunewatch"),
    ],
)
def test_a_run_that_takes_no_other_rule_says_why(tmp_path: Path, start: dict[str, Any], why: str) -> None:
    line = {"event": "start", "wall": 1.0, "mono": 1.0, "run_id": "x", "max_steps": 10, **start}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(RefusedError, match=why):
        change_rule(str(tmp_path), {"patience": 2})


def test_read_only_shows_the_rule_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWATCH_READ_ONLY", "1")
    start = {"event": "start", "run_id": "x", "max_steps": 10, "rule": {"patience": 4}, "obeys": ["rule"]}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(start) + "\n")
    assert said(str(tmp_path))[0] == 0
    done = CliRunner().invoke(cli, ["rule", str(tmp_path), "--patience", "2", "--yes"], standalone_mode=False)
    assert isinstance(done.exception, RefusedError)
    assert pending(tmp_path) == []
