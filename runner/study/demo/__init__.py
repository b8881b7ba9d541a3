"""The study in miniature: its own tasks, model and base checkpoint, run through the code of the full study."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.recipe import DataSettings, MaskMode, Recipe
    from runner.study.data import Prepared
    from runner.study.load import Loaded
    from runner.study.stages import StageScores


def source(name: str) -> str | Path:
    """`demo` to the committed base checkpoint; every other name stays what it is."""
    from runner.study.demo.model import BASE_MODEL

    return BASE_MODEL if name == "demo" else name


def prepared(settings: DataSettings, tokenizer: Any) -> Prepared:
    """Train and eval examples of the four tasks; no prompt is in both by construction."""
    from runner.study.data import Prepared, Rows, encode_pair
    from runner.study.demo.tasks import examples

    def rows(split: Any, count: int) -> Rows:
        chosen = examples(split, count, settings.seed)
        return Rows([encode_pair(tokenizer, e.prompt, e.answer, settings.max_length) for e in chosen])

    counts = {"drawn": settings.train_samples + settings.eval_samples}
    return Prepared(rows("train", settings.train_samples), rows("eval", settings.eval_samples), counts)


def downstream(recipe: Recipe, name: str, loaded: Loaded, mask: MaskMode) -> StageScores:
    """Exact match on held-out examples of the four tasks."""
    from runner.study.demo.exact import exact_match
    from runner.study.demo.tasks import TASKS, examples
    from runner.study.stages import Score, StageScores

    items = examples("eval", recipe.evaluate.downstream_samples, seed=recipe.data.seed + 1)
    accuracy = exact_match(loaded.model, loaded.tokenizer, items, mask=mask)
    scores = {}
    for task in TASKS:
        n, p = sum(item.task == task for item in items), accuracy[task]
        scores[task] = Score(p, math.sqrt(p * (1 - p) / n), n)
    return StageScores(name, mask, scores, {"metric": "exact match of the greedy answer"})
