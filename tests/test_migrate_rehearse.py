"""Before the old run is stopped: a checkpoint asked of it, and the new box's steps compared with the old one's."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote.journal import Journal
from remote.migrate import last_migration
from remote.migrate_rehearse import RehearsalError, check_losses, measured
from runner.history import Frame, RunHistory, TrainPoint
from tests.fake_vast import FakeVast
from tests.support.migration import RUN, Moving, a_run


def said_by(moving: Moving) -> dict[str, object]:
    journal = Journal(moving.laptop.home)
    try:
        return dict(last_migration(journal, RUN).data)
    finally:
        journal.close()


def lines(*pairs: tuple[int, float]) -> list[dict[str, object]]:
    return [{"event": "train", "step": step, "loss": loss} for step, loss in pairs]


@pytest.mark.slow
def test_the_old_run_saves_on_request_and_the_new_box_does_the_very_steps_that_follow(
    world: FakeVast, tmp_path: Path
) -> None:
    """It never saves by itself: without the request there would be nothing to go on from."""
    with a_run(world, tmp_path, save_every=100_000) as moving:
        before = moving.steps()[-1][0]
        assert moving.migrate(rehearse_steps=12).ok
        said = said_by(moving)
        asked = said["asked_step"]
        assert isinstance(asked, int)
        assert asked >= before
        assert said["cargo"]["step"] == asked  # type: ignore[index]
        assert any("saved for this" in step.detail for step in moving.laptop.said)
        rehearsal = said["rehearsal"]
        assert isinstance(rehearsal, dict)
        assert (rehearsal["global_step"], rehearsal["steps"]) == (asked, 12)
        assert rehearsal["step_s"] == pytest.approx(0.02, rel=0.1)
        true = dict(moving.steps())
        assert rehearsal["losses"] == [true[asked + n] for n in range(1, 13)]
        assert rehearsal["compared"].startswith("steps "), "and they were compared with the old box's own"
        moving.check_curve()
        moving.check_journal()


@pytest.mark.slow
def test_a_foreign_trainer_that_does_not_go_on_as_the_old_one_did_is_a_no_and_costs_the_old_run_nothing(
    world: FakeVast, tmp_path: Path
) -> None:
    with a_run(world, tmp_path) as moving:
        # what is shipped to the new box is not what runs on the old one
        script = tmp_path / "standin/train.py"
        script.write_text(script.read_text().replace("6364136223846793005", "6364136223846793009"))
        with pytest.raises(RehearsalError, match="training loss at step"):
            moving.migrate(rehearse_steps=8)
        assert [box.id for box in moving.made()] == [moving.old.id]
        moving.wait_for_step(1, beyond=5)
        moving.check_curve()
        moving.check_journal()


@pytest.mark.slow
def test_a_recipe_that_does_not_say_how_its_trainer_ends_early_is_moved_untried_and_that_is_said(
    world: FakeVast, tmp_path: Path
) -> None:
    with a_run(world, tmp_path) as moving:
        recipe = moving.laptop.recipe
        kept = [line for line in recipe.read_text().splitlines() if not line.startswith("rehearse")]
        recipe.write_text("\n".join(kept) + "\n")
        assert moving.migrate().ok
        assert any("not tried beforehand" in step.detail for step in moving.laptop.said)
        assert "rehearsal" not in said_by(moving)
        moving.check_curve()


def test_losses_are_compared_line_by_line_as_means_of_what_they_cover() -> None:
    there = {"losses": [2.0, 1.0, 3.0, 2.0, 5.0]}
    assert check_losses(there, 10, lines((10, 9.9), (12, 1.5), (14, 2.5), (16, 3.0))) == "steps 11 to 14"
    assert check_losses(there, 10, lines((8, 9.9), (12, 7.0))) == "", "a line that begins before the checkpoint"
    assert check_losses({"losses": []}, 10, lines((10, 1.0), (11, 1.0))) == ""
    with pytest.raises(RehearsalError, match=r"at step 14 is 2\.5 on the new box and was 2\.6"):
        check_losses(there, 10, lines((10, 9.9), (12, 1.5), (14, 2.6)))
    assert check_losses(there, 10, lines((10, 9.9), (12, 1.51))), "rounding of other hardware"
    with pytest.raises(RehearsalError):
        check_losses({"losses": [float("nan")]}, 10, lines((10, 1.0), (11, 1.0)))


def test_a_rehearsal_without_a_step_after_the_checkpoint_is_a_no() -> None:
    with pytest.raises(RehearsalError, match="without a step after 40"):
        measured(RunHistory(step=40, frames=(Frame(40, 1.0, 0),)), 40)
    frames = tuple(Frame(step, step * 0.5, 0) for step in range(41, 61))
    told = measured(RunHistory(step=60, frames=frames, train=(TrainPoint(50, 1.0), TrainPoint(60, 0.9))), 40)
    assert told["steps"] == 20
    assert told["losses"] == [], "means over ten steps cannot be compared with each other"
    assert told["step_s"] == pytest.approx(0.5, rel=0.1)
