"""How much disk a recipe needs on a box, and what has to be carried there; from the recipe alone.

Disk is fixed when the box is rented, so it is sized for the worst moment: image, model, data, and the checkpoints that
are kept plus the one being written.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from runner.recipe import Recipe

if TYPE_CHECKING:
    from estimator.workload import Workload

IMAGE_GB = 15.0
"""Container image unpacked, with room for packages."""
DATA_GB = 3.0
_OPTIMISER_BYTES = {"adamw": 8.0, "adamw_8bit": 2.0, "adafactor": 0.1}
"""Bytes of state per parameter."""
_PARAMETERS = re.compile(r"(\d+(?:\.\d+)?)[Bb](?![a-z])")


def parameters(recipe: Recipe) -> float:
    """Parameters of the base model, from its name (`...-3B-...`); a small model for the miniature, 7e9 when unknown.

    >>> parameters(Recipe(name="x", kind="stage5"))
    7000000000.0
    """
    if recipe.model.base in ("demo", "") and recipe.kind in ("demo", "command"):
        return 1e6
    found = _PARAMETERS.search(recipe.model.base)
    return float(found.group(1)) * 1e9 if found else 7e9


def checkpoint_gb(recipe: Recipe) -> float:
    """One checkpoint that can be resumed: weights, optimiser, the rest."""
    weights = 4.0 if recipe.model.dtype == "float32" else 2.0
    return parameters(recipe) * (weights + _OPTIMISER_BYTES[recipe.train.optimizer]) / 1e9


def disk_gb(recipe: Recipe) -> float:
    """GB to rent, in tens."""
    if recipe.kind == "command":
        return 60.0
    model = parameters(recipe) * 2.0 / 1e9
    training = recipe.kind in ("stage3", "stage5", "demo")
    kept = checkpoint_gb(recipe) * (recipe.train.keep_local + 1) if training else 2 * model
    return max(20.0, math.ceil((IMAGE_GB + DATA_GB + 2 * model + kept) / 10) * 10.0)


def workload(recipe: Recipe, disk: float) -> Workload:
    """What a quote has to count beside the training itself."""
    from estimator.memory import MINISTRAL_3B, TrainShape
    from estimator.workload import Workload

    model = parameters(recipe) * 2.0 / 1e9
    upload = model * 2 if recipe.train.hf_repo_id else 0.0
    shape = MINISTRAL_3B if "ministral-3-3b" in recipe.model.base.lower() and recipe.kind == "stage5" else None
    optimiser = {"adamw": "adamw", "adamw_8bit": "adamw_8bit", "adafactor": "adafactor"}[recipe.train.optimizer]
    train = TrainShape(
        batch=recipe.train.batch_size,
        length=recipe.data.max_length,
        optimiser=optimiser,  # type: ignore[arg-type]
        checkpointing=recipe.train.activation_checkpointing,
        fused_loss=recipe.train.loss_chunk > 0,
    )
    return Workload(model_gb=model, upload_gb=upload, disk_gb=disk, model=shape, train=train, recipe=recipe.name)
