"""Pictures of the Logs screen, the what-if panel and the list of events. `pytest --snapshot-update` draws them anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from estimator.whatif import RuleOutcome
from runner.autostop import StopRule
from tests.support.log_room import Room, ready, until
from tests.support.tui import RULE, history, snapshot
from tests.test_event_list import NEW, OLD
from tests.test_event_list import Room as EventRoom
from tests.test_what_if import Room as WhatIfRoom
from tests.test_what_if import opened
from tui.alerts import Event, Volume

BIG, SMALL, TINY = (120, 40), (80, 24), (40, 10)
SIZES = pytest.mark.parametrize("size", [BIG, SMALL, TINY], ids=["big", "small", "tiny"])
LOG = (
    b"# tunewatch run 3f1c2b1e-0000-4000-8000-000000000000\n"
    b"2026-02-15 10:45:18,123 INFO train: 50,000 examples, batch 8, 6,000 steps\n"
    b"2026-02-15 10:45:19,001 WARNING transformers: use_cache=True is incompatible with gradient checkpointing\n"
    + b"".join(
        b"\r  %d%%|#  | %d/6000 [21:47<4:20:10,  2.82s/it]\r%s\r" % (n // 60, n, b" " * 60)
        + b"{'loss': '%.4g', 'grad_norm': '1.3', 'epoch': '0.0%d'}\n" % (1.5 - n / 1000, n)
        for n in range(10, 200, 10)
    )
    + b"{'eval_loss': '1.118', 'eval_runtime': '7.737', 'eval_samples_per_second': '32.31', 'epoch': '0.032'}\n"
    + b"{'loss': '0', 'grad_norm': 'nan', 'learning_rate': '2e-05', 'epoch': '0.048'}\n"
    + b"{'eval_loss': '1.372', 'eval_runtime': '7.699', 'eval_samples_per_second': '32.47', 'epoch': '0.048'}\n"
    + "Überraschung \u6f22\u5b57 \x1b[31mfarbig\x1b[0m\tTab\x00NUL ".encode()
    + b"\xff\n"
    + b"Traceback (most recent call last):\n"
    + b'  File "train.py", line 40, in on_step_end\n'
    + b"RuntimeError: CUDA out of memory. Tried to allocate 1.50 GiB. "
    + b"GPU 0 has a total capacity of 39.39 GiB of which 1.02 GiB is free. " * 3
    + b"\n"
    + b"\r  8%|#         | 456/6000 [21:44<4:20:13,  2.82s/it]\r  8%|#         | 457/6000 [21:47<4:20:10,  2.82s/it]"
)


@pytest.fixture(autouse=True)
def _fixed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NO_COLOR", "TEXTUAL_THEME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    (tmp_path / "log.txt").write_bytes(LOG)
    monkeypatch.chdir(tmp_path)


def logs_with(*keys: str):
    """The screen on the log, and what brings it to where the picture is taken."""
    app = Room(Path("log.txt"))

    async def before(pilot):
        await ready(pilot, app)
        for key in keys:
            await pilot.press(key)
        search = app.logs.search
        await until(pilot, lambda: (search is None or search.done) and app.logs._told == "")
        await until(pilot, lambda: app.view.filter is None or app.view.filter.done)

    return app, before


@SIZES
def test_following_a_log_of_everything(snap_compare, size):
    app, before = logs_with()
    assert snap_compare(app, terminal_size=size, run_before=before)


@SIZES
def test_wrapped_with_the_cursor_on_the_traceback(snap_compare, size):
    app, before = logs_with("w", "up", "up", "up")
    assert snap_compare(app, terminal_size=size, run_before=before)


@pytest.mark.parametrize("theme", ["tunewatch-light", "tunewatch-cvd"])
def test_hits_and_filter_in_other_themes(snap_compare, theme):
    app, before = logs_with("slash", *"eval", "enter", "F", *"grad", "enter")
    app.theme = theme
    assert snap_compare(app, terminal_size=SMALL, run_before=before)


def test_hits_without_colour(snap_compare, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app, before = logs_with("slash", *"loss", "enter")
    assert snap_compare(app, terminal_size=SMALL, run_before=before)


SIX = StopRule(6, 0.003, 600)
FIXED = {
    RULE: RuleOutcome(RULE, 1700, 900, 1000, 2400, 0.93, 1.0512, 0.97, 0.72, 0.02),
    StopRule(6, 0.003, 600): RuleOutcome(
        StopRule(6, 0.003, 600), 2400, 1200, 1600, 4700, 0.9, 1.0431, 1.52, 1.13, 0.17
    ),
}


@SIZES
def test_what_if(snap_compare, size, monkeypatch):
    monkeypatch.setattr("tui.widgets.whatif.ahead", lambda *_, **__: FIXED)
    app = WhatIfRoom(457)

    async def before(pilot):
        await opened(pilot, app)
        await pilot.press("up", "up")
        await until(pilot, lambda: "this rule" in app.said())
        await pilot.press("tab", "tab", "tab")

    assert snap_compare(app, terminal_size=size, run_before=before)


@pytest.mark.parametrize("size", [BIG, SMALL], ids=["big", "small"])
def test_the_question_before_another_rule_is_applied(snap_compare, size, monkeypatch):
    monkeypatch.setattr("tui.widgets.whatif.ahead", lambda *_, **__: FIXED)
    app = WhatIfRoom(457)

    async def before(pilot):
        await opened(pilot, app)
        await pilot.press("up", "up")
        await until(pilot, lambda: "this rule" in app.said())
        await pilot.press("enter", "enter")
        await until(pilot, lambda: app.asked and app.focused is not None and app.focused.id == "keep")

    assert snap_compare(app, terminal_size=size, run_before=before)


def test_what_if_in_hindsight(snap_compare):
    app = WhatIfRoom(2000)
    app.snapshot = replace(snapshot(history(2000), state="finished"), effective_sps=0.349)

    async def before(pilot):
        await opened(pilot, app)
        await pilot.press("down", "down", "tab", "tab", "tab")

    assert snap_compare(app, terminal_size=SMALL, run_before=before)


@SIZES
def test_events(snap_compare, size):
    fired = Event(
        "c", "fired", "auto-stop", "third: auto-stop stopped it at step 1000: no more gain", volume=Volume.BELL
    )
    lost = Event("d", "link", "link lost", "fourth: no answer for 2m", "warning", Volume.BELL, at=95.0)
    assert snap_compare(EventRoom(fired, OLD, NEW, lost), terminal_size=size)
