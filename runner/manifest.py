"""Which checkpoint is whole: a manifest with the hash of each file, written last and read first.

Trainer writes its files straight into checkpoint-N, so a folder that is there may be torn; resuming from the highest
number alone would take the torn one. Standard library only, and the syntax of Python 3.9 (see `runner.rundir`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runner.atomic import PathLike, read_object, write_atomic

MANIFEST = "manifest.json"

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoint_step(path: PathLike) -> int | None:
    """The step that a folder's name `checkpoint-N` says; None for another name."""
    found = _CHECKPOINT.fullmatch(Path(path).name)
    return int(found.group(1)) if found else None


def write_manifest(checkpoint_dir: PathLike) -> Path:
    """Hash every file of a checkpoint, flush it to disk, and write manifest.json last: from then on it is whole.

    Returns the manifest's path. Raises OSError (a full disk leaves no manifest, so the checkpoint counts as torn).
    """
    root = Path(checkpoint_dir)
    paths = sorted(p for p in root.rglob("*") if p.is_file() and not _is_ours(p))
    entries = {path.relative_to(root).as_posix(): entry for path, entry in hash_files(paths, flush=True).items()}
    data = {"version": 1, "step": checkpoint_step(root), "wall": time.time(), "files": entries}
    write_atomic(root / MANIFEST, json.dumps(data, indent=1).encode())
    return root / MANIFEST


def verify_manifest(checkpoint_dir: PathLike, *, hashes: bool = True) -> list[str]:
    """What is wrong with a checkpoint, in words; an empty list means that it is whole.

    `hashes=False` compares sizes only (the hash of a 7 GB checkpoint takes tens of seconds).
    """
    root = Path(checkpoint_dir)
    manifest = read_manifest(root)
    if manifest is None:
        return ["no manifest: the checkpoint was not finished"]
    problems: list[str] = []
    alike: list[str] = []
    for name, want in manifest.items():
        path = root / name
        if name.startswith("/") or ".." in Path(name).parts:
            problems.append(f"{name}: points outside the checkpoint")
        elif not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != want.get("bytes"):
            problems.append(f"{name}: {path.stat().st_size} bytes, should be {want.get('bytes')}")
        else:
            alike.append(name)
    if hashes:
        found = hash_files([root / name for name in alike])
        spoiled = [name for name in alike if found[root / name]["sha256"] != manifest[name].get("sha256")]
        problems += [f"{name}: not the bytes that were written" for name in spoiled]
    return problems


def read_manifest(checkpoint_dir: PathLike) -> dict[str, dict[str, Any]] | None:
    """`{file name: {"sha256", "bytes"}}` of a checkpoint; None when it has no (readable) manifest."""
    try:
        return parse_manifest((Path(checkpoint_dir) / MANIFEST).read_bytes())
    except OSError:
        return None


def parse_manifest(raw: bytes) -> dict[str, dict[str, Any]] | None:
    """The same from the bytes of a manifest.json."""
    data = read_object(raw)
    entries = data.get("files") if data else None
    if not isinstance(entries, dict) or not all(isinstance(v, dict) for v in entries.values()):
        return None
    return entries


def checkpoints(directory: PathLike) -> list[Path]:
    """All folders `checkpoint-N` in a directory, newest (highest N) first, whole or torn."""
    root = Path(directory)
    try:
        found = [p for p in root.iterdir() if checkpoint_step(p) is not None and p.is_dir()]
    except OSError:
        return []
    return sorted(found, key=lambda p: checkpoint_step(p) or 0, reverse=True)


def newest_whole_checkpoint(directory: PathLike, *, hashes: bool = True) -> Path | None:
    """The checkpoint to resume from: the highest step whose manifest is there and true. None when there is none."""
    for path in checkpoints(directory):
        if not verify_manifest(path, hashes=hashes):
            return path
    return None


def _is_ours(path: Path) -> bool:
    return path.name == MANIFEST or (path.name.startswith(f".{MANIFEST}.") and path.name.endswith(".tmp"))


def hash_files(paths: Iterable[Path], *, flush: bool = False) -> dict[Path, dict[str, Any]]:
    """`hash_file` of each. Model and optimiser, the two large files of a checkpoint, are read beside each other:
    training, or a move, stands still meanwhile.
    """
    # ten milliseconds to import, which those who only ask for the newest checkpoint need not wait for
    from concurrent.futures import ThreadPoolExecutor

    wanted = list(paths)
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(wanted, pool.map(lambda path: hash_file(path, flush=flush), wanted)))  # noqa: B905 - 3.9


def hash_file(path: Path, *, flush: bool = False) -> dict[str, Any]:
    """`{"sha256", "bytes"}` of a file, an entry of the manifest; `flush` also puts the file on the disk. OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while True:
            block = file.read(1 << 20)
            if not block:
                break
            digest.update(block)
            size += len(block)
        if flush:
            os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": size}
