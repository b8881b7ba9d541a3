"""What a host can be asked, whatever the wire: the narrow contract that `remote.local` and `remote.ssh` both fulfil.

Promises that every implementation keeps (one test suite holds them against each):

- Every call has a deadline in seconds and ends by it, with a result or with one of the errors below. No call retries
  by itself: retry and backoff belong to the caller, who knows whether repeating is safe.
- A path is absolute, or relative to the home directory of the user on that host; `~/` at its start means the same.
- Bytes are bytes: nothing is decoded, nothing is translated.
- After a `LinkError` the next call builds the connection anew; nothing has to be reset by hand.

    TunewatchError
    ├── NotFoundError                the path does not exist on that host
    │   └── NoHostError              there is no such host: the provider says that the instance does not exist
    ├── RefusedError
    │   ├── HostKeyChangedError      the host is not the one we met before: never retried, never overridden silently
    │   └── NoPermissionError        the host answers, the file may not be read or written
    └── UnreachableError
        ├── LinkError                dropped, timed out, refused: trying again may help
        └── AuthError                the host answers, and does not let us in
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from runner.errors import NotFoundError, RefusedError, UnreachableError


class LinkError(UnreachableError):
    """The connection was refused, lost or silent for longer than the deadline. Says nothing about the run."""


class AuthError(UnreachableError):
    """The host answers and does not let us in: wrong user, refused key, or a key that is not there yet."""


class NoHostError(NotFoundError):
    """Not the path but the host does not exist: the provider was asked and knows no such instance."""


class HostKeyChangedError(RefusedError):
    """The host shows another key than the one met first under this name."""


class NoPermissionError(RefusedError):
    """The host answers, and this user may not read or write the file."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended."""

    rc: int
    """Exit status; 128 + n when signal n ended it."""
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Stdout for reading, without the white space around it."""
        return self.stdout.decode("utf-8", "replace").strip()

    @property
    def complaint(self) -> str:
        """The last line that the command said on stderr, for a sentence; empty when it said nothing."""
        lines = [line for line in self.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a file that may be growing."""

    data: bytes
    size: int
    """Bytes in the whole file when it was read."""
    mtime_age_s: float | None
    """Seconds since the last write, both ends on the host's own clock; None where the host's clock is not known."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What `stat` says."""

    size: int
    """Bytes."""
    mtime: float
    """Seconds since the epoch on the host's clock."""
    is_dir: bool


class ByteStream(Protocol):
    """A file read from an offset to the end it had when it was opened; for what is too big for one chunk."""

    size: int
    """Bytes in the whole file when the stream was opened."""

    def read(self, limit: int, timeout: float) -> bytes:
        """Up to `limit` bytes as soon as some are there; empty at the end. Raises LinkError after `timeout` seconds."""

    def close(self) -> None:
        """Leave nothing behind on either side; may be called twice."""


class Feed(Protocol):
    """A command that is given its input piece by piece. What it says is read at its end: it must not say megabytes."""

    def write(self, data: bytes) -> bool:
        """Give it more; False when it has ended and takes no more (`finish` says how). LinkError after a long silence.

        How long is for the host to say: a disk may be busy.
        """

    def finish(self, timeout: float) -> Completed:
        """End its input and wait for its end. Raises LinkError after `timeout` seconds."""

    def close(self) -> None:
        """Leave it: its input ends here, whatever it does then. May be called twice."""


Sent = Callable[[int, int], None]
"""Progress of a transfer: bytes done, bytes in all."""


class Transport(Protocol):
    """A host that can be asked."""

    name: str
    """What a person calls the host."""

    def run(self, command: str, *, stdin: bytes = b"", timeout: float = 30.0) -> Completed:
        """Run `command` by `/bin/sh` in the home directory and wait for its end, not for its children."""

    def feed(self, command: str, *, timeout: float = 30.0) -> Feed:
        """Start `command` as `run` does, its input to follow; it starts within `timeout` seconds."""

    def read_from(self, path: str, offset: int, *, limit: int = 1 << 20, timeout: float = 10.0) -> Chunk:
        """Read up to `limit` bytes from byte `offset`; no data, and no error, where the file is shorter than that."""

    def open_read(self, path: str, offset: int = 0, *, timeout: float = 10.0) -> ByteStream:
        """Stream the file from `offset`."""

    def stat(self, path: str, *, timeout: float = 10.0) -> FileInfo:
        """Look at a path, following links."""

    def listdir(self, path: str, *, timeout: float = 10.0) -> list[str]:
        """Names in a directory, sorted, hidden ones too."""

    def put(
        self, data: bytes | Path, remote: str, *, mode: int = 0o644, timeout: float = 600.0, sent: Sent | None = None
    ) -> None:
        """Write a file whole or not at all (temporary name, then rename), with `mode` from its first byte on."""

    def get(self, remote: str, local: Path, *, timeout: float = 600.0, sent: Sent | None = None) -> None:
        """Fetch a file whole or not at all; goes on where an earlier try of the same file was cut."""

    def ping(self, *, timeout: float = 5.0) -> float:
        """Seconds for one round trip to the host itself, not to a proxy before it."""

    def home(self, *, timeout: float = 10.0) -> str:
        """The absolute home directory of the user on the host."""

    def close(self) -> None:
        """Give the connection back. The next call would open a new one."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Closing:
    """`with` for transports."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Overridden by each transport."""


def shell_path(path: str) -> str:
    """Quote a path for `/bin/sh`, with `~/` and relative paths under the home directory.

    >>> shell_path("/a b"), shell_path("~/x"), shell_path("x/y")
    ("'/a b'", '"$HOME"/x', '"$HOME"/x/y')
    """
    if path.startswith("/"):
        return shlex.quote(path)
    rest = path.removeprefix("~").lstrip("/")
    return f'"$HOME"/{shlex.quote(rest)}' if rest else '"$HOME"'
