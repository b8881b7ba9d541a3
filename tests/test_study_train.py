"""A fine-tune ends as it says it ends, and one that was killed goes on exactly where it was.

These run the real Trainer on a tiny model in this process; whole command lines are in test_study_run.py.
"""

import json
import math
import random
import shutil

import pytest
import torch
from transformers import TrainerCallback

from runner import rundir
from runner.autostop import Phase, StopState, replay
from runner.errors import RunExit, UsageError
from runner.study.load import load_model, read_mask
from tests.support.study import history, losses, save_checkpoint, tiny_model, tokenizer, train

pytestmark = pytest.mark.study


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_checkpoint(tiny_model(), tmp_path_factory.mktemp("base"))


class KilledError(Exception):
    """Stands for a kill: nothing of the process does anything after it."""


class KillAt(TrainerCallback):
    """Ends training in the middle of a step, or of a save, as SIGKILL would: no callback runs after it."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KilledError


@pytest.fixture(scope="module")
def straight(base, tmp_path_factory):
    """Twelve steps in one go: what every interrupted run must equal."""
    path = tmp_path_factory.mktemp("straight")
    return path, train(base, path)


def test_a_run_to_its_horizon_finishes_and_records_exact_steps(straight):
    path, outcome = straight
    assert (outcome.code, outcome.step) == (RunExit.FINISHED, 12)
    seen = history(path)
    assert [p.step for p in seen.train] == list(range(1, 13))
    assert [e.step for e in seen.evals] == [3, 6, 9, 12]
    assert seen.max_steps == 12
    assert seen.rule is not None
    assert seen.declared_stop == replay(seen.rule, seen.eval_pairs()), "the monitor's replay is the runner's machine"
    assert {pause.kind for pause in seen.pauses} == {"eval", "save"}


def test_the_newest_and_the_best_checkpoint_are_kept_whole_with_their_mask(straight):
    path, outcome = straight
    kept = rundir.checkpoints(path / "checkpoints")
    assert {rundir.checkpoint_step(p) for p in kept} >= {12, outcome.machine.best_step}
    assert len(kept) <= 3
    assert outcome.best is not None
    for checkpoint in kept:
        assert rundir.verify_manifest(checkpoint) == []
        assert read_mask(checkpoint) == "prompt_bidirectional"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kills_at_random_points_change_no_loss_and_no_weight(base, straight, tmp_path, seed):
    """N steps with kills are the same N steps: losses, evals, weights, auto-stop state."""
    kills = sorted(random.Random(seed).sample(range(1, 12), 3))
    for step in kills:
        with pytest.raises(KilledError):
            train(base, tmp_path, resume=True, extra=(KillAt(step),))
    outcome = train(base, tmp_path, resume=True)
    path, wanted = straight
    assert losses(tmp_path) == losses(path)
    assert history(tmp_path).eval_pairs() == history(path).eval_pairs()
    assert outcome.machine == wanted.machine
    last = [load_model(p / "checkpoints" / "checkpoint-12", mask="prompt_bidirectional").model
            for p in (tmp_path, path)]  # fmt: skip
    for ours, theirs in zip(*(model.parameters() for model in last), strict=True):
        assert torch.equal(ours, theirs)


def test_a_torn_checkpoint_is_skipped_and_the_run_still_ends_the_same(base, straight, tmp_path):
    with pytest.raises(KilledError):
        train(base, tmp_path, extra=(KillAt(8),))
    newest = rundir.newest_whole_checkpoint(tmp_path / "checkpoints")
    assert rundir.checkpoint_step(newest) == 6
    torn = tmp_path / "checkpoints" / "checkpoint-7"
    shutil.copytree(newest, torn)
    (torn / "model.safetensors").write_bytes(b"half")
    assert train(base, tmp_path, resume=True).step == 12
    assert losses(tmp_path) == losses(straight[0])
    assert not torn.exists(), "and it is tidied away"


def test_a_plateau_stops_at_the_same_step_with_and_without_kills(base, tmp_path):
    rule = ("max_steps=40", "patience=2", "min_delta=10", "min_steps=6")
    whole = train(base, tmp_path / "a", *rule)
    assert (whole.code, whole.reason, whole.step) == (RunExit.AUTO_STOPPED, "plateau", 12)
    for step in (7, 10):
        with pytest.raises(KilledError):
            train(base, tmp_path / "b", *rule, resume=True, extra=(KillAt(step),))
    again = train(base, tmp_path / "b", *rule, resume=True)
    assert (again.step, again.machine) == (whole.step, whole.machine)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    phases = [json.loads(line)["phase"] for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
              if '"autostop"' in line]  # fmt: skip
    assert phases == ["waiting", "armed", "counting", "fired"]


def test_a_run_that_had_stopped_itself_is_not_trained_on_when_resumed(base, tmp_path):
    rule = ("max_steps=40", "patience=1", "min_delta=10", "min_steps=3")
    first = train(base, tmp_path, *rule)
    again = train(base, tmp_path, *rule, resume=True)
    assert (again.code, again.step, again.runtime_s) == (RunExit.AUTO_STOPPED, first.step, 0.0)
    assert again.machine.phase is Phase.FIRED


def test_a_stop_request_saves_a_whole_checkpoint_and_says_who_asked(base, tmp_path):
    tmp_path.mkdir(exist_ok=True)
    rundir.write_stop_request(tmp_path, "the laptop asked")
    outcome = train(base, tmp_path)
    assert (outcome.code, outcome.reason) == (RunExit.STOPPED, "asked: the laptop asked")
    whole = rundir.newest_whole_checkpoint(tmp_path / "checkpoints")
    assert rundir.checkpoint_step(whole) == outcome.step < 12
    assert [note.text for note in history(tmp_path).notes if note.kind == "ack"] == ["stop the laptop asked"]


def test_a_stop_for_the_budget_has_its_own_code(base, tmp_path):
    rundir.write_stop_request(tmp_path, "budget of $5 reached")
    assert train(base, tmp_path).code is RunExit.LIMIT


def test_a_stop_and_a_resume_equal_the_straight_run(base, straight, tmp_path):
    class AskAt(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 4:
                rundir.write_stop_request(tmp_path, "pause")

    stopped = train(base, tmp_path, extra=(AskAt(),))
    assert (stopped.code, stopped.step) == (RunExit.STOPPED, 5)
    (tmp_path / rundir.STOP_REQUEST).unlink()
    train(base, tmp_path, resume=True)
    assert losses(tmp_path) == losses(straight[0])


def test_a_run_at_its_horizon_is_not_trained_a_step_further_when_resumed(base, tmp_path):
    train(base, tmp_path, "max_steps=3")
    again = train(base, tmp_path, "max_steps=3", resume=True)
    assert (again.code, again.step) == (RunExit.FINISHED, 3)
    assert set(losses(tmp_path)) == {1, 2, 3}


def test_a_loss_that_is_no_number_stops_with_its_step_and_saves_nothing(base, tmp_path):
    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            if state.global_step == 4:
                with torch.no_grad():
                    next(model.parameters()).fill_(math.nan)

    outcome = train(base, tmp_path, extra=(Poison(),))
    assert outcome.code is RunExit.AUTO_STOPPED
    assert outcome.reason == "non-finite: loss is nan at step 5"
    whole = rundir.newest_whole_checkpoint(tmp_path / "checkpoints")
    assert rundir.checkpoint_step(whole) == 3, "the last good weights are the newest"


def test_an_eval_that_is_no_number_stops_at_once(base, tmp_path):
    class PoisonBeforeEval(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            if state.global_step == 3:
                with torch.no_grad():
                    next(model.parameters()).fill_(math.nan)

    outcome = train(base, tmp_path, "logging_steps=100", extra=(PoisonBeforeEval(),))
    assert (outcome.code, outcome.step) == (RunExit.AUTO_STOPPED, 3)
    assert outcome.reason == "non-finite: eval_loss at step 3"
    assert outcome.machine == StopState(armed_at=3, last_step=3, stopped_at=3, reason="non-finite")
    assert rundir.checkpoints(tmp_path / "checkpoints") == []


def test_the_horizon_is_saved_although_it_is_no_multiple_of_save_steps(base, tmp_path):
    outcome = train(base, tmp_path, "max_steps=5", "save_steps=100", "eval_steps=100")
    assert outcome.code is RunExit.FINISHED
    assert rundir.checkpoint_step(rundir.newest_whole_checkpoint(tmp_path / "checkpoints")) == 5


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer=adamw_8bit", "needs a CUDA GPU"),
        ("attention=flex_attention", "trains on a CUDA GPU only"),
    ],
)
def test_settings_this_machine_cannot_do_are_sentences(base, tmp_path, override, says):
    with pytest.raises(UsageError, match=says):
        train(base, tmp_path, override)


@pytest.mark.parametrize(
    "override",
    ["lora_rank=4", "optimizer=adafactor", "activation_checkpointing=true", "loss_chunk=3", "precision=bf16_autocast"],
)
def test_the_other_ways_to_train_run_and_lower_the_loss(base, tmp_path, override):
    outcome = train(base, tmp_path, "learning_rate=5e-3", override)
    seen = losses(tmp_path)
    assert outcome.code is RunExit.FINISHED
    assert seen[12] < seen[1]


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(base, straight, tmp_path):
    train(base, tmp_path / "same")
    assert losses(tmp_path / "same") == losses(straight[0])
    train(base, tmp_path / "other", "data.seed=18")
    assert losses(tmp_path / "other") != losses(straight[0])


def test_the_tokenizer_travels_with_each_checkpoint(straight):
    loaded = load_model(straight[1].best, mask="prompt_bidirectional")
    assert loaded.tokenizer("a1")["input_ids"] == tokenizer()("a1")["input_ids"]
