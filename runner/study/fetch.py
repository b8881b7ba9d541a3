"""Weights that lie in a folder of a Hub repository, as this project uploads them: `owner/name/folder`.

transformers knows whole repositories only. The folder is a checkpoint itself, or a run's, whose newest whole checkpoint
is then taken. What only resuming needs (the optimiser, twice the size of the model) is left where it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from runner import rundir
from runner.errors import NotFoundError, UsageError
from runner.study.hub_words import not_loaded

_NOT_FOR_READING = ("*optimizer*", "*scheduler.pt", "*rng_state*", "*training_args.bin")


def is_folder_of_a_repository(source: str) -> bool:
    """Whether `source` is `owner/name/folder...` and nothing on this disk."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+){2,}/?", source) is not None and not Path(source).exists()


def refuse_lost_path(source: str, error: BaseException | None = None) -> None:
    """Raise NotFoundError for a path of this disk that leads nowhere; a name that may be the Hub's passes.

    A path is what begins like one, or what begins with a directory that is here: `runs/stage5/...` with a typing error
    is no repository called `runs/stage5`.
    """
    first = source.strip("/").split("/")[0]
    if source.startswith(("/", ".", "~")) or (first and Path(first).is_dir()):
        raise NotFoundError(f"There is no model directory {source}.") from error


def fetch_weights(source: str, revision: str = "main", *, api: Any = None) -> Path:
    """Bring the checkpoint that `source` names to the Hub's cache on this machine; the directory it lies in.

    What a manifest there says about a file must hold. Raises NotFoundError when there is no such repository, revision
    or checkpoint, and UsageError when what arrived is not what the manifest says.
    """
    from huggingface_hub import HfApi, snapshot_download

    api = api or HfApi()
    owner, name, *rest = source.strip("/").split("/")
    if Path(owner, name).is_dir():
        refuse_lost_path(source)
    repo, folder = f"{owner}/{name}", "/".join(rest)
    try:
        commit = api.repo_info(repo, revision=revision).sha
        paths = [entry.path for entry in api.list_repo_tree(repo, recursive=True, revision=commit)]
    except Exception as error:
        refuse_lost_path(source, error)
        raise not_loaded("model", repo, revision, error) from error
    found = _checkpoint_in(folder, paths)
    if found is None:
        raise NotFoundError(f"{repo} at {commit[:12]} holds no checkpoint in '{folder}'.")
    root = snapshot_download(
        repo, revision=commit, allow_patterns=[f"{found}/*"], ignore_patterns=list(_NOT_FOR_READING),
        endpoint=api.endpoint,
    )  # fmt: skip
    place = Path(root) / found
    there = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    problems = [p for p in rundir.verify_manifest(place) if any(p.startswith(name) for name in there)]
    if (place / rundir.MANIFEST).is_file() and problems:
        raise UsageError(f"{source} arrived damaged: {problems[0]}.", hint="Try again, or name another revision.")
    return place


def _checkpoint_in(folder: str, paths: list[str]) -> str | None:
    """The folder itself when it holds a model, else its newest checkpoint that has its marker."""
    if any(f"{folder}/{name}" in paths for name in ("config.json", "adapter_config.json")):
        return folder
    marker = re.compile(rf"{re.escape(folder)}/checkpoint-(\d+)/{re.escape(rundir.MANIFEST)}")
    steps = [int(match[1]) for path in paths if (match := marker.fullmatch(path))]
    return f"{folder}/checkpoint-{max(steps)}" if steps else None
