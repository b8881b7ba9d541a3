"""F20 inside a migration: an old trainer that was frozen and wakes up when the run goes on elsewhere."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.journal import Row
from remote.migrate import last_migration, migrate
from runner.rundir import FENCE, METRICS, read_status
from tests.fake_vast import FakeVast, faults
from tests.support.migration import RUN, Moving, a_run
from tests.support.rented import real_world


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVast]:
    with real_world(tmp_path_factory.mktemp("boxes")) as fake:
        yield fake


def processes(folder: Path) -> dict[int, str]:
    """Trainer and supervisor of a run directory, by their numbers on this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                cwd = str((entry / "cwd").readlink())
            except OSError:
                continue
            if cwd.startswith(str(folder)) and words[1:3] == [b"-u", b"train.py"]:
                found[int(entry.name)] = "trainer"
            elif cwd.startswith(str(folder)) and b"runner.box.supervise" in words:
                found[int(entry.name)] = "supervisor"
    return found


def run_dir(moving: Moving) -> Path:
    container = moving.old.container
    assert container is not None
    return container.home / "tunewatch/runs" / RUN


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_f20_a_trainer_that_wakes_up_after_the_new_one_has_trained_ends_with_12_and_adds_nothing_to_the_run(
    world: FakeVast, tmp_path: Path
) -> None:
    """Its host drops out of the net at the drain and is back when the new box has trained: nobody halted it."""
    with a_run(world, tmp_path, alone=0) as moving:
        old, folder = moving.old, run_dir(moving)
        frozen: list[int] = []
        ended: list[object] = []

        def freeze() -> None:
            found = processes(folder)
            assert sorted(found.values()) == ["supervisor", "trainer"]
            frozen.extend(found)
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            old.status, old.intended, old.cur, old.next = "offline", "running", "running", ""
            world.faults.add("stop", faults.SERVER_ERROR, times=1000)

        def wake() -> None:
            until = time.monotonic() + 300
            while not (folder / FENCE).exists() and time.monotonic() < until:
                time.sleep(0.01)
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)

        def come_back() -> None:
            old.status = "running"
            threading.Thread(target=wake, daemon=True).start()

        def at(row: Row) -> None:
            moment = f"{row.step} {row.phase}"
            if moment == "M6 done":
                freeze()
            elif moment == "M10 done":
                come_back()
            elif moment == "destroy intent" and row.instance == old.id:
                status = read_status((folder / "status.json").read_bytes())
                assert status is not None
                ended.append((status.ended, status.rc, "goes on elsewhere" in status.reason))
                assert "trainer" not in processes(folder).values()

        request = moving.request()
        desk = moving.laptop.desk(after=at)  # type: ignore[arg-type]
        assert migrate(desk, request, moving.laptop.open_pair, {}).ok
        assert ended == [(True, 12, True)]
        data = last_migration(desk.journal, RUN).data
        assert data["old_alive"] is False
        assert data["woken_rc"] == 12
        desk.journal.close()
        (new,) = moving.made()
        assert new.container is not None
        trained = steps_of(new.container.home / "tunewatch/runs" / RUN / METRICS)
        begin = data["cargo2"]["step"]
        assert trained == list(range(begin + 1, begin + 1 + len(trained))), "no line of the one that woke up"
        moving.check_curve()
        moving.check_journal()


def steps_of(path: Path) -> list[int]:
    events = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [event["step"] for event in events if event["event"] == "train"]
