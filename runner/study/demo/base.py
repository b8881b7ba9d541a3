"""Trains the miniature study's base model: `python -m runner.study.demo.base [--out DIR] [--steps N]`.

A plain causal language model on the train split of the four tasks, the loss on the answers. A bare loop, no Trainer: it
is run once, its result is committed, and its recipe and log lie beside the weights. Batches are drawn without end, so
no example needs to be stored and none repeats on purpose. Weights are written in half precision (2 MB); the accuracies
in the log's last line are those of the weights as written.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from itertools import islice
from pathlib import Path
from typing import Any

RECIPE: dict[str, Any] = {
    "seed": 20260214,
    "steps": 6000,
    "batch_size": 128,
    "learning_rate": 2e-3,
    "warmup_steps": 200,
    "decay_share": 0.3,
    "betas": [0.9, 0.98],
    "weight_decay": 0.05,
    "weights": {"sum": 1.5, "reverse": 1.3, "largest": 0.6, "lookup": 0.8},
    "log_every": 250,
}
"""Everything that decides the result; written to recipe.toml beside the weights."""


def learning_rate(step: int, recipe: dict[str, Any]) -> float:
    """Warm-up, a plateau, then a linear fall to zero over the last `decay_share` of the steps."""
    total, warmup = recipe["steps"], recipe["warmup_steps"]
    rise = min(1.0, (step + 1) / warmup)
    fall = min(1.0, (total - step) / (total * recipe["decay_share"]))
    return float(recipe["learning_rate"] * rise * fall)


def train(out: Path, recipe: dict[str, Any]) -> dict[str, float]:
    """Train by `recipe`, write the checkpoint, its recipe and its log to `out`, return accuracy by task."""
    import tomli_w
    import torch
    from transformers import Ministral3ForCausalLM

    from runner.study.data import PrefixCollator, encode_pair
    from runner.study.demo.exact import exact_match
    from runner.study.demo.model import byte_tokenizer, demo_config
    from runner.study.demo.tasks import examples, stream

    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe["seed"])
    tokenizer = byte_tokenizer()
    model: Any = Ministral3ForCausalLM(demo_config())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=tuple(recipe["betas"]), weight_decay=recipe["weight_decay"], fused=True
    )
    collate = PrefixCollator(tokenizer.pad_token_id, mask="causal")
    source = stream("train", recipe["seed"], recipe["weights"])
    held_out = examples("eval", 800, seed=1)
    began, recent = time.monotonic(), []
    with (out / "log.jsonl").open("w") as log:
        for step in range(recipe["steps"]):
            rate = learning_rate(step, recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = [encode_pair(tokenizer, e.prompt, e.answer) for e in islice(source, recipe["batch_size"])]
            loss = model(**collate(rows)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            recent.append(float(loss.detach()))
            if not math.isfinite(recent[-1]):
                raise SystemExit(f"the loss is {recent[-1]} at step {step + 1}: lower the learning rate")
            if (step + 1) % recipe["log_every"] == 0:
                row: dict[str, Any] = {"step": step + 1, "loss": round(sum(recent) / len(recent), 5), "lr": rate}
                row |= {"seconds": round(time.monotonic() - began, 1)}
                row |= exact_match(model, tokenizer, held_out, mask="causal")
                print(json.dumps(row), file=log, flush=True)
                print(json.dumps(row), flush=True)  # noqa: T201 - the script's own output
                recent.clear()
                model.train()
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "recipe.toml").write_text(tomli_w.dumps(recipe))
    written = Ministral3ForCausalLM.from_pretrained(out, dtype=torch.float32)
    scores = exact_match(written, tokenizer, held_out, mask="causal")
    with (out / "log.jsonl").open("a") as log:
        print(json.dumps({"written": True, **scores}), file=log)
    return scores


def main() -> None:
    """Parse the command line and train."""
    from runner.study.demo.model import BASE_MODEL

    parser = argparse.ArgumentParser(prog="python -m runner.study.demo.base", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BASE_MODEL, help="where the checkpoint goes")
    parser.add_argument("--steps", type=int, default=RECIPE["steps"])
    chosen = parser.parse_args()
    scores = train(chosen.out, {**RECIPE, "steps": chosen.steps})
    print(json.dumps(scores))  # noqa: T201


if __name__ == "__main__":
    main()
