"""The whole loop in a real terminal, by keys alone: launch, watch, what-if applied, migrate, kill.

The market is a stand-in behind real HTTP, the boxes are real sshd processes, the run is a small real fine-tune. What
does not come shows the screen that stood there instead.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from runner.autostop import StopRule
from tests.fake_vast import FakeVast
from tests.fake_vast.market import offer_row
from tests.support.rented import BOOT
from tests.support.study import history, save_checkpoint, tiny_model, write_recipe
from tests.support.terminal import ENDED, Terminal

LONG = 480.0
"""Seconds for a deed with boxes and torch in it, on a machine that is busy."""


def name_typed_back(term: Terminal, name: str) -> None:
    """The first letter, which brings the focus to its field, then the others, then Enter."""
    term.type(name[0])
    term.until(lambda seen: "to go on" not in seen)
    if name[1:]:
        term.type(name[1:])
    term.until(lambda seen: seen.count(name) > 1 or len(name) == 1)
    term.keys("Enter")


@pytest.mark.slow
@pytest.mark.study
def test_launch_watch_what_if_migrate_and_kill_by_keys_in_a_terminal(tmp_path: Path) -> None:
    base = save_checkpoint(tiny_model(), tmp_path / "base")
    recipe = write_recipe(tmp_path / "mini.toml", base, patience=900)
    # dear here and cheap there: a move pays
    offers = [offer_row(1, machine_id=1, dph_base=3.0), offer_row(2, machine_id=2, dph_base=0.2)]
    with FakeVast(boxes=tmp_path / "boxes", boot=BOOT, offers=offers, credit=500.0) as fake:
        env = {
            "TUNEWATCH_HOME": str(tmp_path / "home"), "VAST_API_KEY": fake.world.account_key,
            "TUNEWATCH_VAST_URL": fake.url, "NO_PROXY": "127.0.0.1,localhost", "OMP_NUM_THREADS": "1",
            "TEXTUAL_ANIMATIONS": "none",
        }  # fmt: skip
        with Terminal([sys.executable, "-m", "tui"], env=env) as term:
            # launch
            term.until("Launch")
            term.keys("n")
            term.until("Which recipe?")
            term.type(str(recipe))
            term.until(lambda seen: "Which recipe?" not in seen and "no recipe" not in seen)
            term.keys("Enter")
            term.until(lambda seen: "account" in seen and "looking" not in seen and "variables" in seen)
            term.keys("Enter")
            seen = term.until("the cheapest to the end of the run; prices: live")
            term.until(lambda seen: " 2 " in seen and "0.2" in seen)
            dear_first = seen.index("3.0") < seen.index("0.2") if "3.0" in seen and "0.2" in seen else False
            term.keys(*([] if dear_first else ["Down"]), "Enter")
            term.until(lambda seen: "an hour, offer 1" in seen and "Dry run" in seen)
            # Cancel has the focus: three to the right is Rent
            term.keys("Right", "Right", "Right", "Enter")
            term.until("type 1 to go on")
            name_typed_back(term, "1")
            term.until("▸ ")
            term.until("Watch it", LONG)
            [first] = fake.world.living()
            term.keys("Enter")
            # watch
            term.until(lambda seen: "eval_loss" in seen and "running" in seen and "s/step" in seen, LONG)
            run = first.label.split(":")[2]
            assert first.container is not None
            run_dir = first.container.home / "tunewatch/runs" / run
            term.until(lambda _: (run_dir / "metrics.jsonl").exists() and len(history(run_dir).evals) >= 2, LONG)
            term.until("stop after 900 evals", LONG)
            # what-if, applied
            term.keys("w")
            term.until("what if the rule were another one")
            term.keys("Down", "Down")
            term.until(lambda seen: "898" in seen)
            term.press_until("Enter", "goes on: stop after 898 evals")
            term.keys("Right", "Enter")
            term.until("requested → acknowledged at step", LONG)
            assert history(run_dir).rule == StopRule(898, 0.001, 20)
            term.keys("Escape")
            term.until("while it ran", LONG)
            # a smaller terminal and back
            term.resize(80, 24)
            term.until("6 log")
            term.resize(120, 40)
            # migrate
            term.keys("M")
            term.until(lambda seen: "against staying" in seen and "0.2" in seen and "asking" not in seen, LONG)
            term.keys("Home", "Down")
            term.keys("Enter")
            term.until("A move that does not pay is refused.", LONG)
            name_typed_back(term, run.rpartition("/")[2])
            term.until("Watch it", LONG)
            [second] = fake.world.living()
            assert second.id != first.id
            term.keys("Enter")
            term.until(lambda seen: "running" in seen and "s/step" in seen, LONG)
            # kill
            term.keys("K")
            term.until("Destroy")
            name_typed_back(term, run.rpartition("/")[2])
            term.until("✓ destroyed", LONG)
            assert fake.world.living() == []
            term.keys("Enter")
            term.press_until("q", ENDED)
