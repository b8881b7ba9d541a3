"""Before a run moves: does another box go on from this checkpoint as the old one would, and how fast?

    python -m runner.study.rehearse RECIPE --checkpoint DIR [--steps N] [--run-dir D] [--config F] [--set K=V]...

Loads the checkpoint, compares what it says of itself, evaluates it on the run's own eval set, and then trains N timed
steps from it with its optimiser, schedule and data order, as a resume would. Nothing is saved and nothing of the run is
touched. The answer is one JSON document in the last line of stdout:

    {"global_step", "eval_loss", "eval_s", "load_s", "steps", "step_s", "losses", "device"}

`step_s` is the median of the steps after the first few, which compile and fill caches; `eval_loss` is null for a recipe
without an eval set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner import rundir
from runner.errors import TunewatchError, UsageError
from runner.recipe import Recipe
from runner.rundir import RunDir

WARM_UP = 3
"""First steps that are not timed, where there are enough others."""


def rehearse(recipe: Recipe, checkpoint: Path, run: RunDir, steps: int) -> dict[str, Any]:
    """Do it; raises UsageError for a checkpoint that cannot be gone on from, and what training raises."""
    from transformers import Trainer, TrainerCallback, set_seed

    from runner.study.data import PrefixCollator
    from runner.study.stages import Study, training_data
    from runner.study.train import training_arguments

    if problems := rundir.verify_manifest(checkpoint):
        raise UsageError(f"{checkpoint} cannot be resumed from: {problems[0]}.")
    began = time.monotonic()
    step = int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    recipe = replace(recipe, train=replace(recipe.train, max_steps=max(recipe.max_steps, step + steps)))
    set_seed(recipe.data.seed)
    loaded = Study(recipe, run).load(str(checkpoint))
    data = training_data(recipe, loaded.tokenizer)
    loaded.model.loss_chunk = recipe.train.loss_chunk
    arguments = training_arguments(recipe, run)
    arguments.eval_strategy = arguments.save_strategy = "no"
    arguments.logging_steps = 1
    arguments.disable_tqdm = True

    class Timed(TrainerCallback):
        """Ends after `steps` steps and keeps the moment of each, and its loss."""

        def __init__(self) -> None:
            self.moments: list[float] = []
            self.losses: list[float] = []
            self.first = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.first = state.global_step
            self.moments.append(time.monotonic())

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.moments.append(time.monotonic())
            control.should_training_stop = len(self.moments) > steps

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if "loss" in given["logs"]:
                self.losses.append(float(given["logs"]["loss"]))

    timed = Timed()
    trainer = Trainer(
        model=loaded.model,
        args=arguments,
        data_collator=PrefixCollator(loaded.tokenizer.pad_token_id, recipe.mask),
        train_dataset=data.train,
        eval_dataset=data.evaluate,
        processing_class=loaded.tokenizer,
        callbacks=[timed],
    )
    load_s = time.monotonic() - began
    began = time.monotonic()
    eval_loss = float(trainer.evaluate()["eval_loss"]) if len(data.evaluate) else None
    eval_s = time.monotonic() - began
    trainer.train(resume_from_checkpoint=str(checkpoint))
    lasted = [after - before for before, after in zip(timed.moments, timed.moments[1:], strict=False)]
    if not lasted:
        raise UsageError(f"The run does not go on from step {step}: it is at its end.")
    kept = lasted[WARM_UP:] or lasted
    return {
        "global_step": timed.first,
        "eval_loss": eval_loss,
        "eval_s": eval_s,
        "load_s": load_s,
        "steps": len(lasted),
        "step_s": statistics.median(kept),
        "losses": timed.losses,
        "device": str(arguments.device),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m runner.study.rehearse", description="Go on from a checkpoint for a few steps, to be sure of it."
    )
    parser.add_argument("recipe")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--run-dir", type=Path, default=Path("rehearsal"))
    parser.add_argument("--config", default=None)
    parser.add_argument("--set", action="append", default=[])
    chosen = parser.parse_args(argv)
    from runner.config import load_recipe

    try:
        recipe = load_recipe(chosen.recipe, chosen.set, config=chosen.config)
        answer = rehearse(recipe, chosen.checkpoint, RunDir(chosen.run_dir), chosen.steps)
    except TunewatchError as error:
        print(f"runner: {error.message}", file=sys.stderr)  # noqa: T201 - talk goes to stderr
        return int(error.exit_code)
    print(json.dumps(answer), flush=True)  # noqa: T201 - the answer
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
