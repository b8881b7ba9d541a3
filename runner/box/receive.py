"""A checkpoint comes from another box to this one, in one stream, hashed as it arrives. Run by the laptop, twice.

    python -m runner.box.receive prepare DEST    what of it is here, a key made for this once, whether the door is met
    python -m runner.box.receive pull DEST       pull what is missing, compare every hash, give it its name

`prepare` answers on stdout; `pull` writes its answer into the key's folder, where it is found although the link to the
laptop broke meanwhile. All files travel through one connection, one after the other: each begins where the bytes that
are here end. A file is hashed while it is written, so the comparison at the end costs no second reading. The key is
made here and never leaves this box.

Standard library only, and the syntax of Python 3.9.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import queue
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

from runner.atomic import write_atomic
from runner.box.checkpoint import CARRY, finish, stage

MARK = "tunewatch-carry"
"""Beginning of the key's folder, and of its comment in the other box's authorized_keys."""
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr"
"""The quickest on processors that have AES in hardware first; every OpenSSH since 6.5 knows them."""
BLOCK = 1 << 20
PIPE = 1 << 20
"""Bytes that the kernel holds between ssh and us, where it can be asked to."""
FLUSH = 32 << 20
"""Bytes after which what was written is put on the disk, while the rest is still on its way."""
ANSWER = "answer.json"


def prepare(dest: Path, files: dict[str, Any], door: dict[str, Any]) -> dict[str, Any]:
    """`{"whole", "have", "folder", "key", "reachable"}`; no key is left where it cannot be used."""
    root = Path.home() / "tunewatch"
    for old in root.glob(f"{MARK}-*"):
        _end_earlier(old)
        shutil.rmtree(old, ignore_errors=True)
    folder = root / f"{MARK}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700, parents=True)
    maker = None
    if shutil.which("ssh") and shutil.which("ssh-keygen"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", folder.name, "-f", str(folder / "key")]
        maker = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    laid = stage(dest, files)
    reachable = maker is not None and meets(str(door["host"]), int(door["port"]))
    key = ""
    if maker is not None and maker.wait(30) == 0:
        key = (folder / "key.pub").read_text().strip()
    if laid["whole"] or not key or not reachable:
        shutil.rmtree(folder, ignore_errors=True)
        return {**laid, "folder": "", "key": "", "reachable": False}
    return {**laid, "folder": str(folder), "key": key, "reachable": True}


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
    (folder / "pid").write_text(str(os.getpid()))
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
        reads = [f"tail -c +{here + 1} -- {shlex.quote(f'{source}/{name}')}" for name, here, _ in lacking]
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
            whole = all(_receive(stream, carry / name, here, left, seen) for name, here, left in lacking)
            child.kill()
            code = child.wait()
        if not whole:
            lines = (folder / "out").read_text(errors="replace").strip().splitlines()
            return {"ok": False, "wrong": [], "error": lines[-1] if lines else f"the stream ended early ({code})"}
    return {**finish(dest, files, seen=seen), "error": ""}


def _receive(stream: Any, path: Path, here: int, left: int, seen: dict[str, str]) -> bool:
    """Append the next `left` bytes of the stream to a file; its hash goes into `seen`. False when they do not come."""
    digest = hashlib.sha256()
    with path.open("rb") as before:
        while block := before.read(BLOCK):
            digest.update(block)
    blocks: queue.Queue[bytes | None] = queue.Queue(16)

    def hash_and_flush(file: BinaryIO) -> None:
        since = 0
        while (block := blocks.get()) is not None:
            digest.update(block)
            since += len(block)
            if since >= FLUSH:
                os.fsync(file.fileno())
                since = 0

    with path.open("ab", buffering=0) as file:
        aside = threading.Thread(target=hash_and_flush, args=(file,))
        aside.start()
        try:
            while left:
                block = stream.read(min(BLOCK, left))
                if not block:
                    return False
                file.write(block)
                blocks.put(block)
                left -= len(block)
        finally:
            blocks.put(None)
            aside.join()
        os.fsync(file.fileno())
    seen[path.as_posix()] = digest.hexdigest()
    return True


def main(argv: list[str] | None = None) -> int:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(prog="python -m runner.box.receive", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("prepare", "pull"))
    parser.add_argument("path", type=Path)
    options = parser.parse_args(argv)
    path = Path(os.path.expanduser(options.path))  # noqa: PTH111 - it may arrive with a ~ that no shell has seen
    asked = json.load(sys.stdin)
    files = asked["files"]
    if any(name.startswith("/") or ".." in Path(name).parts for name in files):
        sys.stderr.write("a file's name points outside the checkpoint\n")
        return 1
    try:
        if options.what == "prepare":
            sys.stdout.write(json.dumps(prepare(path, files, asked["door"])) + "\n")
            return 0
        folder = Path(asked["folder"])
        answer = pull(path, files, asked["source"], asked["door"], folder)
    except OSError as error:
        sys.stderr.write(f"{error.filename or path}: {error.strerror}\n")
        if options.what == "prepare":
            return 1
        answer = {"ok": False, "wrong": [], "error": f"{error.filename or path}: {error.strerror}"}
    write_atomic(folder / ANSWER, json.dumps(answer).encode(), durable=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
