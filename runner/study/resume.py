"""Where a run goes on from: a named checkpoint, the newest whole one on disk, or the newest whole one on the Hub."""

from __future__ import annotations

from pathlib import Path

from runner import rundir
from runner.errors import NotFoundError, UsageError
from runner.recipe import Recipe
from runner.rundir import RunDir


def resume_point(recipe: Recipe, run: RunDir, named: str) -> Path | None:
    """The whole checkpoint to resume from; None to begin at the beginning.

    `named` is a checkpoint, a directory of checkpoints, "hub" for the repository of `hf_repo_id`, or empty: then the
    disk is looked at first and the Hub only where the disk holds nothing. Raises NotFoundError for a name that leads
    nowhere and UsageError for a checkpoint that is not whole.
    """
    repo = recipe.train.hf_repo_id
    if named == "hub":
        if not repo:
            raise UsageError("--resume hub needs --hf-repo-id: where should the checkpoint come from?")
        return _fetch(repo, recipe, run)
    if not named:
        found = rundir.newest_whole_checkpoint(run.checkpoints)
        if found is None and repo:
            try:
                return _fetch(repo, recipe, run)
            except NotFoundError as nothing:
                print(f"resume: {nothing.message} Training begins at the beginning.", flush=True)  # noqa: T201 - the log
        return found
    path = Path(named)
    if not path.is_dir():
        raise NotFoundError(f"There is no checkpoint {path}.")
    if rundir.checkpoint_step(path) is None:
        found = rundir.newest_whole_checkpoint(path)
        if found is None:
            raise NotFoundError(f"{path} holds no whole checkpoint.")
        return found
    if problems := rundir.verify_manifest(path):
        raise UsageError(f"{path} cannot be resumed from: {problems[0]}.")
    return path


def _fetch(repo: str, recipe: Recipe, run: RunDir) -> Path:
    from runner.study.hub import fetch_newest

    run.checkpoints.mkdir(parents=True, exist_ok=True)
    path = fetch_newest(repo, recipe.name, run.checkpoints)
    print(f"resume: {path.name} fetched from {repo}, sizes and hashes verified", flush=True)  # noqa: T201 - the log
    return path
