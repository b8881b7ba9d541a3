"""What the screens say, as pure text: the top line, the verdict, the quotes, the rows of the lists."""

from __future__ import annotations

import doctest
import importlib
import math
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.autostop import StopRule
from runner.history import EvalPoint, Frame, Pause, RunHistory, TrainPoint
from tests.support.tui import RULE, demo_history, history, snapshot
from tui import quote_words, stop_words, words
from tui.curves import CurveCache, View, charts, seconds_at, step_clock, step_times
from tui.document import watch_document, watch_lines
from tui.offer_rows import front
from tui.run_rows import RunRow, sort_key, spark
from tui.session import run_name
from tui.snapshot import LinkView, QuoteRow
from tui.tail import LogTail, collapse
from tui.widgets.panes import stage_line
from tui.widgets.status_line import ALWAYS, GAP, fit, parts


@pytest.mark.parametrize("module", ["tui.words", "tui.run_rows", "tui.offer_rows", "tui.session"])
def test_the_examples_in_the_docstrings_are_true(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@given(
    st.integers(40, 200),
    st.sampled_from(["running", "crashed", "silent", "unreachable", "starting"]),
    st.sampled_from([0.0, 0.7411, None]),
    st.sampled_from(["live", "stale", "reconnecting", "offline"]),
    st.text(min_size=0, max_size=80),
)
@settings(max_examples=60, deadline=None)
def test_the_top_line_fits_and_never_cuts_the_time_left_or_the_dollars(width, state, dph, link, name):
    one = replace(SEED, state=state, dph=dph, name=name, link=LinkView(link, 23.0))
    shown = fit(parts(one), width)
    line = GAP.join(form for form, _ in shown)
    from rich.cells import cell_len

    assert cell_len(line) <= width
    always = [part for part in parts(one) if part.priority >= ALWAYS]
    assert len(always) == 2
    assert all(any(form in line for form in part.forms) for part in always)


SEED = snapshot()


def test_at_80_columns_the_link_and_the_state_are_still_told():
    line = GAP.join(form for form, _ in fit(parts(SEED), 78))
    assert "●" in line
    assert "457/6000" in line
    assert "running" in line


def test_the_verdict_walks_from_waiting_over_armed_and_counting_to_fired():
    def verdict(evals, step):
        run = replace(history(step), evals=tuple(EvalPoint(s, v) for s, v in evals))
        one = snapshot(run)
        return stop_words.phase_words(one, one.ruling)[0]

    flat = [(200, 1.118), (300, 1.372), (400, 1.4)]
    assert verdict(flat, 457).startswith("waiting for step 600 (143 steps, ~6m")
    assert verdict([*flat, (600, 1.4)], 610) == "armed: reference 1.4000 of step 600"
    assert verdict([*flat, (600, 1.4), (700, 1.4)], 710) == "1 of 4 without gain since step 600"
    flat += [(s, 1.4) for s in (500, 600, 700, 800, 900, 1000)]
    assert verdict(flat, 1000) == "fired: stopped at step 1000 (plateau, best 1.1180 @200)"


def test_a_foreign_log_shows_both_readings_of_the_rule():
    """The study's three evals and a flat rest stop at 1000 judged from min_steps on, at 600 counted from the start."""
    evals = [(200, 1.118), (300, 1.372), (400, 1.4), *((s, 1.4) for s in range(500, 1100, 100))]
    run = replace(history(1050, rule=None), evals=tuple(EvalPoint(s, v) for s, v in evals))
    one = snapshot(run)
    assert not one.declared
    assert one.ruling.state.stopped_at == 1000
    assert one.other.state.stopped_at == 600
    text = stop_words.panel(one, {}, 60).plain
    assert "assumed: stop after 4 evals" in text
    assert "counted from the start: would have stopped at step 600" in text


def test_every_eval_is_told_with_the_reason_why_it_counted():
    text = stop_words.panel(snapshot(history(457)), {}, 80).plain
    assert "not judged: before step 600" in text
    assert "1.1180" in text
    assert "★" in text


def test_a_pending_eval_is_told_as_pending():
    text = stop_words.panel(snapshot(replace(history(457), pending_evals=(400,))), {}, 60).plain
    assert "pending" in text


def test_quotes_put_the_present_box_first_and_the_cheapest_next():
    one = snapshot()
    rows = quote_words.ordered(one)
    assert rows[0].stay
    assert [r.usd[1] for r in rows[1:]] == sorted(r.usd[1] for r in rows[1:])
    for width in (46, 100):
        text = quote_words.panel(one, {}, width).plain
        assert text.splitlines()[1 if width == 100 else 0].startswith("stay: this box")
        assert all(len(line) <= width for line in text.splitlines())


def test_without_a_horizon_the_quotes_say_what_is_missing():
    text = quote_words.panel(snapshot(replace(history(), max_steps=None)), {}, 40).plain
    assert "planned steps" in text


def test_the_strip_of_stages_marks_the_one_under_way():
    assert (
        stage_line(demo_history(), {}).plain == "✓ stage1 0.930 › ✓ stage2 0.574 › ▸ stage5 › · stage4 › · non_prefill"
    )
    assert stage_line(history(), {}) is None


def test_seconds_per_step_leave_out_evals_and_saves():
    frames = tuple(Frame(i, 2.5 * i + (i > 10) * 40.0 + (i > 20) * 10.0, 0) for i in range(1, 40))
    run = RunHistory(frames=frames, pauses=(Pause(10, "eval", 40.0, 0), Pause(20, "save", 10.0, 0)))
    assert {round(y, 9) for _, y in step_times(run)} == {2.5}


def test_whole_seconds_of_a_log_are_joined_before_they_are_divided():
    frames = tuple(Frame(i, float(int(0.4 * i)), 0) for i in range(1, 400))
    assert all(0.3 < y < 0.5 for _, y in step_times(RunHistory(frames=frames)))


def test_a_restart_counts_its_time_on_and_not_anew():
    frames = (Frame(10, 10.0, 0), Frame(20, 20.0, 0), Frame(20, 0.0, 1), Frame(30, 10.0, 1))
    clock = step_clock(RunHistory(frames=frames))
    assert seconds_at(clock, 30) == 30.0
    assert seconds_at(clock, 15) == 15.0
    assert seconds_at(clock, 60) == 60.0


def test_a_loss_of_zero_with_a_gradient_that_is_no_number_is_drawn_as_a_gap():
    run = RunHistory(train=(TrainPoint(1, 2.0, 1.0), TrainPoint(2, 0.0, math.nan), TrainPoint(3, 0.0, 0.5)))
    curve = CurveCache().curve(run, "loss", "step")
    assert math.isnan(curve.ys[1])
    assert curve.ys[2] == 0.0


@pytest.mark.parametrize("mode", ["step", "time", "log"])
def test_the_eval_chart_draws_best_rule_and_projection(mode):
    spec = charts(snapshot(), View(x_mode=mode), CurveCache())["eval"]
    assert [m.glyph for m in spec.marks] == ["★"]
    assert [v.label.split()[0] for v in spec.vlines] == ["min_steps", "stop"]
    assert [s.role for s in spec.spans] == ["projected"]
    if mode == "step":
        assert (spec.marks[0].x, spec.marks[0].y) == (200, 1.118)


def test_while_counting_the_patience_window_and_the_value_to_beat_are_drawn():
    run = replace(history(810), evals=tuple(EvalPoint(s, 1.4) for s in (600, 700, 800)))
    spec = charts(snapshot(run), View(), CurveCache())["eval"]
    assert [(s.lo, s.hi) for s in spec.spans if s.role == "patience"] == [(600, 800)]
    assert [line.label for line in spec.hlines] == ["to beat 1.3970"]


def test_the_document_has_the_shape_of_the_contract_and_no_number_that_json_lacks():
    run = replace(history(), evals=(EvalPoint(200, 1.118), EvalPoint(300, math.nan)))
    document = watch_document(snapshot(run))
    assert set(document["run"]) >= {"target", "state", "reason"}
    wanted = {"step", "max_steps", "elapsed_s", "step_s", "effective_steps_per_s", "eta_s"}
    assert set(document["progress"]) >= wanted
    wanted = {"state", "best", "best_step", "bad", "patience", "min_delta", "min_steps", "count_from", "stop_step"}
    assert set(document["autostop"]) >= wanted | {"projected"}
    assert document["autostop"]["state"] == "fired"
    assert any("step 300 is nan" in w for w in document["warnings"])


def test_the_text_of_once_tells_progress_verdict_and_evals():
    text = "\n".join(watch_lines(snapshot()))
    for wanted in ("457/6000", "s/step", "waiting for step 600", "1.1180", "declared by the run"):
        assert wanted in text


def test_bars_collapse_to_what_they_were_last():
    assert collapse("\r  1%|| 1/60\r  2%|| 2/60") == "  2%|| 2/60"
    assert collapse("\r          \r{'loss': 1.0}\x1b[A") == "{'loss': 1.0}"


def test_the_tail_follows_a_growing_file_and_starts_again_when_it_shrinks(tmp_path):
    path, tail = tmp_path / "log.txt", LogTail(keep=3)
    assert tail.read(path) == ()
    path.write_text("one\ntwo\nthree\nfour\nhalf")
    assert tail.read(path) == ("two", "three", "four", "half")
    with path.open("a") as file:
        file.write(" line\n")
    assert tail.read(path)[-1] == "half line"
    assert tail.read(path) is tail.read(path)
    path.write_text("new\n")
    assert tail.read(path) == ("new",)


def test_the_front_holds_the_offers_that_nothing_beats():
    def offer(name, h, usd):
        return QuoteRow(name, name, 1.0, (h, h, h), (usd, usd, usd))

    assert front([offer("slow", 9, 1), offer("fast", 1, 9), offer("both", 5, 5), offer("worse", 6, 6)]) == {
        "slow",
        "fast",
        "both",
    }


def test_runs_without_a_value_come_last_in_every_order():
    rows = [RunRow("a", "a"), RunRow("b", "b", snapshot=snapshot(target="b")), RunRow("c", "c", noted=3.0)]
    for column in ("step", "eval", "best", "speed"):
        assert min(rows, key=sort_key(column)).name == "b"
    assert min(rows, key=sort_key("age")).name == "c"


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20))
@example([5.146327495574951, 2.494830846786499, 2.1195731163024902])
def test_a_sparkline_is_drawn_of_any_numbers_and_its_highest_is_full(values: list[float]) -> None:
    drawn = spark(values)
    newest = values[-12:]
    finite = [v for v in newest if math.isfinite(v)]
    assert len(drawn) == (len(newest) if finite else 0)
    if finite and max(finite) / 2 > min(finite) / 2:
        assert drawn[newest.index(max(finite))] == "█"


