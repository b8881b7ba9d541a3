"""The miniature study moved in the middle of its training gives, at each step, the losses of a run that never moved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote.access import own_key
from remote.launch import launch
from remote.migrate import account, last_migration, migrate
from remote.migrate_plan import plan_move
from remote.remote_run import Order
from tests.fake_vast import Box
from tests.support.rented import Laptop, real_world
from tests.support.study import write_recipe

RUN = "mini/20260215-104518"


def events(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def losses(path: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in events(path) if event["event"] == "train"}


def evals(path: Path) -> dict[int, float]:
    return {event["step"]: event["eval_loss"] for event in events(path) if event["event"] == "eval"}


def metrics_of(box: Box) -> Path:
    assert box.container is not None
    return box.container.home / "tunewatch/runs" / RUN / "metrics.jsonl"


def wait_for(path: Path, step: int) -> None:
    until = time.monotonic() + 900
    while max(losses(path), default=0) < step:
        assert time.monotonic() < until, f"step {step} was not reached"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.study
def test_the_losses_after_a_move_are_those_of_a_run_that_never_moved(tmp_path: Path) -> None:
    """On the same processor they are identical; on other hardware the rehearsal allows one part in a thousand."""
    with real_world(tmp_path / "boxes") as fake:
        laptop = Laptop(fake, tmp_path)
        recipe = tmp_path / "mini.toml"
        write_recipe(recipe, "demo", train_samples=400, eval_samples=4, batch_size=8, eval_steps=1, save_steps=10)
        own_key(laptop.home)
        asked = laptop.request(1, name=RUN)
        asked = replace(asked, order=Order(str(recipe), name=RUN))
        started = launch(laptop.desk(), asked, laptop.open_pair, {})
        assert started.instance_id is not None
        old = fake.world.boxes[started.instance_id]
        wait_for(metrics_of(old), 12)
        desk = laptop.desk()
        proposal = plan_move(desk, RUN, 2, laptop.open_pair, forced=True)
        request = replace(proposal.request, confirm_steps=10, rehearse_steps=6)
        result = migrate(desk, request, laptop.open_pair, {})
        assert result.ok
        said = account(last_migration(desk.journal, RUN))
        new = fake.world.boxes[result.instance_id or 0]
        assert old.destroyed is not None
        path = metrics_of(new)
        carried = desk.journal.deed(said["deed"]).data["cargo2"]["step"]
        wait_for(path, carried + 15)
        moved, moved_evals = losses(path), evals(path)
        fake.world.destroy(new, "the test")
    last = max(moved)
    assert list(moved) == list(range(1, last + 1)), "no step is missing and none was written twice"
    assert said["lost_steps"] == 0
    # the rehearsal went on from the step at which the old run was asked to save, and met the very same losses
    first = said["rehearsal"]["global_step"]
    assert said["rehearsal"]["losses"] == [moved[first + 1 + n] for n in range(6)]
    assert said["rehearsal"]["eval_loss"] == moved_evals[first]
    assert said["rehearsal"]["compared"].startswith("steps "), "here they were compared before the old run was stopped"
    reference = tmp_path / "reference"
    words = [sys.executable, "-m", "runner", str(recipe), "--run-dir", str(reference), "--set", f"max_steps={last}"]
    subprocess.run(words, check=True, capture_output=True, env={**os.environ, "TUNEWATCH_RUN_DIR": str(reference)})
    straight, straight_evals = losses(reference / "metrics.jsonl"), evals(reference / "metrics.jsonl")
    assert {step: straight[step] for step in moved} == moved
    assert {step: straight_evals[step] for step in moved_evals} == moved_evals
    print(f"moved at step {carried} of {last}, training stood {said['pause_s']:.1f} s: {said['pause_parts']}")
    print(f"by themselves these take {sum(said['pause_floor'].values()):.1f} s: {said['pause_floor']}")
