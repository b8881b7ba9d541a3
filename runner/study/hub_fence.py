"""Only the newest start of a run may write to its folder on the Hub.

A run that moves to another box starts there under a higher epoch. `<prefix>/epoch.json` in the repository names the
newest one. Every commit of a run is built on the very commit at which that file was read (`parent_commit`): if anybody
wrote in between, the Hub refuses it, and the file is read again. So a trainer that was thought dead and comes back,
which no laptop can reach, cannot put a checkpoint over those of its successor; it is told so, and stops.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.atomic import read_object
from runner.errors import RefusedError

MARKER = "epoch.json"
TRIES = 8
"""Commits of others that may come in between before it is given up."""


class FencedError(RefusedError):
    """The run goes on elsewhere; nothing was written."""


def commit(api: Any, repo_id: str, prefix: str, epoch: int, adds: Sequence[Any], message: str) -> str:
    """Commit `adds` under `prefix` as the start of number `epoch`; returns the commit.

    Writes the marker along with them where it does not name this epoch yet. Raises FencedError when a newer epoch
    stands there, and what huggingface_hub raises.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(1, TRIES + 1):
        head = str(api.repo_info(repo_id).sha)
        found = epoch_at(api, repo_id, prefix, head)
        if found > epoch:
            raise FencedError(f"the run goes on elsewhere: epoch {found} on the Hub is newer than {epoch}")
        operations = list(adds)
        if found < epoch:
            operations.append(CommitOperationAdd(f"{prefix}/{MARKER}", json.dumps({"epoch": epoch}).encode()))
        if not operations:
            return head
        try:
            return str(api.create_commit(repo_id, operations, commit_message=message, parent_commit=head).oid)
        except HfHubHTTPError as error:
            moved_on = getattr(error.response, "status_code", None) in (409, 412)
            if not moved_on or attempt == TRIES:
                raise
    raise AssertionError("the last try returns or raises")


def claim(api: Any, repo_id: str, prefix: str, epoch: int, *, private: bool = True) -> None:
    """Say on the Hub that the run goes on under `epoch`, before there is anything to upload. Raises as `commit`."""
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit(api, repo_id, prefix, epoch, (), f"{prefix}: epoch {epoch}")


def epoch_at(api: Any, repo_id: str, prefix: str, revision: str) -> int:
    """The epoch that stands in a run's folder at a revision; 0 where the run never moved."""
    from huggingface_hub.errors import EntryNotFoundError

    with tempfile.TemporaryDirectory(prefix="tunewatch-epoch-") as folder:
        try:
            path = api.hf_hub_download(repo_id, f"{prefix}/{MARKER}", revision=revision, local_dir=folder)
        except EntryNotFoundError:
            return 0
        found = (read_object(Path(path).read_bytes()) or {}).get("epoch")
    return found if isinstance(found, int) else 0
