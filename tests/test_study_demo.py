"""The miniature study shows the effect that the full study is about, and its scores are those of real generation."""

import pytest
import torch

from runner.study.demo import source
from runner.study.demo.exact import exact_match
from runner.study.demo.tasks import examples
from runner.study.load import load_model, set_mask

pytestmark = pytest.mark.study


@pytest.fixture(scope="module")
def base():
    return load_model(source("demo"), mask="causal")


def test_the_base_model_solves_the_tasks_causally_and_is_damaged_without_its_causal_prompt(base):
    """Stage 1 above .9, stage 2 far below: no training in between, only the mask."""
    items = examples("eval", 400, seed=9)
    set_mask(base.model, "causal")
    whole = exact_match(base.model, base.tokenizer, items, mask="causal")
    set_mask(base.model, "prompt_bidirectional")
    damaged = exact_match(base.model, base.tokenizer, items, mask="prompt_bidirectional")
    set_mask(base.model, "causal")
    assert whole["macro"] > 0.9
    assert damaged["macro"] < whole["macro"] - 0.2
    assert min(whole["sum"], whole["reverse"], whole["largest"]) > 0.95


@pytest.mark.parametrize("mask", ["causal", "prompt_bidirectional"])
def test_exact_match_by_one_forward_is_what_greedy_generation_says(base, mask):
    """Item by item: generate the answer and compare the text."""
    items = examples("eval", 80, seed=9)
    set_mask(base.model, mask)
    right = 0
    for item in items:
        ids = [base.tokenizer.bos_token_id, *base.tokenizer(item.prompt, add_special_tokens=False)["input_ids"]]
        prompt = torch.tensor([ids])
        made = base.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
        tail = made[0, len(ids) :].tolist()
        ended = base.tokenizer.eos_token_id in tail
        text = base.tokenizer.decode(tail[: tail.index(base.tokenizer.eos_token_id)] if ended else tail)
        hit = ended and text == item.answer
        one = exact_match(base.model, base.tokenizer, [item], mask=mask)
        assert one["macro"] == float(hit), (item, text)
        right += hit
    set_mask(base.model, "causal")
    assert 0 < right < len(items), "both right and wrong answers are among them"


def test_the_base_training_script_trains_and_writes_what_it_says(tmp_path):
    """A few steps of it: the loss falls, the checkpoint loads, recipe and log lie beside it."""
    import json

    from runner.study.demo.base import RECIPE, learning_rate, train

    recipe = {**RECIPE, "steps": 20, "batch_size": 16, "log_every": 10, "warmup_steps": 2}
    scores = train(tmp_path, recipe)
    assert set(scores) == {"sum", "reverse", "largest", "lookup", "macro"}
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row.get("step") for row in rows] == [10, 20, None]
    assert rows[1]["loss"] < rows[0]["loss"]
    assert load_model(tmp_path, mask="causal").model.num_parameters() == 968_320
    rates = [learning_rate(step, recipe) for step in range(20)]
    assert max(rates) == recipe["learning_rate"]
    assert rates[-1] < rates[10]
