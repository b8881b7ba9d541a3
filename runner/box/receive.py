"""A checkpoint comes from another box to this one, in one stream, hashed as it arrives.

    python -m runner.box.receive DEST FOLDER

Started by the laptop, with what is wanted in FOLDER/asked.json. It says in FOLDER/ready.json what of the checkpoint is
here, and gives the public half of a key made for this once; when FOLDER/go appears, the other box accepts that key.
Then it pulls what is missing, compares every hash, gives the checkpoint its name, and says so in FOLDER/answer.json: a
file, so that it is found although the link to the laptop broke meanwhile. When FOLDER is taken away it ends.

All files travel through one connection, one after the other: each begins where the bytes that are here end. A file is
hashed while it is written, so the comparison at the end costs no second reading. The key never leaves this box.

Standard library only, and the syntax of Python 3.9.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runner.atomic import write_atomic
from runner.box.checkpoint import CARRY, finish, stage

MARK = "tunewatch-carry"
"""Beginning of the key's folder, and of its comment in the other box's authorized_keys."""
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr"
"""The quickest on processors that have AES in hardware first; every OpenSSH since 6.5 knows them."""
BLOCK = 1 << 17
"""Bytes per read: little enough to stay in the processor's cache between the stream, the hash and the file."""
FLUSH = 16 << 20
"""Bytes after which what has arrived is sent on to the disk."""
PIPE = 1 << 20
"""Bytes that the kernel holds between ssh and us, where it can be asked to."""
READY, GO, ANSWER = "ready.json", "go", "answer.json"
GO_S = 300.0
"""The laptop opens the door within so long, or it does not come back."""


def prepare(dest: Path, files: dict[str, Any], door: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`{"whole", "have", "key", "reachable"}`; the key is empty where it could not be used."""
    for old in folder.parent.glob(f"{MARK}-*"):
        if old != folder:
            _end_earlier(old)
            shutil.rmtree(old, ignore_errors=True)
    maker = None
    if shutil.which("ssh") and shutil.which("ssh-keygen"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", folder.name, "-f", str(folder / "key")]
        maker = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    laid = stage(dest, files)
    reachable = maker is not None and meets(str(door["host"]), int(door["port"]))
    key = ""
    if maker is not None and maker.wait(30) == 0 and reachable and not laid["whole"]:
        key = (folder / "key.pub").read_text().strip()
    return {**laid, "key": key, "reachable": bool(key)}


def _end_earlier(folder: Path) -> None:
    """A pull of an earlier try would append to the same files."""
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int((folder / "pid").read_text()), 15)


def meets(host: str, port: int) -> bool:
    """Whether an SSH server greets at an address."""
    try:
        with socket.create_connection((host, port), 5) as line:
            line.settimeout(5)
            return line.recv(4) == b"SSH-"
    except OSError:
        return False


def pull(dest: Path, files: dict[str, Any], source: str, door: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`{"ok", "wrong", "error"}`: what `runner.box.checkpoint finish` says, or why the stream ended early."""
    known = folder / "known_hosts"
    known.write_text(f"[{door['host']}]:{door['port']} {door['host_key']}\n")
    carry = dest.with_name(dest.name + CARRY)
    lacking = []
    for name, want in files.items():
        here = (carry / name).stat().st_size
        if here < int(want["bytes"]):
            lacking.append((name, here, int(want["bytes"]) - here))
    seen: dict[str, str] = {}
    if lacking:
        reads = [_read(f"{source}/{name}", here) for name, here, _ in lacking]
        words = [
            "ssh", "-i", str(folder / "key"), "-p", str(door["port"]), "-c", CIPHERS, "-o", "IdentitiesOnly=yes",
            "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known}",
            "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=10", "-o", "LogLevel=ERROR",
            f"{door['user']}@{door['host']}", " && ".join(reads),
        ]  # fmt: skip
        with (folder / "out").open("wb") as said:
            child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, bufsize=0)
            stream = child.stdout
            assert stream is not None  # noqa: S101 - it is a pipe
            with contextlib.suppress(OSError):
                fcntl.fcntl(stream.fileno(), 1031, PIPE)  # F_SETPIPE_SZ, where there is one
            flusher = Flusher()
            try:
                whole = all(_receive(stream, carry / name, here, left, seen, flusher) for name, here, left in lacking)
            finally:
                flusher.close()
            child.kill()
            code = child.wait()
        if not whole:
            lines = (folder / "out").read_text(errors="replace").strip().splitlines()
            return {"ok": False, "wrong": [], "error": lines[-1] if lines else f"the stream ended early ({code})"}
    return {**finish(dest, files, seen=seen), "error": ""}


def _read(path: str, here: int) -> str:
    """The other box's command for a file's bytes from `here` on; cat moves them in larger blocks than tail."""
    q = shlex.quote(path)
    return f"tail -c +{here + 1} -- {q}" if here else f"cat -- {q}"


def _receive(stream: Any, path: Path, here: int, left: int, seen: dict[str, str], flusher: Flusher) -> bool:
    """Append the next `left` bytes of the stream to a file; its hash goes into `seen`. False when they do not come."""
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


class Flusher:
    """Sends what was written on to the disk while more arrives, so that at the end there is little to wait for."""

    def __init__(self) -> None:
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


def wait_for(path: Path, seconds: float) -> bool:
    """Whether a file appears; False after so long, and when its folder is taken away."""
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > until or not path.parent.is_dir():
            return False
        time.sleep(0.005)
    return True


def main(argv: list[str] | None = None) -> int:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(prog="python -m runner.box.receive", description=__doc__.partition("\n")[0])
    parser.add_argument("dest", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(argv)
    dest = Path(os.path.expanduser(options.dest))  # noqa: PTH111 - it may arrive with a ~ that no shell has seen
    folder: Path = options.folder
    (folder / "pid").write_text(str(os.getpid()))
    asked = json.loads((folder / "asked.json").read_text())
    files = asked["files"]
    if any(name.startswith("/") or ".." in Path(name).parts for name in files):
        sys.stderr.write("a file's name points outside the checkpoint\n")
        return 1
    try:
        ready = prepare(dest, files, asked["door"], folder)
    except OSError as error:
        sys.stderr.write(f"{error.filename or dest}: {error.strerror}\n")
        return 1
    write_atomic(folder / READY, json.dumps(ready).encode(), durable=False)
    if not ready["key"] or not wait_for(folder / GO, GO_S):
        return 0
    try:
        answer = pull(dest, files, asked["source"], asked["door"], folder)
    except OSError as error:
        answer = {"ok": False, "wrong": [], "error": f"{error.filename or dest}: {error.strerror}"}
    write_atomic(folder / ANSWER, json.dumps(answer).encode(), durable=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
