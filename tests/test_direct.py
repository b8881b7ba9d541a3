"""From box to box: what arrives is what was saved, what is missing is fetched, and no key stays behind."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import runner
from remote.checkpoint_transfer import Cargo, Carried, End, SourceSpoiledError, carry, newest_checkpoint
from remote.desk import Desk, Note
from remote.direct import Door
from remote.journal import Journal
from remote.transport import Transport
from runner.manifest import verify_manifest, write_manifest
from tests.support.sshd import Sshd

ROOT = Path(runner.__file__).parent.parent


def python(words: str) -> str:
    return f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)} -m {words}"


@dataclass
class Pair:
    """Two boxes behind real SSH servers, and the laptop's links to them."""

    old: Sshd
    new: Sshd
    hosts: tuple[Transport, Transport]
    desk: Desk
    number: int = 0

    @property
    def door(self) -> Door:
        key = (self.old.folder / "host_key.pub").read_text().split()
        return Door(self.old.host, self.old.port, self.old.user, f"{key[0]} {key[1]}")

    def cargo(self) -> Cargo:
        self.number += 1
        folder = self.old.home / f"run-{self.number}/checkpoints/checkpoint-100"
        folder.mkdir(parents=True)
        (folder / "optimizer.pt").write_bytes(os.urandom(1 << 16) * 160)
        (folder / "a file's name").write_bytes(b"with a blank and a quote")
        (folder / "empty").write_bytes(b"")
        write_manifest(folder)
        cargo, _ = newest_checkpoint(End(self.hosts[0], python), str(folder.parent))
        assert cargo is not None
        return cargo

    @property
    def dest(self) -> Path:
        return self.new.home / f"run-{self.number}/checkpoints/checkpoint-100"

    def carry(self, cargo: Cargo, door: Door | None = None) -> Carried:
        old, new = End(self.hosts[0], python, door=door or self.door), End(self.hosts[1], python)
        return carry(self.desk, cargo, old, new, str(self.dest), Note(self.desk, "transfer", ""))

    def check_nothing_stays(self) -> None:
        allowed = (self.old.home / ".ssh/authorized_keys").read_text()
        assert "tunewatch-carry" not in allowed
        assert len(allowed.splitlines()) == 1, "and the key that was there is there"
        until = time.monotonic() + 60
        while list((self.new.home / "tunewatch").glob("tunewatch-carry-*")):
            assert time.monotonic() < until, "the key's folder is still on the new box"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    with Sshd(folder / "old") as old, Sshd(folder / "new") as new:
        desk = Desk(None, Journal(folder / "home"), sleep=lambda _: None)  # type: ignore[arg-type]
        hosts = old.connect(folder / "a"), new.connect(folder / "b")
        yield Pair(old, new, hosts, desk)
        for host in hosts:
            host.close()
        desk.journal.close()


def test_a_checkpoint_travels_from_box_to_box_and_no_key_stays(pair: Pair) -> None:
    cargo = pair.cargo()
    done = pair.carry(cargo)
    assert (done.way, done.bytes) == ("direct", cargo.size)
    assert verify_manifest(pair.dest) == []
    pair.check_nothing_stays()
    assert pair.carry(cargo).bytes == 0, "doing it again moves nothing"


def test_only_the_missing_bytes_travel_after_a_cut(pair: Pair) -> None:
    cargo = pair.cargo()
    staged = pair.dest.with_name("checkpoint-100.carry")
    staged.mkdir(parents=True)
    whole = (Path(cargo.path) / "optimizer.pt").read_bytes()
    (staged / "optimizer.pt").write_bytes(whole[:1_000_001])
    done = pair.carry(cargo)
    assert (done.way, done.bytes) == ("direct", cargo.size - 1_000_001)
    assert verify_manifest(pair.dest) == []


def test_bytes_of_an_earlier_try_that_are_wrong_are_found_although_the_rest_was_hashed_on_its_way(pair: Pair) -> None:
    cargo = pair.cargo()
    staged = pair.dest.with_name("checkpoint-100.carry")
    staged.mkdir(parents=True)
    (staged / "optimizer.pt").write_bytes(b"\0" * 1_000_000)
    pair.carry(cargo)
    assert verify_manifest(pair.dest) == []


def test_another_host_key_behind_the_door_is_not_believed_and_the_laptop_carries(pair: Pair) -> None:
    cargo = pair.cargo()
    other = (pair.new.folder / "host_key.pub").read_text().split()
    done = pair.carry(cargo, replace(pair.door, host_key=f"{other[0]} {other[1]}"))
    assert done.way == "laptop"
    assert verify_manifest(pair.dest) == []
    pair.check_nothing_stays()


def test_nobody_behind_the_door_is_seen_before_anything_is_tried(pair: Pair) -> None:
    cargo = pair.cargo()
    assert pair.carry(cargo, replace(pair.door, port=1)).way == "laptop"
    assert verify_manifest(pair.dest) == []
    pair.check_nothing_stays()


def test_a_source_that_is_not_what_its_manifest_says_is_refused(pair: Pair) -> None:
    cargo = pair.cargo()
    path = Path(cargo.path) / "optimizer.pt"
    body = bytearray(path.read_bytes())
    body[1000] ^= 1
    path.write_bytes(body)
    with pytest.raises(SourceSpoiledError, match=r"optimizer\.pt"):
        pair.carry(cargo)
    assert not pair.dest.exists()
    pair.check_nothing_stays()
