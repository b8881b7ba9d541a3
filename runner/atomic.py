"""Safe ways to write on a box whose disk may be full and whose power may go: whole files or none, and a reserve.

Standard library only, and the syntax of Python 3.9 (see `runner.rundir`).
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, Union

PathLike = Union[str, "os.PathLike[str]"]

BALLAST = "ballast"
BALLAST_BYTES = 1 << 20
"""Bytes; the last status, summary and log lines need far less."""


def write_atomic(path: PathLike, data: bytes, *, durable: bool = True) -> None:
    """Replace a file so that a reader sees the old bytes or the new ones, and so that they survive a power cut.

    `durable=False` leaves the flushing to the kernel: for a heartbeat, which nobody wants back after a power cut and
    which must not wait for a checkpoint that is on its way to the same disk.
    Raises OSError; the old file is untouched then, and nothing is left beside it.
    """
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        beside.replace(target)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(target.parent)


def sync_folder(path: PathLike) -> None:
    """Flush a folder's entries to disk; a file system that cannot do that to a folder is left alone."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def read_object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in `raw`, None when it is anything else."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def make_ballast(run_dir: PathLike, size: int = BALLAST_BYTES) -> bool:
    """Put aside `size` bytes of real disk. False, and nothing left behind, when the disk has no room for it now."""
    path = Path(run_dir) / BALLAST
    if path.exists() and path.stat().st_size >= size:
        return True
    try:
        with path.open("wb") as file:
            file.write(os.urandom(size))  # a compressing file system would keep zeros in no space at all
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        return False
    return True


def release_ballast(run_dir: PathLike) -> bool:
    """Give the ballast back to the disk; False when there was none."""
    try:
        (Path(run_dir) / BALLAST).unlink()
    except OSError:
        return False
    return True
