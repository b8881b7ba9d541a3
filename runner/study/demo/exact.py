"""Exact-match accuracy of the miniature study, by one forward pass.

Greedy decoding gives exactly the right answer if and only if every answer token, the closing end token included, is the
largest logit after the right tokens before it. So a teacher-forced pass decides what generation would decide, at the
price of one forward; `tests/test_study_demo.py` holds it against real generation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from runner.recipe import MaskMode
from runner.study.data import PrefixCollator, encode_pair
from runner.study.demo.tasks import Example


def exact_match(
    model: Any, tokenizer: Any, items: Sequence[Example], *, mask: MaskMode, batch_size: int = 200
) -> dict[str, float]:
    """Share of right answers by task and "macro", their unweighted mean. Leaves the model in eval mode.

    The prompt's mask is the collator's: with `mask="prompt_bidirectional"` the model must be a PrefixLM.
    """
    import torch

    model.eval()
    collate = PrefixCollator(tokenizer.pad_token_id, mask=mask)
    right: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    for start in range(0, len(items), batch_size):
        part = items[start : start + batch_size]
        batch = collate([encode_pair(tokenizer, e.prompt, e.answer) for e in part])
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**{key: value.to(model.device) for key, value in batch.items()}).logits
        predicted = logits[:, :-1].argmax(-1).cpu()  # (B, L-1): the token after each position
        wanted = labels[:, 1:]  # (B, L-1)
        good = ((predicted == wanted) | (wanted == -100)).all(-1)
        for example, ok in zip(part, good.tolist(), strict=True):
            right[example.task] += ok
            total[example.task] += 1
    scores = {task: right[task] / total[task] for task in total}
    return {**scores, "macro": sum(scores.values()) / len(scores)}
