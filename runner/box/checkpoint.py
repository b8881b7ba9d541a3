"""A checkpoint's comings and goings on a box, asked for by the laptop while a run moves. One JSON document each.

    python -m runner.box.checkpoint newest DIR [--at-most N] [--pin P]   the newest whole checkpoint-N and its hashes
    python -m runner.box.checkpoint stage DEST      what of the files on stdin is at DEST.carry already
    python -m runner.box.checkpoint finish DEST     compare every hash; only then DEST.carry becomes DEST

A checkpoint that travels lies in `checkpoint-N.carry`, a name no trainer resumes from; it gets its own name when every
file has the bytes that the manifest names. A file that some checkpoint here has already (the tokenizer, mostly) is
copied and does not travel twice. A trainer prunes its checkpoints while one of them is being read: with `--pin` that
one is kept by a second set of names (hard links) under P.

A foreign trainer seals nothing: its checkpoint counts as whole when trainer_state.json, which it writes last, names the
step of the folder. Standard library only, and the syntax of Python 3.9.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from runner.atomic import read_object, sync_folder, write_atomic
from runner.box import proc
from runner.manifest import (
    MANIFEST,
    checkpoint_step,
    checkpoints,
    hash_file,
    hash_files,
    read_manifest,
    verify_manifest,
)

CARRY = ".carry"
"""Ending of a checkpoint that is not here yet."""
RECEIVER = ".receiver"
"""The lock of whoever writes into it, among its files until it is whole."""
DRAIN_S, CLAIM_S = 2.0, 30.0
"""Seconds that an earlier receiver is given by itself, and in all."""
TRAINER_STATE = "trainer_state.json"


def newest(directory: Path, at_most: int | None = None, pin: Path | None = None) -> dict[str, Any]:
    """The newest whole checkpoint: `{"step", "path", "sealed", "files", ...}`; step None when there is none.

    Sizes are compared here, hashes where it arrives. `torn` names what was passed over and why.
    """
    torn: list[str] = []
    for path in checkpoints(directory):
        step = checkpoint_step(path)
        if at_most is not None and step is not None and step > at_most:
            continue
        state = _trainer_state(path)
        files = read_manifest(path)
        if files is not None:
            problems = verify_manifest(path, hashes=False)
        elif state.get("global_step") == step:
            problems, files = [], {p.relative_to(path).as_posix(): hash_file(p) for p in _files(path)}
        else:
            problems = ["not finished"]
        if problems or files is None:
            torn.append(f"{path.name}: {problems[0]}")
            continue
        sealed = (path / MANIFEST).is_file()
        try:
            place = path if pin is None else _pinned(path, files, pin)
        except FileNotFoundError:
            torn.append(f"{path.name}: pruned in this moment")
            continue
        return {
            "step": step,
            "path": str(place.resolve()),
            "sealed": sealed,
            "files": files,
            "eval_loss": eval_at(state, step),
            "global_step": state.get("global_step"),
            "best_step": best_step(state),
            "torn": torn,
        }
    return {"step": None, "torn": torn}


def _pinned(path: Path, files: dict[str, Any], pin: Path) -> Path:
    """Hard links to a checkpoint's files, in place of those that were pinned before; `path` where links do not work."""
    place = pin / path.name
    if place.resolve() == path.resolve():
        return path
    shutil.rmtree(pin, ignore_errors=True)
    try:
        for name in files:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(path / name, place / name)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.rmtree(pin, ignore_errors=True)
        return path
    return place


