"""A run whose box was lost goes on by itself where that was allowed, as often as was allowed, and no other run does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from remote.journal import Journal
from remote.migrate import last_migration
from remote.recover import due, recover
from remote.recovery_policy import losses, mirror_of, set_policy, used
from runner.errors import RefusedError
from tests.fake_vast import FakeVast
from tests.support.hub import hub_stand_in
from tests.support.migration import RUN, Moving, a_run
from tests.support.rented import Crash, CrashAt

pytestmark = pytest.mark.usefixtures("quiet")


def allow(moving: Moving, **more: Any) -> None:
    desk = moving.laptop.desk()
    set_policy(desk.journal, RUN, desk.clock(), on=True, after_s=0.0, **more)
    desk.journal.close()


def do(moving: Moving, **hooks: Any) -> Any:
    return recover(moving.laptop.desk(**hooks), RUN, moving.laptop.open_pair, {}, confirm_steps=5)


@pytest.mark.slow
def test_a_spot_box_killed_without_notice_is_replaced_and_at_most_the_steps_since_its_last_checkpoint_are_done_again(
    world: FakeVast, tmp_path: Path
) -> None:
    with a_run(world, tmp_path, bid=0.4) as moving:
        allow(moving)
        with pytest.raises(RefusedError, match="nothing to recover"):
            do(moving)
        moving.wait_for_step(25)
        world.world.outbid(moving.old)
        reached = moving.steps()[-1][0]
        assert do(moving).state == "running"
        (new,) = moving.made()
        assert (new.id != moving.old.id, new.is_bid) == (True, False), "on demand: not outbid again tonight"
        moving.wait_for_step(reached + 5)
        steps = [step for step, _ in moving.steps()]
        again = steps[steps.index(reached) + 1]
        assert 0 < reached + 1 - again <= 10, "saved every 10 steps"
        moving.check_curve()
        moving.check_journal()
        journal = Journal(moving.laptop.home)
        assert used(journal, RUN) == 1
        assert last_migration(journal, RUN).data["request"]["recovery"]["cause"] == "outbid"
        journal.close()


@pytest.mark.slow
def test_a_recovery_that_was_cut_is_gone_on_with_and_counted_once(world: FakeVast, tmp_path: Path) -> None:
    with a_run(world, tmp_path, bid=0.4) as moving:
        allow(moving, most=1)
        world.world.outbid(moving.old)
        crash = CrashAt(17)
        with pytest.raises(Crash):
            do(moving, after=crash)
        desk = moving.laptop.desk()
        found = losses(desk.journal, desk.listing(), desk.clock())
        assert [loss.run for loss in due(desk.journal, found, desk.clock())] == [RUN], "what was begun is ended"
        desk.journal.close()
        assert do(moving).state == "running"
        moving.wait_for_step(1, beyond=5)
        moving.check_curve()
        moving.check_journal()
        (new,) = moving.made()
        new.is_bid = True
        world.world.outbid(new)
        with pytest.raises(RefusedError, match="recovered 1 time already"):
            do(moving)
        new.is_bid = False


@pytest.mark.slow
def test_a_run_whose_host_is_gone_goes_on_from_what_it_had_uploaded(
    world: FakeVast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint from the Hub, log and metrics from this laptop's mirror; nothing is asked of the box."""
    from huggingface_hub import HfApi

    from runner.study.hub import upload

    with hub_stand_in() as (_, address), a_run(world, tmp_path, hf_repo_id="me/repo", python=sys.executable) as moving:
        for name, value in (("HF_ENDPOINT", address), ("HF_HUB_DISABLE_XET", "1"), ("HF_HUB_OFFLINE", "0")):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        environment = {"HF_TOKEN": "hf_x", "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
        allow(moving)
        moving.wait_for_step(25)
        container = moving.old.container
        assert container is not None
        run_dir = container.home / "tunewatch/runs" / RUN
        newest = max(
            (p for p in (run_dir / "work/ckpt").iterdir() if (p / "manifest.json").exists()),
            key=lambda p: int(p.name.split("-")[1]),
        )
        kept = tmp_path / newest.name
        kept.mkdir()
        for path in newest.iterdir():
            (kept / path.name).write_bytes(path.read_bytes())
        upload(HfApi(endpoint=address, token="hf_x"), "me/repo", "standin-20260215-104518", kept)
        mirror = mirror_of(moving.laptop.home, moving.old.id, str(run_dir))
        mirror.mkdir(parents=True)
        (mirror / "metrics.jsonl").write_bytes((run_dir / "metrics.jsonl").read_bytes() + b'{"event": "tra')
        world.world.outbid(moving.old)  # its processes end; what the provider says is that the host is gone
        moving.old.status, moving.old.intended, moving.old.cur, moving.old.next = "offline", "running", "running", ""
        world.world.refuse_start = True
        desk = moving.laptop.desk()
        result = recover(desk, RUN, moving.laptop.open_pair, environment, confirm_steps=5)
        assert result.state == "running"
        said = last_migration(desk.journal, RUN).data
        assert said["transfer_way"] == "hub"
        assert said["cargo"]["step"] == int(newest.name.split("-")[1])
        moving.wait_for_step(1, beyond=10)
        moving.check_curve()
        (new,) = moving.made()
        assert new.container is not None
        lines = (new.container.home / "tunewatch/runs" / RUN / "metrics.jsonl").read_text().splitlines()
        trained = [event["step"] for event in map(json.loads, lines) if event["event"] == "train"]
        assert trained[0] == 1, "the curve begins where it always began"
        moving.check_journal()


@pytest.mark.slow
def test_a_host_that_is_gone_and_left_nothing_on_the_hub_costs_nothing_but_the_look(
    world: FakeVast, tmp_path: Path
) -> None:
    with a_run(world, tmp_path) as moving:
        allow(moving)
        world.world.stop(moving.old)
        moving.old.status, moving.old.intended, moving.old.cur, moving.old.next = "offline", "running", "running", ""
        with pytest.raises(RefusedError, match="offline"):
            do(moving)
        assert [box.id for box in moving.made()] == [moving.old.id]
        moving.check_journal()
        moving.old.status = "running"
