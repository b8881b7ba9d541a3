"""The laptop's append-only copy of one remote file: pulled by byte offset, never streamed, byte for byte the same.

Pull, not stream: a reader left running on the box would outlive every sleep of the laptop, and a stream that broke
does not know how far it came. A pull leaves nothing behind and goes on exactly where it was.

The rules of this file:

- The copy only ever grows by the bytes that follow it. Before anything is appended, the last bytes that are here are
  compared with the same place over there; where they differ, or the file over there became shorter, it is another
  file: the copy is put aside as `<name>.<n>` and a new one begun.
- The offset is the size of the copy itself, so a crash between writing and noting cannot make them disagree. What is
  noted beside it (`<name>.mirror.json`) is only what the copy cannot tell: generation, remote size and time.
- A file that was cut to exactly the same length and then rewritten with the same seam would not be noticed. Our runner
  only appends.
- Bytes, not lines: a partial line or half a character is kept as it came, and a reader of the copy waits for the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
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


class Mirror:
    """One remote file and its copy. Used by one thread."""

    def __init__(self, host: Transport, remote: str, local: Path) -> None:
        self.host = host
        self.remote = remote
        self.path = local
        self.generation = 0
        self._stream: ByteStream | None = None
        self._seen: tuple[int, float] | None = None
        self._note = local.with_name(local.name + ".mirror.json")
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            noted = json.loads(self._note.read_text(encoding="utf-8"))
            self.generation = int(noted["generation"])
        except (OSError, ValueError, KeyError, TypeError):
            self.generation = 0

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
        try:
            return self._pull(until, timeout)
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
            before = offset
            info = FileInfo(self._stream.size, 0.0, False)
            offset += self._from_stream(until, timeout)
            return Pulled(offset - before, info.size, max(0, info.size - offset), False, info)
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
            self._stream = self.host.open_read(self.remote, offset, timeout=timeout)
            got = self._from_stream(until, timeout)
        else:
            chunk = self.host.read_from(self.remote, start, limit=len(seam) + _SMALL, timeout=timeout)
            if chunk.data[: len(seam)] != seam:
                # another file under the same name: begin anew with the next pull, which is at once
                self._begin_anew()
                self._seen = None
                return Pulled(0, info.size, info.size, True, info)
            got = self._append(chunk.data[len(seam) :])
        size = max(info.size, offset + got)
        if offset + got == info.size:
            self._seen = (info.size, info.mtime)
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
            got += self._append(data)
            if time.monotonic() >= until:
                return got

    def _append(self, data: bytes) -> int:
        if data:
            with self.path.open("ab") as out:
                out.write(data)
        return len(data)

    def _seam(self, offset: int) -> bytes:
        if not offset:
            return b""
        with self.path.open("rb") as file:
            file.seek(max(0, offset - SEAM))
            return file.read(min(SEAM, offset))

    def _begin_anew(self) -> None:
        """Put the copy aside under its generation's number; a reader of the path sees another file."""
        self._end_stream()
        if self.path.exists():
            self.generation += 1
            self.path.replace(self.path.with_name(f"{self.path.name}.{self.generation}"))
        self._seen = None
        self._persist(None)

    def _persist(self, info: FileInfo | None) -> None:
        noted = {"remote": self.remote, "host": self.host.name, "generation": self.generation}
        if info is not None:
            noted |= {"size": info.size, "mtime": info.mtime}
        beside = self._note.with_name(f"{self._note.name}.{os.getpid()}")
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
