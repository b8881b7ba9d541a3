"""From the Hub to the new box: the very revision that the old run uploaded, when it uploaded this very step.

The laptop only says which revision; the bytes come from the Hub, and are compared with the manifest like any other. The
token travels over stdin into a file that is gone before this returns.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from remote.bootstrap import put_secrets
from remote.transport import LinkError, Transport
from runner.errors import TunewatchError

DOWNLOAD_S = 4 * 3600.0
NAMES = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_DISABLE_XET")
"""Of the laptop's environment: who asks, and which Hub."""

_SCRIPT = """
import os, shutil, sys
from huggingface_hub import hf_hub_download
repo, revision, prefix, carry = sys.argv[1:5]
beside = carry + ".hub"
for name in sys.argv[5:]:
    path = hf_hub_download(repo, prefix + "/" + name, revision=revision, local_dir=beside)
    os.replace(path, os.path.join(carry, name))
shutil.rmtree(beside, ignore_errors=True)
"""

Fetch = Callable[[Transport, str, Sequence[str]], None]
"""Downloads files of a checkpoint into a folder of a box."""


@dataclass(frozen=True, slots=True)
class OnHub:
    """One checkpoint as it lies in a repository."""

    repo: str
    revision: str
    prefix: str
    """Folder of the checkpoint in the repository."""

    @property
    def place(self) -> str:
        """How the journal names it: what the path is for a checkpoint on a box."""
        return f"hub:{self.repo}@{self.revision}:{self.prefix}"

    @classmethod
    def from_place(cls, place: str) -> OnHub | None:
        """Read what `place` wrote; None for a path on a box."""
        found = re.fullmatch(r"hub:([^@:]+)@([^@:]+):(.+)", place)
        return cls(found[1], found[2], found[3]) if found else None


def uploaded(events: Iterable[Mapping[str, object]], repo: str, run: str, recipe: str, step: int) -> OnHub | None:
    """Where the run's checkpoint of `step` was uploaded to; None while no upload of it was found whole.

    `events` are those of metrics.jsonl; the folder's name is `runner.study.hub`'s: recipe and stamp of the run.
    """
    revisions = [
        str(event.get("revision"))
        for event in events
        if event.get("event") == "upload" and event.get("step") == step and event.get("status") == "done"
    ]
    if not repo or not revisions or not revisions[-1]:
        return None
    return OnHub(repo, revisions[-1], f"{prefix_of(recipe, run)}/checkpoint-{step}")


def prefix_of(recipe: str, run: str) -> str:
    """The folder of a run in its repository, as `runner.study.hub` names it: recipe and stamp."""
    return f"{recipe}-{run.rpartition('/')[2]}"


def fetcher(where: OnHub, python: str, environment: Mapping[str, str]) -> Fetch:
    """The download for `carry`; `python` is the interpreter on the new box that has huggingface_hub."""

    def fetch(new: Transport, folder: str, names: Sequence[str]) -> None:
        q = shlex.quote
        secrets = f"{folder}.secrets"
        put_secrets(new, secrets, {name: environment[name] for name in NAMES if environment.get(name)})
        words = shlex.join([where.repo, where.revision, where.prefix, folder, *names])
        try:
            answer = new.run(
                f". {q(secrets)} && {q(python)} - {words}", stdin=_SCRIPT.encode(), timeout=DOWNLOAD_S
            )  # fmt: skip
        finally:
            with suppress(TunewatchError):
                new.run(f"rm -f {q(secrets)}", timeout=20.0)
        if answer.rc != 0:
            raise LinkError(f"{new.name} cannot fetch {where.prefix} of {where.repo}: {answer.complaint or answer.rc}.")

    return fetch
