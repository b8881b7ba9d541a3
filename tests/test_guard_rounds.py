"""The guards of real boxes with the laptop frozen in the middle: each limit ends its rental, and nobody else asks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from remote.access import opener
from remote.desk import Desk
from remote.journal import Journal
from remote.kill import kill, name_victim
from remote.reconcile import reconcile
from remote.vast import VastProvider
from runner.box.limits import RELEASE, REPORT
from tests.fake_vast import Box, FakeVast
from tests.support.frozen import LIMIT_S, LIMITS, run_name
from tests.support.rented import real_world

ROOT = Path(__file__).parent.parent
LATE_S = 60.0
"""The promise: a rental ends so long after its limit at most."""


def wait_for(condition: Callable[[], object], seconds: float = 200.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.1)


@contextmanager
def laptop(fake: FakeVast, folder: Path, *limits: str) -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, "TUNEWATCH_VAST_URL": fake.url, "VAST_API_KEY": fake.world.account_key}
    folder.mkdir()
    command = [sys.executable, "-m", "tests.support.frozen", str(folder), *limits]
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def box_of(fake: FakeVast, limit: str) -> Box:
    return next(box for box in fake.world.boxes.values() if box.label.split(":")[2] == run_name(limit))


def report_of(box: Box, limit: str) -> dict[str, Any]:
    assert box.container is not None
    path = box.container.home / "tunewatch/runs" / run_name(limit) / REPORT
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def gpu(box: Box, percent: int) -> None:
    """What nvidia-smi says on a box."""
    assert box.container is not None
    tool = box.container.directory / "bin/nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho {percent}\n")
    tool.chmod(0o755)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_f15_every_limit_ends_its_rental_within_a_minute_with_the_laptop_frozen(tmp_path: Path) -> None:
    with real_world(tmp_path / "boxes") as fake:
        fake.world.on_create = lambda box: gpu(box, 97)
        with laptop(fake, tmp_path / "laptop", *LIMITS) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "armed\n"
            os.kill(process.pid, signal.SIGSTOP)
            wait_for(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            # what it had asked for arrives before the count begins
            before = len(fake.calls)
            done, idle = box_of(fake, "finished"), box_of(fake, "idle")
            assert done.container is not None
            # everything that was wanted from this disk had been fetched
            (done.container.home / "tunewatch/runs" / run_name("finished") / RELEASE).touch()
            (done.container.home / "finish").touch()
            wait_for(lambda: report_of(idle, "idle")["elapsed_s"] > 2 * LIMIT_S)
            assert idle.intended == "running", "a busy GPU is not idle"
            gpu(idle, 0)
            kept = [limit for limit in LIMITS if limit != "finished"]
            wait_for(lambda: done.destroyed is not None)
            wait_for(lambda: all(box_of(fake, limit).intended == "stopped" for limit in kept))
            state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            assert state == "T", "the laptop slept all along"
            assert done.destroyed_by == str(done.id), "by the scoped key"
            boxes = {limit: box_of(fake, limit) for limit in kept}
            asked = [identity for _, identity in fake.calls[before:]]
            assert asked.count("account") <= 1, "at most what it had sent before it froze"
            for limit, box in boxes.items():
                assert ("state", str(box.id)) in fake.calls, "stopped by its own key"
                assert ("state", "account") not in fake.calls
                report = report_of(box, limit)
                assert report["reason"] == limit
                over = {
                    "deadline": report["elapsed_s"] - (report["limits"]["deadline_s"] or 0.0),
                    "budget": (report["spent_usd"] - (report["limits"]["budget_usd"] or 0.0)) / 0.75 * 3600,
                    "idle": report["idle_for_s"] - LIMIT_S,
                    "lease": report["lease_age_s"] - LIMIT_S,
                }[limit]
                assert -LIMIT_S < over < LATE_S
                assert box.destroyed is None, "nothing was uploaded, so its disk was kept"
        # the laptop is gone for good; another one with its journal finds everything as it is
        desk = Desk(
            VastProvider(api_key=fake.world.account_key, url=fake.url, thresholds={}, timeout_s=60.0),
            Journal(tmp_path / "laptop/home"), sleep=lambda s: time.sleep(min(s, 5.0) / 10),
        )  # fmt: skip
        open_pair = opener(tmp_path / "laptop/home")
        result, report_ = reconcile(desk, lambda found: "leave", open_pair, {})
        assert result.ok
        assert report_.gone == [done.id]
        for box in boxes.values():
            assert kill(desk, name_victim(desk.journal, str(box.id)), open_pair=open_pair).ok
        assert fake.world.living() == []
