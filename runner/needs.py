"""Which packages a recipe needs beside torch: asked before a run starts here, and installed on a box that lacks them.

A fine-tune of hours must not end at its evaluation because the task harness is missing, so everything that any part of
the run will import is known from the recipe alone. Light: nothing is imported, only looked for.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.recipe import Recipe


class Package(NamedTuple):
    """One package as pip takes it, as Python imports it, and which of the project's extras brings it."""

    spec: str
    module: str
    extra: str


BASE = (
    Package("transformers>=5.20,<6", "transformers", "runner"),
    Package("accelerate>=1.10,<2", "accelerate", "runner"),
)
"""What every run of the study needs beside torch."""

DATASETS = Package("datasets>=4.0,<6", "datasets", "runner")
LM_EVAL = Package("lm-eval>=0.4.13,<0.5", "lm_eval", "eval")
PEFT = Package("peft>=0.17,<1", "peft", "lora")
BITSANDBYTES = Package("bitsandbytes>=0.46,<1", "bitsandbytes", "gpu")


def of(recipe: Recipe) -> tuple[Package, ...]:
    """What the recipe needs beyond `BASE`; nothing for a foreign command, which brings its own."""
    if recipe.kind == "command":
        return ()
    found = []
    if recipe.trains and not _local(recipe.data.dataset):
        found.append(DATASETS)
    if recipe.kind != "stage3" and recipe.evaluate.tasks and recipe.evaluate.tasks != ("demo",):
        found.append(LM_EVAL)
    if recipe.trains and recipe.train.optimizer == "adamw_8bit":
        found.append(BITSANDBYTES)
    checkpoint = Path(recipe.model.checkpoint)
    if (recipe.trains and recipe.train.lora_rank) or (checkpoint / "adapter_config.json").is_file():
        found.append(PEFT)
    return tuple(found)


def specs(recipe: Recipe) -> tuple[str, ...]:
    """`of`, as pip takes it."""
    return tuple(package.spec for package in of(recipe))


def check(recipe: Recipe | None = None) -> None:
    """Raise UsageError naming the packages that are not installed here, and the extras that bring them.

    Without a recipe (the audit) only what every run needs is looked for.
    """
    wanted = (Package("torch", "torch", "runner"), *BASE, *(of(recipe) if recipe is not None else ()))
    missing = [package for package in wanted if importlib.util.find_spec(package.module) is None]
    if not missing:
        return
    names = " and ".join(re.split(r"[<>=]", package.spec)[0] for package in missing)
    extras = ",".join(dict.fromkeys(package.extra for package in missing))
    instead = "" if missing != [BITSANDBYTES] else ", or --set optimizer=adamw"
    raise UsageError(
        f"{'Training' if recipe is None or recipe.trains else 'The evaluation'} needs {names}, which this Python does "
        "not have.",
        hint=f"pip install 'tunewatch[{extras}]'{instead}",
    )


def _local(dataset: str) -> bool:
    """Whether a data set needs no package: the miniature study's own, a .jsonl file, or none."""
    return dataset in ("", "demo") or dataset.endswith((".jsonl", ".json"))
