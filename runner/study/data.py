"""Prompt/answer sets: from a row to a padded batch, with the boundary exactly where the labels start.

Under a bidirectional prompt a prompt position sees its own next token, so a label there would be a leak: labels begin
with the first answer token and nowhere before, the prompt block ends right before it, and template tokens that come
before the answer belong to the prompt. A long prompt loses its left end; an answer is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from runner.recipe import MaskMode

IGNORE = -100
"""The label that the loss skips."""


class Encoded(TypedDict):
    """One tokenised example."""

    input_ids: list[int]
    """Prompt, answer and the end token."""
    prompt_len: int
    """Tokens of the prompt; the labels start here."""


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
    if max_length is not None:
        room = max_length - len(tail)
        if room < 1:
            raise ValueError(f"the answer takes {len(tail)} tokens and leaves no room for a prompt in {max_length}")
        head = head[-room:]
    return {"input_ids": head + tail, "prompt_len": len(head)}


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
        import torch

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
