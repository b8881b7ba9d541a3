"""A lock that dies with its holder: flock on a file that names the process for the message to the other one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from runner.errors import RefusedError


class HeldError(RefusedError):
    """Another process holds the lock."""


class FileLock:
    """An exclusive lock on `path`, held until `release`, the end of the `with` block or of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._handle is not None

    def acquire(self, what: str) -> FileLock:
        """Take it at once, or raise HeldError saying that `what` is under way in which process."""
        if self._handle is not None:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise HeldError(
                f"{what} is under way in process {holder}.", hint="Wait for it, or end it there with Ctrl-C."
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        return self

    def release(self) -> None:
        """Let go; harmless when it is not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def free(self) -> bool:
        """Whether nobody holds it, this process included."""
        if self._handle is not None:
            return False
        try:
            self.acquire("")
        except HeldError:
            return False
        self.release()
        return True

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
