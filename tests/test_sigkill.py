"""The process itself is killed at rows of the journal, and one pass of reconcile after the restart sets all right.

    python -m tests.test_sigkill [launch|kill|migrate ...]     every row of each, before and after; for people
    python -m tests.test_sigkill migrate:22                    from that row on

Exactly one or no box lives, the journal equals the provider's list, and no deed is open.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from remote.kill import kill, name_victim
from remote.launch import launch, resume_launch
from remote.migrate import open_migration, resume_migration
from remote.provider import Order
from remote.reconcile import reconcile
from tests.fake_vast import FakeVast, ScaledClock
from tests.fake_vast.market import offer_row
from tests.support.doomed import run_doomed
from tests.support.migration import RUN, Moving, a_run, offer_of
from tests.support.rented import Laptop, real_world
from tests.test_launch import ROWS as LAUNCH_ROWS
from tests.test_launch import trainers
from tests.test_migrate_crash import ROWS as MIGRATE_ROWS

KILL_ROWS, BARE_ROWS = 5, 3
"""Rows that a kill writes after it was opened, with and without a run to stop."""
NAME = "mine/20260215-104518"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVast]:
    with real_world(tmp_path_factory.mktemp("boxes")) as fake:
        yield fake


def launch_round(fake: FakeVast, folder: Path, row: int, moment: str, choice: str) -> str:
    laptop = Laptop(fake, folder)
    before = {box.id for box in fake.world.living()}
    asked = laptop.request(offer_of(fake), name=NAME)
    killed = run_doomed(fake, "launch", row, moment, laptop.home, json.dumps(asked.to_json()))
    assert killed or row > LAUNCH_ROWS
    assert len({box.id for box in fake.world.living()} - before) <= 1
    result, _ = reconcile(laptop.desk(), lambda found: choice, laptop.open_pair, {})  # type: ignore[arg-type, return-value]
    assert result.ok
    laptop_boxes = [box for box in fake.world.living() if box.id not in before]
    assert len(laptop_boxes) <= 1
    agree(laptop, {box.id for box in laptop_boxes})
    for box in laptop_boxes:
        assert trainers(laptop, box.id) == 1
        desk = laptop.desk()
        assert kill(desk, name_victim(desk.journal, str(box.id)), open_pair=None).ok
    return f"{len(laptop_boxes)} box"


def kill_round(fake: FakeVast, folder: Path, row: int, moment: str) -> str:
    laptop = Laptop(fake, folder)
    before = {box.id for box in fake.world.living()}
    made = launch(laptop.desk(), laptop.request(offer_of(fake), name=NAME), laptop.open_pair, {}).instance_id
    assert run_doomed(fake, "kill", row, moment, laptop.home, str(made)) or row > KILL_ROWS
    result, report = reconcile(laptop.desk(), lambda found: "leave", laptop.open_pair, {})
    assert result.ok
    last = row == KILL_ROWS and moment == "after"
    assert report.destroyed == ([] if last else [made]), "a kill that was begun is finished without a question"
    assert {box.id for box in fake.world.living()} == before
    agree(laptop, set())
    return "destroyed"


def migrate_round(moving: Moving, row: int, moment: str, choice: str) -> str:
    moving.offer = offer_of(moving.fake)
    created = moving.fake.count("create")
    killed = run_doomed(moving.fake, "migrate", row, moment, moving.laptop.home, f"{RUN}@{moving.offer}")
    assert killed or row > MIGRATE_ROWS
    assert len(moving.made()) <= 2
    desk = moving.laptop.desk()
    rented = moving.fake.count("create") - created
    result, _ = reconcile(desk, lambda found: choice, moving.laptop.open_pair, {})  # type: ignore[arg-type, return-value]
    said = "; ".join(f"{step.name}: {step.detail}" for step in result.steps if not step.ok)
    record = open_migration(desk.journal, RUN)
    if record is not None:
        assert choice == "destroy", "to go on, one pass is enough"
        assert record.data.get("at") in ("M10", "M11", "M12"), "only what cannot be undone any more is left"
        resume_migration(desk, record.id, moving.laptop.open_pair, {})
    (box,) = moving.made()
    moving.wait_for_step(1, beyond=3)
    moving.check_curve()
    moving.check_journal()
    moved = box.id != moving.old.id
    moving.old = box
    if choice == "adopt" and not moved:
        # the only reason not to go on is a request that was never sent; the run trains on where it was
        assert not rented, f"told to go on, it turned back: {said}"
        assert "left nothing behind" in said, said
    return "moved" if moved else f"stayed{f': {said}' if said else ''}"


def agree(laptop: Laptop, living: set[int]) -> None:
    desk = laptop.desk()
    assert {box.instance for box in desk.journal.boxes(living=True)} == living
    assert desk.journal.open_deeds() == []
    desk.journal.close()


@pytest.mark.slow
@pytest.mark.parametrize(("row", "moment", "choice"), [(2, "after", "destroy"), (4, "before", "adopt")])
def test_f14_a_launch_that_was_killed_is_settled_in_one_pass(
    real: FakeVast, tmp_path: Path, row: int, moment: str, choice: str
) -> None:
    launch_round(real, tmp_path, row, moment, choice)


@pytest.mark.slow
@pytest.mark.parametrize("row", [6, 9])
def test_f14_a_launch_that_was_killed_is_carried_on_to_its_first_log_line(
    real: FakeVast, tmp_path: Path, row: int
) -> None:
    laptop = Laptop(real, tmp_path)
    living = {box.id for box in real.world.living()}
    asked = laptop.request(offer_of(real), name=NAME)
    assert run_doomed(real, "launch", row, "after", laptop.home, json.dumps(asked.to_json()))
    (record,) = laptop.desk().journal.open_deeds()
    result = resume_launch(laptop.desk(), record.id, laptop.open_pair, {})
    assert result.state == "running"
    (made,) = [box.id for box in real.world.living() if box.id not in living]
    assert made == result.instance_id
    agree(laptop, {made})
    assert trainers(laptop, made) == 1
    desk = laptop.desk()
    assert kill(desk, name_victim(desk.journal, str(made)), open_pair=laptop.open_pair, grace_s=10.0).ok


@pytest.mark.slow
@pytest.mark.parametrize(("row", "moment"), [(2, "before"), (4, "after")])
def test_f14_a_kill_that_was_killed_is_settled_in_one_pass(
    real: FakeVast, tmp_path: Path, row: int, moment: str
) -> None:
    kill_round(real, tmp_path, row, moment)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_f14_a_migration_that_was_killed_is_settled_in_one_pass(real: FakeVast, tmp_path: Path) -> None:
    with a_run(real, tmp_path, step_s=0.03) as moving:
        migrate_round(moving, 3, "after", "destroy")
        migrate_round(moving, 24, "before", "adopt")


@pytest.mark.slow
def test_f14_a_kill_without_a_run_is_settled_at_every_row(tmp_path: Path) -> None:
    """Boxes without processes behind them, so that all the rows take no longer than a few."""
    offers = [offer_row(number, machine_id=number) for number in range(1, 30)]
    boot = ((0.0, None), (0.1, "running"))
    with FakeVast(clock=ScaledClock(), offers=offers, boot=boot) as fake:
        laptop = Laptop(fake, tmp_path)
        for row in range(1, BARE_ROWS + 1):
            for moment in ("before", "after"):
                made = laptop.provider.create(
                    Order(offer_of(fake), f"tunewatch:abcdef:mine/1:{row}{moment}", "i", 60, "")
                )
                desk = laptop.desk()
                desk.journal.put_box(made, run="mine/1", label=fake.world.boxes[made].label, state="running")
                assert run_doomed(fake, "kill", row, moment, laptop.home, f"bare:{made}")
                result, _ = reconcile(desk, lambda found: "leave", laptop.open_pair, {})
                assert result.ok
                assert fake.world.living() == [], (row, moment)
                agree(laptop, set())


def main(kinds: list[str]) -> None:
    """Every row of each kind; raises at the first that does not hold."""
    began, rounds = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as name, real_world(Path(name) / "boxes") as fake, ExitStack() as stack:
        moving: Moving | None = None
        for word in kinds:
            kind, _, first = word.partition(":")
            last = {"launch": LAUNCH_ROWS, "kill": KILL_ROWS, "migrate": MIGRATE_ROWS}[kind]
            for row in range(int(first or 1), last + 1):
                for moment in ("before", "after"):
                    folder = Path(name) / f"{kind}-{row}-{moment}"
                    choice = "adopt" if (row + (moment == "after")) % 2 else "destroy"
                    if kind == "launch":
                        said = launch_round(fake, folder, row, moment, choice)
                    elif kind == "kill":
                        said = kill_round(fake, folder, row, moment)
                    else:
                        moving = moving or stack.enter_context(a_run(fake, folder, step_s=0.03))
                        said = migrate_round(moving, row, moment, choice)
                    rounds += 1
                    at = time.monotonic() - began
                    print(f"{rounds:4} {at:7.1f} s  {kind:8} row {row:2} {moment:6} {choice:8} {said}", flush=True)
    print(f"{rounds} processes killed, every one came out whole")


if __name__ == "__main__":
    main(sys.argv[1:] or ["launch", "kill", "migrate"])
