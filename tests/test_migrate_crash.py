"""The laptop's process ends at any row of a migration's journal, and the run comes out of it whole.

python -m tests.test_migrate_crash [ROUNDS]     every row, before and after, and what to do then; prints each round
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from remote.migrate import abort_migration, migrate, open_migration, resume_migration
from remote.reconcile import reconcile
from runner.errors import ProviderError, RefusedError
from tests.fake_vast import Box, FakeVast
from tests.support.migration import RUN, Moving, a_run, offer_of
from tests.support.rented import Crash, CrashAt, real_world

THEN = ("resume", "abort", "reconcile, resume", "reconcile to go on", "reconcile to undo")
ROWS = 30
"""Rows that a migration writes after it was opened, where nothing goes wrong; a test counts them."""


@contextmanager
def watched(moving: Moving) -> Iterator[list[tuple[int, int]]]:
    """Collects `(instance, last step of the run)` of every box that is destroyed."""
    world = moving.fake.world
    before = world.destroy
    ended: list[tuple[int, int]] = []

    def destroy(box: Box, by: str) -> None:
        ended.append((box.id, moving.steps()[-1][0]))
        before(box, by)

    world.destroy = destroy  # type: ignore[method-assign]
    try:
        yield ended
    finally:
        world.destroy = before  # type: ignore[method-assign]


def one_round(moving: Moving, row: int, moment: str, then: str) -> str:
    """Crash, come back, and check everything that has to hold; the run is on one box afterwards."""
    old = moving.old
    moving.offer = offer_of(moving.fake)
    request = moving.request()
    crash = CrashAt(row)
    created = moving.fake.count("create")
    desk = moving.laptop.desk(before=crash) if moment == "before" else moving.laptop.desk(after=crash)
    with watched(moving) as ended:
        with pytest.raises(Crash):
            migrate(desk, request, moving.laptop.open_pair, {})
        desk.journal.close()
        again = moving.laptop.desk()
        record = open_migration(again.journal, RUN)
        if record is None:
            assert (row, moment) == (ROWS, "after"), "only the last row closes the deed"
        elif then in ("reconcile to go on", "reconcile to undo"):
            choice = "adopt" if "go on" in then else "destroy"
            reconcile(again, lambda found: choice, moving.laptop.open_pair, {})  # type: ignore[arg-type, return-value]
            if open_migration(again.journal, RUN) is not None:
                assert record.data.get("at") in ("M10", "M11", "M12"), "only what cannot be undone any more is left"
                resume_migration(again, record.id, moving.laptop.open_pair, {})
        elif "resume" in then:
            if "reconcile" in then:
                # a pass over everything that is rented takes nothing away from a migration that is half done
                reconcile(again, lambda found: "leave", moving.laptop.open_pair, {})
            nothing = ""
            try:
                resume_migration(again, record.id, moving.laptop.open_pair, {})
            except ProviderError as error:
                nothing = error.message
            if nothing:
                assert "left nothing behind" in nothing
                assert crash.rows[-1] in ("create intent", "create done"), "a request that was perhaps sent"
                assert created == moving.fake.count("create"), "and was not"
        else:
            try:
                assert abort_migration(again, record.id, moving.laptop.open_pair, {}).ok
            except RefusedError:
                assert record.data.get("at") in ("M10", "M11", "M12"), "it can be undone until the new one has trained"
                then += ", refused"
                resume_migration(again, record.id, moving.laptop.open_pair, {})
        again.journal.close()
    assert moving.fake.count("create") - created <= 1, "never rented twice"
    (box,) = moving.made()
    moved = box.id != old.id
    if moved:
        rows = moving.laptop.desk().journal.rows(instance=box.id)
        carried = next(r.data["cargo2"]["step"] for r in reversed(rows) if r.step == "M8" and r.phase == "done")
        assert dict(ended)[old.id] >= carried + request.confirm_steps, "the old box ends after the new one trained"
    moving.wait_for_step(1, beyond=3)
    moving.check_curve()
    moving.check_journal()
    moving.old = box
    return f"{crash.rows[-1]:22} {moment:6} {then:20} {'moved' if moved else 'stayed'}"


@pytest.mark.slow
def test_a_migration_writes_the_rows_that_are_crashed_at(world: FakeVast, tmp_path: Path) -> None:
    with a_run(world, tmp_path) as moving:
        count = CrashAt(10**9)
        assert moving.migrate(after=count).state == "running"
        assert len(count.rows) == ROWS, count.rows
        moving.wait_for_step(1, beyond=10)
        moving.check_curve()
        moving.check_journal()


def rounds(seed: int, count: int) -> list[tuple[int, str, str]]:
    """Rows and what is done then, spread over the whole migration; `count` of all there are."""
    every = [(row, moment, then) for row in range(1, ROWS + 1) for moment in ("before", "after") for then in THEN]
    return sorted(random.Random(seed).sample(every, count)) if count < len(every) else every


@pytest.mark.slow
def test_killed_at_rows_all_over_a_migration_it_converges_with_one_trainer_and_one_box(
    world: FakeVast, tmp_path: Path
) -> None:
    with a_run(world, tmp_path, step_s=0.03) as moving:
        for row, moment, then in rounds(20260215, 6):
            one_round(moving, row, moment, then)


def main(count: int, seed: int) -> None:
    """Many rounds, for people; raises at the first that does not hold."""
    with tempfile.TemporaryDirectory() as folder, real_world(Path(folder) / "boxes") as fake:
        todo, done, began = rounds(seed, count), 0, time.monotonic()
        while todo:
            # a journal of a few dozen migrations, then a fresh laptop
            with a_run(fake, Path(folder) / f"laptop-{done}", step_s=0.03) as moving:
                for row, moment, then in todo[:20]:
                    said = one_round(moving, row, moment, then)
                    done += 1
                    print(f"{done:4} {time.monotonic() - began:7.1f} s  {said}", flush=True)
                    for other in list(fake.world.offers.values()):
                        other["rentable"] = True
            todo = todo[20:]
    print(f"{done} crashes, every one came out whole")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10**6, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
