"""What a screen said when a run was last looked at stands on the first frame, until the run is read again."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from runner.metrics import MetricsWriter
from runner.rundir import RunDir
from tests.support.tui import TARGET, app_with, frozen, history, snapshot, until
from tui.app import TunewatchApp
from tui.last_seen import KEPT, LastSeen, Memory, recall
from tui.screens.live import LiveScreen
from tui.session import Session, WatchPlan
from tui.widgets.panes import TextPane
from tui.widgets.status_line import StatusLine, parts


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def seen() -> LastSeen:
    Memory().note(frozen(snapshot(dph=0.7411)))
    found = recall(TARGET)
    assert found is not None
    return found


def test_the_words_come_back_as_they_stood() -> None:
    found = seen()
    assert found.parts == tuple(tuple(part) for part in parts(frozen(snapshot(dph=0.7411)))[:-1])
    assert "waiting for step 600" in found.panes["stop"]
    assert "A100 SXM4" in found.panes["quotes"]
    assert abs(time.time() - found.at) < 3600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"at": 1, "parts": [[1]], "panes": {}}', b"\xff\xfe\x00"])
def test_a_memory_that_cannot_be_read_is_none(home: Path, content: bytes) -> None:
    seen()
    for file in (home / "seen").iterdir():
        file.write_bytes(content)
    assert recall(TARGET) is None
    assert recall("another") is None


def test_a_run_is_noted_now_and_then_and_at_once_when_its_state_changes(home: Path) -> None:
    memory, run = Memory(), frozen(snapshot(dph=0.7411))
    memory.note(run)
    file = next((home / "seen").iterdir())
    file.unlink()
    memory.note(run)
    assert not file.exists()
    memory.note(replace(run, state="crashed", reason="out of memory"))
    assert file.exists()


def test_what_holds_nothing_yet_does_not_take_the_place_of_what_was_known() -> None:
    before = seen()
    Memory().note(snapshot(replace(history(), bytes_read=0)))
    Memory().note(replace(frozen(snapshot()), estimated=False))
    assert recall(TARGET) == before


def test_the_runs_looked_at_longest_ago_are_forgotten(home: Path) -> None:
    seen()
    first = next((home / "seen").iterdir())
    os.utime(first, (1, 1))
    for number in range(KEPT + 5):
        (first.with_name(f"{number:016}.json")).write_text("{}")
    Memory().note(replace(frozen(snapshot()), target="the newest"))
    assert not first.exists()
    assert len(list((home / "seen").iterdir())) <= KEPT
    assert recall("the newest") is not None


def test_a_folder_that_refuses_costs_nothing_but_the_memory(home: Path) -> None:
    home.mkdir()
    (home / "seen").write_text("a file where the folder should be")
    Memory().note(frozen(snapshot()))
    assert recall(TARGET) is None


async def test_the_first_frame_says_what_was_known_and_the_run_takes_its_place() -> None:
    app = app_with(open_first=False)
    memory = seen()._replace(at=time.time() - 7200)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = LiveScreen(TARGET, memory=memory)
        await app.push_screen(screen)
        line = screen.query_one(StatusLine)
        await until(lambda: "457/6000" in str(line.render()), pilot)
        assert "2h ago" in str(line.render())
        assert "waiting for step 600" in str(screen.query_one("#stop", TextPane)._shown)
        screen.take(frozen(snapshot(history(470), dph=0.7411)))
        await until(lambda: "470/6000" in str(line.render()), pilot)
        assert "ago" not in str(line.render())


async def test_a_run_that_was_watched_is_remembered_by_the_next_session(tmp_path: Path) -> None:
    run = RunDir.create("stage5", tmp_path / "runs")
    run.open_log()
    writer = MetricsWriter(run.metrics)
    writer.write("start", max_steps=100, rule=None)
    for step in range(1, 21):
        writer.write("train", step=step, loss=3.0 / step, step_s=0.1)
    app = TunewatchApp(Session(), plan=WatchPlan(str(run.path)))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: recall(str(run.path)) is not None, pilot)
        app.session.stop()
    again = Session().recall(str(run.path))
    assert again is not None
    assert any("20/100" in form for part in again.parts for form in part[0])
    assert Session(recorded=True).recall(str(run.path)) is None
