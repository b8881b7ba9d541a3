"""From box to box without the laptop in between: the new box pulls, with a key that lives as long as the transfer.

The key is made on the new box and never leaves it. Its public half is let into the old box with `restrict` (no
terminal, no forwarding) and taken out again at the end; the old box is destroyed after a migration in any case. The new
box accepts no other host key than the one the laptop knows the old box by.
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remote.transport import LinkError, Transport, shell_path
from runner.errors import RefusedError, TunewatchError

if TYPE_CHECKING:
    from remote.checkpoint_transfer import Cargo

PULL_S = 6 * 3600.0
"""At most so long for all files."""
SILENT_S = 60.0
"""A pull that brings nothing for so long is given up."""
_MARK = "tunewatch-carry"


@dataclass(frozen=True, slots=True)
class Door:
    """A box's address for other boxes, and the host key behind it."""

    host: str
    port: int
    user: str
    host_key: str
    """`type base64`, as the laptop knows it."""


def is_reachable(new: Transport, door: Door) -> bool:
    """Whether the new box meets an SSH server at the old one's address, and has a client to talk to it."""
    script = (
        "import socket,sys; s=socket.create_connection((sys.argv[1],int(sys.argv[2])),5); s.settimeout(5); "
        "sys.exit(0 if s.recv(4)==b'SSH-' else 1)"
    )
    try:
        answer = new.run(
            f"command -v ssh >/dev/null && command -v ssh-keygen >/dev/null && "
            f"python3 -c {shlex.quote(script)} {shlex.quote(door.host)} {door.port}",
            timeout=15.0,
        )  # fmt: skip
    except LinkError:
        return False
    return answer.rc == 0


@contextmanager
def opened(old: Transport, new: Transport) -> Iterator[str]:
    """A folder on the new box with a key that the old box accepts, until the end of the block."""
    mark = f"{_MARK}-{secrets.token_hex(4)}"
    folder = f"{new.home()}/tunewatch/{mark}"
    # a pull of an earlier try would append to the same files
    new.run(f"pkill -f '[{_MARK[0]}]{_MARK[1:]}-.*/(pull.sh|key) '; true", timeout=15.0)
    made = new.run(
        f"rm -rf \"$HOME\"/tunewatch/{_MARK}-* && mkdir -p -m 700 {shlex.quote(folder)} && "
        f"ssh-keygen -q -t ed25519 -N '' -C {mark} -f {shlex.quote(folder)}/key && cat {shlex.quote(folder)}/key.pub",
        timeout=30.0,
    )  # fmt: skip
    if made.rc != 0 or not made.text.startswith("ssh-ed25519 "):
        raise RefusedError(f"{new.name} cannot make a key for the transfer: {made.complaint or made.rc}.")
    line = f"restrict {made.text}"
    try:
        # what an earlier, cut transfer left in the file goes with the same edit
        _authorise(old, f"printf '%s\\n' {shlex.quote(line)}")
        yield folder
    finally:
        with suppress(TunewatchError):
            _authorise(old, ":")
        with suppress(TunewatchError):
            new.run(f"rm -rf {shlex.quote(folder)}", timeout=15.0)


def _authorise(old: Transport, line: str) -> None:
    """Rewrite authorized_keys without keys of earlier transfers, with the output of `line` at its end."""
    answer = old.run(
        'umask 077; mkdir -p "$HOME"/.ssh && cd "$HOME"/.ssh && touch authorized_keys && '
        f"{{ grep -v {_MARK} authorized_keys; {line}; }} > .authorized_keys.part; "
        "cat .authorized_keys.part > authorized_keys && rm -f .authorized_keys.part",
        timeout=20.0,
    )
    if answer.rc != 0:
        raise RefusedError(f"{old.name} does not take the key of the transfer: {answer.complaint or answer.rc}.")


def pull(
    new: Transport,
    door: Door,
    key: str,
    cargo: Cargo,
    have: Mapping[str, int],
    carry_dir: str,
    add: Callable[[int], None],
) -> None:
    """Run the pull on the new box in the background and look at it grow; raises LinkError when it stands still.

    Each file goes on from the bytes that are there. The pull ends with its shell: a broken link to the laptop lets it
    go on, and the next try finds what it brought.
    """
    q = shlex.quote
    new.put(f"[{door.host}]:{door.port} {door.host_key}\n".encode(), f"{key}/known_hosts", mode=0o600)
    options = (
        f"-i {q(key)}/key -p {door.port} -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=yes "
        f"-o UserKnownHostsFile={q(key)}/known_hosts -o ConnectTimeout=10 -o ServerAliveInterval=10 -o LogLevel=ERROR"
    )
    lines = []
    for name, done in have.items():
        if done < int(cargo.files[name]["bytes"]):
            source = q(f"tail -c +{done + 1} -- {shell_path(f'{cargo.path}/{name}')}")
            target = q(f"{carry_dir}/{name}")
            lines.append(f"ssh {options} {q(f'{door.user}@{door.host}')} {source} </dev/null >> {target}")
    script = " &&\n".join(lines)
    new.put(f"#!/bin/sh\n{script}\necho $? > {q(key)}/rc\n".encode(), f"{key}/pull.sh", mode=0o700)
    new.run(f"setsid sh {q(key)}/pull.sh </dev/null >{q(key)}/out 2>&1 &", timeout=20.0)
    total, seen = sum(int(f["bytes"]) for f in cargo.files.values()), sum(have.values())
    names = " ".join(q(f"{carry_dir}/{name}") for name in cargo.files)
    moved_at = begun = time.monotonic()
    wait = 0.05
    while True:
        look = new.run(f'for f in {names}; do wc -c < "$f"; done; echo; cat {q(key)}/rc 2>/dev/null', timeout=30.0)
        sizes, _, ending = look.stdout.decode().partition("\n\n")
        size, rc = sum(int(word) for word in sizes.split()), ending.strip()
        if size > seen:
            add(size - seen)
            seen, moved_at = size, time.monotonic()
        if rc:
            if rc == "0" and size == total:
                return
            said = new.run(f"tail -n 1 {q(key)}/out", timeout=10.0).text
            raise LinkError(f"The box cannot pull from {door.host}: {said or f'exit status {rc}'}.")
        if time.monotonic() - moved_at > SILENT_S or time.monotonic() - begun > PULL_S:
            raise LinkError(f"Nothing came from {door.host} for {SILENT_S:.0f} s.")
        time.sleep(wait)
        wait = min(0.25, wait * 1.5)
