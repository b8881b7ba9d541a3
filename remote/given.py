"""Files of the laptop that a recipe of ours names: data, tasks, local weights. They travel, and the words follow them.

A name that is no file here is left as it is: a Hub id, or a path on the box itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from remote.bootstrap import deliver
from remote.ship import MAX_BYTES, folder_size, parcel_of
from remote.transport import Transport
from runner.errors import RefusedError
from runner.recipe import Recipe


def files_named(recipe: Recipe) -> Mapping[str, Path]:
    """The settings of a recipe that name something on this machine, by their full names; none for a foreign one."""
    if recipe.kind == "command":
        return {}
    words = {
        "model.base": recipe.model.base,
        "model.checkpoint": recipe.model.checkpoint,
        "data.dataset": recipe.data.dataset,
        "evaluate.task_path": recipe.evaluate.task_path,
    }
    found = {key: Path(word).expanduser() for key, word in words.items() if word and word != "demo"}
    return {key: path for key, path in found.items() if path.exists()}


def refuse_large(recipe: Recipe) -> None:
    """Raises RefusedError for a file that is too large to travel, before anything is rented or sent."""
    for key, path in files_named(recipe).items():
        size = folder_size(path)
        if size > MAX_BYTES:
            raise RefusedError(
                f"{key} = {path} has {size / 1e6:.0f} MB; at most {MAX_BYTES >> 20} MB are shipped from this machine.",
                hint="Upload it to the Hub and name it there, or copy it to the box and give its path on the box.",
            )


def ship_named(host: Transport, recipe: Recipe, say: Callable[[str], None] | None = None) -> list[str]:
    """Bring them to a box, each once by its content; returns the `--set` words that name them there."""
    words: list[str] = []
    for key, path in files_named(recipe).items():
        place, sent = deliver(host, parcel_of(path))
        there = place if path.is_dir() else f"{place}/{path.name}"
        words += ["--set", f"{key}={there}"]
        if say is not None:
            say(f"{path.name} {'sent' if sent else 'was there'}")
    return words
