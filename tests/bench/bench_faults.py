"""1,000 launches and kills under random faults and crashes: how many boxes were rented twice, and how many forgotten?

    python -m tests.bench.bench_faults [COUNT] [SEED]

Each round scripts one to three faults (answers lost before or after the effect, 429, 5xx, HTML, half JSON, resets),
lets new boxes stay invisible and destroyed ones linger, and ends the process at a random row of the journal.
Then the laptop starts again: one reconcile, and the count is taken from the provider's own books.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from remote.kill import kill, name_victim
from remote.launch import launch
from remote.reconcile import reconcile
from runner.errors import TunewatchError
from tests.fake_vast import FakeVast, faults
from tests.fake_vast.market import offer_row
from tests.support.rented import Crash, CrashAt, Laptop
from tests.support.vast import rented_world

OPERATIONS = ("search", "user", "create", "create", "list", "list", "attach", "destroy", "destroy", "logs")
EVERY = (*faults.WITHOUT_EFFECT, *faults.WITH_EFFECT)


@dataclass
class Count:
    """What is counted over all rounds."""

    rounds: int = 0
    crashes: int = 0
    faults: int = 0
    double: int = 0
    unknown: int = 0
    worst_orphan_s: float = 0.0


def one_round(fake: FakeVast, laptop: Laptop, number: int, rng: random.Random, count: Count) -> None:
    """A launch (which ends without SSH and undoes itself, or crashes), then what a restart makes of it."""
    world = fake.world
    fake.faults.clear()
    before = set(world.boxes)
    for _ in range(rng.randint(1, 3)):
        fake.faults.add(rng.choice(OPERATIONS), rng.choice(EVERY), times=rng.choice((1, 1, 2, 4)))
    world.hide_new = rng.choice((0, 0, 1, 3))
    world.linger = rng.choice((0, 0, 1, 3))
    hook = CrashAt(rng.randint(1, 9)) if rng.random() < 0.7 else None
    before_row = hook if rng.random() < 0.5 else None
    desk = laptop.desk(before=before_row, after=hook if before_row is None else None)
    name = f"mine/{number}"
    try:
        launch(desk, laptop.request(number, name=name), laptop.open_pair, {})
    except Crash:
        count.crashes += 1
    except TunewatchError:
        pass
    desk.journal.close()
    count.double += len(set(world.boxes) - before) > 1
    # the restart: whatever is left of the faults still happens, until one pass has gone through
    began = world.clock()
    for _ in range(6):
        desk = laptop.desk()
        try:
            reconcile(desk, lambda found: rng.choice(("destroy", "destroy", "leave")), laptop.open_pair, {})
        except TunewatchError:
            fake.faults.clear()
        known = {box.instance for box in desk.journal.boxes(living=True)}
        living = {box.id for box in world.living()}
        open_labels = {record.data.get("label") for record in desk.journal.open_deeds()}
        strangers = [world.boxes[b] for b in living - known]
        if any(box.label not in open_labels and not box.hidden_lists for box in strangers):
            count.worst_orphan_s = max(count.worst_orphan_s, world.clock() - began)
        if not living and not desk.journal.open_deeds():
            desk.journal.close()
            break
        for instance in living & known:
            try:
                kill(desk, name_victim(desk.journal, str(instance)), open_pair=None)
            except TunewatchError:
                continue
        desk.journal.close()
        world.clock.sleep(120)  # type: ignore[attr-defined]
    count.unknown += bool(world.living())
    count.rounds += 1
    count.faults += len(fake.faults.used)
    fake.faults.used.clear()


def run(rounds: int, seed: int) -> Count:
    """So many rounds on one stand-in and one journal."""
    rng = random.Random(seed)
    count = Count()
    offers = [offer_row(number, machine_id=number) for number in range(1, rounds + 1)]
    with tempfile.TemporaryDirectory() as folder, rented_world(offers=offers, credit=1e6) as (fake, provider, _):
        laptop = Laptop(fake, Path(folder), provider=provider, real=False)
        for number in range(1, rounds + 1):
            one_round(fake, laptop, number, rng, count)
    return count


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 20260215
    began = time.monotonic()
    count = run(rounds, seed)
    took = time.monotonic() - began
    print(f"rounds {count.rounds}, faults met {count.faults}, crashes {count.crashes}, {took:.0f} s")
    print(f"rented twice  {count.double}  0  -")
    print(f"left billing unknown  {count.unknown}  0  -")
    window = count.worst_orphan_s
    print(f"orphan window after restart (s of the stand-in's clock)  {window:.0f}  60  {window / 60:.2f}")


if __name__ == "__main__":
    main()
