"""Evaluation curves of the miniature study: `python -m runner.study.demo.curves OUT.jsonl --from 0 --count 100`.

Each curve is one real run of the Hugging Face Trainer on this machine's processor: the miniature model, from its base
checkpoint or from random weights, fine-tuned on the four tasks under settings drawn from the curve's number. They are
drawn widely on purpose, because the stop forecast learns from these curves what fine-tunes can do: rates that are too
low or too high, warm-ups that are felt, sets small enough to be learnt by heart, wrong answers in the data (a floor
under the loss, as in language), eval sets small enough to be noisy, every usual schedule, ten to sixty evals. From
number 112 on a third trains a LoRA adapter instead of all weights, and a fifth restarts its cosine schedule.

No auto-stop is set, a curve goes to its horizon. One JSON object a line, in the form `estimator.pack` reads.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import string
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.study.demo.model import BASE_MODEL, byte_tokenizer, demo_config
from runner.study.demo.tasks import TASKS, Example, draw

FIRST_WITH_ADAPTERS = 112
SOURCE = {"kind": "study", "repo": "tunewatch", "path": "runner/study/demo/curves.py"}


@dataclass(frozen=True)
class Setting:
    """What decides one curve."""

    number: int
    fresh: bool
    """Random weights instead of the base checkpoint."""
    tasks: tuple[str, ...]
    wrong: float
    """Share of the answers, in both sets, that are drawn at random."""
    train: int
    evaluate: int
    batch: int
    rate: float
    schedule: str
    warmup: float
    decay: float
    evals: int
    every: int
    """Steps between evals."""
    adapter: int = 0
    """Rank of a LoRA adapter; 0 trains all weights."""
    cycles: int = 1
    """Cosine cycles of a schedule that restarts."""


def setting(number: int) -> Setting:
    """The settings of curve `number`, the same on every machine."""
    rng = random.Random(f"curve-{number}")  # noqa: S311 - reproducible draws, nothing secret

    def log_uniform(low: float, high: float) -> float:
        return math.exp(rng.uniform(math.log(low), math.log(high)))

    fresh = rng.random() < 0.3
    drawn = Setting(
        number=number,
        fresh=fresh,
        tasks=tuple(sorted(rng.sample(sorted(TASKS), rng.choice((1, 1, 2, 4))))),
        wrong=rng.choice((0.0, 0.1, 0.3, 0.6)),
        train=round(log_uniform(40, 4000)),
        evaluate=round(log_uniform(40, 300)),
        batch=rng.choice((4, 8, 16)),
        rate=log_uniform(5e-4, 5e-3) if fresh else log_uniform(3e-5, 3e-3),
        schedule=rng.choice(("linear", "linear", "cosine", "cosine", "constant_with_warmup", "constant")),
        warmup=rng.choice((0.0, 0.0, 0.03, 0.1, 0.25)),
        decay=rng.choice((0.0, 0.01, 0.1)),
        evals=round(log_uniform(10, 60)),
        every=round(log_uniform(4, 20)),
    )
    return drawn if number < FIRST_WITH_ADAPTERS else _with_adapters(drawn)


def _with_adapters(drawn: Setting) -> Setting:
    """Further draws, from a generator of their own: the older curves keep their settings."""
    rng = random.Random(f"curve-{drawn.number}-adapter")  # noqa: S311
    if not drawn.fresh and rng.random() < 0.45:
        # an adapter needs a higher rate than all weights to learn as fast
        drawn = replace(drawn, adapter=rng.choice((2, 8, 16)), rate=drawn.rate * 5)
    if rng.random() < 0.2:
        drawn = replace(drawn, schedule="cosine_with_restarts", cycles=rng.choice((2, 3, 4)))
    return drawn


def examples(chosen: Setting, split: Any, count: int) -> list[Example]:
    """Examples of the setting's tasks; some answers are wrong, of the right length and letters."""
    rng = random.Random(f"curve-{chosen.number}-{split}")  # noqa: S311
    made = []
    for n in range(count):
        example = draw(chosen.tasks[n % len(chosen.tasks)], split, rng)
        if rng.random() < chosen.wrong:
            letters = string.digits if example.answer.isdigit() else string.ascii_lowercase
            example = example._replace(answer="".join(rng.choices(letters, k=len(example.answer))))
        made.append(example)
    return made


def curve(chosen: Setting, folder: Path) -> dict[str, Any]:
    """Run the Trainer once and return the line that `estimator.pack` reads; `folder` takes the Trainer's own files."""
    from transformers import Ministral3ForCausalLM, Trainer, TrainingArguments, set_seed

    from runner.study.data import PrefixCollator, Rows, encode_pair

    set_seed(chosen.number)
    tokenizer = byte_tokenizer()
    model: Any = (
        Ministral3ForCausalLM(demo_config()) if chosen.fresh else Ministral3ForCausalLM.from_pretrained(BASE_MODEL)
    )
    model = model.float()
    if chosen.adapter:
        from runner.study.load import with_adapter

        model = with_adapter(model, chosen.adapter)

    def rows(split: str, count: int) -> Rows:
        return Rows([encode_pair(tokenizer, e.prompt, e.answer) for e in examples(chosen, split, count)])

    steps = chosen.evals * chosen.every
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=chosen.batch,
            per_device_eval_batch_size=100,
            learning_rate=chosen.rate,
            lr_scheduler_type=chosen.schedule,
            lr_scheduler_kwargs={"num_cycles": chosen.cycles} if chosen.cycles > 1 else {},
            warmup_steps=0 if chosen.schedule == "constant" else round(chosen.warmup * steps),
            weight_decay=chosen.decay,
            eval_strategy="steps",
            eval_steps=chosen.every,
            save_strategy="no",
            logging_steps=chosen.every,
            prediction_loss_only=True,
            remove_unused_columns=False,
            label_names=["labels"],
            seed=chosen.number,
            use_cpu=True,
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=True,
        ),
        data_collator=PrefixCollator(tokenizer.pad_token_id, mask="causal"),
        train_dataset=rows("train", chosen.train),
        eval_dataset=rows("eval", chosen.evaluate),
    )
    trainer.train()
    found = [r for r in trainer.state.log_history if "eval_loss" in r]
    evals = [[r["step"], round(r["eval_loss"], 5), None, None] for r in found]
    return {**SOURCE, "sub": f"#{chosen.number}", "evals": evals}


def main(argv: list[str] | None = None) -> int:
    """Append the asked curves to the file, those it has already left out."""
    parser = argparse.ArgumentParser(prog="python -m runner.study.demo.curves", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args(argv)
    done = set()
    if args.out.exists():
        done = {json.loads(line)["sub"] for line in args.out.read_text(encoding="utf-8").splitlines()}
    for number in range(args.first, args.first + args.count):
        if f"#{number}" in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = curve(setting(number), Path(folder))
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
