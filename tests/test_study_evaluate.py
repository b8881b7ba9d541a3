"""lm-eval under our mask: causally it is the stock harness, and the mask covers the context alone."""

import json

import pytest
import torch

from runner.config import load_recipe
from runner.errors import NotFoundError, UsageError
from tests.support.study import stock_model, tiny_model, tokenizer

pytestmark = pytest.mark.study

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
GENERATE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def task_path(tmp_path_factory):
    """Two multiple-choice tasks and one of generation, on disk, no network."""
    folder = tmp_path_factory.mktemp("tasks")
    draw = torch.Generator().manual_seed(4)
    for name, template in (("letters", CHOICE), ("words", CHOICE), ("spoken", GENERATE)):
        rows = []
        for n in range(12):
            size = int(torch.randint(3, 25, (1,), generator=draw))
            choices = [" a", " bcd", " long answer here"] if name == "letters" else [" x", " xy", " xyz"]
            rows.append({"question": f"{n} " + "q" * size + "?", "choices": choices, "gold": n % 3})
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / f"{name}.yaml").write_text(template.format(name=name, data=folder / f"{name}.jsonl"))
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


def simple(model, task_path, *tasks):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(task_path), include_defaults=False)
    return simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0)


def likelihoods(result):
    """Every log-likelihood of every choice, by task and document."""
    return {
        (task, sample["doc_id"]): [answer[0] for answer in sample["filtered_resps"]]
        for task, samples in result["samples"].items()
        for sample in samples
    }


def masked(mask, batch_size=4, **more):
    from runner.study.evaluate import MaskedLM

    return MaskedLM(tiny_model(mask, **more), tokenizer(), mask, batch_size=batch_size, max_length=512)


@pytest.mark.parametrize("family", ["ministral3", "llama"])
def test_the_causal_mode_equals_the_stock_harness(task_path, family):
    from lm_eval.models.huggingface import HFLM

    stock = HFLM(pretrained=stock_model(family), tokenizer=tokenizer(), batch_size=3, max_length=512, device="cpu")
    theirs = likelihoods(simple(stock, task_path, "letters", "words"))
    ours = likelihoods(simple(masked("causal", family=family), task_path, "letters", "words"))
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        assert ours[key] == pytest.approx(values, abs=1e-5)


def test_the_mask_changes_the_numbers_and_the_batch_size_does_not(task_path):
    causal = likelihoods(simple(masked("causal"), task_path, "letters"))
    one, eight = (likelihoods(simple(masked("prompt_bidirectional", n), task_path, "letters")) for n in (1, 8))
    for key, values in one.items():
        assert eight[key] == pytest.approx(values, abs=1e-5)
    assert any(abs(a - b) > 0.01 for key in one for a, b in zip(one[key], causal[key], strict=True))


def test_the_context_is_bidirectional_and_the_continuation_causal():
    """By hand, from the model itself: sum of log-probabilities of the continuation under the mask."""
    lm = masked("prompt_bidirectional")
    context, continuation = list(b"some context"), list(b" and more")
    ((got, _),) = lm._loglikelihood_tokens([(("", ""), context, continuation)])
    ids = torch.tensor([context + continuation])
    prompt_ids = torch.full_like(ids, -1)
    prompt_ids[0, : len(context)] = 0
    with torch.no_grad():
        steps = lm.model(input_ids=ids, prompt_ids=prompt_ids).logits.log_softmax(-1)[0]
    want = sum(float(steps[len(context) - 1 + n, token]) for n, token in enumerate(continuation))
    assert got == pytest.approx(want, abs=1e-4)


def test_requests_that_differ_in_their_border_alone_do_not_share_logits():
    lm = masked("prompt_bidirectional")
    text = list(b"abcdefgh")
    (first, _), (second, _) = lm._loglikelihood_tokens([(("", ""), text[:3], text[3:]), (("", ""), text[:6], text[6:])])
    alone = lm._loglikelihood_tokens([(("", ""), text[:6], text[6:])])[0][0]
    assert second == pytest.approx(alone, abs=1e-5)
    assert first != second


def test_a_context_that_is_too_long_loses_its_left_end():
    lm = masked("prompt_bidirectional")
    lm._max_length = 16
    long = list(b"x" * 40 + b"the end of it")
    ((cut, _),) = lm._loglikelihood_tokens([(("", ""), long, list(b"!?"))])
    ((short, _),) = lm._loglikelihood_tokens([(("", ""), long[-15:], list(b"!?"))])
    assert cut == pytest.approx(short, abs=1e-5)


@pytest.mark.parametrize("mask", ["causal", "prompt_bidirectional"])
def test_generation_tasks_use_the_mask_too(task_path, mask):
    one, four = (simple(masked(mask, n), task_path, "spoken")["samples"]["spoken"] for n in (1, 4))
    said = [[s["resps"][0][0] for s in samples] for samples in (one, four)]
    assert said[0] == said[1], "left padding in the batch changes nothing"
    prompt = tokenizer()(one[0]["arguments"][0][0], return_tensors="pt", add_special_tokens=False)
    model = tiny_model(mask)
    made = model.generate(**{k: prompt[k] for k in ("input_ids", "attention_mask")}, max_new_tokens=4, do_sample=False)
    text = tokenizer().decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).split("\n")[0]
    assert said[0][0] == text


def test_perplexity_under_a_bidirectional_prompt_is_refused():
    with pytest.raises(UsageError, match="has no prompt"):
        masked("prompt_bidirectional").loglikelihood_rolling([])


def recipe(task_path, *more):
    words = ["tasks=letters,words", f"task_path={task_path}", *more]
    return load_recipe("stage2", words, env={})


def loaded(mask="prompt_bidirectional"):
    from runner.study.load import Loaded

    return Loaded(tiny_model(mask), tokenizer(), mask, ())


def test_the_macro_is_the_unweighted_mean_and_names_what_it_is_made_of(task_path):
    from runner.study.evaluate import harness

    made = harness(recipe(task_path), "stage2", loaded(), "prompt_bidirectional").document()
    tasks = made["tasks"]
    assert set(tasks) == {"letters", "words"}
    assert made["macro"] == pytest.approx((tasks["letters"]["acc"] + tasks["words"]["acc"]) / 2)
    assert tasks["letters"]["n"] == 12
    assert tasks["letters"]["stderr"] > 0
    assert made["macro_rule"] == "unweighted mean over tasks"
    assert {"lm_eval", "versions", "num_fewshot", "limit"} <= set(made)


def test_a_task_whose_data_cannot_be_fetched_is_a_sentence(tmp_path, monkeypatch):
    from runner.study.evaluate import harness

    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    far = CHOICE.format(name="far", data="x").replace("dataset_path: json", "dataset_path: nobody/nothing")
    (tmp_path / "far.yaml").write_text("\n".join(line for line in far.splitlines() if "data_files" not in line))
    with pytest.raises(NotFoundError, match="The data of a task could not be fetched"):
        harness(recipe(tmp_path, "tasks=far"), "stage2", loaded(), "prompt_bidirectional")


def test_limit_and_wrong_tasks(task_path):
    from runner.study.evaluate import harness

    made = harness(recipe(task_path, "limit=5"), "stage2", loaded(), "prompt_bidirectional")
    assert made.tasks["words"].n == 5
    with pytest.raises(UsageError, match="there is no directory"):
        harness(recipe("/nowhere/at/all"), "stage2", loaded(), "prompt_bidirectional")
