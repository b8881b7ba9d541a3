"""A guard in this process on a rented box of the stand-in, with clocks moved by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from remote.provider import Order
from runner.box.guard import Guard
from runner.box.limits import CONFIG, REPORT, Limits
from runner.box.own_key import Api
from runner.rundir import STATUS, Status, write_status
from tests.fake_vast import Box, FakeVast, ManualClock
from tests.support.vast import rented_world


class Stand:
    """A guard in this process on a rented box of the stand-in, with clocks moved by hand."""

    def __init__(self, fake: FakeVast, box: Box, clock: ManualClock, run_dir: Path) -> None:
        self.fake, self.box, self.clock, self.run_dir = fake, box, clock, run_dir
        self.powered_off: list[int] = []
        self.key = box.api_key
        self.gpu: float | None = None
        self.traffic = (0, 0)
        self.age: float | None = None
        """Seconds that the container has run; None where nobody can tell."""

    def arm(self, **limits: object) -> Guard:
        document = {**asdict(Limits(instance_id=self.box.id, url=self.fake.url, usd_per_h=0.75)), **limits}
        (self.run_dir / CONFIG).write_text(json.dumps(document))
        guard = Guard(
            self.run_dir, api=lambda limits: Api(limits.url, limits.instance_id, self.key, 1.0), mono=self.clock,
            sleep=self.clock.sleep, gpu_use=lambda: self.gpu, power_off=self.power_off, network=lambda: self.traffic,
            container_age=lambda: self.age,
        )  # fmt: skip
        guard.load()
        guard.recover()
        return guard

    def power_off(self, instance_id: int) -> str:
        self.powered_off.append(instance_id)
        if len(self.powered_off) == 2:
            raise SystemExit(0)  # the container ended
        return "told to end"

    def beat(self, seq: int, step: int, state: str = "running", rc: int | None = None) -> None:
        write_status(self.run_dir / STATUS, Status(state=state, seq=seq, step=step, rc=rc))

    def report(self) -> dict[str, object]:
        return json.loads((self.run_dir / REPORT).read_text())  # type: ignore[no-any-return]


@contextmanager
def a_stand(tmp_path: Path) -> Iterator[Stand]:
    """The stand on a box that runs."""
    with rented_world() as (fake, provider, clock):
        box = fake.world.boxes[provider.create(Order(7_000_001, "tunewatch:x:r:1", "img", 60, "true"))]
        clock.advance(60)
        run_dir = tmp_path / "run"
        run_dir.mkdir()
        yield Stand(fake, box, clock, run_dir)
