"""Pictures of the screens at both sizes, in two themes and without colour. `pytest --snapshot-update` draws them anew.

Data, clock and forecast are fixed, so that a picture changes only when the screen does.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from runner.history import EvalPoint, RunHistory
from tests.support.tui import app_with, demo_history, frozen, history, snapshot
from tui.snapshot import LinkView

BIG, SMALL = (120, 40), (80, 24)


@pytest.fixture(autouse=True)
def _fixed(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("TEXTUAL_THEME", raising=False)
    monkeypatch.delenv("TUNEWATCH_CHARTS", raising=False)
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")


@pytest.fixture
def waiting():
    return frozen(snapshot(dph=0.7411))


@pytest.fixture
def stopped():
    """Auto-stop fired at 1000."""
    run = history(1000)
    evals = (*run.evals[:3], *(EvalPoint(s, 1.4, 7.7) for s in range(500, 1100, 100)))
    run = replace(run, evals=evals, ended="stopped")
    return frozen(snapshot(run, state="stopped", reason="the auto-stop rule fired"))


@pytest.mark.parametrize("size", [BIG, SMALL], ids=["big", "small"])
def test_a_run_that_waits_for_its_rule(snap_compare, waiting, size):
    assert snap_compare(app_with(waiting), terminal_size=size)


@pytest.mark.parametrize("size", [BIG, SMALL], ids=["big", "small"])
def test_a_run_that_auto_stop_ended(snap_compare, stopped, size):
    assert snap_compare(app_with(stopped), terminal_size=size)


@pytest.mark.parametrize("size", [BIG, SMALL], ids=["big", "small"])
def test_without_colour(snap_compare, waiting, size, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(app_with(waiting), terminal_size=size)


@pytest.mark.parametrize("theme", ["tunewatch-light", "tunewatch-cvd"])
def test_in_other_themes(snap_compare, stopped, theme):
    app = app_with(stopped)
    app.theme = theme
    assert snap_compare(app, terminal_size=BIG)


def test_a_study_of_several_stages(snap_compare):
    assert snap_compare(app_with(frozen(snapshot(demo_history(), dph=0.0))), terminal_size=BIG)


def test_a_cursor_on_zoomed_charts_over_time(snap_compare, waiting):
    assert snap_compare(app_with(waiting), terminal_size=BIG, press=["x", "plus", "plus", *["left"] * 12])


@pytest.mark.parametrize("pane", ["2", "4", "5", "6"])
def test_each_pane_of_a_small_terminal(snap_compare, waiting, pane):
    assert snap_compare(app_with(waiting), terminal_size=SMALL, press=[pane])


def test_an_unreachable_host(snap_compare, waiting):
    lost = replace(
        waiting,
        state="unreachable",
        reason="the host does not answer; that says nothing about the run",
        link=LinkView("reconnecting", 83.0, "connection refused; next try in 4 s"),
    )
    assert snap_compare(app_with(lost), terminal_size=BIG)


def test_a_run_of_which_nothing_is_known_yet(snap_compare):
    empty = replace(frozen(snapshot(RunHistory(), state="starting", tail=(" ",))), quotes=(), stay=None, eta_s=None)
    assert snap_compare(app_with(empty), terminal_size=BIG)


def test_charts_in_ascii(snap_compare, waiting):
    assert snap_compare(app_with(waiting, marker="ascii"), terminal_size=BIG)


def test_the_help_page(snap_compare, waiting):
    assert snap_compare(app_with(waiting), terminal_size=BIG, press=["question_mark"])


@pytest.mark.parametrize("size", [BIG, SMALL], ids=["big", "small"])
def test_the_market(snap_compare, waiting, size):
    assert snap_compare(app_with(waiting), terminal_size=size, press=["o"])


@pytest.mark.parametrize("size", [BIG, SMALL], ids=["big", "small"])
def test_the_list_of_runs(snap_compare, waiting, stopped, size, monkeypatch):
    monkeypatch.setattr("tui.screens.runs.time.time", lambda: 1_771_154_000.0)
    other = replace(stopped, target="runs/stage5/20260216-081500", name="stage5/20260216-081500")
    app = app_with(waiting, other, open_first=False)
    monkeypatch.setattr(type(app.session), "known", lambda self: [])

    async def loaded(pilot):
        from tests.support.tui import until

        await until(lambda: app.screen.query_one("DataTable").row_count == 2, pilot)

    assert snap_compare(app, terminal_size=size, run_before=loaded)


def test_the_question_before_a_kill(snap_compare, waiting):
    app = app_with(waiting)
    app.session.instances[waiting.target] = 31457957
    assert snap_compare(app, terminal_size=BIG, press=["K"])
