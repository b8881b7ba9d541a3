"""A box that was lost for a while and came back: its run goes on there in one step, under a guard, and never twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote.contract import plan_change
from remote.journal import Journal
from remote.kill import kill, name_victim
from remote.provider import Order
from remote.reconcile import reconcile
from remote.recovery_policy import Loss, Policy, why_not
from remote.resume import plan_resume, resume_run
from runner.box.limits import CONFIG, REPORT
from runner.errors import NotFoundError, RefusedError
from runner.rundir import STATUS, read_status
from tests.fake_vast import FakeVast
from tests.fake_vast.market import offer_row
from tests.support.lab import wait_for
from tests.support.migration import RUN, Moving, a_run
from tests.support.rented import Crash, CrashAt, real_world
from tests.support.vast import rented_world
from tests.test_kill import Rented
from tui.cli import main


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVast]:
    with real_world(tmp_path_factory.mktemp("boxes")) as fake:
        yield fake


def run_dir(moving: Moving) -> Path:
    assert moving.old.container is not None
    return moving.old.container.home / "tunewatch/runs" / RUN


def epoch(moving: Moving) -> int:
    status = read_status(run_dir(moving) / STATUS)
    assert status is not None
    return status.epoch


def again(moving: Moving, bid: float | None = None, **hooks: Any) -> Any:
    desk = moving.laptop.desk(**hooks)
    change = plan_change(desk, moving.old.id, "bid" if bid is not None else "start", bid=bid)
    return resume_run(desk, moving.old.id, moving.laptop.open_pair, {}, change=change)


def trains_on(moving: Moving) -> None:
    moving.wait_for_step(1, beyond=5)
    moving.check_curve()
    assert moving.made() == [moving.old], "nothing was rented"
    moving.check_journal()


@pytest.mark.slow
def test_an_outbid_run_goes_on_where_it_was_by_one_command_and_a_cut_at_any_row_is_gone_on_with(
    world: FakeVast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with a_run(world, tmp_path, bid=0.4) as moving:
        moving.wait_for_step(25)
        box, known = moving.old, json.loads((run_dir(moving) / CONFIG).read_text())
        box.offer["min_bid"] = 0.5
        world.world.outbid(box)
        reached = moving.steps()[-1][0]
        # as a person types it
        monkeypatch.setenv("TUNEWATCH_VAST_URL", world.url)
        monkeypatch.setenv("VAST_API_KEY", world.world.account_key)
        monkeypatch.setenv("TUNEWATCH_HOME", str(moving.laptop.home))
        command = ["instances", str(box.id), "--bid", "0.6", "--resume", "--yes", "--json"]
        with pytest.raises(SystemExit, match=r"^0$"):
            main(command)
        done = json.loads(capsys.readouterr().out)
        assert (done["state"], done["run"], done["instance_id"]) == ("running", RUN, box.id)
        assert {"bid", "boot", "SSH", "guard", "run"} <= {step["name"] for step in done["steps"]}
        trains_on(moving)
        steps = [step for step, _ in moving.steps()]
        assert 0 < reached + 1 - steps[steps.index(reached) + 1] <= 10, "saved every 10 steps"
        assert epoch(moving) == 1
        # the guard stands for what is left, at the new price
        limits = json.loads((run_dir(moving) / CONFIG).read_text())
        assert limits["arming"] != known["arming"]
        assert limits["usd_per_h"] == pytest.approx(0.6 + box.disk_usd_per_h)
        assert 0 < limits["deadline_s"] < known["deadline_s"]
        assert limits["spent_usd"] > known["spent_usd"]
        report = json.loads((run_dir(moving) / REPORT).read_text())
        assert report["limits"]["arming"] == limits["arming"], "read back"
        # cut after the bid was taken, after the guard was armed, after the trainer was started
        for number, row in enumerate((2, 5, 7), start=2):
            world.world.outbid(box)
            crash = CrashAt(row)
            with pytest.raises(Crash):
                again(moving, bid=0.6, after=crash)
            journal = Journal(moving.laptop.home)
            loss = Loss(RUN, box.id, "outbid", "", 0.0)
            assert "A resume of" in why_not(journal, loss, Policy(on=True), 1.0), crash.rows
            journal.close()
            if row == 5:
                # by the command that tidies up
                result, report_ = reconcile(moving.laptop.desk(), lambda _: "leave", moving.laptop.open_pair, {})
                assert result.ok
                assert report_.adopted == [box.id]
            else:
                resume_run(moving.laptop.desk(), box.id, moving.laptop.open_pair, {})
            trains_on(moving)
            # a trainer that lives is left in peace: its box need not come back a second time
            assert epoch(moving) == number
        world.world.stop(box)
        assert again(moving).state == "running", "stopped by a hand, and started"
        trains_on(moving)
        with pytest.raises(RefusedError, match="nothing to start"):
            again(moving)
        assert resume_run(moving.laptop.desk(), box.id, moving.laptop.open_pair, {}).state == "running"
        assert epoch(moving) == 5, "it trains there still"
        # cut, and then not wanted any more
        world.world.outbid(box)
        with pytest.raises(Crash):
            again(moving, bid=0.6, after=CrashAt(2))
        desk = moving.laptop.desk()
        assert kill(desk, name_victim(desk.journal, RUN), open_pair=moving.laptop.open_pair).state == "destroyed"
        assert desk.journal.open_deeds() == []
        wait_for(lambda: box.destroyed is not None)


# -- without processes ------------------------------------------------------------------------------------------------


@pytest.fixture
def rented(tmp_path: Path) -> Iterator[Rented]:
    with rented_world(offers=[offer_row(number, machine_id=number) for number in range(1, 30)]) as (fake, provider, _):
        fake.world.start_credit = 1e5
        laptop = Rented(fake, tmp_path, provider=provider, real=False)
        laptop.rent()
        yield laptop


def refusal(rented: Rented, instance: int) -> str:
    with pytest.raises(RefusedError) as said:
        plan_resume(rented.desk(), instance)
    return said.value.message


def test_what_cannot_go_on_says_why_before_anything_is_paid(rented: Rented) -> None:
    with pytest.raises(NotFoundError, match="no instance 99"):
        plan_resume(rented.desk(), 99)
    foreign = rented.provider.create(Order(9, "somebody else", "img", 60, "true"))
    assert "was not rented by tunewatch" in refusal(rented, foreign)
    box, desk = rented.box, rented.desk()
    rented.fake.world.stop(box)
    run = desk.journal.box(box.id)
    assert run is not None
    desk.journal.put_box(box.id, run_dir=None)
    assert "No run of instance" in refusal(rented, box.id)
    desk.journal.put_box(box.id, run_dir="/root/tunewatch/runs/mine/1")
    assert "not launched by tunewatch" in refusal(rented, box.id)
    other = rented.provider.create(Order(8, f"tunewatch:abcdef:{run.run}:00000002", "img", 60, "true"))
    desk.journal.put_box(other, run=run.run, label="x", state="running")
    assert f"went on on instance {other}" in refusal(rented, box.id)
    before = list(rented.fake.calls)
    for _ in range(2):
        with pytest.raises(RefusedError):
            resume_run(rented.desk(), box.id, rented.open_pair, {})
    assert {name for name, _ in rented.fake.calls[len(before) :]} == {"list"}


def test_a_limit_that_is_reached_is_not_gone_beyond(rented: Rented, tmp_path: Path) -> None:
    desk, box = rented.desk(), rented.box
    record = desk.journal.box(box.id)
    assert record is not None
    asked = rented.request(5, name=record.run or "mine/1")
    with desk.journal.begin("launch", record.run or "mine/1", launch=asked.to_json()) as deed:
        deed.close("running", instance=box.id, box={"run": asked.plan.run, "run_dir": "/r", "state": "running"})
    rented.fake.world.stop(box)
    assert plan_resume(rented.desk(), box.id).launch.wishes.budget_usd == 2.0
    desk.journal.put_box(box.id, deadline_at=desk.clock() + 600)
    assert plan_resume(rented.desk(), box.id).launch.wishes.deadline_s == pytest.approx(600, abs=5)
    desk.journal.put_box(box.id, deadline_at=desk.clock() - 1)
    assert "deadline of" in refusal(rented, box.id)
    desk.journal.put_box(box.id, deadline_at=None, budget_usd=0.0001)
    assert "has cost $" in refusal(rented, box.id)


@pytest.mark.parametrize(
    "words", [["--resume"], ["7", "--resume", "--reject-price"], ["7", "--bid", "1", "--start", "--resume"]]
)
def test_what_does_not_go_together_is_one_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["instances", *words])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "--" in said
