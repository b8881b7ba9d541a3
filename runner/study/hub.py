"""Checkpoints on the Hub: uploaded behind the training's back, and fetched again on an empty machine.

A checkpoint lies under `<prefix>/checkpoint-N/` of the repository, the prefix being recipe and stamp of the run. Its
manifest.json is committed last and alone: without it the folder is torn, here as on disk. What was uploaded is looked
up again (every file's size, and the hash of the large ones) before it counts as there; only then may a local copy go.

An upload never stops training and never holds it up: one waits, one is under way, the newest wins. What can pass (5xx,
429, a cut connection) is tried again with growing pauses; what cannot (401, 403, 404) fails at once. Each result is an
`upload` event and a line in the log.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runner import rundir
from runner.errors import NotFoundError, UsageError
from runner.study.hub_fence import FencedError, claim
from runner.study.hub_fence import commit as fenced_commit
from runner.study.hub_words import not_loaded

PERMANENT = (400, 401, 403, 404, 413)
"""Answers that another try will not change."""
PAUSES_S = (2.0, 5.0, 15.0, 60.0)
"""Between the tries of one upload, on top of the short retries inside huggingface_hub."""

Report = Callable[..., None]
"""Called with step=, status= (queued, done, failed), revision=, seconds=, detail=."""


class Uploader:
    """A background thread that uploads checkpoints one after the other, the newest first."""

    def __init__(
        self,
        repo_id: str,
        prefix: str,
        report: Report,
        *,
        api: Any = None,
        private: bool = True,
        pauses_s: tuple[float, ...] = PAUSES_S,
        epoch: int = 0,
        on_fenced: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`epoch` is that of this start of the run; `on_fenced` is told when a newer one stands on the Hub."""
        self.epoch = epoch
        self.on_fenced = on_fenced
        self.repo_id = repo_id
        self.prefix = prefix
        self.report = report
        self.pauses_s = pauses_s
        self.private = private
        self.verified: set[int] = set()
        """Steps whose checkpoint was found whole on the Hub."""
        self._api = api
        self._waiting: Path | None = None
        self._under_way: Path | None = None
        self._hopeless = ""
        """Why no upload can work at all (no access); empty while there is hope."""
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
        self._thread.start()

    def offer(self, checkpoint: Path) -> None:
        """Take in a sealed checkpoint; one that was still waiting is given up for it. Never blocks on the network."""
        with self._changed:
            self._waiting = checkpoint
            self._changed.notify_all()
        self.report(step=rundir.checkpoint_step(checkpoint), status="queued", revision="", seconds=None, detail="")

    def may_prune(self, checkpoint: Path) -> bool:
        """Whether the local copy is spare: it, or a newer one, was verified on the Hub and nobody reads it now."""
        step = rundir.checkpoint_step(checkpoint) or 0
        with self._changed:
            if checkpoint in (self._waiting, self._under_way):
                return False
            return any(done >= step for done in self.verified)

    def close(self, timeout_s: float) -> bool:
        """Wait for what is waiting and under way; False when it did not end in time."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        if self.epoch > 0:
            self._claim()
        while True:
            with self._changed:
                while self._waiting is None and not self._closing:
                    self._changed.wait()
                if self._waiting is None:
                    return
                checkpoint = self._under_way = self._waiting
                self._waiting = None
            self._one(checkpoint)
            with self._changed:
                self._under_way = None

    def _claim(self) -> None:
        """A run that moved says so before its first upload: from then on its predecessor can write no more."""
        for pause in (*self.pauses_s, None):
            try:
                claim(self._hub(), self.repo_id, self.prefix, self.epoch, private=self.private)
            except FencedError as error:
                self._fenced(error)
            except Exception:  # noqa: BLE001 - the first upload meets the same, and reports it
                if pause is not None and not self._closing:
                    time.sleep(pause)
                    continue
            return

    def _fenced(self, error: FencedError) -> None:
        self._hopeless = error.message
        self.on_fenced(error.message)

    def _one(self, checkpoint: Path) -> None:
        step, began = rundir.checkpoint_step(checkpoint), time.monotonic()
        try:
            revision = self._tried(checkpoint)
        except Exception as error:  # noqa: BLE001 - whatever an upload meets is reported; training goes on
            detail = in_words(error)
            seconds = round(time.monotonic() - began, 1)
            self.report(step=step, status="failed", revision="", seconds=seconds, detail=detail)
            return
        with self._changed:
            self.verified.add(step or 0)
        seconds = round(time.monotonic() - began, 1)
        self.report(step=step, status="done", revision=revision, seconds=seconds, detail=f"{self.repo_id}")

    def _tried(self, checkpoint: Path) -> str:
        for pause in (*self.pauses_s, None):
            if self._hopeless:
                raise UsageError(self._hopeless)
            try:
                return upload(
                    self._hub(), self.repo_id, self.prefix, checkpoint, private=self.private, epoch=self.epoch
                )
            except FencedError as error:
                self._fenced(error)
                raise
            except Exception as error:
                status = _status(error)
                if status in (401, 403):
                    # every later checkpoint would meet the same answer
                    self._hopeless = in_words(error)
                if pause is None or status in PERMANENT or isinstance(error, FileNotFoundError):
                    raise
                with self._changed:
                    # a newer checkpoint is worth more than another try of this one
                    self._changed.wait_for(lambda: self._waiting is not None, timeout=pause)
                    if self._waiting is not None:
                        raise
        raise AssertionError("the last pause is None")

    def _hub(self) -> Any:
        if self._api is None:
            from huggingface_hub import HfApi

            self._api = HfApi()
        return self._api


def upload(
    api: Any, repo_id: str, prefix: str, checkpoint: Path, *, private: bool = True, epoch: int = 0
) -> str:  # fmt: skip
    """Upload one whole checkpoint, its manifest last, look it up again, and return the commit that holds it.

    Raises what huggingface_hub raises, UsageError when what is there is not what was sent, and FencedError when the run
    goes on elsewhere under an epoch above `epoch`.
    """
    from huggingface_hub import CommitOperationAdd

    manifest = rundir.read_manifest(checkpoint)
    if manifest is None:
        raise FileNotFoundError(f"{checkpoint.name} is not whole")
    api.create_repo(repo_id, private=private, exist_ok=True)
    folder = f"{prefix}/{checkpoint.name}"

    def commit(names: list[str], message: str) -> str:
        adds = [CommitOperationAdd(f"{folder}/{name}", checkpoint / name) for name in names]
        return fenced_commit(api, repo_id, prefix, epoch, adds, message)

    commit(sorted(manifest), f"{folder}: files")
    revision = commit([rundir.MANIFEST], f"{folder}: whole")
    if problems := list(differences(api, repo_id, folder, revision, manifest)):
        raise UsageError(f"{folder} on the Hub is not what was sent: {problems[0]}.")
    return revision


def differences(
    api: Any, repo_id: str, folder: str, revision: str, manifest: dict[str, dict[str, Any]]
) -> Iterator[str]:
    """What of a manifest is missing or different in a folder of the repository at one revision, in words."""
    entries = api.list_repo_tree(repo_id, folder, recursive=True, revision=revision)
    there = {entry.path.removeprefix(f"{folder}/"): entry for entry in entries if hasattr(entry, "size")}
    for name, wanted in manifest.items():
        entry = there.get(name)
        if entry is None:
            yield f"{name} is missing"
        elif entry.size != wanted["bytes"]:
            yield f"{name} has {entry.size} bytes, not {wanted['bytes']}"
        elif entry.lfs is not None and entry.lfs.sha256 != wanted["sha256"]:
            yield f"{name} has another hash"


def fetch_newest(repo_id: str, recipe: str, into: Path, *, revision: str = "main", api: Any = None) -> Path:
    """Bring the newest whole checkpoint of `recipe` into the folder `into`, proved by sizes and hashes; its new path.

    Looks at one commit throughout, so that an upload under way cannot mix. A checkpoint that does not prove whole is
    passed over for the one before it. Raises NotFoundError when there is none, or no such repository or revision.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    api = api or HfApi()
    try:
        commit = api.repo_info(repo_id, revision=revision).sha
        paths = [entry.path for entry in api.list_repo_tree(repo_id, recursive=True, revision=commit)]
    except HfHubHTTPError as error:
        raise not_loaded("repository", repo_id, revision, error) from error
    marked = sorted((place for path in paths if (place := _place(path, recipe)) is not None), reverse=True)
    if not marked:
        raise NotFoundError(f"{repo_id} at {commit[:12]} holds no whole checkpoint of '{recipe}'.")
    for _stamp, _step, folder in marked:
        target = into / Path(folder).name
        with_parts = into / f".fetch-{target.name}"
        snapshot_download(
            repo_id, revision=commit, allow_patterns=[f"{folder}/*"], local_dir=with_parts, endpoint=api.endpoint
        )
        if not rundir.verify_manifest(with_parts / folder):
            shutil.rmtree(target, ignore_errors=True)
            (with_parts / folder).replace(target)
            shutil.rmtree(with_parts)
            return target
        shutil.rmtree(with_parts)
    raise NotFoundError(f"No checkpoint of '{recipe}' in {repo_id} at {commit[:12]} proved whole.")


def _place(path: str, recipe: str) -> tuple[str, int, str] | None:
    """(stamp, step, folder) of a marker file of `recipe`; None for any other path."""
    found = re.fullmatch(rf"({re.escape(recipe)}-([^/]+)/checkpoint-(\d+))/{re.escape(rundir.MANIFEST)}", path)
    return (found[2], int(found[3]), found[1]) if found else None


def in_words(error: BaseException) -> str:
    """One line about an upload's error: what to do when it is access, and no token in it."""
    status = _status(error)
    if status == 401:
        return "401: the Hub does not know this token; set HF_TOKEN to one with write access"
    if status == 403:
        return "403: the token may not write to this repository"
    lines = str(error).strip().splitlines()
    text = (lines[0] if lines else type(error).__name__)[:200]
    token = os.environ.get("HF_TOKEN")
    return text.replace(token, "***") if token else text


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
