"""A log without a progress bar (disable_tqdm=True) tells no steps: it is drawn by epoch, and its evals are counted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from runner.autostop import StopRule
from runner.history import RunHistory
from runner.log import LogReader
from tests.support.tui import app_with, history, snapshot
from tui.curves import CurveCache, View, best_eval, charts, x_words
from tui.document import watch_document, watch_lines
from tui.screens.compare import CompareScreen
from tui.screens.live import LiveScreen
from tui.stop_words import panel, phase_words
from tui.what_if import sentences, try_rule
from tui.widgets.chart_pane import ChartPane

LOGS = Path(__file__).parent / "data" / "trainer-logs"


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def read() -> RunHistory:
    """What a real run of the Trainer printed."""
    reader = LogReader()
    reader.feed((LOGS / "5.23.0-pipe-printer.txt").read_bytes())
    return reader.history()


def test_every_loss_that_was_logged_is_on_the_chart_over_its_epoch(read: RunHistory) -> None:
    truth = json.loads((LOGS / "5.23.0-pipe-printer.truth.json").read_text())["log_history"]
    losses = [(row["epoch"], row["loss"]) for row in truth if "loss" in row]
    evals = [(row["epoch"], row["eval_loss"]) for row in truth if "eval_loss" in row]
    one = snapshot(read)
    drawn = charts(one, View().suited(read), CurveCache())
    for name, wanted in (("loss", losses), ("eval", evals)):
        curve = drawn[name].series[0]
        assert [(x, round(y, 4)) for x, y in zip(curve.xs, curve.ys, strict=True)] == [
            (pytest.approx(x, abs=0.005), pytest.approx(y, abs=0.001)) for x, y in wanted
        ]
    assert drawn["eval"].marks[0].y == pytest.approx(min(loss for _, loss in evals), abs=0.001)
    assert all(spec.vlines == () and spec.spans == () for spec in drawn.values()), "no step has a place there"


def test_an_axis_by_epoch_is_for_logs_without_steps_and_for_no_other(read: RunHistory) -> None:
    assert read.stepless
    assert not history().stepless
    assert not RunHistory().stepless, "nothing is known of an empty log"
    by_epoch = View(window=(0.0, 600.0), cursor=3.0).suited(read)
    assert (by_epoch.x_mode, by_epoch.window, by_epoch.cursor) == ("epoch", None, None)
    assert by_epoch.next_x_mode(tokens=True) is by_epoch
    assert by_epoch.suited(history()).x_mode == "step"
    assert View(x_mode="time").suited(history(), read).x_mode == "time", "one of them has steps"
    assert x_words(0.48, "epoch") == "epoch 0.48"


def test_its_evals_are_counted_from_the_first_and_no_step_is_made_up(read: RunHistory) -> None:
    one = snapshot(read)
    said = phase_words(one, one.ruling)[0]
    assert said == "counted in evals: the newest, the 6th, was a gain"
    over = replace(one, state="finished")
    assert phase_words(over, over.ruling)[0] == "counted in evals it would not have fired"
    shown = panel(one, {}, 47).plain
    assert "waiting for step" not in shown
    newest = next(line for line in shown.splitlines() if "★" in line)
    assert newest.split()[:2] == ["6★", "2.3410"]
    flat = replace(read, evals=(*read.evals, *[read.evals[-1]._replace(epoch=0.5 + i / 10) for i in range(4)]))
    one = snapshot(flat)
    assert phase_words(one, one.ruling)[0] == "counted in evals it would have fired at the 10th"
    assert "counted in evals it would have fired at the 10th" in "\n".join(watch_lines(one))
    document = watch_document(one)
    assert document["progress"]["step"] is None
    assert document["autostop"]["best_step"] is None, "for programs a step is a step"


def test_another_rule_is_tried_on_its_counted_evals(read: RunHistory) -> None:
    strict = StopRule(patience=1, min_delta=0.1)
    said = [text for text, _ in sentences(try_rule(read, StopRule(), strict, ended=True))]
    assert said[0] == "This log tells no steps; counted in evals, it fires at the 5th."
    said = [text for text, _ in sentences(try_rule(read, StopRule(), replace(strict, min_delta=0.0)))]
    assert said[0] == "This log tells no steps; counted in evals, it does not fire."


def test_an_eval_that_is_no_number_is_not_the_best(read: RunHistory) -> None:
    odd = replace(read, evals=(read.evals[0]._replace(eval_loss=math.nan), *read.evals[1:]))
    best = best_eval(odd)
    assert best is not None
    assert best.eval_loss == min(e.eval_loss for e in odd.evals[1:])
    assert best_eval(replace(read, evals=())) is None


@pytest.mark.parametrize("size", [(120, 40), (80, 24)])
async def test_the_screen_shows_it_and_no_key_finds_a_step_that_is_not_there(
    read: RunHistory, size: tuple[int, int], empty_home: None
) -> None:
    app = app_with(snapshot(read))
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        screen = app.screen
        assert isinstance(screen, LiveScreen)
        assert screen.view.x_mode == "epoch"
        for key in ("x", "plus", "right", "left", "less_than_sign", "minus", "2", "z", "z", "x"):
            await pilot.press(key)
        await pilot.pause()
        pane = screen.query_one("#eval", ChartPane)
        assert "by epoch" in str(pane.border_title)
        assert screen.view.x_mode == "epoch"
        assert screen.step_at_cursor() is None
        for key in ("w", "escape", "L", "escape", "e", "escape"):
            await pilot.press(key)
            await pilot.pause()
        assert app.screen is screen


async def test_compared_with_a_run_that_has_steps_it_is_left_out_and_says_so(
    read: RunHistory, empty_home: None
) -> None:
    first, second = snapshot(read, target="runs/a/1"), snapshot(target="runs/b/2")
    app = app_with(first, second)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = CompareScreen({"a": first, "b": second})
        app.push_screen(screen)
        await pilot.pause()
        assert "tells no steps: left out" in str(screen.query_one("#legend").render())
        screen.snapshots = {first.target: first}
        screen.redraw()
        await pilot.pause()
        assert screen.view.x_mode == "epoch"
        assert "best 2.3410" in str(screen.query_one("#legend").render())
