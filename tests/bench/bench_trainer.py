"""The demo's fine-tune through Trainer and callbacks against a bare loop over the same batches and optimiser."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from runner.config import load_recipe
from runner.metrics import MetricsWriter
from runner.rundir import RunDir
from runner.study import demo
from runner.study.callbacks import StopFlag
from runner.study.data import PrefixCollator
from runner.study.demo.model import BASE_MODEL
from runner.study.load import load_model
from runner.study.train import fine_tune

STEPS, ROUNDS = 50, 2


def main() -> None:
    """Print milliseconds of processor time per step and the ratio, evaluations and saves left out; the best of two."""
    torch.set_num_threads(1)  # two threads that wait for each other on a shared processor measure the waiting
    words = [f"max_steps={STEPS}", "eval_steps=1000", "save_steps=1000", "train_samples=6000"]
    recipe = load_recipe("demo", words, env={})
    ours, bare = [], []
    for _ in range(ROUNDS):
        ours.append(_trainer(recipe))
        bare.append(_bare(recipe))
    a, b = min(ours) * 1e3, min(bare) * 1e3
    print(f"Trainer with callbacks  {a:.1f} ms/step  bare loop {b:.1f} ms/step  {a / b:.2f}x (goal 1.05x)")


class Clock(TrainerCallback):
    """Processor time between two steps, everything that the Trainer and the callbacks do included."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.at: dict[int, float] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the time at the two marks."""
        if state.global_step in (self.first, self.last):
            self.at[state.global_step] = time.process_time()


def _trainer(recipe: Any) -> float:
    loaded = load_model(BASE_MODEL, mask=recipe.mask)
    data = demo.prepared(recipe.data, loaded.tokenizer)
    clock = Clock(10, STEPS - 1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = RunDir(Path(folder))
        with contextlib.redirect_stderr(io.StringIO()), MetricsWriter(run.metrics) as writer:
            flag = StopFlag(run.path)
            fine_tune(recipe, loaded.model, loaded.tokenizer, data, run, writer, flag, extra=(clock,))
    return (clock.at[STEPS - 1] - clock.at[10]) / (STEPS - 11)


def _bare(recipe: Any) -> float:
    loaded = load_model(BASE_MODEL, mask=recipe.mask)
    data = demo.prepared(recipe.data, loaded.tokenizer)
    model = loaded.model.train()
    loader = DataLoader(
        data.train,
        batch_size=recipe.train.batch_size,
        shuffle=True,
        collate_fn=PrefixCollator(loaded.tokenizer.pad_token_id, recipe.mask),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.train.learning_rate, fused=True)
    skip = 10
    began = 0.0
    for n, batch in enumerate(loader):
        if n == skip:
            began = time.process_time()
        if n == STEPS:
            break
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - began) / (STEPS - skip)


if __name__ == "__main__":
    main()
