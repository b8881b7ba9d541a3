"""From `launch` to the first log line on the stand-in, phase by phase: what of it is ours? The target is 10 s."""

from __future__ import annotations

import tempfile
from pathlib import Path

from remote.kill import kill, name_victim
from remote.launch import launch
from tests.support.rented import Laptop, real_world

TARGET_S = 10.0
NOT_OURS = ("boot", "ship our code", "first log line")
"""The provider's boot, the transfer, the trainer's own imports."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, real_world(Path(folder) / "boxes") as fake:
        laptop = Laptop(fake, Path(folder) / "laptop")
        result = launch(laptop.desk(), laptop.request(1), laptop.open_pair, {})
        for step in result.steps:
            mine = "" if step.name in NOT_OURS else "  ours"
            print(f"  {step.name:<20} {step.seconds or 0:6.2f} s{mine}")
        ours = sum(step.seconds or 0 for step in result.steps if step.name not in NOT_OURS)
        print(f"launch overhead  {ours:.1f} s  {TARGET_S:.0f} s  {ours / TARGET_S:.2f}")
        desk = laptop.desk()
        kill(desk, name_victim(desk.journal, str(result.instance_id)), open_pair=laptop.open_pair, grace_s=5.0)


if __name__ == "__main__":
    main()
