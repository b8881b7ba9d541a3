"""What is asked of a run while it trains: obeyed between two steps, answered, remembered; or refused in a sentence.

These run the real Trainer on a tiny model in this process; over SSH it is in test_rule_apply.py.
"""

import pytest
from transformers import TrainerCallback

from runner import rundir
from runner.autostop import StopRule, replay
from runner.config import load_recipe
from runner.errors import RunExit
from runner.requests import Request, pending, write_request
from tests.support.study import history, losses, save_checkpoint, tiny_model, tiny_recipe, train

pytestmark = pytest.mark.study


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_checkpoint(tiny_model(), tmp_path_factory.mktemp("base"))


class KilledError(Exception):
    """Stands for a kill: nothing of the process does anything after it."""


class At(TrainerCallback):
    """Does one thing before the step after `step`."""

    def __init__(self, step, act):
        self.step = step
        self.act = act

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            self.act()


def kill():
    raise KilledError


def ask(path, kind, **body):
    request = Request(kind, body=body)
    write_request(path, request)
    return request.id


def answers(path):
    return [(ack.kind, ack.accepted, ack.detail, ack.step) for ack in history(path).acks]


LONG = ("max_steps=30", "patience=9", "min_delta=10", "min_steps=6")
"""Never improves by 10, so every eval after the first judged one counts against the patience."""


def test_another_rule_is_taken_up_at_the_next_step_and_ends_the_run(base, tmp_path, capsys):
    said = []
    outcome = train(base, tmp_path, *LONG, extra=(At(7, lambda: said.append(ask(tmp_path, "rule", patience=2))),))
    rule = StopRule(2, 10, 6)
    assert (outcome.code, outcome.step) == (RunExit.AUTO_STOPPED, 12), "evals at 6, 9 and 12"
    seen = history(tmp_path)
    assert seen.rule == rule
    assert seen.obeys == ("rule", "save")
    assert answers(tmp_path) == [("rule", True, rule.in_words(), 8)]
    assert [ack.id for ack in seen.acks] == said
    assert seen.declared_stop == outcome.machine == replay(rule, seen.eval_pairs())
    assert pending(tmp_path) == []
    assert load_recipe(tmp_path / "config.toml", env={}).stop_rule == rule
    assert f"auto-stop: the rule was changed at step 8: {rule.in_words()}" in capsys.readouterr().out


def test_a_rule_that_sees_a_plateau_in_the_past_ends_the_run_now_with_a_checkpoint(base, tmp_path):
    outcome = train(base, tmp_path, *LONG, extra=(At(13, lambda: ask(tmp_path, "rule", patience=1)),))
    assert (outcome.code, outcome.reason, outcome.step) == (RunExit.AUTO_STOPPED, "plateau", 14)
    assert outcome.machine.stopped_at == 14
    assert outcome.machine.best == min(loss for _, loss in history(tmp_path).eval_pairs())
    assert rundir.checkpoint_step(rundir.newest_whole_checkpoint(tmp_path / "checkpoints")) == 14
    [(_, accepted, detail, step)] = answers(tmp_path)
    assert accepted
    assert step == 14
    assert detail.endswith("it sees a plateau since step 9: stops now")
    again = train(base, tmp_path, *LONG, resume=True)
    assert (again.code, again.step) == (RunExit.AUTO_STOPPED, 14), "and a resume does not train on"


def test_a_changed_rule_survives_a_kill_although_no_checkpoint_has_it(base, tmp_path):
    asked = At(7, lambda: ask(tmp_path, "rule", patience=3))
    with pytest.raises(KilledError):
        train(base, tmp_path, *LONG, extra=(asked, At(8, kill)))
    assert rundir.checkpoint_step(rundir.newest_whole_checkpoint(tmp_path / "checkpoints")) == 6
    outcome = train(base, tmp_path, *LONG, resume=True)
    assert (outcome.code, outcome.step) == (RunExit.AUTO_STOPPED, 15)
    assert history(tmp_path).rule == StopRule(3, 10, 6)
    assert load_recipe(tmp_path / "config.toml", env={}).stop_rule == StopRule(3, 10, 6)