def stage(dest: Path, wanted: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Lay out DEST.carry: `{"whole": bool, "have": {name: bytes}}`. What is here under another name is copied."""
    if _is_whole(dest, wanted):
        return {"whole": True, "have": {}}
    carry = dest.with_name(dest.name + CARRY)
    carry.mkdir(parents=True, exist_ok=True)
    os.close(claim(carry))
    here = _known_here(dest.parent)
    have: dict[str, int] = {}
    for name, want in wanted.items():
        path = carry / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() and want.get("sha256") in here:
            shutil.copyfile(here[want["sha256"]], path)
        size = path.stat().st_size if path.exists() else 0
        if size > int(want["bytes"]):
            path.unlink()
            size = 0
        path.touch()
        have[name] = size
    return {"whole": False, "have": have}


def claim(carry: Path) -> int:
    """Be the only one that writes into a checkpoint that travels, until the descriptor that is returned is closed.

    A link may break so that only the laptop notices. A receiver of an earlier try gets a moment to write what has
    reached it, and is ended when it still waits for more. Raises OSError when it does not go.
    """
    path = carry / RECEIVER
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    begun = time.monotonic()
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - begun
            if waited > CLAIM_S:
                os.close(fd)
                raise
            if waited > DRAIN_S:
                for pid in proc.holders(str(path)):
                    if pid != os.getpid():
                        with contextlib.suppress(OSError):
                            os.kill(pid, signal.SIGTERM)
            time.sleep(0.02)
        else:
            return fd


def finish(dest: Path, wanted: dict[str, dict[str, Any]], *, seen: dict[str, str] | None = None) -> dict[str, Any]:
    """Compare every hash, seal and rename: `{"ok": bool, "wrong": [names]}`. What is wrong is removed.

    `seen` are the hashes of files (by path) that this very process took while it wrote them; they are not read again.
    """
    if _is_whole(dest, wanted):
        return {"ok": True, "wrong": []}
    carry = dest.with_name(dest.name + CARRY)
    here = {name: carry / name for name in wanted if (carry / name).is_file()}
    known = {name: digest for name, path in here.items() if (digest := (seen or {}).get(path.as_posix()))}
    read = hash_files((path for name, path in here.items() if name not in known), flush=True)
    known |= {name: read[path]["sha256"] for name, path in here.items() if path in read}
    wrong = [name for name, want in wanted.items() if known.get(name) != want["sha256"]]
    for name in wrong:
        with contextlib.suppress(FileNotFoundError):
            (carry / name).unlink()
    if wrong:
        return {"ok": False, "wrong": wrong}
    body = {"version": 1, "step": checkpoint_step(dest), "files": wanted}
    write_atomic(carry / MANIFEST, json.dumps(body, indent=1).encode())
    if dest.exists():
        # torn under its own name: a trainer here was killed while it saved
        shutil.rmtree(dest)
    with contextlib.suppress(FileNotFoundError):
        (carry / RECEIVER).unlink()
    carry.rename(dest)
    sync_folder(dest.parent)
    return {"ok": True, "wrong": []}


def _is_whole(dest: Path, wanted: dict[str, dict[str, Any]]) -> bool:
    """Whether DEST is this very checkpoint, whole."""
    files = read_manifest(dest)
    if files is None or {n: f.get("sha256") for n, f in files.items()} != {n: f["sha256"] for n, f in wanted.items()}:
        return False
    return not verify_manifest(dest)


def _known_here(directory: Path) -> dict[str, Path]:
    """Files of the whole checkpoints here by their sha256."""
    found: dict[str, Path] = {}
    for path in checkpoints(directory):
        for name, entry in (read_manifest(path) or {}).items():
            if (path / name).is_file() and (path / name).stat().st_size == entry.get("bytes"):
                found[str(entry.get("sha256"))] = path / name
    return found


def _files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file() and p.name != MANIFEST)


def _trainer_state(path: Path) -> dict[str, Any]:
    try:
        return read_object((path / TRAINER_STATE).read_bytes()) or {}
    except OSError:
        return {}


def eval_at(state: dict[str, Any], step: int | None) -> float | None:
    """The eval loss that the trainer itself had at this step."""
    history = state.get("log_history")
    for row in reversed(history if isinstance(history, list) else []):
        if isinstance(row, dict) and row.get("step") == step and isinstance(row.get("eval_loss"), (int, float)):
            return float(row["eval_loss"])
    return None


def best_step(state: dict[str, Any]) -> int | None:
    """The step with the lowest eval loss, as our auto-stop or the Trainer itself remembers it."""
    machine: Any = state.get("stateful_callbacks")
    for key in ("AutoStop", "attributes", "machine", "best_step"):
        machine = machine.get(key) if isinstance(machine, dict) else None
    best = machine if machine is not None else state.get("best_global_step")
    return best if isinstance(best, int) else None


def main(argv: list[str] | None = None) -> int:
    """Command line; see the head of this file. A document on stdout, exit 1 with a sentence when it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m runner.box.checkpoint", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("newest", "stage", "finish"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--at-most", type=int, default=None, help="ignore later steps")
    parser.add_argument("--pin", type=Path, default=None, help="keep the one that is found by hard links here")
    options = parser.parse_args(argv)
    path = Path(os.path.expanduser(options.path))  # noqa: PTH111 - it may arrive with a ~ that no shell has seen
    try:
        if options.what == "newest":
            answer = newest(path, options.at_most, options.pin)
        else:
            wanted = json.load(sys.stdin)["files"]
            if any(name.startswith("/") or ".." in Path(name).parts for name in wanted):
                sys.stderr.write("a file's name points outside the checkpoint\n")
                return 1
            answer = stage(path, wanted) if options.what == "stage" else finish(path, wanted)
    except OSError as error:
        sys.stderr.write(f"{error.filename or path}: {error.strerror}\n")
        return 1
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
