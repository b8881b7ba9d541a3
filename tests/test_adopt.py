"""Adopt: a box rented by hand comes under watch, with its run, its bill and, if asked, a guard."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote.adopt import adopt
from remote.arming import Wishes, read_guard
from remote.feed import RunFeed
from remote.journal import Journal
from remote.kill import kill, name_victim
from remote.money import bill
from runner.errors import NotFoundError, RefusedError
from tests.fake_vast import Box, FakeVast
from tests.support.rented import Laptop, real_world

LOG = """{'loss': 1.9, 'grad_norm': 1.0, 'learning_rate': 2e-05, 'epoch': 0.1}
  4%|4         | 200/6000 [09:00<4:20:00,  2.82s/it]
{'eval_loss': 1.118, 'eval_runtime': 7.737, 'epoch': 0.2}
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVast]:
    with real_world(tmp_path_factory.mktemp("boxes")) as fake:
        yield fake


@pytest.fixture
def laptop(real: FakeVast, tmp_path: Path) -> Laptop:
    return Laptop(real, tmp_path)


def by_hand(fake: FakeVast, offer: int, label: str = "my box", onstart: str | None = None) -> Box:
    """A box as the study's user has it: rented in the console, a run in tmux, no file of ours."""
    box = fake.world.create(offer, {"image": "pytorch", "disk": 60, "label": label, "onstart": onstart})
    until = time.monotonic() + 120
    while box.status != "running":
        assert time.monotonic() < until
        time.sleep(0.02)
    assert box.container is not None
    run = box.container.home / "ministral/runs/stage3_finetune_prefill_bidir/20260215-104518"
    run.mkdir(parents=True)
    (run / "log.txt").write_text(LOG)
    (box.container.home / "notes.log").write_text("nothing to see\n")
    env = {"TMUX_TMPDIR": str(box.container.directory), "PATH": "/usr/bin:/bin", "HOME": str(box.container.home)}
    subprocess.run(["tmux", "new-session", "-d", "-s", "stage5_long", "sleep 600"], env=env, check=True)
    return box


def test_the_run_its_log_and_its_tmux_session_are_found_and_watched(laptop: Laptop) -> None:
    box = by_hand(laptop.fake, 1)
    desk = laptop.desk()
    result, found = adopt(desk, box.id, open_pair=laptop.open_pair)
    assert result.ok
    assert found["sessions"] == ["stage5_long"]
    assert [run["path"].endswith("20260215-104518/log.txt") for run in found["runs"]] == [True]
    record = Journal(laptop.home).box(box.id)
    assert record is not None
    assert (record.state, record.data["adopted"]) == ("running", True)
    assert bill(desk.journal, box.id).total > 0

    feed = RunFeed(found["watch"], home=laptop.home, connect=lambda target: host_of(laptop, box))
    try:
        state = feed.settle(120.0)
        assert [e.eval_loss for e in state.history.evals] == [1.118]
    finally:
        feed.close()
    subprocess.run(
        ["tmux", "kill-server"],
        env={"TMUX_TMPDIR": str(box.container.directory), "PATH": "/usr/bin:/bin"},
        check=False,  # type: ignore[union-attr]
    )
    assert kill(desk, name_victim(desk.journal, str(box.id)), open_pair=laptop.open_pair).state == "destroyed"


def host_of(laptop: Laptop, box: Box):  # type: ignore[no-untyped-def]
    from remote.access import reach
    from remote.provider import find

    row = find(laptop.provider.instances(), box.id)
    assert row is not None
    return reach(row, laptop.open_pair)[0]


def test_a_guard_is_armed_on_a_box_that_is_not_ours_and_ends_it_at_its_deadline(laptop: Laptop) -> None:
    """Its key is found in the environment of the container's first process: no start script of ours ever ran there."""
    if laptop.fake.world.host is None or not laptop.fake.world.host.isolated:
        pytest.fail("this machine cannot make PID namespaces: run the tests as root")
    box = by_hand(laptop.fake, 2)
    wishes = Wishes(budget_usd=3.0, deadline_s=4.0)
    result, found = adopt(laptop.desk(), box.id, open_pair=laptop.open_pair, wishes=wishes, guard=True)
    assert result.ok
    record = Journal(laptop.home).box(box.id)
    assert record is not None
    host = host_of(laptop, box)
    assert read_guard(host, record.data["guard_dir"])["word"] in ("watching", "ending", "ended")
    until = time.monotonic() + 120
    while box.intended != "stopped":
        assert time.monotonic() < until, "the guard did not end it"
        time.sleep(0.1)
    assert found["target"].endswith("log.txt")
    assert (box.container.home if box.container else Path("/")).exists(), "stopped, not destroyed: nothing was uploaded"


def test_the_guard_of_an_adopted_box_comes_back_when_its_container_starts_anew(laptop: Laptop) -> None:
    """Its start script, written by whoever rented it, is kept: one line at its head, however often it is adopted."""
    theirs = "#!/bin/bash\nset -e\necho began >> began.txt\nexit 3\n"
    box = by_hand(laptop.fake, 3, onstart=theirs)
    assert box.container is not None
    home = box.container.home
    for _ in range(2):
        adopt(laptop.desk(), box.id, open_pair=laptop.open_pair, wishes=Wishes(deadline_s=3600.0), guard=True)
    first, hook, *rest = (home / "onstart.sh").read_text().splitlines(keepends=True)
    assert (first, "".join(rest)) == ("#!/bin/bash\n", theirs.removeprefix(first))
    assert "guard" in hook
    folder = f"{home}/tunewatch/guards/{box.id}"
    before = read_guard(host_of(laptop, box), folder)

    laptop.provider.stop(box.id)
    wait_until(lambda: box.status == "exited")
    laptop.provider.start(box.id)
    wait_until(lambda: box.status == "running")
    host = host_of(laptop, box)
    wait_until(lambda: read_guard(host, folder).get("elapsed_s", 0) > before["elapsed_s"] + 1)
    after = read_guard(host, folder)
    assert (after["word"], after["limits"]) == ("watching", before["limits"])
    assert (home / "began.txt").read_text() == "began\n" * 2


def test_a_box_without_a_start_script_says_that_its_guard_would_not_come_back(laptop: Laptop) -> None:
    box = by_hand(laptop.fake, 4)
    result, _ = adopt(laptop.desk(), box.id, open_pair=laptop.open_pair, wishes=Wishes(deadline_s=3600.0), guard=True)
    assert any("would not come back" in step.detail for step in result.steps)


def wait_until(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not done():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_what_cannot_be_adopted_says_why(laptop: Laptop) -> None:
    with pytest.raises(NotFoundError, match="no instance 12"):
        adopt(laptop.desk(), 12, open_pair=laptop.open_pair)
    box = by_hand(laptop.fake, 3)
    assert box.container is not None
    with pytest.raises(NotFoundError, match="does not exist"):
        adopt(laptop.desk(), box.id, open_pair=laptop.open_pair, target="/root/nothing/log.txt")
    with pytest.raises(RefusedError, match="idle limit"):
        adopt(laptop.desk(), box.id, open_pair=laptop.open_pair, wishes=Wishes(idle_s=60.0), guard=True)
    assert Journal(laptop.home).open_deeds() == []
    laptop.fake.world.stop(box)
    with pytest.raises(RefusedError, match="can be adopted while it runs"):
        adopt(laptop.desk(), box.id, open_pair=laptop.open_pair)
