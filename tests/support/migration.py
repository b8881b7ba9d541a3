"""A run on a rented box, ready to be moved, and what has to hold of it at every moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from remote.deeds import DeedResult
from remote.journal import Journal, Row
from remote.launch import launch
from remote.migrate import migrate
from remote.migrate_plan import plan_move
from remote.move import Request
from tests.fake_vast import Box, FakeVast
from tests.support.rented import CrashAt, Laptop
from tests.support.standin import seen_by, standin_recipe, true_losses

RUN = "standin/20260215-104518"


@dataclass
class Moving:
    """A laptop with one run on one box."""

    laptop: Laptop
    witness: Path
    spoil: Path
    """`crash PATH` or `hang PATH` in it makes a resumed trainer below a path do so."""
    old: Box
    offer: int
    """The offer to move to."""

    @property
    def fake(self) -> FakeVast:
        return self.laptop.fake

    def steps(self) -> list[tuple[int, float]]:
        return seen_by(self.witness)

    def wait_for_step(self, step: int, *, beyond: int = 0) -> None:
        """Until the witness has `beyond` lines more than now and has seen `step`."""
        until = time.monotonic() + 180
        lines = len(self.steps()) + beyond
        while len(self.steps()) < lines or not any(done >= step for done, _ in self.steps()[-3:]):
            assert time.monotonic() < until, f"step {step} was not reached: {self.steps()[-3:]}"
            time.sleep(0.01)

    def request(self, **changes: object) -> Request:
        desk = self.laptop.desk()
        plan = plan_move(desk, RUN, self.offer, self.laptop.open_pair, forced=True)
        desk.journal.close()
        return replace(plan.request, **{"confirm_steps": 5, **changes})  # type: ignore[arg-type]

    def migrate(self, *, before: CrashAt | None = None, after: CrashAt | None = None, **changes: object) -> DeedResult:
        request = self.request(**changes)
        return migrate(self.laptop.desk(before=before, after=after), request, self.laptop.open_pair, {})

    def made(self) -> list[Box]:
        """Boxes of this run that live at the provider."""
        return [box for box in self.fake.world.living() if box.label.split(":")[2:3] == [RUN]
                and box.label.split(":")[1] == self.laptop_name()]  # fmt: skip

    def laptop_name(self) -> str:
        journal = Journal(self.laptop.home)
        name = journal.laptop()
        journal.close()
        return name

    def check_curve(self) -> None:
        """Every step's loss is that of a run that never moved."""
        steps = self.steps()
        true = true_losses(max(step for step, _ in steps))
        assert all(loss == true[step] for step, loss in steps)

    def check_journal(self) -> None:
        """No deed is open, and the journal knows exactly the boxes that live."""
        journal = Journal(self.laptop.home)
        assert [deed.kind for deed in journal.open_deeds()] == []
        assert {box.instance for box in journal.boxes(living=True)} == {box.id for box in self.made()}
        journal.close()


def offer_of(fake: FakeVast) -> int:
    """An offer of the stand-in that nobody has taken yet."""
    free = next(row["id"] for row in fake.world.offers.values() if row["rentable"] and not row.get("gone"))
    return int(free)


@contextmanager
def a_run(
    fake: FakeVast, folder: Path, *, bid: float | None = None, hf_repo_id: str = "", python: str = "python3",
    **options: object,
) -> Iterator[Moving]:  # fmt: skip
    """Launch the stand-in trainer on a box and wait for its first checkpoint; ends everything of it afterwards.

    With `bid` (USD/h) the box is interruptible.
    """
    laptop = Laptop(fake, folder)
    spoil = folder / "spoil"
    recipe, witness = standin_recipe(folder, **{"step_s": 0.02, "spoil": spoil, **options})
    laptop.recipe = recipe
    asked = laptop.request(offer_of(fake), name=RUN, bid_usd_per_h=bid)
    asked = replace(asked, order=replace(asked.order, hf_repo_id=hf_repo_id), python=python)
    result = launch(laptop.desk(), asked, laptop.open_pair, {})
    assert result.instance_id is not None
    moving = Moving(laptop, witness, spoil, fake.world.boxes[result.instance_id], offer_of(fake))
    try:
        moving.wait_for_step(11)
        yield moving
    finally:
        for box in moving.made():
            fake.world.destroy(box, "the test")


class At:
    """Does something once, when a row is on the disk."""

    def __init__(self, row: str, do: Callable[[], object]) -> None:
        self.row, self.do, self.done = row, do, False

    def __call__(self, row: Row) -> None:
        if not self.done and f"{row.step} {row.phase}" == self.row:
            self.done = True
            self.do()


def move_with(moving: Moving, hook: At, **changes: object) -> object:
    """Migrate with the hook, which has to have been met."""
    request = moving.request(**changes)
    desk = moving.laptop.desk(after=hook)  # type: ignore[arg-type]
    try:
        return migrate(desk, request, moving.laptop.open_pair, {})
    finally:
        assert hook.done, f"{hook.row} was never written"
        desk.journal.close()
