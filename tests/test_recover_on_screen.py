"""A spot box is lost while its run is watched: the open screen has it replaced, says so, and goes with the run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from remote.journal import Journal
from remote.recovery_policy import set_policy, used
from tests.fake_vast import FakeVast
from tests.support.migration import RUN, a_run
from tests.support.terminal import ENDED, Terminal

LONG = 480.0
"""Seconds for a deed with boxes in it, on a machine that is busy."""


def step_shown(seen: str) -> int:
    """The step in the top line, 0 for none."""
    found = re.search(r"(\d+)/100000", seen)
    return int(found[1]) if found else 0


@pytest.mark.slow
def test_an_outbid_box_is_replaced_while_its_run_is_watched_and_the_screen_goes_with_it(
    world: FakeVast, tmp_path: Path
) -> None:
    with a_run(world, tmp_path, bid=0.4) as moving:
        desk = moving.laptop.desk()
        set_policy(desk.journal, RUN, desk.clock(), on=True, after_s=0.0)
        desk.journal.close()
        env = {
            "TUNEWATCH_HOME": str(moving.laptop.home), "VAST_API_KEY": world.world.account_key,
            "TUNEWATCH_VAST_URL": world.url, "NO_PROXY": "127.0.0.1,localhost", "TEXTUAL_ANIMATIONS": "none",
        }  # fmt: skip
        with Terminal([sys.executable, "-m", "tui", "watch", RUN], env=env) as term:
            term.until(lambda seen: "running" in seen and step_shown(seen) > 11, LONG)
            world.world.outbid(moving.old)
            reached = moving.steps()[-1][0]
            term.until("goes on elsewhere by itself (recovery 1 of", LONG)
            term.until(lambda seen: "⇄ moving" in seen and "the box of before is only read" in seen, LONG)
            term.until(lambda seen: "running" in seen and step_shown(seen) > reached + 20, LONG)
            (new,) = moving.made()
            assert (new.id != moving.old.id, new.is_bid) == (True, False)
            # the box of before was started once more to be read: nobody is told that its trainer is gone
            term.keys("e")
            seen = term.until("goes on elsewhere")
            assert "crashed" not in seen
            term.keys("Escape")
            term.press_until("q", ENDED)
        moving.check_curve()
        moving.check_journal()
        journal = Journal(moving.laptop.home)
        assert used(journal, RUN) == 1
        journal.close()
