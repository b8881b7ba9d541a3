"""The laptop's append-only copy of one remote file: pulled by byte offset, never streamed, byte for byte the same.

Pull, not stream: a reader left running on the box would outlive every sleep of the laptop, and a stream that broke
does not know how far it came. A pull leaves nothing behind and goes on exactly where it was.

The rules of this file:

- The copy only ever grows by the bytes that follow it. Before anything is appended, the last bytes that are here are
  compared with the same place over there; where they differ, or the file over there became shorter, it is another
  file: the copy is put aside as `<name>.<n>` and a new one begun.
- The offset is the size of the copy itself, so a crash between writing and noting cannot make them disagree. What is
  noted beside it (`<name>.mirror.json`) is only what the copy cannot tell: generation, remote size and time.
- Several processes may mirror one file at once (a control room, and `watch --json` beside it). Whoever appends holds a
  lock, looks how far the copy has come meanwhile, and leaves out what is there already.
- A file that was cut to exactly the same length and then rewritten with the same seam would not be noticed. Our runner
  only appends.
- Bytes, not lines: a partial line or half a character is kept as it came, and a reader of the copy waits for the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from remote.target import Target
from remote.transport import ByteStream, FileInfo, Transport

SEAM = 64
"""Bytes before the offset that have to be the same on both sides."""
_SMALL = 128 << 10
"""Bytes that are fetched by one read; what is more comes by a stream that stays open over several pulls."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """What one pull did."""

    appended: int
    """Bytes."""
    size: int
    """Bytes of the remote file when it was looked at."""
    behind: int
    """Bytes that are there and not here yet."""
    new_generation: bool
    info: FileInfo
    """Of the remote file."""


class _OvertakenError(Exception):
    """Another process began the copy anew while this one was reading the file before."""


class Mirror:
    """One remote file and its copy. Used by one thread; any number of them may share the copy."""

    def __init__(self, host: Transport, remote: str, local: Path) -> None:
        self.host = host
        self.remote = remote
        self.path = local
        self.generation = 0
        self._stream: ByteStream | None = None
        self._at = 0
        """Offset in the remote file of what the stream brings next."""
        self._seen: tuple[int, float] | None = None
        self._note = local.with_name(local.name + ".mirror.json")
        self._lock = local.with_name(local.name + ".lock")
        local.parent.mkdir(parents=True, exist_ok=True)
        self.generation = self._noted_generation()

    @property
    def offset(self) -> int:
        """Bytes that are here."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def pull(self, seconds: float = 0.3, *, timeout: float = 5.0) -> Pulled:
        """Append what is new. Fetches for about `seconds`, one question takes at most `timeout` (both s).

        Raises what the transport raises; the copy is whole then, and the next pull goes on.
        """
        until = time.monotonic() + seconds
        while True:
            try:
                return self._pull(until, timeout)
            except _OvertakenError:
                self._end_stream()
                self._seen = None
            except Exception:
                self._end_stream()
                raise

    def stirred(self, *, timeout: float = 5.0) -> bool:
        """Whether the file over there is another than at the last pull that reached its end: one look, no reading."""
        if self._seen is None:
            return True
        info = self.host.stat(self.remote, timeout=timeout)
        return (info.size, info.mtime) != self._seen

    def _pull(self, until: float, timeout: float) -> Pulled:
        offset = self.offset
        if self._stream is not None:
            info = FileInfo(self._stream.size, 0.0, False)
            got = self._from_stream(until, timeout)
            return Pulled(got, info.size, max(0, info.size - self._at), False, info)
        info = self.host.stat(self.remote, timeout=timeout)
        if self._seen == (info.size, info.mtime) and offset == info.size:
            return Pulled(0, info.size, 0, False, info)
        fresh = False
        seam = self._seam(offset)
        if info.size < offset:
            fresh, offset, seam = True, 0, b""
            self._begin_anew()
        start = offset - len(seam)
        if info.size - offset > _SMALL:
            if seam and self.host.read_from(self.remote, start, limit=len(seam), timeout=timeout).data != seam:
                fresh, offset = True, 0
                self._begin_anew()
            self._stream, self._at = self.host.open_read(self.remote, offset, timeout=timeout), offset
            got = self._from_stream(until, timeout)
        else:
            chunk = self.host.read_from(self.remote, start, limit=len(seam) + _SMALL, timeout=timeout)
            if chunk.data[: len(seam)] != seam:
                # another file under the same name: begin anew with the next pull, which is at once
                self._begin_anew()
                self._seen = None
                return Pulled(0, info.size, info.size, True, info)
            got = self._append(chunk.data[len(seam) :], offset)
        size = max(info.size, offset + got)
        if offset + got == info.size:
            self._seen = (info.size, info.mtime)
            with self._alone():
                if self._noted_generation() == self.generation:
                    self._persist(info)
        return Pulled(got, size, size - offset - got, fresh, info)

    def _from_stream(self, until: float, timeout: float) -> int:
        got = 0
        stream = self._stream
        if stream is None:
            return 0
        while True:
            data = stream.read(1 << 20, timeout)
            if not data:
                self._end_stream()
                return got
            got += self._append(data, self._at)
            self._at += len(data)
            if time.monotonic() >= until:
                return got

    def _append(self, data: bytes, at: int) -> int:
        """Put bytes of the remote file from offset `at` where they belong; what is here by now is left out."""
        if data:
            with self._alone(), self.path.open("ab") as out:
                have = out.tell()
                if have < at or self._noted_generation() != self.generation:
                    self.generation = self._noted_generation()
                    raise _OvertakenError
                out.write(data[have - at :])
        return len(data)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else changes the copy meanwhile."""
        with self._lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _noted_generation(self) -> int:
        try:
            return int(json.loads(self._note.read_text(encoding="utf-8"))["generation"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _seam(self, offset: int) -> bytes:
        if not offset:
            return b""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, offset - SEAM))
                return file.read(min(SEAM, offset))
        except FileNotFoundError:
            raise _OvertakenError from None

    def _begin_anew(self) -> None:
        """Put the copy aside under its generation's number; a reader of the path sees another file."""
        self._end_stream()
        self._seen = None
        with self._alone():
            if self._noted_generation() != self.generation:
                self.generation = self._noted_generation()
                raise _OvertakenError
            if self.path.exists():
                self.generation += 1
                self.path.replace(self.path.with_name(f"{self.path.name}.{self.generation}"))
            self._persist(None)

    def _persist(self, info: FileInfo | None) -> None:
        noted = {"remote": self.remote, "host": self.host.name, "generation": self.generation}
        if info is not None:
            noted |= {"size": info.size, "mtime": info.mtime}
        beside = self._note.with_name(f"{self._note.name}.{secrets.token_hex(4)}")
        beside.write_text(json.dumps(noted), encoding="utf-8")
        beside.replace(self._note)

    def _end_stream(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.close()


def mirror_folder(target: Target, home: Path) -> Path:
    """Where the mirrors of a target lie; the files in it keep their remote names."""
    where = target.login if target.kind == "ssh" else str(target.instance_id)
    name = hashlib.sha256(f"{where}\n{target.path.rstrip('/') or '/'}".encode()).hexdigest()[:12]
    label = (target.host or f"vast-{target.instance_id}").replace("/", "_")
    return home / "mirrors" / f"{label}-{name}"


__all__ = ["SEAM", "Mirror", "Pulled", "mirror_folder"]
