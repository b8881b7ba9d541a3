"""`tunewatch demo`, `report` and the replay: the miniature study from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from tui.replay import SAMPLE, ReplayFeed

HIDE_TORCH = (
    "import importlib.util as u; find = u.find_spec\n"
    "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
    "from tui.cli import main; main({words!r})"
)


@pytest.fixture
def call(tmp_path):
    """Run Python with these words in an empty directory; returns the finished process."""

    def run(*words, timeout=240, **environment):
        env = {**os.environ, "TUNEWATCH_HOME": str(tmp_path / "home"), **environment}
        return subprocess.run(
            [sys.executable, *map(str, words)], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=timeout
        )

    return run


def test_without_torch_the_extra_is_named_and_nothing_is_started(call, tmp_path):
    done = call("-c", HIDE_TORCH.format(words=["demo", "--headless"]))
    assert done.returncode == 2
    assert "torch" in done.stderr
    assert "pip install 'tunewatch[runner]'" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_read_only_starts_nothing(call, tmp_path):
    done = call("-m", "tui", "--read-only", "demo", "--headless")
    assert done.returncode == 4
    assert not (tmp_path / "runs").exists()


def test_a_replay_needs_a_screen_and_takes_no_other_option(call):
    done = call("-m", "tui", "demo", "--replay", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    done = call("-m", "tui", "demo")
    assert done.returncode == 2
    assert "--headless" in done.stderr


def test_the_replay_tells_the_recorded_run_from_its_start_to_its_auto_stop():
    now = [0.0]
    feed = ReplayFeed(SAMPLE, speed=2.0, clock=lambda: now[0])
    try:
        seen = []
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            now[0] = share * feed.length_s / 2.0
            state = feed.tick()
            seen.append((state.history.step or 0, state.log_path.stat().st_size))
        assert seen == sorted(seen)
        assert seen[0][0] == 0
        assert state.state == "stopped"
        assert state.history.declared_stop.reason == "plateau"
        assert [s.name for s in state.history.stages] == ["stage1", "stage2", "stage4", "non_prefill"]
        assert state.log_path.read_bytes() == (SAMPLE / "log.txt").read_bytes().rpartition(b"\n")[0] + b"\n"
    finally:
        feed.close()


def test_the_report_of_the_recorded_run_is_the_contract(call):
    done = call("-m", "tui", "report", SAMPLE, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) >= {"stages", "deltas", "stage5", "quotes"}
    assert set(document["stages"]) >= {"stage1", "stage2", "stage4", "non_prefill"}
    assert document["deltas"]["damage"] == pytest.approx(
        document["stages"]["stage2"]["macro"] - document["stages"]["stage1"]["macro"]
    )
    assert document["stage5"]["reason"] == "plateau"
    assert document["quotes"][0]["hours"].keys() == {"opt", "base", "pess"}


def test_the_report_for_people_is_markdown_and_can_be_written_to_a_file(call, tmp_path):
    done = call("-m", "tui", "report", SAMPLE, "--output", "report.md")
    assert done.returncode == 0
    assert "| stage1 |" in (tmp_path / "report.md").read_text()


def test_a_report_of_nothing_says_where_results_come_from(call):
    done = call("-m", "tui", "report")
    assert done.returncode == 3
    assert "tunewatch demo" in done.stderr


@pytest.mark.study
@pytest.mark.slow
def test_the_demo_runs_every_stage_here_and_a_second_one_attaches_to_it(call, tmp_path):
    """A real study of 20 steps: started headless, attached to from a second process, reported as the contract says."""
    first = subprocess.Popen(
        [sys.executable, "-m", "tui", "demo", "--headless", "--json", "--steps", "20"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "TUNEWATCH_HOME": str(tmp_path / "home")},
    )
    folder = tmp_path / "runs" / "demo"
    until = time.monotonic() + 240
    while time.monotonic() < until and not list(folder.glob("*/status.json")):
        time.sleep(0.1)
    second = call("-m", "tui", "demo", "--headless", "--json", timeout=600)
    out, err = first.communicate(timeout=240)
    assert first.returncode == 0, err
    assert "attached to" in second.stderr
    assert len(list(folder.iterdir())) == 1, "one run, not two"
    document, again = json.loads(out), json.loads(second.stdout)
    assert document["stages"] == again["stages"]
    assert all(0 <= document["stages"][n]["macro"] <= 1 for n in ("stage1", "stage2", "stage4", "non_prefill"))
    assert document["stage5"]["stop_step"] == 20
    assert document["stage5"]["max_steps"] == 20
    assert len(document["quotes"]) >= 3
    assert "stage1: macro" in err
