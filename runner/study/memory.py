"""Will it fit? The memory of a fine-tune as a sum of terms, told before the weights are loaded.

Pure arithmetic over the model's configuration and the recipe; the laptop's estimator has its own, finer account of a
market of cards. The formula: weights, gradients and optimiser states per parameter; the inputs that activation
checkpointing keeps and one layer computed again (about 34 bytes per token and channel); logits in bf16, in float32 and
their gradient unless the loss is sliced; the dense prefix mask; 1.2 GiB of CUDA context and fragmentation. Divided over
several cards, weights, gradients and states are shared out; the layers at work and the embedding stand whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from runner.errors import UsageError
from runner.recipe import Recipe

GIB = 2**30
_STATES = {"adamw": 8, "adamw_8bit": 2, "adafactor": 0.1}
"""Bytes of optimiser state per trained parameter, for float32 states; bf16 weights keep bf16 AdamW states (half)."""


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory."""

    parameters: int
    hidden: int
    layers: int
    heads: int
    vocab: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a (text) configuration; the count is exact for Llama-like models without biases."""
        text = getattr(config, "text_config", config)
        hidden, head = text.hidden_size, getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        attention = hidden * head * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
        layer = attention + 3 * hidden * text.intermediate_size + 2 * hidden
        tied = text.tie_word_embeddings or getattr(config, "tie_word_embeddings", False)
        embeddings = text.vocab_size * hidden * (1 if tied else 2)
        total = embeddings + text.num_hidden_layers * layer + hidden
        return cls(total, hidden, text.num_hidden_layers, text.num_attention_heads, text.vocab_size)


@dataclass(frozen=True)
class Verdict:
    """GiB by term, and what they come to."""

    terms: dict[str, float]
    have_gib: float | None
    """Memory of the card; None without one."""

    @property
    def need_gib(self) -> float:
        """The sum of the terms."""
        return sum(self.terms.values())

    @property
    def state(self) -> Literal["fits", "tight", "no", "unknown"]:
        """Against the usable memory (0.6 GiB is never free): fits up to 88 %, tight up to 97 %."""
        if self.have_gib is None:
            return "unknown"
        usable = self.have_gib - 0.6
        return "fits" if self.need_gib <= 0.88 * usable else "tight" if self.need_gib <= 0.97 * usable else "no"

    @property
    def worst(self) -> str:
        """The largest term."""
        return max(self.terms, key=lambda name: self.terms[name])

    def in_words(self) -> str:
        """One line for the log."""
        shown = {name: gib for name, gib in self.terms.items() if gib >= 0.05}
        parts = ", ".join(f"{name} {gib:.1f}" for name, gib in sorted(shown.items(), key=lambda t: -t[1]))
        have = "" if self.have_gib is None else f" of {self.have_gib:.1f}: {self.state}"
        return f"memory: needs about {self.need_gib:.1f} GiB{have} ({parts}; the largest is {self.worst})"


def verdict(shape: Shape, recipe: Recipe, have_gib: float | None, *, shards: int = 1) -> Verdict:
    """The account of one process: it holds everything (one process, DDP), or one of `shards` parts (FSDP)."""
    train, length = recipe.train, recipe.data.max_length
    # FSDP keeps float32 master weights whenever it computes in bfloat16
    half = recipe.model.dtype == "bfloat16" and (shards == 1 or train.precision == "fp32")
    weight = 2 if half else 4
    states = _STATES[train.optimizer] * (0.5 if half and train.optimizer == "adamw" else 1)
    trained = shape.parameters
    if train.lora_rank:
        # two thin matrices beside each of the seven projections of a layer
        trained = 14 * shape.hidden * train.lora_rank * shape.layers
    tokens = train.batch_size * length
    layers_live = 1 if train.activation_checkpointing else shape.layers
    logits = min(tokens, train.loss_chunk) if train.loss_chunk else tokens
    terms = {
        "weights": shape.parameters * weight / shards,
        "gradients": trained * weight / shards,
        "optimizer": trained * states / shards,
        # tied, it gets one from the output and one from the input, beside the one that adds up over micro-steps
        "embedding gradients": 0 if train.lora_rank or shards > 1 else 2 * shape.vocab * shape.hidden * weight,
        "gathered layers": _gathered(shape, weight, train.precision) if shards > 1 else 0,
        "layer inputs": tokens * shape.hidden * shape.layers * 2,
        "activations": 34 * tokens * shape.hidden * layers_live,
        "logits": logits * shape.vocab * (2 + 4 + 4),
        "prefix mask": train.batch_size * length**2 * 2 if recipe.mask == "prompt_bidirectional" else 0,
        "eager scores": train.batch_size * shape.heads * length**2 * 4 if recipe.model.attention == "eager" else 0,
    }
    used = {name: size / GIB for name, size in terms.items() if size}
    return Verdict({**used, "context": 1.2}, have_gib)


def _gathered(shape: Shape, weight: int, precision: str) -> float:
    """Bytes that stand whole on every card: the embedding, two layers (at work, on its way), their gradients."""
    embedding = shape.vocab * shape.hidden
    layer = max(0, shape.parameters - embedding) / shape.layers
    at_work = 2 if precision == "bf16_autocast" else weight
    return (embedding + 2 * layer) * at_work + (embedding + layer) * at_work


def shards_of(shape: Shape, recipe: Recipe, have_gib: float | None, processes: int) -> int:
    """Over how many processes the model is divided; 1 is a whole copy on each.

    `auto` divides when a copy does not fit the card and the optimiser's states can be divided. Raises UsageError when
    the recipe asks for what cannot be divided.
    """
    train = recipe.train
    if processes < 2 or train.parallel == "ddp":
        return 1
    divisible = train.optimizer == "adamw"
    if train.parallel == "fsdp":
        if not divisible:
            raise UsageError(
                f"parallel=fsdp divides the optimizer's states, and those of {train.optimizer} cannot be divided.",
                hint="--set optimizer=adamw: divided over the cards its states are small.",
            )
        return processes
    return processes if divisible and verdict(shape, recipe, have_gib).state == "no" else 1


def card_gib() -> float | None:
    """Memory of the first GPU, None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory) / GIB
