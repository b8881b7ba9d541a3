"""The auto-stop rule: the study's stops, the laws it must obey, and an independent brute force."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runner.autostop import Phase, StopRule, StopState, advance, earliest_stop, is_improvement, judge, replay

SEED = [(200, 1.118), (300, 1.372), (400, 1.400)]
FLAT = [(step, 1.400) for step in range(500, 2001, 100)]

finite = st.integers(0, 4000).map(lambda n: n / 1000)
losses = finite | st.sampled_from([math.nan, math.inf, -math.inf])
rules = st.builds(
    StopRule,
    patience=st.integers(1, 5),
    min_delta=st.integers(0, 50).map(lambda n: n / 1000),
    min_steps=st.integers(0, 1200),
    count_from=st.sampled_from(["min_steps", "start"]),
)


def series(values=finite, size=25):
    """`(step, loss)` with rising steps."""
    return st.lists(st.tuples(st.integers(1, 150), values), max_size=size).map(
        lambda pairs: [
            (step, loss) for step, (_, loss) in zip(itertools.accumulate(gap for gap, _ in pairs), pairs, strict=True)
        ]
    )


def by_hand(rule, evals):
    """The same rule once more, written from its description and not from its code: `(stopped_at, reason)`."""
    reference, bad = None, 0
    for step, loss in evals:
        if not math.isfinite(loss):
            return step, "non-finite"
        if rule.count_from == "min_steps" and step < rule.min_steps:
            continue
        if reference is None or round(reference - loss, 9) > round(rule.min_delta, 9):
            reference, bad = loss, 0
            continue
        bad += 1
        if bad >= rule.patience and step >= rule.min_steps:
            return step, "plateau"
    return None, None


@pytest.mark.parametrize(("count_from", "stop"), [("min_steps", 1000), ("start", 600)])
def test_the_seeds_evals_stop_where_the_study_says(count_from, stop):
    state = replay(StopRule(4, 0.003, 600, count_from), SEED + FLAT)
    assert (state.stopped_at, state.reason) == (stop, "plateau")
    assert (state.best, state.best_step) == (1.118, 200)


def test_a_falling_loss_stops_only_under_the_rule_that_remembers_the_warm_up():
    falling = [(s, 1.40 - 0.03 * i) for i, s in enumerate(range(400, 1300, 100))]
    evals = [(200, 1.118), (300, 1.372), *falling]
    assert replay(StopRule(4, 0.003, 600, "start"), evals).stopped_at == 600
    assert replay(StopRule(4, 0.003, 600, "min_steps"), evals).stopped_at is None


def test_a_slow_creep_does_not_reset_the_patience():
    creep = [(100 * i, 2.0 - 0.002 * i) for i in range(1, 10)]
    assert replay(StopRule(3, 0.01, 0), creep).stopped_at == 400
    assert replay(StopRule(3, 0.0, 0), creep).stopped_at is None


def test_a_gain_of_exactly_min_delta_is_none_in_spite_of_binary_floats():
    assert 1.118 - 1.115 > 0.003
    assert not is_improvement(1.118, 1.115, 0.003)
    assert is_improvement(1.118, 1.1149, 0.003)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("count_from", ["min_steps", "start"])
def test_a_loss_that_is_not_finite_stops_at_once_even_in_the_warm_up(bad, count_from):
    state = replay(StopRule(4, 0.003, 600, count_from), [(100, 1.5), (200, bad), (300, 1.0)])
    assert (state.stopped_at, state.reason, state.best) == (200, "non-finite", 1.5)


@pytest.mark.parametrize(
    "fields",
    [{"patience": 0}, {"min_delta": -0.1}, {"min_delta": math.nan}, {"min_steps": -1}, {"count_from": "end"}],
)
def test_a_rule_that_makes_no_sense_is_refused_by_name(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        StopRule(**fields)


def test_phases_follow_the_run():
    rule = StopRule(2, 0.01, 200)
    states = itertools.accumulate(
        [(100, 2.0), (200, 1.9), (300, 1.9), (400, 1.5), (500, 1.5), (600, 1.5)],
        lambda state, e: advance(rule, state, *e),
        initial=StopState(),
    )
    assert [s.phase for s in states] == [
        Phase.WAITING, Phase.WAITING, Phase.ARMED, Phase.COUNTING, Phase.ARMED, Phase.COUNTING, Phase.FIRED,
    ]  # fmt: skip


@given(rules, series(losses))
def test_the_machine_agrees_with_the_rule_written_by_hand(rule, evals):
    state = replay(rule, evals)
    assert (state.stopped_at, state.reason) == by_hand(rule, evals)


@given(rules, series(), st.integers(-3000, 3000))
def test_adding_the_same_to_every_loss_changes_no_stop(rule, evals, shift):
    moved = [(step, loss + shift / 1000) for step, loss in evals]
    assert replay(rule, evals).stopped_at == replay(rule, moved).stopped_at


@given(rules, series(), st.sampled_from([0.001, 0.125, 3.0, 1000.0]))
def test_scaling_losses_and_min_delta_together_changes_no_stop(rule, evals, factor):
    scaled = replace(rule, min_delta=rule.min_delta * factor)
    moved = [(step, loss * factor) for step, loss in evals]
    assert replay(rule, evals).stopped_at == replay(scaled, moved).stopped_at


@given(rules, series(losses), series(losses))
def test_stopped_stays_stopped(rule, evals, later):
    state = replay(rule, evals)
    assume(state.stopped_at is not None)
    end = evals[-1][0]
    assert replay(rule, [(end + step, loss) for step, loss in later], state) is state


@given(rules, series(losses), st.data())
def test_an_eval_seen_twice_or_late_counts_once(rule, evals, data):
    repeated = []
    for i, pair in enumerate(evals):
        repeated.append(pair)
        if data.draw(st.booleans()):
            step, _ = evals[data.draw(st.integers(0, i))]
            repeated.append((step, data.draw(losses)))
    assert repr(replay(rule, repeated)) == repr(replay(rule, evals))


@given(rules, series(losses), st.integers(0, 25))
def test_a_state_saved_in_a_checkpoint_goes_on_where_it_was(rule, evals, cut):
    saved = StopState.from_dict(replay(rule, evals[:cut]).to_dict())
    assert repr(replay(rule, evals[cut:], saved)) == repr(replay(rule, evals))


def test_a_state_of_a_later_version_is_read():
    assert StopState.from_dict({"bad": 2, "invented_later": 1}) == StopState(bad=2)


@given(rules, series(losses))
def test_advance_never_changes_the_state_it_is_given(rule, evals):
    state = StopState()
    for step, loss in evals:
        before = repr(state)
        following = advance(rule, state, step, loss)
        assert repr(state) == before
        state = following


@given(rules, series(losses))
def test_a_more_patient_rule_never_stops_sooner(rule, evals):
    patient = replay(replace(rule, patience=rule.patience + 1), evals).stopped_at
    hasty = replay(rule, evals).stopped_at
    assert patient is None or (hasty is not None and hasty <= patient)


@given(rules, series())
def test_no_plateau_stop_comes_before_min_steps_and_never_before_patience_judged_evals(rule, evals):
    state = replay(rule, evals)
    if state.reason == "plateau":
        assert state.stopped_at >= rule.min_steps
        judged = [s for s, _ in evals if rule.count_from == "start" or s >= rule.min_steps]
        assert judged.index(state.stopped_at) >= rule.patience


@given(rules, series(losses))
def test_the_best_is_the_lowest_finite_loss_that_was_taken_in(rule, evals):
    state = replay(rule, evals)
    taken = [(s, v) for s, v in evals if math.isfinite(v) and (state.stopped_at is None or s <= state.stopped_at)]
    assert state.best == min((v for _, v in taken), default=None)
    if taken:
        assert state.best_step == next(s for s, v in taken if v == state.best)


@given(rules, series(losses))
def test_the_table_of_judgements_tells_the_same_story(rule, evals):
    rows, state = judge(rule, evals), replay(rule, evals)
    taken = [e for e in evals if state.stopped_at is None or e[0] <= state.stopped_at]
    assert [r.step for r in rows] == [s for s, _ in taken]
    if rows:
        assert rows[-1].bad == state.bad
    for row in rows:
        assert row.why
        assert not (row.improved and not row.judged)
        if row.improved and row.gain is not None:
            assert is_improvement(row.loss + row.gain, row.loss, rule.min_delta) or row.gain > rule.min_delta - 1e-9


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        StopRule,
        patience=st.integers(1, 3),
        min_delta=st.just(0.25),
        min_steps=st.integers(0, 60),
        count_from=st.sampled_from(["min_steps", "start"]),
    ),
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=4),
    st.integers(1, 5),
)
def test_the_earliest_stop_is_that_of_the_worst_of_all_futures(rule, past, horizon):
    """Every sequence of three levels is tried; no future stops sooner, and one stops exactly then."""
    evals = [(10 * (i + 1), loss) for i, loss in enumerate(past)]
    state = replay(rule, evals)
    steps = [10 * (len(past) + 1 + i) for i in range(horizon)]
    stops = [
        replay(rule, zip(steps, future, strict=True), state).stopped_at
        for future in itertools.product([0.0, 0.5, 1.0, 2.0], repeat=horizon)
    ]
    assert earliest_stop(rule, state, steps) == min((s for s in stops if s is not None), default=None)


def test_the_seeds_earliest_stop_is_known_while_it_runs():
    for count_from, stop in (("min_steps", 1000), ("start", 600)):
        rule = StopRule(4, 0.003, 600, count_from)
        assert earliest_stop(rule, replay(rule, SEED), range(500, 6001, 100)) == stop


def test_the_rule_says_itself_in_words():
    assert StopRule().in_words() == (
        "stop after 4 evals in a row without a gain over 0.003, not before step 600 (judged from then on)"
    )
