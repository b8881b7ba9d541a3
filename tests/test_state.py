"""One word for how a run is, in every combination of what can be known."""

import pytest

from runner.history import EvalPoint, Frame, Pause, RunHistory
from runner.rundir import Status
from runner.state import QUIET_FLOOR_S, judge_state, quiet_after

RUNNING = RunHistory(step=40, max_steps=100, evals=(EvalPoint(20, 1.5),))


def word(history, status=None, age=1.0, alive=None, link_ok=True):
    return judge_state(history, status, log_age_s=age, alive=alive, link_ok=link_ok)[0]


@pytest.mark.parametrize("ended", ["finished", "stopped", "crashed"])
def test_what_the_log_says_of_the_end_stands(ended):
    assert word(RunHistory(step=40, max_steps=100, ended=ended), age=1e6) == ended


def test_a_link_that_is_down_never_makes_a_run_dead():
    assert word(RUNNING, link_ok=False, age=1e6, alive=None) == "unreachable"
    assert word(RUNNING, Status(state="running"), link_ok=False, alive=False) == "unreachable"


def test_an_ended_run_stays_ended_behind_a_dead_link():
    assert word(RUNNING, Status(state="finished", rc=0), link_ok=False) == "finished"


def test_a_status_knows_better_than_the_log_that_training_was_not_the_last_stage():
    log = RunHistory(step=100, max_steps=100, ended="finished")
    assert word(log, Status(state="running")) == "running"
    assert word(log, Status(state="stopped", rc=10)) == "stopped"


def test_the_exit_code_is_said_in_words():
    _, reason = judge_state(RUNNING, Status(state="crashed", rc=20), log_age_s=1, alive=False)
    assert reason == "CUDA out of memory"
    _, reason = judge_state(RUNNING, Status(state="crashed", rc=3, reason="ValueError: no"), log_age_s=1, alive=False)
    assert reason == "ValueError: no"
    _, reason = judge_state(RUNNING, Status(state="crashed", rc=3), log_age_s=1, alive=False)
    assert reason == "exit code 3"


def test_a_process_that_is_gone_without_a_word_was_lost():
    state, reason = judge_state(RUNNING, Status(state="running"), log_age_s=1, alive=False)
    assert (state, "last word" in reason) == ("crashed", True)


def test_asked_to_stop_is_still_running():
    status = Status(state="stopping", reason="asked to stop: budget")
    assert judge_state(RUNNING, status, log_age_s=1, alive=True) == ("running", "asked to stop: budget")


def test_silence_is_measured_against_the_runs_own_pace():
    slow = RunHistory(
        step=3, max_steps=10, frames=(Frame(1, 60.0, 0), Frame(3, 180.0, 0)), pauses=(Pause(2, "eval", 100.0),)
    )
    assert quiet_after(slow) == 1200
    assert word(slow, age=1000) == "running"
    assert word(slow, age=1300) == "silent"
    assert quiet_after(RUNNING) == QUIET_FLOOR_S
    assert word(RUNNING, age=QUIET_FLOOR_S + 1) == "silent"


def test_a_step_that_goes_on_is_no_silence_even_if_the_log_is():
    status = Status(state="running", mono=1000.0, step_mono=995.0)
    assert word(RUNNING, status, age=1e4, alive=True) == "running"
    stalled = Status(state="running", mono=9000.0, step_mono=995.0)
    assert word(RUNNING, stalled, age=1e4, alive=True) == "silent"


def test_before_the_first_step_a_run_is_starting():
    assert word(RunHistory(), Status(state="starting")) == "starting"
    assert word(RunHistory(step=0, max_steps=10)) == "starting"


def test_progress_is_said_in_words():
    assert judge_state(RUNNING, None, log_age_s=1, alive=None)[1] == "step 40 of 100"
    assert judge_state(RunHistory(step=4, stage="stage2"), None, log_age_s=1, alive=None)[1] == "at stage2"
