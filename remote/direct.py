"""From box to box without the laptop in between: the new box pulls, with a key that lives as long as the transfer.

The key is made on the new box and never leaves it. Its public half is let into the old box with `restrict` (no
terminal, no forwarding) and taken out again at the end; the old box is destroyed after a migration in any case. The new
box accepts no other host key than the one the laptop knows the old box by.

Each question to a box costs a round trip, each program there its start, and a checkpoint of a hundred megabytes is
through in less than a second: so one program on the new box does everything, three questions are asked in all, and the
tidying up happens beside what comes next.
"""

from __future__ import annotations

import json
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from remote.arming import PythonCommand
from remote.transport import LinkError, Transport, shell_path
from runner.box.receive import ANSWER, GO, MARK
from runner.errors import RefusedError, TunewatchError

if TYPE_CHECKING:
    from remote.checkpoint_transfer import Cargo

PULL_S = 6 * 3600.0
"""At most so long for all files."""
SILENT_S = 60.0
"""A pull that brings nothing for so long is given up."""
PREPARE_S = 1800.0
"""Seconds for a box to look at what it has: it may hash a checkpoint for that."""
LOOK_S = 1.0
"""A look waits on the box for so long: the end is known the moment it comes."""


@dataclass(frozen=True, slots=True)
class Door:
    """A box's address for other boxes, and the host key behind it."""

    host: str
    port: int
    user: str
    host_key: str
    """`type base64`, as the laptop knows it."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"host": self.host, "port": self.port, "user": self.user, "host_key": self.host_key}


@dataclass(frozen=True, slots=True)
class Ready:
    """The new box before a transfer."""

    whole: bool
    """The checkpoint is there already."""
    have: Mapping[str, int]
    """Bytes of each file that are there."""
    folder: str
    """Of the key, on the new box."""
    key: str
    """Its public half; empty where there is no ssh."""
    reachable: bool
    """Whether it meets an SSH server at the door."""


def prepare(new: Transport, python: PythonCommand, door: Door, cargo: Cargo, dest: str) -> Ready:
    """Lay out the checkpoint and make a key, in one question. Raises RefusedError and the link's errors."""
    q = shlex.quote
    folder = f"{new.home()}/tunewatch/{MARK}-{secrets.token_hex(4)}"
    asked = {"files": dict(cargo.files), "source": cargo.path, "door": door.to_json()}
    answer = new.run(
        f"mkdir -p -m 700 {q(folder)} && cat > {q(folder)}/asked.json && "
        f"{{ {python(f'runner.box.receive {shell_path(dest)} {q(folder)}')}; }} || {{ rm -rf {q(folder)}; exit 1; }}",
        stdin=json.dumps(asked).encode(), timeout=PREPARE_S,
    )  # fmt: skip
    if answer.rc != 0:
        if "No space left" in answer.complaint:
            raise RefusedError(f"The disk of {new.name} is full.", hint="Rent more disk.")
        raise RefusedError(f"{new.name} cannot prepare the transfer: {answer.complaint or answer.rc}.")
    try:
        said = json.loads(answer.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise LinkError(f"{new.name} did not answer about its checkpoints.") from None
    have = {str(name): int(size) for name, size in said["have"].items()}
    return Ready(bool(said["whole"]), have, folder, str(said["key"]), bool(said["reachable"]))


@contextmanager
def admitted(old: Transport, new: Transport, ready: Ready, closing: list[threading.Thread]) -> Iterator[None]:
    """Let the new box's key into the old one until the end of the block; both are tidied beside what comes after.

    The threads that do so are added to `closing`.
    """
    try:
        # what an earlier, cut transfer left in the file goes with the same edit
        _authorise(old, f"printf '%s\\n' {shlex.quote(f'restrict {ready.key}')}")
        yield
    finally:
        closing.append(aside(old, partial(_authorise, old, ":")))
        closing.append(aside(new, partial(forget, new, ready.folder)))


def aside(host: Transport, tidy: Callable[[], None]) -> threading.Thread:
    """Tidy up on a host while other things go on; what cannot be tidied now is by the next transfer."""
    thread = threading.Thread(target=_quietly, args=(tidy,), name=f"tidy {host.name}", daemon=True)
    thread.start()
    return thread


def _quietly(call: Callable[[], None]) -> None:
    with suppress(TunewatchError):
        call()


def forget(new: Transport, folder: str) -> None:
    """Remove a key and its folder from the new box."""
    new.run(f"rm -rf {shlex.quote(folder)}", timeout=15.0)


def _authorise(old: Transport, line: str) -> None:
    """Rewrite authorized_keys without keys of earlier transfers, with the output of `line` at its end."""
    answer = old.run(
        'umask 077; mkdir -p "$HOME"/.ssh && cd "$HOME"/.ssh && touch authorized_keys && '
        f"{{ grep -v {MARK} authorized_keys; {line}; }} > .authorized_keys.part; "
        "cat .authorized_keys.part > authorized_keys && rm -f .authorized_keys.part",
        timeout=20.0,
    )
    if answer.rc != 0:
        raise RefusedError(f"{old.name} does not take the key of the transfer: {answer.complaint or answer.rc}.")


def pull(
    new: Transport, door: Door, ready: Ready, cargo: Cargo, dest: str, add: Callable[[int], None]
) -> dict[str, Any]:  # fmt: skip
    """Let the new box begin and look at it grow: `{"ok", "wrong"}` as of a finished transfer.

    Raises LinkError when it stands still or the stream breaks. A broken link to the laptop lets it go on, and the next
    try finds what it brought.
    """
    q = shlex.quote
    names = " ".join(shell_path(f"{dest}.carry/{name}") for name in cargo.files)

    def look(every: float) -> str:
        return (
            f"cd {q(ready.folder)} || exit; i=0; while [ ! -e {ANSWER} ] && [ $i -lt {LOOK_S / every:.0f} ]; do "
            f"sleep {every}; i=$((i+1)); done; cat {ANSWER} 2>/dev/null; echo; "
            f'for f in {names}; do wc -c < "$f" 2>/dev/null; done'
        )

    seen = sum(ready.have.values())
    moved_at = begun = time.monotonic()
    # a short transfer is not made longer by the looking, a long one is not looked at all the time
    shown = new.run(f": > {q(ready.folder)}/{GO}; {look(0.005)}", timeout=30.0)
    while True:
        ending, _, sizes = shown.stdout.decode("utf-8", "replace").partition("\n")
        if ending.strip():
            told = dict(json.loads(ending))
            if told.get("error"):
                raise LinkError(f"The box cannot pull from {door.host}: {told['error']}.")
            add(cargo.size - seen)
            return told
        size = sum(int(word) for word in sizes.split() if word.isdigit())
        if size > seen:
            add(size - seen)
            seen, moved_at = size, time.monotonic()
        if time.monotonic() - moved_at > SILENT_S or time.monotonic() - begun > PULL_S:
            raise LinkError(f"Nothing came from {door.host} for {SILENT_S:.0f} s.")
        shown = new.run(look(0.02), timeout=30.0)
