"""The boundary is exact, nothing leaks into a label, and no prompt is on both sides of the split."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import NotFoundError, UsageError
from runner.recipe import DataSettings
from runner.study.data import IGNORE, Pair, PrefixCollator, as_chat, encode_pair, normalised, prepare, read_pairs
from runner.study.demo.tasks import TASKS, examples, split_of, stream
from tests.support.study import tokenizer

pytestmark = pytest.mark.study

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(TEXT, TEXT.filter(bool), st.integers(2, 80))
def test_the_prompt_is_cut_on_the_left_and_the_answer_never(prompt, answer, limit):
    whole = encode_pair(tokenizer(), prompt, answer)
    tail = whole["input_ids"][whole["prompt_len"] :]
    assert bytes(tail[:-1]).decode() == answer
    assert tail[-1] == tokenizer().eos_token_id
    if len(tail) >= limit:
        with pytest.raises(ValueError, match="leaves no room"):
            encode_pair(tokenizer(), prompt, answer, limit)
        return
    row = encode_pair(tokenizer(), prompt, answer, limit)
    assert len(row["input_ids"]) <= limit
    assert row["input_ids"] == whole["input_ids"][-len(row["input_ids"]) :]
    assert row["input_ids"][row["prompt_len"] :] == tail
    assert row["cut"] == (len(row["input_ids"]) < len(whole["input_ids"]))


@given(st.lists(st.tuples(TEXT, TEXT.filter(bool)), min_size=1, max_size=5))
def test_labels_are_the_answer_and_the_prompt_block_ends_where_they_begin(pairs):
    rows = [encode_pair(tokenizer(), *pair) for pair in pairs]
    batch = PrefixCollator(tokenizer().pad_token_id, "prompt_bidirectional")(rows)
    for n, row in enumerate(rows):
        start, end = row["prompt_len"], len(row["input_ids"])
        assert batch["input_ids"][n, :end].tolist() == row["input_ids"]
        assert (batch["labels"][n, :start] == IGNORE).all()
        assert batch["labels"][n, start:end].tolist() == row["input_ids"][start:]
        assert (batch["labels"][n, end:] == IGNORE).all()
        assert (batch["prompt_ids"][n, :start] == 0).all()
        assert (batch["prompt_ids"][n, start:] == -1).all()
        assert batch["attention_mask"][n].sum() == end
    assert "prompt_ids" not in PrefixCollator(0, "causal")(rows)


def settings(**changes):
    return DataSettings(**{"train_samples": 50, "eval_samples": 10, "max_length": 64, "seed": 3, **changes})


def pairs(count):
    return [Pair(f"question number {n}", f"answer {n}") for n in range(count)]


def prompts(rows):
    return {tokenizer().decode(r["input_ids"][: r["prompt_len"]], skip_special_tokens=True) for r in rows.rows}


def test_train_and_eval_share_no_prompt_and_the_seed_decides_the_split():
    first, again = (prepare(pairs(100), tokenizer(), settings()) for _ in range(2))
    assert (len(first.train), len(first.evaluate)) == (50, 10)
    assert not prompts(first.train) & prompts(first.evaluate)
    assert first.train.rows == again.train.rows
    assert prepare(pairs(100), tokenizer(), settings(seed=4)).evaluate.rows != first.evaluate.rows


def test_what_is_left_out_is_counted():
    odd = [
        Pair("Question   NUMBER 1!", "a near-duplicate of number 1"),
        Pair("question number 2", "a duplicate"),
        Pair("no answer", "  "),
        Pair("too long an answer", "x" * 100),
        Pair("long " * 40, "fits"),
    ]
    made = prepare([*pairs(20), *odd], tokenizer(), settings(train_samples=1000))
    assert made.counts == {
        "read": 25, "empty": 1, "near-duplicate": 2, "answer too long": 1, "prompt cut on the left": 1,
    }  # fmt: skip
    assert "1 empty" in made.in_words()
    assert "2 near-duplicate" in made.in_words()


def test_prompts_made_of_symbols_only_are_not_all_the_same():
    assert normalised("+++") != normalised("???")
    assert normalised("What is 2+2?") == normalised("what is 2 + 2")


def test_no_sample_left_is_a_sentence_with_the_reasons():
    with pytest.raises(UsageError, match=r"No sample is left after filtering .*2 empty"):
        prepare([Pair("a", ""), Pair("b", " ")], tokenizer(), settings())


def test_a_chat_template_puts_the_answers_header_into_the_prompt():
    chat = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer, bos_token="<s>", eos_token="</s>")
    with pytest.raises(UsageError, match="no chat template"):
        as_chat(chat, "hello")
    chat.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert as_chat(chat, "hello") == "[user]hello[assistant]"
    row = encode_pair(chat, as_chat(chat, "hello"), "hi")
    assert row["input_ids"][0] == chat.bos_token_id
    assert row["input_ids"].count(chat.bos_token_id) == 1, "the template's own start token is not doubled"


def test_jsonl_rows_are_read_and_columns_joined(tmp_path):
    path = tmp_path / "set.jsonl"
    rows = [
        {"instruction": "Say", "input": "this", "output": "this"},
        {"instruction": "Go", "input": "", "output": "!"},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    made = settings(dataset=str(path), prompt_field="instruction+input", answer_field="output")
    assert list(read_pairs(made)) == [Pair("Say\n\nthis", "this"), Pair("Go", "!")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"q": "a"}\n', "line 1: there is no column 'prompt' (found: q)"),
        (
            '{"prompt": "a", "answer": "b"}\n{"prompt": 3, "answer": "b"}\n',
            "line 2: column 'prompt' holds int, not text",
        ),
        ('{"prompt": "a"\n', "line 1: not JSON"),
        ("[1]\n", "there is no column 'prompt' (found: list)"),
    ],
)
def test_bad_rows_name_file_line_and_column(tmp_path, text, says):
    path = tmp_path / "set.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        list(read_pairs(settings(dataset=str(path))))
    assert says in str(caught.value)


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(NotFoundError, match="There is no data file"):
        list(read_pairs(settings(dataset=str(tmp_path / "none.jsonl"))))


def test_the_four_tasks_have_right_answers_and_disjoint_splits():
    for split in ("train", "eval"):
        for example in examples(split, 400, seed=5):
            prompt, answer = example.prompt, example.answer
            assert split_of(prompt) == split
            if example.task == "sum":
                a, b = prompt.rstrip("=").split("+")
                assert int(a) + int(b) == int(answer)
            elif example.task == "reverse":
                assert prompt == answer[::-1] + "<"
            elif example.task == "largest":
                assert answer == max(c for c in prompt if c.isdigit())
            else:
                table, key = prompt.split("?")
                assert table[table.index(key) + 1] == answer
    assert {e.task for e in examples("train", 8, seed=1)} == set(TASKS)
    assert examples("train", 50, 1) == examples("train", 50, 1) != examples("train", 50, 2)
    with pytest.raises(ValueError, match="distinct eval examples at most"):
        examples("eval", 10**6, 1)


def test_no_evaluated_prompt_can_be_in_any_training_stream():
    held_out = {e.prompt for e in examples("eval", 800, seed=1)}
    drawn = stream("train", 9, {"sum": 3.0, "reverse": 1.0, "largest": 1.0, "lookup": 1.0})
    assert not held_out & {next(drawn).prompt for _ in range(3000)}


def test_the_byte_tokenizer_is_the_bytes_themselves():
    text = "Grüße, 世界 \x00\n"
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert bytes(ids) == text.encode()
    assert tokenizer().decode(ids) == text
    assert torch.tensor(ids).max() < 256
