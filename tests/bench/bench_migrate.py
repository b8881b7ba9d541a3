"""A checkpoint from box to box against scp, and how long training stands still in a move. Loopback, real sshd.

    name  ours  reference  ours / reference

`laptop` is compared with scp through this machine in two commands, which is what a person does, and with `scp -3`,
which joins two C processes; `direct` with an scp from box to box. Ours compares every sha256 where it arrives, scp
does not; `direct` makes a key first. The reference of the pause are its parts, each measured where it happens: the
trainer's own time for its last checkpoint, the carrying of it, and the new trainer's time from its process to its first
step. That trainer loads nothing but the standard library; a real one takes ten seconds and more, so a real pause is
nearer to its parts than this one. Ours and the reference take turns, and the quickest try of each counts.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import runner
from remote.arming import flags
from remote.checkpoint_transfer import Cargo, End, carry, newest_checkpoint
from remote.desk import Desk, Note
from remote.direct import Door
from remote.journal import Journal
from remote.migrate import account, last_migration
from runner.manifest import write_manifest
from tests.support.migration import RUN, a_run
from tests.support.rented import real_world
from tests.support.sshd import Sshd

TRANSFERS_MB = (96, 300)
"""A checkpoint of the study has gigabytes: what is fixed weighs less there than in either of these."""
PAUSES_MB = (0.2, 96, 300)
"""Of next to nothing, where questions and starts of programs are all there is, and of a small model with its state."""
ROOT = Path(runner.__file__).parent.parent


def python(words: str) -> str:
    return f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)}{flags(words)} -m {words}"


def in_turn(tries: int, *works: Callable[[int], None]) -> list[float]:
    """Seconds of the quickest try of each; they take turns, so that what else the machine does meets all of them."""
    lasted: list[list[float]] = [[] for _ in works]
    for number in range(tries):
        for work, kept in zip(works, lasted, strict=True):
            began = time.monotonic()
            work(number)
            kept.append(time.monotonic() - began)
    return [min(kept) for kept in lasted]


def line(name: str, ours: float, reference: float, unit: str) -> None:
    print(f"{name:34} {ours:8.2f} {reference:8.2f} {unit:5} {ours / reference:6.2f}x", flush=True)


def transfers(folder: Path, size_mb: int) -> None:
    with Sshd(folder / "old") as old, Sshd(folder / "new") as new:
        source = old.home / "run/checkpoints/checkpoint-100"
        source.mkdir(parents=True)
        for name, share in (("optimizer.pt", 0.65), ("model.safetensors", 0.35)):
            (source / name).write_bytes(os.urandom(1 << 20) * int(size_mb * share))
        write_manifest(source)
        desk = Desk(None, Journal(folder / "home"))  # type: ignore[arg-type]
        hosts = old.connect(folder / "a"), new.connect(folder / "b")
        key = (old.folder / "host_key.pub").read_text().split()
        door = Door(old.host, old.port, old.user, f"{key[0]} {key[1]}")
        cargo, _ = newest_checkpoint(End(hosts[0], python), str(source.parent))
        assert cargo is not None

        def ours(by: Door | None, cargo: Cargo = cargo) -> Callable[[int], None]:
            def once(number: int) -> None:
                dest = new.home / f"{'direct' if by else 'laptop'}-{number}" / "checkpoint-100"
                note = Note(desk, "transfer", "")
                done = carry(desk, cargo, End(hosts[0], python, door=by), End(hosts[1], python), str(dest), note)
                assert done.way == ("direct" if by else "laptop")

            return once

        config = folder / "ssh_config"
        config.write_text(
            "".join(
                f"Host {name}\n HostName {box.host}\n Port {box.port}\n User {box.user}\n IdentityFile {box.key}\n"
                for name, box in (("old", old), ("new", new))
            )
            + "Host *\n StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n IdentitiesOnly yes\n"
        )
        scp = ["scp", "-q", "-r", "-F", str(config)]

        def two_steps(number: int) -> None:
            here = folder / f"here-{number}"
            subprocess.run([*scp, f"old:{source}", str(here)], check=True)
            subprocess.run([*scp, str(here), f"new:{new.home}/scp-{number}"], check=True)

        def joined(number: int) -> None:
            subprocess.run([*scp, "-3", f"old:{source}", f"new:{new.home}/scp3-{number}"], check=True)

        def between(number: int) -> None:
            pull = shlex.join([*scp, f"old:{source}", f"{new.home}/pull-{number}"])
            assert hosts[1].run(pull, timeout=300).rc == 0

        mb = cargo.size / 1e6
        by_laptop, twice, joint = in_turn(3, ours(None), two_steps, joined)
        by_door, pulled = in_turn(5, ours(door), between)
        line(f"{size_mb} MB, laptop vs scp twice", mb / by_laptop, mb / twice, "MB/s")
        line(f"{size_mb} MB, laptop vs scp -3", mb / by_laptop, mb / joint, "MB/s")
        line(f"{size_mb} MB, direct vs scp there", mb / by_door, mb / pulled, "MB/s")
        desk.journal.close()
        for host in hosts:
            host.close()


def pause(folder: Path, size_mb: float) -> None:
    """Move a run whose checkpoints have so many megabytes; it saves when it is asked to, and at no other time."""
    checkpoint = {"size": int(size_mb * 1e6), "save_every": 10**9} if size_mb > 1 else {}
    with real_world(folder / "boxes") as fake, a_run(fake, folder / "laptop", **checkpoint) as moving:
        moving.migrate()
        said = account(last_migration(moving.laptop.desk().journal, RUN))
        parts, floor = said["pause_parts"], said["pause_floor"]
        line(f"pause, {size_mb:g} MB, vs its parts", said["pause_s"], sum(floor.values()), "s")
        print("  the pause     " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items()))
        print("  by themselves " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in floor.items()))


def main() -> None:
    """Print the table; the ratio is ours to the reference."""
    for size in TRANSFERS_MB:
        with tempfile.TemporaryDirectory() as folder:
            transfers(Path(folder), size)
    for size_mb in PAUSES_MB:
        with tempfile.TemporaryDirectory() as folder:
            pause(Path(folder), size_mb)


if __name__ == "__main__":
    main()
