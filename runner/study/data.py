"""Prompt/answer sets: from a row to a padded batch, with the boundary exactly where the labels start.

Under a bidirectional prompt a prompt position sees its own next token, so a label there would be a leak: labels begin
with the first answer token and nowhere before, the prompt block ends right before it, and template tokens that come
before the answer belong to the prompt. A long prompt loses its left end; an answer is never cut.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch.utils.data import Dataset

from runner.errors import NotFoundError, UsageError
from runner.recipe import DataSettings, MaskMode
from runner.study.hub_words import not_loaded

IGNORE = -100
"""The label that the loss skips."""


class Encoded(TypedDict):
    """One tokenised example."""

    input_ids: list[int]
    """Prompt, answer and the end token."""
    prompt_len: int
    """Tokens of the prompt; the labels start here."""
    cut: bool
    """Whether the prompt lost its left end."""


def encode_pair(tokenizer: Any, prompt: str, answer: str, max_length: int | None = None) -> Encoded:
    """Tokenise prompt and answer apart, so that no token straddles the boundary, and close with the end token.

    With `max_length` (tokens) a too long prompt loses its left end. Raises ValueError when the answer alone does not
    fit or holds no token.
    """
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token_id is not None:
        head = [tokenizer.bos_token_id, *head]
    tail = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if not tail:
        raise ValueError("the answer holds no token")
    tail = [*tail, tokenizer.eos_token_id]
    whole = len(head)
    if max_length is not None:
        room = max_length - len(tail)
        if room < 1:
            raise ValueError(f"the answer takes {len(tail)} tokens and leaves no room for a prompt in {max_length}")
        head = head[-room:]
    return {"input_ids": head + tail, "prompt_len": len(head), "cut": len(head) < whole}


@dataclass(frozen=True)
class PrefixCollator:
    """Pads to the longest row on the right; all tensors are (B, L).

    `input_ids`, `attention_mask` (1 for real tokens), `labels` (-100 on prompt and padding) and, under
    "prompt_bidirectional", `prompt_ids`: 0 on the prompt, -1 on answer and padding.
    """

    pad_id: int
    mask: MaskMode

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        """Make one batch."""
        length = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), length), self.pad_id)
        attention = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORE)
        prompt_ids = torch.full_like(ids, -1)
        for n, row in enumerate(rows):
            end, start = len(row["input_ids"]), row["prompt_len"]
            ids[n, :end] = torch.tensor(row["input_ids"])
            attention[n, :end] = 1
            labels[n, start:end] = ids[n, start:end]
            prompt_ids[n, :start] = 0
        batch = {"input_ids": ids, "attention_mask": attention, "labels": labels}
        return batch | {"prompt_ids": prompt_ids} if self.mask == "prompt_bidirectional" else batch


class Pair(NamedTuple):
    """One prompt with its answer, as text."""

    prompt: str
    answer: str


class Rows(Dataset[Encoded]):
    """Tokenised examples in memory, in a fixed order: what the Trainer's seeded sampler shuffles."""

    def __init__(self, rows: Sequence[Encoded]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Encoded:
        return self.rows[index]

    def mean_length(self) -> float:
        """Tokens of a row on average."""
        return sum(len(row["input_ids"]) for row in self.rows) / len(self.rows)


@dataclass(frozen=True)
class Prepared:
    """A train and an eval set that share no prompt, and what was left out on the way."""

    train: Rows
    evaluate: Rows
    counts: dict[str, int]
    """Rows read, dropped and truncated, by reason."""

    def in_words(self) -> str:
        """One line for the log."""
        found = ", ".join(f"{count} {what}" for what, count in self.counts.items() if count)
        return f"data: {len(self.train)} train and {len(self.evaluate)} eval examples ({found})"


def prepare(pairs: Iterable[Pair], tokenizer: Any, settings: DataSettings) -> Prepared:
    """Split, filter and tokenise.

    Duplicates and near-duplicates (same prompt after lower-casing and dropping all but letters and digits) count once,
    so that none stands on both sides of the split. The eval set is taken first, from a seeded order. Raises UsageError
    when nothing is left for either side.
    """
    counts = {"read": 0, "empty": 0, "near-duplicate": 0, "answer too long": 0, "prompt cut on the left": 0}
    chosen: dict[str, Pair] = {}
    for pair in pairs:
        counts["read"] += 1
        if not pair.answer.strip():
            counts["empty"] += 1
            continue
        key = normalised(pair.prompt)
        if key in chosen:
            counts["near-duplicate"] += 1
            continue
        chosen[key] = pair
    order = list(chosen.values())
    random.Random(settings.seed).shuffle(order)  # noqa: S311 - reproducible order, nothing secret
    wanted = settings.eval_samples + settings.train_samples
    rows: list[Encoded] = []
    for pair in order:
        if len(rows) == wanted:
            break
        prompt = as_chat(tokenizer, pair.prompt) if settings.template == "chat" else pair.prompt
        try:
            row = encode_pair(tokenizer, prompt, pair.answer, settings.max_length)
        except ValueError:
            counts["answer too long"] += 1
            continue
        counts["prompt cut on the left"] += row["cut"]
        rows.append(row)
    evaluate = rows[: min(settings.eval_samples, len(rows) // 2)]
    train = rows[len(evaluate) :]
    if not train or not evaluate:
        lost = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        raise UsageError(f"No sample is left after filtering ({lost or 'the set is empty'}).")
    return Prepared(Rows(train), Rows(evaluate), counts)


def normalised(prompt: str) -> str:
    """A hash that is equal for prompts which differ in case, spacing or punctuation only."""
    kept = re.sub(r"\W+", " ", prompt.lower()).strip()
    return hashlib.sha256((kept or prompt).encode()).hexdigest()


def as_chat(tokenizer: Any, prompt: str) -> str:
    """The prompt as the tokenizer's chat template writes it, the header of the answer included: it is no label."""
    if not tokenizer.chat_template:
        raise UsageError("The tokenizer has no chat template.", hint="Set data.template to 'plain'.")
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return text.removeprefix(tokenizer.bos_token or "")  # encode_pair writes the start token itself


def read_pairs(settings: DataSettings) -> Iterator[Pair]:
    """The rows of a .jsonl file or a Hub data set as pairs. Raises NotFoundError or UsageError, naming the row."""
    if settings.dataset.endswith((".jsonl", ".json")):
        rows: Iterable[tuple[str, Any]] = _jsonl(Path(settings.dataset))
    else:
        rows = _hub_rows(settings)
    for where, row in rows:
        yield Pair(_column(row, settings.prompt_field, where), _column(row, settings.answer_field, where))


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield f"{path}, line {number}", json.loads(line)
                    except json.JSONDecodeError as error:
                        raise UsageError(f"{path}, line {number}: not JSON ({error.msg}).") from None
    except FileNotFoundError:
        raise NotFoundError(f"There is no data file {path}.") from None


def _hub_rows(settings: DataSettings) -> Iterator[tuple[str, Any]]:
    import datasets

    name = settings.dataset
    try:
        loaded = datasets.load_dataset(name, settings.dataset_config or None, split=settings.dataset_split)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise not_loaded("data set", name, "", error) from error
    for number, row in enumerate(loaded):
        yield f"{name}, row {number}", row


def _column(row: Any, names: str, where: str) -> str:
    """The text of one column, or of several joined by a blank line (`instruction+input`), empty ones left out."""
    parts = []
    for name in names.split("+"):
        if not isinstance(row, dict) or name not in row:
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UsageError(f"{where}: there is no column '{name}' (found: {found}).", hint="--set prompt_field=...")
        value = row[name]
        if not isinstance(value, str):
            raise UsageError(f"{where}: column '{name}' holds {type(value).__name__}, not text.")
        if value.strip():
            parts.append(value)
    return "\n\n".join(parts)
