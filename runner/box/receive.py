"""A checkpoint comes from another box to this one, in one stream, hashed as it arrives.

    python -m runner.box.receive DEST FOLDER

Started by the laptop, with what is wanted in FOLDER/asked.json. It says on stdout what of the checkpoint is here, gives
the public half of a key made for this once, and goes on in the background; when FOLDER/go appears, the other box takes
that key. Then it pulls what is missing, compares every hash, gives the checkpoint its name, and says so in
FOLDER/answer.json: a file, so that it is found although the link to the laptop broke meanwhile. When FOLDER is taken
away it ends.

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
EXCHANGES = "curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,diffie-hellman-group14-sha256"
"""A single curve: the hybrids that newer versions prefer take 70 ms longer, and each transfer has a connection of its
own. Every OpenSSH since 7.4 knows these names."""
PIPE = 1 << 20
"""Bytes that the kernel holds between ssh and us, where it can be asked to."""
GO, ANSWER = "go", "answer.json"
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
    # key, greeting and files all take their time, each without the others
    line = dial(str(door["host"]), int(door["port"])) if maker is not None else None
    laid = stage(dest, files)
    reachable = line is not None and greets(line)
    key = ""
    if maker is not None and maker.wait(30) == 0 and reachable and not laid["whole"]:
        key = (folder / "key.pub").read_text().strip()
    return {**laid, "key": key, "reachable": bool(key)}


def _end_earlier(folder: Path) -> None:
    """A pull of an earlier try would append to the same files."""
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int((folder / "pid").read_text()), 15)


def dial(host: str, port: int) -> socket.socket | None:
    """A connection to an address, None where there is nobody."""
    try:
        return socket.create_connection((host, port), 5)
    except OSError:
        return None


def greets(line: socket.socket) -> bool:
    """Whether an SSH server is at the other end; hangs up."""
    with line:
        line.settimeout(5)
        try:
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
            "ssh", "-i", str(folder / "key"), "-p", str(door["port"]), "-c", CIPHERS,
            "-o", f"KexAlgorithms={EXCHANGES}", "-o", "IdentitiesOnly=yes",
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


def detach(folder: Path) -> bool:
    """Go on as a process of its own, which no closed link ends: True in that process, False in the one that ends."""
    if os.fork():
        return False
    os.setsid()
    (folder / "pid").write_text(str(os.getpid()))
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, folder / "log", os.O_WRONLY | os.O_CREAT)):
        fd = os.open(path, flags, 0o600)
        os.dup2(fd, number)
        os.close(fd)
    os.dup2(1, 2)
    return True


def main(argv: list[str] | None = None) -> int:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(prog="python -m runner.box.receive", description=__doc__.partition("\n")[0])
    parser.add_argument("dest", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(argv)
    dest = Path(os.path.expanduser(options.dest))  # noqa: PTH111 - it may arrive with a ~ that no shell has seen
    folder: Path = options.folder
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
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    if not ready["key"] or not detach(folder) or not wait_for(folder / GO, GO_S):
        return 0
    try:
        answer = pull(dest, files, asked["source"], asked["door"], folder)
    except OSError as error:
        answer = {"ok": False, "wrong": [], "error": f"{error.filename or dest}: {error.strerror}"}
    write_atomic(folder / ANSWER, json.dumps(answer).encode(), durable=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
