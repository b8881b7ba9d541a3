"""Small models and recipes for the tests of the study; everything heavy is made once per session."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from runner.config import load_recipe
from runner.recipe import Recipe

torch.set_num_threads(1)  # pytest runs on every core as it is: a second thread of these only waits, at full load

TINY_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
"""A Ministral3 of about 30,000 parameters: large enough for every law, small enough to train in a second."""


def tiny_model(mask: str = "prompt_bidirectional", *, family: str = "ministral3", attention: str = "sdpa", **more: Any):
    """A fresh tiny model of random weights, the same each time."""
    from runner.study.mask import PREFIX_CLASSES

    config_class, model_class = PREFIX_CLASSES[family]
    config = config_class(**{**_shape(family), **more}, prompt_mask=mask)
    config._attn_implementation = attention
    torch.manual_seed(0)
    return model_class(config).eval()


def stock_model(family: str = "ministral3", *, attention: str = "sdpa", **more: Any):
    """The same weights in the stock class."""
    from transformers import LlamaConfig, LlamaForCausalLM, Ministral3Config, Ministral3ForCausalLM

    config_class, model_class = {
        "ministral3": (Ministral3Config, Ministral3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[family]
    config = config_class(**{**_shape(family), **more})
    config._attn_implementation = attention
    torch.manual_seed(0)
    return model_class(config).eval()


def _shape(family: str) -> dict[str, Any]:
    from runner.study.demo.model import demo_config

    shape = {**demo_config().to_dict(), **TINY_SHAPE}
    for key in ("model_type", "architectures", "transformers_version", "dtype"):
        shape.pop(key, None)
    if family == "llama":
        shape["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
        shape.pop("sliding_window")
    return shape


@cache
def tokenizer():
    """The byte tokenizer."""
    from runner.study.demo.model import byte_tokenizer

    return byte_tokenizer()


def save_checkpoint(model: Any, path: Path) -> Path:
    """A model with its tokenizer in a directory."""
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def tiny_recipe(base: Path | str, *overrides: str) -> Recipe:
    """The miniature study's recipe with a tiny model and tiny sets."""
    small = [
        f"base={base}",
        "max_steps=12",
        "train_samples=120",
        "eval_samples=24",
        "downstream_samples=24",
        "batch_size=8",
        "eval_steps=3",
        "save_steps=3",
        "logging_steps=1",
        "keep_local=2",
        "min_steps=3",
        "learning_rate=1e-3",
    ]
    return load_recipe("demo", [*small, *overrides], env={})


LONG_RUN = """
kind = "stage3"
[model]
base = "{base}"
mask = "prompt_bidirectional"
[data]
dataset = "demo"
train_samples = {train_samples}
eval_samples = {eval_samples}
seed = 17
[train]
max_steps = 200000
batch_size = {batch_size}
eval_batch_size = {eval_samples}
grad_accum = 1
learning_rate = 1e-3
lr_scheduler = "constant"
warmup_ratio = 0.0
eval_steps = {eval_steps}
logging_steps = 1
save_steps = {save_steps}
keep_local = 3
"""
STOP = """[stop]
patience = {patience}
min_delta = {min_delta}
min_steps = 20
"""


def write_recipe(
    path: Path, base: Path | str, *, train_samples: int = 200, eval_samples: int = 8, batch_size: int = 4,
    eval_steps: int = 10, save_steps: int = 20, patience: int | None = None, min_delta: float = 0.001,
) -> Path:  # fmt: skip
    """A recipe file of a real fine-tune that goes on until somebody or its rule ends it."""
    text = LONG_RUN.format(
        base=base, train_samples=train_samples, eval_samples=eval_samples, batch_size=batch_size,
        eval_steps=eval_steps, save_steps=save_steps,
    )  # fmt: skip
    path.write_text(text + ("" if patience is None else STOP.format(patience=patience, min_delta=min_delta)))
    return path


def trainer_environment() -> dict[str, str]:
    """The environment of a trainer started by a test: as on a machine that does not unbuffer Python for everybody."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return {**env, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def train(base, path, *overrides, resume=False, extra=(), uploader=None):
    """One process's worth of training in `path`; returns its outcome."""
    from runner import rundir
    from runner.metrics import MetricsWriter
    from runner.rundir import RunDir
    from runner.study import demo
    from runner.study.callbacks import StopFlag
    from runner.study.load import load_model
    from runner.study.train import fine_tune

    recipe = tiny_recipe(base, *overrides)
    run = RunDir(path)
    run.open_log()
    loaded = load_model(base, mask=recipe.mask)
    data = demo.prepared(recipe.data, loaded.tokenizer)
    point = rundir.newest_whole_checkpoint(run.checkpoints) if resume else None
    flag = StopFlag(run.path, look_every_s=0.0)
    with MetricsWriter(run.metrics) as writer:
        return fine_tune(
            recipe,
            loaded.model,
            loaded.tokenizer,
            data,
            run,
            writer,
            flag,
            resume=point,
            extra=extra,
            uploader=uploader,
        )


def history(path):
    """What metrics.jsonl of a run directory says."""
    from runner.metrics import MetricsReader

    reader = MetricsReader()
    reader.feed((path / "metrics.jsonl").read_bytes())
    return reader.history()


def losses(path):
    """Step to training loss; of a step trained twice, the later one."""
    return {point.step: point.loss for point in history(path).train}
