"""The audit passes what is sound and catches a leaking mask, a leaking collator and a shifted label."""

import json
import subprocess
import sys

import pytest
import torch

from runner.study.audit import Auditor, overlap
from runner.study.data import IGNORE, Pair, PrefixCollator, Prepared, Rows, encode_pair, prepare
from runner.study.mask import PrefixMinistral3ForCausalLM
from tests.support.study import save_checkpoint, tiny_model, tokenizer, trainer_environment

pytestmark = pytest.mark.study

MASKS = pytest.mark.parametrize("mask", ["causal", "prompt_bidirectional"])


def failed(model, mask, collate=None):
    return {f.name for f in Auditor(model, tokenizer(), mask, collate=collate).run() if not f.ok}


@MASKS
@pytest.mark.parametrize("family", ["ministral3", "llama"])
def test_a_sound_model_passes_every_check(mask, family):
    assert failed(tiny_model(mask, family=family), mask) == set()


def as_leaking(model, leak):
    """The same weights behind a forward that was tampered with."""

    class Leaking(PrefixMinistral3ForCausalLM):
        def forward(self, input_ids=None, prompt_ids=None, labels=None, **given):
            return leak(super().forward, input_ids, prompt_ids, labels, given)

    model.__class__ = Leaking
    return model


def test_a_mask_that_shows_the_answer_to_itself_is_caught():
    def leak(forward, ids, prompt_ids, labels, given):
        return forward(input_ids=ids, prompt_ids=torch.zeros_like(ids), labels=labels, **given)

    assert "answer is causal" in failed(as_leaking(tiny_model(), leak), "prompt_bidirectional")


def test_a_mask_that_ends_one_token_late_is_caught():
    """The smallest leak there is: the first answer token is counted to the prompt."""

    def leak(forward, ids, prompt_ids, labels, given):
        late = torch.where(torch.roll(prompt_ids, 1, 1) == 0, 0, prompt_ids)
        return forward(input_ids=ids, prompt_ids=late, labels=labels, **given)

    assert "answer is causal" in failed(as_leaking(tiny_model(), leak), "prompt_bidirectional")


def test_a_model_that_is_causal_although_it_says_otherwise_is_caught():
    def leak(forward, ids, prompt_ids, labels, given):
        return forward(input_ids=ids, prompt_ids=torch.full_like(ids, -1), labels=labels, **given)

    assert "prompt mask" in failed(as_leaking(tiny_model(), leak), "prompt_bidirectional")


def test_a_model_that_looks_at_its_padding_is_caught():
    def leak(forward, ids, prompt_ids, labels, given):
        given = {k: v for k, v in given.items() if k not in ("attention_mask", "position_ids")}
        everything = torch.zeros_like(ids) if ids.shape[1] > 7 else prompt_ids
        return forward(input_ids=ids, prompt_ids=everything, labels=labels, **given)

    assert "padding" in failed(as_leaking(tiny_model(), leak), "prompt_bidirectional")


def test_a_prefill_that_differs_from_the_full_forward_is_caught():
    def leak(forward, ids, prompt_ids, labels, given):
        cached = given.get("past_key_values") is not None
        return forward(
            input_ids=ids, prompt_ids=torch.full_like(prompt_ids, -1) if cached else prompt_ids, labels=labels, **given
        )

    assert "cache" in failed(as_leaking(tiny_model(), leak), "prompt_bidirectional")


class Tampered(PrefixCollator):
    """A collator with a fault put in after the fact."""

    def __init__(self, fault, mask="prompt_bidirectional"):
        super().__init__(tokenizer().pad_token_id, mask)
        object.__setattr__(self, "fault", fault)

    def __call__(self, rows):
        batch = super().__call__(rows)
        self.fault(batch, rows)
        return batch


def label_the_prompt(batch, rows):
    batch["labels"][0, rows[0]["prompt_len"] - 1] = batch["input_ids"][0, rows[0]["prompt_len"] - 1]


def widen_the_block(batch, rows):
    batch["prompt_ids"][0, rows[0]["prompt_len"]] = 0


def label_the_padding(batch, rows):
    batch["labels"] = torch.where(batch["attention_mask"] == 0, 1, batch["labels"])
    batch["labels"][0, len(rows[0]["input_ids"]) - 1] = IGNORE


def shift_the_labels(batch, rows):
    batch["labels"] = torch.roll(batch["labels"], -1, 1)


@pytest.mark.parametrize("fault", [label_the_prompt, widen_the_block, label_the_padding, shift_the_labels])
def test_a_collator_with_a_fault_is_caught(fault):
    assert "labels" in failed(tiny_model(), "prompt_bidirectional", Tampered(fault))


def test_prompt_ids_under_the_causal_mask_or_missing_ones_are_caught():
    found = Auditor(tiny_model("causal"), tokenizer(), "causal", collate=PrefixCollator(0, "prompt_bidirectional"))
    assert not found.labels().ok
    found = Auditor(tiny_model(), tokenizer(), "prompt_bidirectional", collate=PrefixCollator(0, "causal"))
    assert not found.labels().ok


def test_a_loss_without_the_shift_is_caught():
    """Predicting the token itself instead of the next one: the classic way to a loss of zero."""

    def leak(forward, ids, prompt_ids, labels, given):
        if labels is not None:
            labels = torch.nn.functional.pad(labels, (1, 0), value=IGNORE)[:, :-1]
        return forward(input_ids=ids, prompt_ids=prompt_ids, labels=labels, **given)

    assert "label shift" in failed(as_leaking(tiny_model(), leak), "prompt_bidirectional")


def test_answers_that_can_be_read_off_the_states_before_them_are_caught():
    """The whole row as one block: the state that predicts a token has seen it."""

    def leak(forward, ids, prompt_ids, labels, given):
        return forward(input_ids=torch.roll(ids, -1, 1), prompt_ids=prompt_ids, labels=labels, **given)

    assert "chance" in failed(as_leaking(tiny_model(), leak), "prompt_bidirectional")


def test_an_eval_prompt_in_train_is_caught_however_it_is_spelled():
    def rows(*texts):
        return Rows([encode_pair(tokenizer(), text, "yes") for text in texts])

    clean = Prepared(rows("one", "two"), rows("three"), {})
    assert overlap(clean, tokenizer()).ok
    assert not overlap(Prepared(rows("one", "Three!"), rows("three"), {}), tokenizer()).ok
    from runner.recipe import DataSettings

    made = prepare(
        [Pair(f"Item {n % 30}?", "a") for n in range(60)],
        tokenizer(),
        DataSettings(train_samples=20, eval_samples=10, max_length=64),
    )
    assert overlap(made, tokenizer()).ok


def test_the_command_prints_each_check_and_says_by_its_code_whether_all_hold(tmp_path):
    save_checkpoint(tiny_model(), tmp_path / "good")
    code = "from tui.cli import main; main()"
    command = [sys.executable, "-c", code, "audit", str(tmp_path / "good"), "--data", "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=trainer_environment(), check=False)
    document = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert document["mask"] == "prompt_bidirectional"
    assert [check["name"] for check in document["checks"]] == [
        "answer is causal", "prompt mask", "cache", "padding", "labels", "label shift", "chance", "overlap",
    ]  # fmt: skip
    missing = subprocess.run(
        [sys.executable, "-c", code, "audit", str(tmp_path / "none")],
        capture_output=True, text=True, env=trainer_environment(), check=False,
    )  # fmt: skip
    assert missing.returncode != 0
    assert "There is no model directory" in missing.stderr
    assert "Traceback" not in missing.stderr
