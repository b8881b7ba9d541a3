"""A box is lost in the middle of a move, the new one or the old: the run goes on on one of them, alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote import migrate_switch
from remote.journal import Journal
from remote.migrate import migrate
from remote.migrate_plan import plan_move, refuse_if_it_does_not_pay
from remote.migrate_switch import NoProgressError
from runner.errors import RefusedError, TunewatchError
from tests.fake_vast import FakeVast
from tests.support.migration import RUN, At, a_run, move_with

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["crash", "hang"])
def test_a_new_trainer_that_does_not_train_puts_the_old_box_back_to_work(
    world: FakeVast, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_switch, "STALL_S", 3.0)
    with a_run(world, tmp_path) as moving:

        def spoil() -> None:
            (new,) = [box for box in moving.made() if box.id != moving.old.id]
            moving.spoil.write_text(f"{mode} /{new.id}/")

        with pytest.raises(NoProgressError):
            move_with(moving, At("M8 done", spoil))
        assert [box.id for box in moving.made()] == [moving.old.id]
        moving.wait_for_step(1, beyond=10)
        moving.check_curve()
        moving.check_journal()


@pytest.mark.slow
def test_a_new_box_that_is_outbid_while_it_starts_is_given_up_and_the_run_goes_on_where_it_was(
    world: FakeVast, tmp_path: Path
) -> None:
    """F18 on the new side."""
    with a_run(world, tmp_path) as moving:

        def outbid() -> None:
            (new,) = [box for box in moving.made() if box.id != moving.old.id]
            world.world.outbid(new)

        with pytest.raises(TunewatchError):
            move_with(moving, At("M8 done", outbid))
        assert [box.id for box in moving.made()] == [moving.old.id]
        moving.wait_for_step(1, beyond=10)
        moving.check_curve()
        moving.check_journal()
        journal = Journal(moving.laptop.home)
        box = journal.box(moving.old.id)
        assert box is not None
        assert box.data["epoch"] == 2, "it went on one epoch later than the one that failed"
        journal.close()


@pytest.mark.slow
def test_f18_an_old_box_that_is_outbid_in_the_middle_loses_at_most_the_steps_since_its_last_checkpoint(
    world: FakeVast, tmp_path: Path
) -> None:
    with a_run(world, tmp_path) as moving:
        assert move_with(moving, At("M6 done", lambda: world.world.outbid(moving.old)))
        moving.wait_for_step(1, beyond=10)
        moving.check_curve()
        moving.check_journal()
        assert [box.id for box in moving.made()] != [moving.old.id]


@pytest.mark.slow
def test_f18_a_run_whose_spot_box_was_killed_without_notice_goes_on_elsewhere(world: FakeVast, tmp_path: Path) -> None:
    """The box is started to be read, never to train, and destroyed at the end."""
    with a_run(world, tmp_path) as moving:
        moving.wait_for_step(25)
        world.world.outbid(moving.old)
        reached = moving.steps()[-1][0]
        proposal = plan_move(moving.laptop.desk(), RUN, moving.offer, moving.laptop.open_pair)
        assert proposal.decision is None, "there is nothing to stay on"
        refuse_if_it_does_not_pay(proposal)
        assert migrate(moving.laptop.desk(), moving.request(), moving.laptop.open_pair, {}).ok
        moving.wait_for_step(1, beyond=10)
        moving.check_curve()
        moving.check_journal()
        steps = [step for step, _ in moving.steps()]
        again = steps[steps.index(reached) + 1]
        assert reached - again < 10 + 2, "saved every 10 steps, so at most those are done again"


@pytest.mark.slow
def test_f18_a_killed_box_that_cannot_be_started_keeps_its_disk_and_nothing_is_left_rented(
    world: FakeVast, tmp_path: Path
) -> None:
    with a_run(world, tmp_path) as moving:
        world.world.outbid(moving.old)
        world.world.refuse_start = True
        with pytest.raises(RefusedError, match="cannot be started to read its checkpoints"):
            moving.migrate()
        world.world.refuse_start = False
        assert [box.id for box in moving.made()] == [moving.old.id]
        moving.check_journal()