def test_a_sparkline_leaves_a_hole_for_a_value_that_is_no_number():
    assert spark([2.0, math.nan, 1.0]) == "█ ▁"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/demo/20261123-101500", "demo/20261123-101500"),
        ("/root/x/runs/stage5/20260215-104518/log.txt", "stage5/20260215-104518"),
        ("logs/train.log", "train.log"),
    ],
)
def test_a_run_is_called_by_the_end_of_its_path(path, name):
    assert run_name(path) == name


def test_the_rule_of_the_command_line_lies_over_the_declared_one():
    from tui.snapshot import RuleChoice

    assert RuleChoice().over(RULE) == (RULE, True)
    rule, declared = RuleChoice(patience=2).over(RULE)
    assert (rule.patience, rule.min_delta, declared) == (2, 0.003, False)
    assert RuleChoice(min_steps=10).over(None) == (StopRule(min_steps=10), False)


def test_durations_and_losses_are_short():
    assert words.duration(86400 * 2 + 3 * 3600) == "2d03h"
    assert words.per_step(0.05) == "50 ms/step"
    assert words.shorten("abcdefghij", 5) == "ab…ij"


@pytest.mark.parametrize("seen", [0, 1, 2, 3])
def test_a_run_with_few_evals_has_a_snapshot_with_a_projection(seen):
    run = history(457)
    one = snapshot(replace(run, evals=run.evals[:seen]))
    assert one.ruling.projection is not None
    assert one.quotes


