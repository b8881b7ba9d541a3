"""Bytes of a checkpoint arrive on this box: written, hashed and flushed in one pass, by one receiver at a time.

    python -m runner.box.arrive DEST --asked N

The laptop sends them by this command: N bytes of JSON on stdin say what is wanted and how much of each file is here
already, then come the missing bytes of one file after the other. The answer is that of `runner.box.checkpoint finish`.
Exit 97 when the files have other sizes than the laptop believes, or when its bytes end too early: both mend themselves
by asking again.

A file is hashed while it is written, so the comparison at the end costs no second reading, and what has arrived goes to
the disk while more arrives. Standard library only, and the syntax of Python 3.9.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.box.checkpoint import CARRY, claim, finish

if TYPE_CHECKING:
    from concurrent.futures import Future

BLOCK = 1 << 17
"""Bytes per read: little enough to stay in the processor's cache between the stream, the hash and the file."""
FLUSH = 16 << 20
"""Bytes after which what has arrived is sent on to the disk."""
ASK_AGAIN = 97
"""Exit code: nothing is wrong with the box, look again what is here."""


def sizes(carry: Path, files: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of each wanted file that are here. OSError when one was not laid out."""
    return {name: (carry / name).stat().st_size for name in files}


def arrive(stream: Any, carry: Path, lacking: Sequence[tuple[str, int, int]], seen: dict[str, str]) -> bool:
    """Append to each file (name, bytes here, bytes to come) what a stream brings, and put its hash into `seen`.

    False when the stream ends too early. Raises the OSError of a disk that is full.
    """
    flusher = _Flusher()
    try:
        return all(_append(stream, carry / name, here, left, seen, flusher) for name, here, left in lacking)
    finally:
        flusher.close()


def _append(stream: Any, path: Path, here: int, left: int, seen: dict[str, str], flusher: _Flusher) -> bool:
    digest = hashlib.sha256()
    if here:
        with path.open("rb") as before:
            for block in iter(lambda: before.read(BLOCK), b""):
                digest.update(block)
    room = memoryview(bytearray(BLOCK))
    with path.open("ab", buffering=0) as file:
        fresh = 0
        while left:
            got = stream.readinto(room[: min(BLOCK, left)])
            if not got:
                return False
            file.write(room[:got])
            digest.update(room[:got])
            left -= got
            fresh += got
            if fresh >= FLUSH:
                flusher.flush(file.fileno())
                fresh = 0
        flusher.flush(file.fileno())
    seen[path.as_posix()] = digest.hexdigest()
    return True


class _Flusher:
    """Sends what was written on to the disk while more arrives, so that at the end there is little to wait for."""

    def __init__(self) -> None:
        # imported when bytes come: nobody waits for it then, and a question that needs it not is answered sooner
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(1)
        self._begun: list[Future[None]] = []

    def flush(self, fd: int) -> None:
        """Begin to flush a file; it may be closed at once."""
        self._begun.append(self._pool.submit(self._flush, os.dup(fd)))

    @staticmethod
    def _flush(fd: int) -> None:
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Wait for all; raises the OSError that one of them met."""
        self._pool.shutdown()
        for flushed in self._begun:
            flushed.result()


def from_stdin(dest: Path, asked: int) -> tuple[int, dict[str, Any]]:
    """The exit code and the answer to the laptop; see the head of this file.

    Raises OSError of the disk here, and ValueError, KeyError or TypeError for a question that makes no sense.
    """
    with open(0, "rb", buffering=0, closefd=False) as stream:
        head = b""
        while len(head) < asked:
            more = stream.read(asked - len(head))
            if not more:
                return ASK_AGAIN, {}
            head += more
        said = json.loads(head)
        files, have = said["files"], {name: int(size) for name, size in said["have"].items()}
        if any(name.startswith("/") or ".." in Path(name).parts for name in files):
            raise ValueError("a file's name points outside the checkpoint")
        carry = dest.with_name(dest.name + CARRY)
        claim(carry)
        if sizes(carry, files) != have:
            return ASK_AGAIN, {}
        lacking = [(name, size, int(files[name]["bytes"]) - size) for name, size in have.items()]
        seen: dict[str, str] = {}
        if not arrive(stream, carry, [entry for entry in lacking if entry[2] > 0], seen):
            return ASK_AGAIN, {}
    return 0, finish(dest, files, seen=seen)


def main(argv: list[str] | None = None) -> int:
    """Command line; see the head of this file. A document on stdout, exit 1 with a sentence when it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m runner.box.arrive", description=__doc__.partition("\n")[0])
    parser.add_argument("dest", type=Path)
    parser.add_argument("--asked", type=int, required=True, help="bytes of JSON before the files'")
    options = parser.parse_args(argv)
    dest = Path(os.path.expanduser(options.dest))  # noqa: PTH111 - it may arrive with a ~ that no shell has seen
    try:
        code, answer = from_stdin(dest, options.asked)
    except OSError as error:
        sys.stderr.write(f"{error.filename or dest}: {error.strerror}\n")
        return 1
    except (ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"what was asked cannot be used: {error}\n")
        return 1
    if code:
        sys.stderr.write("what is here is not what was believed, or the bytes ended too early\n")
        return code
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
