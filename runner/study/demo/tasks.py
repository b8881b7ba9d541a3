"""Four tasks whose answers can be checked: two-digit sums, reversed letters, the largest digit, key lookup.

Pure: no torch, no file, no clock. Every example is drawn from a `random.Random` that the caller seeds. A prompt belongs
to exactly one of the splits "train" and "eval", decided by a hash of the prompt alone, so no seed, no sample count and
no process can ever put an evaluated prompt into training.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

Split = Literal["train", "eval"]

_EVAL_SHARE = 26
"""Of 256: about a tenth of all prompts is held out."""


class Example(NamedTuple):
    """One question and the only right answer."""

    task: str
    prompt: str
    answer: str


def _sum(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return f"{a}+{b}=", str(a + b)


def _reverse(rng: random.Random) -> tuple[str, str]:
    word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 5)))
    return f"{word}<", word[::-1]


def _largest(rng: random.Random) -> tuple[str, str]:
    digits = "".join(rng.choices(string.digits, k=rng.randint(4, 6)))
    return f"max {digits}:", max(digits)


def _lookup(rng: random.Random) -> tuple[str, str]:
    keys = rng.sample(string.ascii_lowercase, k=rng.randint(3, 4))
    values = rng.choices(string.digits, k=len(keys))
    wanted = rng.randrange(len(keys))
    return "".join(k + v for k, v in zip(keys, values, strict=True)) + f"?{keys[wanted]}", values[wanted]


TASKS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "sum": _sum,
    "reverse": _reverse,
    "largest": _largest,
    "lookup": _lookup,
}
"""Name of each task with what draws one (prompt, answer)."""


def split_of(prompt: str) -> Split:
    """The only split in which this prompt may appear."""
    return "eval" if hashlib.sha256(prompt.encode()).digest()[0] < _EVAL_SHARE else "train"


def draw(task: str, split: Split, rng: random.Random) -> Example:
    """One example of `task` whose prompt belongs to `split`."""
    while True:
        prompt, answer = TASKS[task](rng)
        if split_of(prompt) == split:
            return Example(task, prompt, answer)


_SUMS: dict[Split, int] = {
    split: sum(split_of(f"{a}+{b}=") == split for a in range(10, 100) for b in range(10, 100))
    for split in ("train", "eval")
}
"""How many two-digit sums each split holds: the smallest task bounds a set of distinct examples."""


def stream(split: Split, seed: int, weights: dict[str, float] | None = None) -> Iterator[Example]:
    """Endless examples, tasks mixed by `weights` (equal when None)."""
    rng = random.Random(f"{split}-{seed}")  # noqa: S311 - reproducible draws, nothing secret
    names = list(TASKS)
    shares = [1.0 if weights is None else weights[name] for name in names]
    while True:
        yield draw(rng.choices(names, shares)[0], split, rng)


def examples(split: Split, count: int, seed: int) -> list[Example]:
    """`count` distinct examples, the tasks taking turns; the same arguments give the same list.

    Raises ValueError when the split does not hold so many.
    """
    most = len(TASKS) * _SUMS[split] * 9 // 10
    if count > most:
        raise ValueError(f"the miniature study has {most} distinct {split} examples at most, not {count}")
    rng = random.Random(f"{split}-set-{seed}")  # noqa: S311
    names = list(TASKS)
    seen: set[str] = set()
    chosen: list[Example] = []
    while len(chosen) < count:
        example = draw(names[len(chosen) % len(names)], split, rng)
        if example.prompt not in seen:
            seen.add(example.prompt)
            chosen.append(example)
    return chosen
