"""A checkpoint comes from another box to this one, in one stream, hashed as it arrives.

    python -m runner.box.receive DEST FOLDER

Started by the laptop, with what is wanted in FOLDER/asked.json. It says in FOLDER/ready.json what of the checkpoint is
here, and gives the public half of a key made for this once; when FOLDER/go appears, the other box accepts that key.
Then it pulls what is missing, compares every hash, gives the checkpoint its name, and says so in FOLDER/answer.json: a
file, so that it is found although the link to the laptop broke meanwhile. When FOLDER is taken away it ends.

All files travel through one connection, one after the other: each begins where the bytes that are here end. The key
never leaves this box.

Standard library only, and the syntax of Python 3.9.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from runner.atomic import write_atomic
from runner.box.arrive import arrive, sizes
from runner.box.checkpoint import CARRY, claim, finish, stage

MARK = "tunewatch-carry"
"""Beginning of the key's folder, and of its comment in the other box's authorized_keys."""
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr"
"""The quickest on processors that have AES in hardware first; every OpenSSH since 6.5 knows them."""
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
    claim(carry)
    here = sizes(carry, files)
    lacking = [(name, size, int(files[name]["bytes"]) - size) for name, size in here.items()]
    lacking = [entry for entry in lacking if entry[2] > 0]
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
            try:
                whole = arrive(stream, carry, lacking, seen)
            except OSError:
                child.kill()
                raise
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
