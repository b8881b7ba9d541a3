"""A laptop's process that is killed by SIGKILL at one row of its journal, as by an empty battery.

    python -m tests.support.doomed DEED ROW MOMENT HOME ARGUMENT     with TUNEWATCH_VAST_URL and VAST_API_KEY

DEED is `launch` (ARGUMENT: a Launch as JSON), `kill` (an instance, or `bare:` and one: without a look at the box) or
`migrate` (an offer). MOMENT is `before` or `after` the row is on the disk. Ends with 0 when the row never came.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from remote.access import opener
from remote.desk import Desk
from remote.journal import Journal, Row
from remote.kill import kill, name_victim
from remote.launch import Launch, launch
from remote.migrate import migrate
from remote.migrate_plan import plan_move
from remote.vast import VastProvider
from tests.fake_vast import FakeVast

ROOT = Path(__file__).parent.parent.parent


class Doom:
    """Kills its own process at the n-th row."""

    def __init__(self, row: int) -> None:
        self.left = row

    def __call__(self, row: Row) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def run_doomed(fake: FakeVast, deed: str, row: int, moment: str, home: Path, argument: str) -> bool:
    """Run it; whether it was killed. Any other end than by the row or in peace is an error."""
    env = {**os.environ, "TUNEWATCH_VAST_URL": fake.url, "VAST_API_KEY": fake.world.account_key}
    command = [sys.executable, "-m", "tests.support.doomed", deed, str(row), moment, str(home), argument]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


def main() -> None:
    deed, row, moment, place, argument = sys.argv[1:]
    home = Path(place)
    doom = Doom(int(row))
    hooks = {"before_row": doom} if moment == "before" else {"after_row": doom}

    def desk(**more: object) -> Desk:
        provider = VastProvider(thresholds={}, timeout_s=60.0, create_timeout_s=60.0)
        return Desk(provider, Journal(home, **more), sleep=lambda s: time.sleep(min(s, 5.0) / 10))  # type: ignore[arg-type]

    if deed == "launch":
        launch(desk(**hooks), Launch.from_json(json.loads(argument)), opener(home), {})
    elif deed == "kill":
        bare, name = argument.startswith("bare:"), argument.removeprefix("bare:")
        doomed = desk(**hooks)
        kill(doomed, name_victim(doomed.journal, name), open_pair=None if bare else opener(home), grace_s=10.0)
    else:
        run, _, offer = argument.rpartition("@")
        plan = plan_move(desk(), run, int(offer), opener(home), forced=True)
        migrate(desk(**hooks), replace(plan.request, confirm_steps=5), opener(home), {})


if __name__ == "__main__":
    main()