def test_a_rule_that_begins_after_the_last_step_is_told_as_one_that_cannot_fire():
    one = snapshot(replace(history(457), max_steps=500))
    assert stop_words.phase_words(one, one.ruling)[0] == "cannot fire: the run ends at step 500, before step 600"
    reach = charts(one, View(), CurveCache())["loss"].x_reach
    assert reach is not None
    assert reach <= 500


def test_a_log_that_is_caught_up_makes_a_snapshot_now_and_then_and_the_last_one_at_once():
    from tests.support.tui import Read
    from tui.poller import Watch
    from tui.snapshot import SnapshotMaker

    class CatchingUp(Read):
        caught_up = False

    class Slow:
        reads = [CatchingUp(history(n)) for n in (10, 20, 30, 40)] + [Read(history(50))]

        def tick(self):
            return self.reads.pop(0)

        def close(self):
            pass

    watch = Watch(Slow, SnapshotMaker("x", "x"))
    made = [watch.look(now) for now in (0.0, 0.2, 0.4, 0.9, 1.0)]
    assert [one.step if one else None for one in made] == [10, None, None, 40, 50]
    assert not watch.behind


def test_before_training_the_panel_promises_no_projection_and_names_the_rule_as_a_guess():
    text = stop_words.panel(snapshot(RunHistory(), state="starting"), {}, 45).plain
    assert text.startswith("waiting for the first step\n")
    assert "for any other one this is assumed" in text
    assert "no projection" not in text
    begun = stop_words.panel(snapshot(RunHistory(source="metrics", max_steps=600, step=0), state="starting"), {}, 45)
    assert "waiting for step 600" in begun.plain


def test_once_its_own_rule_has_fired_a_run_that_goes_on_has_no_time_left_to_train():
    evals = tuple(EvalPoint(step, 1.4, 7.7) for step in range(500, 1100, 100))
    fired = snapshot(replace(history(1000), evals=evals))
    line = " ".join(part.forms[0] for part in parts(fired))
    assert "training is done" in line
    assert "ETA" not in line
    assert "ETA" in " ".join(part.forms[0] for part in parts(snapshot()))
