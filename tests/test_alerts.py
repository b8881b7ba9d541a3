"""Which events lie between two looks at a run, and that none is told twice or missed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.autostop import StopRule, replay
from runner.history import EvalPoint, Note, RunHistory, TrainPoint
from tui.alerts import CALM_S, IDLE_S, LINK_S, Alerts, Event, Look, Volume, look_at
from tui.snapshot import LinkView, RunSnapshot

RULE = StopRule(patience=2, min_delta=0.003, min_steps=200)


def look(losses: list[float], **changes: Any) -> Look:
    evals = tuple(EvalPoint(100 * (n + 1), loss) for n, loss in enumerate(losses))
    history = RunHistory(run_id="r1", step=100 * len(losses), evals=evals)
    stop = replay(RULE, history.eval_pairs())
    return replace(Look("box:/x", "stage5", history, "running", stop=stop, declared=True), **changes)


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def after(*looks: Look) -> list[Event]:
    """The events of the last of these looks."""
    alerts = Alerts()
    events: list[Event] = []
    for one in looks:
        events = alerts.take(one)
    return events


def test_the_first_look_tells_no_old_news() -> None:
    old = look([1.2, 1.1, math.nan], state="crashed", reason="CUDA out of memory")
    assert after(old) == []


def test_a_fired_stop_is_told_with_best_and_reason() -> None:
    (event,) = after(look([1.5, 1.4, 1.41]), look([1.5, 1.4, 1.41, 1.42]))
    assert event.text == "stage5: auto-stop stopped it at step 400: no more gain, best 1.4000 at step 200"
    assert (event.kind, event.volume, event.step) == ("fired", Volume.BELL, 400)


def test_for_a_run_that_declared_no_rule_the_stop_is_conditional() -> None:
    (event,) = after(look([1.4, 1.4], declared=False), look([1.4, 1.4, 1.4, 1.4], declared=False))
    assert "auto-stop would stop it at step 400" in event.text


def test_a_better_eval_is_a_toast_and_a_worse_one_is_nothing() -> None:
    (event,) = after(look([1.5]), look([1.5, 1.4]))
    assert event.text == "stage5: best eval_loss 1.4000 at step 200, was 1.5000"
    assert event.volume is Volume.TOAST
    assert after(look([1.4]), look([1.4, 1.5])) == []


def test_an_eval_that_is_no_number_is_told_once_beside_the_stop() -> None:
    events = after(look([1.5]), look([1.5, math.nan]))
    assert kinds(events) == ["fired", "nan"]
    assert events[1].text == "stage5: eval_loss is not a number at step 200"


def test_a_gradient_that_is_no_number_is_told_although_the_loss_says_zero() -> None:
    before = look([1.5])
    points = (TrainPoint(110, 0.0, math.nan), TrainPoint(120, 0.0, math.nan))
    bad = replace(before, history=replace(before.history, train=points))
    (event,) = after(before, bad)
    assert event.text == "stage5: the gradient norm is not a number at step 120"
    worse = replace(bad, history=replace(bad.history, train=(*points, TrainPoint(130, 0.0, math.nan))))
    assert after(before, bad, worse) == []


@pytest.mark.parametrize(
    ("state", "severity", "volume"),
    [
        ("crashed", "error", Volume.BELL),
        ("finished", "information", Volume.BELL),
        ("stopped", "information", Volume.BELL),
        ("silent", "warning", Volume.LIST),
        ("unreachable", "warning", Volume.LIST),
    ],
)
def test_a_new_state_is_told_with_its_reason(state: str, severity: str, volume: Volume) -> None:
    (event,) = after(look([1.5]), look([1.5], state=state, reason="because"))
    assert (event.severity, event.volume) == (severity, volume)
    assert event.text.endswith(": because")


def test_a_lost_link_is_told_after_two_minutes_once_and_so_is_its_return() -> None:
    alerts = Alerts()
    told = []
    for age in (10.0, LINK_S, LINK_S + 1, LINK_S + 60, 600.0):
        told += alerts.take(look([1.5], link="offline", link_age_s=age))
    assert kinds(told) == ["link"]
    assert "no answer for 2m; the run may be perfectly well" in told[0].text
    (back,) = alerts.take(look([1.5]))
    assert back.title == "link back"
    (again,) = alerts.take(look([1.5], link="stale", link_age_s=LINK_S + 1))
    assert again.title == "link lost"


def test_money_is_a_warning_before_and_an_error_after_it_is_spent() -> None:
    alerts = Alerts()
    assert kinds(alerts.take(look([1.5], budget=4.0, usd_spent=1.0, usd_at_end=3.98))) == []
    (soon,) = alerts.take(look([1.5], budget=4.0, usd_spent=1.0, usd_at_end=4.20))
    assert soon.text == "stage5: $4.20 at the end, the budget is $4.00"
    assert alerts.take(look([1.5], budget=4.0, usd_spent=3.0, usd_at_end=4.25)) == []
    (over,) = alerts.take(look([1.5], budget=4.0, usd_spent=4.01, usd_at_end=4.25))
    assert (over.severity, over.volume) == ("error", Volume.BELL)
    assert alerts.take(look([1.5], budget=4.0, usd_spent=4.05, usd_at_end=4.25)) == []
    assert kinds(alerts.take(look([1.5], budget=4.04, usd_spent=4.05))) == ["budget"]


def test_a_failed_upload_is_told_and_a_done_one_is_not() -> None:
    before = look([1.5])
    notes = (Note(100, "upload", "done at revision abc"), Note(200, "upload", "failed: 403 from the Hub"))
    (event,) = after(before, replace(before, history=replace(before.history, notes=notes)))
    assert (event.kind, event.step) == ("upload", 200)


def test_an_idle_gpu_is_told_after_five_minutes_and_not_while_one_works() -> None:
    def busy(at: float, *loads: float) -> Look:
        return look([1.5], at=at, health={"gpus": [{"util": load} for load in loads]})

    alerts = Alerts()
    assert alerts.take(busy(0, 0, 90)) == []
    assert alerts.take(busy(1000, 0, 0)) == []
    assert alerts.take(busy(1000 + IDLE_S - 1, 0, 1)) == []
    assert kinds(alerts.take(busy(1000 + IDLE_S, 0, 1))) == ["idle"]
    assert alerts.take(busy(1000 + 2 * IDLE_S, 0, 1)) == []
    assert alerts.take(busy(2000, 50, 0)) == []
    assert alerts.take(busy(2001, 0, 0)) == []


def test_a_filling_disk_is_told_at_each_level_at_the_first_look_too() -> None:
    def full(free: float, at: float = 0.0) -> Look:
        return look([1.5], at=at, health={"disk_free": free * 1e9, "disk_total": 100e9})

    alerts = Alerts()
    seen = [kinds(alerts.take(full(free))) for free in (9, 11, 9, 4, 9, 4, 1, 50)]
    assert seen == [["disk"], [], [], ["disk"], [], [], ["disk"], []]
    alerts.take(full(50, CALM_S + 1))
    assert kinds(alerts.take(full(9, CALM_S + 2))) == ["disk"]
    (event,) = Alerts().take(full(4))
    assert event.text == "stage5: 4.0 GB free on the box, 4% of its disk"


def test_troubles_of_an_ended_run_are_no_news() -> None:
    ended = look([1.5], state="finished", budget=1.0, usd_spent=9.0, health={"disk_free": 1, "disk_total": 100})
    assert Alerts().take(ended) == []


def test_another_run_at_the_same_place_begins_anew() -> None:
    alerts = Alerts()
    alerts.take(look([1.5, 1.4]))
    other = look([1.2], state="crashed")
    assert alerts.take(replace(other, history=replace(other.history, run_id="r2"))) == []


def test_a_warning_of_the_reader_is_told_once() -> None:
    alerts = Alerts()
    alerts.take(look([1.5]))
    assert kinds(alerts.take(look([1.5], warnings=("bars are buffered",)))) == ["warning"]
    assert alerts.take(look([1.5])) == []
    assert alerts.take(look([1.5], warnings=("bars are buffered",))) == []


def test_a_snapshot_is_looked_at_field_by_field() -> None:
    link = LinkView("stale", 5.0)
    snapshot = RunSnapshot("t", "n", state="running", link=link, usd_spent=1.0, at=7.0, warnings=("w",))
    seen = look_at(snapshot, budget=2.0)
    expected = Look("t", "n", snapshot.history, "running", link="stale", link_age_s=5.0, at=7.0)
    assert seen == replace(expected, usd_spent=1.0, budget=2.0, warnings=("w",))


@given(
    losses=st.lists(st.sampled_from([1.0, 1.1, 1.2, math.nan]), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 12), min_size=1, max_size=12),
)
def test_however_often_one_looks_stop_and_last_best_are_told_exactly_once(losses: list[float], cuts: list[int]) -> None:
    ends = sorted({1, *(min(c, len(losses)) for c in cuts), len(losses)})
    alerts = Alerts()
    told: list[Event] = []
    for end in ends:
        told += alerts.take(look(losses[:end]))
        told += alerts.take(look(losses[:end]))  # an unchanged run is looked at again
    stop, first = look(losses).stop, look(losses[:1]).stop
    assert kinds(told).count("fired") == int(stop.stopped_at is not None and first.stopped_at is None)
    bests = [event.step for event in told if event.kind == "best"]
    assert len(bests) == len(set(bests))
    if stop.best_step != first.best_step:
        assert bests[-1] == stop.best_step