def test_a_checkpoint_takes_the_changed_rule_to_another_box(base, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    with pytest.raises(KilledError):
        train(base, old, *LONG, extra=(At(7, lambda: ask(old, "rule", patience=3)), At(10, kill)))
    new.mkdir()
    (old / "checkpoints").rename(new / "checkpoints")
    outcome = train(base, new, *LONG, resume=True)
    assert (outcome.code, outcome.step) == (RunExit.AUTO_STOPPED, 15)
    assert history(new).rule == StopRule(3, 10, 6)


def test_who_changes_the_recipe_afterwards_means_the_recipe(base, tmp_path):
    with pytest.raises(KilledError):
        train(base, tmp_path, *LONG, extra=(At(7, lambda: ask(tmp_path, "rule", patience=3)), At(10, kill)))
    outcome = train(base, tmp_path, *LONG, "patience=4", resume=True)
    assert (outcome.code, outcome.step) == (RunExit.AUTO_STOPPED, 18)
    assert history(tmp_path).rule == StopRule(4, 10, 6)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"patience": 0}, "patience must be at least 1 evaluation, not 0"),
        ({"patience": 2.5}, "patience is counted: a whole number, not 2.5"),
        ({"patience": True}, "patience is counted: a whole number, not True"),
        ({"min_delta": -0.1}, "min_delta must be a loss of 0 or more, not -0.1"),
        ({"min_delta": "small"}, "min_delta is a loss: a number, not 'small'"),
        ({"count_from": "now"}, "count_from must be 'min_steps' or 'start', not 'now'"),
        ({"patiense": 3}, "an auto-stop rule has no 'patiense'; it has count_from, min_delta, min_steps, patience"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_and_nothing_changes(base, tmp_path, body, says):
    tmp_path.mkdir(exist_ok=True)
    ask(tmp_path, "rule", **body)
    outcome = train(base, tmp_path, "max_steps=3")
    assert outcome.code is RunExit.FINISHED
    assert answers(tmp_path) == [("rule", False, says, 1)]
    assert history(tmp_path).rule == tiny_recipe(base).stop_rule
    assert pending(tmp_path) == []


def test_what_cannot_be_read_or_is_not_known_is_refused(base, tmp_path):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "rule.request").write_bytes(b"\x00 not a request")
    (tmp_path / "dance.request").write_bytes(Request("dance", "1").to_bytes())
    train(base, tmp_path, "max_steps=3")
    assert answers(tmp_path) == [
        ("dance", False, "this run does not know the request 'dance'", 1),
        ("rule", False, "rule.request is not a request that can be read", 1),
    ]


def test_a_checkpoint_is_saved_when_it_is_asked_for_and_training_goes_on_the_same(base, tmp_path):
    train(base, tmp_path / "straight", "max_steps=9")
    path = tmp_path / "asked"
    outcome = train(base, path, "max_steps=9", extra=(At(4, lambda: ask(path, "save")),))
    assert (outcome.code, outcome.step) == (RunExit.FINISHED, 9)
    assert answers(path) == [("save", True, "saving a checkpoint at step 5", 5)]
    assert 5 in [pause.step for pause in history(path).pauses if pause.kind == "save"]
    assert losses(path) == losses(tmp_path / "straight")


def test_a_request_that_comes_too_late_is_answered_too(base, tmp_path):
    class AtTheEnd(TrainerCallback):
        def on_train_end(self, args, state, control, **_):
            ask(tmp_path, "rule", patience=2)

    train(base, tmp_path, "max_steps=3", extra=(AtTheEnd(),))
    assert answers(tmp_path) == [("rule", False, "training is over", 3)]
