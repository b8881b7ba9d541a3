"""Watching a run keeps its forecast's bets, and what came of them; a recording, a guess and a full disk do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from remote.bets import NAME, BetBook
from remote.market import load_offers
from runner.autostop import StopRule
from runner.history import RunHistory
from tests.support.tui import Read, history
from tui.calibrating import Calibrating
from tui.session import Session, WatchPlan
from tui.snapshot import RuleChoice, SnapshotMaker

RUN = "6f1c0f3e"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path))
    return tmp_path


def maker(**options: object) -> SnapshotMaker:
    return SnapshotMaker("runs/x/1", "x/1", book=Calibrating(), **options)  # type: ignore[arg-type]


def at(step: int, **more: object) -> RunHistory:
    return replace(history(step), run_id=RUN, **more)  # type: ignore[arg-type]


def test_a_watched_run_bets_once_per_evaluation_and_settles_when_it_ends(home: Path) -> None:
    watcher = maker()
    for step in (457, 460, 520):
        watcher.make(Read(at(step)), at=1.0)
    assert [bet.step for bet in BetBook().of_run(RUN)] == [400, 500]
    watcher.make(Read(at(6000, ended="finished"), state="finished"), at=2.0)
    assert {bet.truth for bet in BetBook().of_run(RUN)} == {6000}


def test_a_rule_that_the_watcher_assumed_is_no_bet(home: Path) -> None:
    maker().make(Read(at(457, rule=None)), at=1.0)
    maker(choice=RuleChoice(patience=9)).make(Read(at(457)), at=1.0)
    assert not (home / NAME).exists()


def test_a_log_that_is_still_caught_up_is_no_bet(home: Path) -> None:
    class Behind(Read):
        caught_up = False

    maker().make(Behind(at(457)), at=1.0)
    assert not (home / NAME).exists()


def test_the_speed_of_a_run_that_was_seen_to_finish_is_kept_once(home: Path) -> None:
    (offer, *_) = load_offers()
    watcher = maker(here=offer)
    assert watcher.book is not None
    watcher.book._recipes["runs/x/1"] = "stage5"
    ended = at(6000, ended="finished")
    watcher.make(Read(at(5900)), at=1.0)
    watcher.make(Read(ended, state="finished"), at=2.0)
    watcher.make(Read(replace(ended, bytes_read=2), state="finished"), at=3.0)
    (rate,) = BetBook().own_runs()
    assert (rate.recipe, rate.gpu) == ("stage5", offer.gpu)
    assert rate.steps_per_s == pytest.approx(1 / (2.79 + 7.7 / 100), rel=0.03)
    maker(here=offer).make(Read(ended, state="finished"), at=1.0)
    assert len(BetBook().own_runs()) == 1, "opened again is not run again"


def test_past_misses_widen_the_next_forecast(home: Path) -> None:
    narrow = maker().make(Read(at(457)), at=1.0).ruling.projection
    watcher = maker()
    assert watcher.book is not None
    watcher.book._widen = 0.08
    wide = watcher.make(Read(at(457)), at=1.0).ruling.projection
    assert narrow is not None
    assert wide is not None
    assert wide.p90 - wide.p10 > narrow.p90 - narrow.p10


def test_a_home_that_cannot_be_written_is_a_warning_and_the_forecast_stands(home: Path) -> None:
    (home / NAME).mkdir()
    snapshot = maker().make(Read(at(457)), at=1.0)
    assert "not kept for calibration" in snapshot.warnings[0]
    assert snapshot.ruling.projection is not None


def test_a_recording_is_not_followed_and_a_run_is(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("")
    plan = WatchPlan(str(log))
    assert Session(recorded=True).open(plan)[1].maker.book is None
    session = Session()
    assert session.open(plan)[1].maker.book is session.open(plan)[1].maker.book is not None


def test_the_rule_of_these_histories_is_declared() -> None:
    assert history().rule == StopRule(patience=4, min_delta=0.003, min_steps=600)
