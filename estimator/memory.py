"""Does the run fit into the GPU's memory, which term breaks it, and what would make it fit.

    need = trained * (weights + gradients + optimiser + master copy) + frozen weights          (states)
         + checkpoint inputs or all activations + one recomputed layer                         (activations)
         + logits in bf16, their fp32 copy and gradient                                        (logits)
         + attention scores, where attention is eager or a mask is materialised                (attention)
         + context, libraries, fragmentation                                                   (overhead)

Sources: Rajbhandari et al., ZeRO (arXiv 1910.02054) for the bytes per parameter; Korthikanti et al. (arXiv 2205.05198)
for 34 bytes per token and hidden unit of a layer's activations in bf16. Verdicts leave room, for an out-of-memory error
costs more than a cautious word: `fits` up to 88 % of what the card gives, `tight` up to 97 %.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

GIB = 2.0**30
RESERVED_GIB = 0.6
"""Taken by the driver and by what else lives on the card."""
OVERHEAD_GIB = 1.2
FRAGMENTATION = 0.04
FITS, TIGHT = 0.88, 0.97

Optimiser = Literal["adamw", "adamw_bf16", "adamw_8bit", "adafactor", "sgd"]
Verdict = Literal["fits", "tight", "no", "unknown"]

STATE_BYTES: dict[str, tuple[float, float]] = {
    # optimiser states, and master copy with fp32 gradients where the optimiser keeps one
    "adamw": (8.0, 4.0),
    "adamw_bf16": (4.0, 0.0),
    "adamw_8bit": (2.0, 0.0),
    "adafactor": (0.1, 0.0),
    "sgd": (0.0, 0.0),
}
OPTIMISER_ORDER: tuple[Optimiser, ...] = ("adamw", "adamw_bf16", "adamw_8bit", "adafactor")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model its memory depends on."""

    params: float
    """All parameters."""
    layers: int
    hidden: int
    heads: int
    vocab: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read the `config.json` of a Hugging Face decoder (Llama, Mistral, Qwen and their like).

        Parameters are counted from the shapes: embeddings (once when tied), attention with grouped keys, and a gated
        feed-forward part. Raises ValueError that names a missing or impossible field.
        """
        config = config.get("text_config", config)
        layers, hidden = _count(config, "num_hidden_layers"), _count(config, "hidden_size")
        heads, vocab = _count(config, "num_attention_heads"), _count(config, "vocab_size")
        inner = _count(config, "intermediate_size")
        groups = _count(config, "num_key_value_heads", heads)
        width = _count(config, "head_dim", hidden // heads)
        attention = 2 * hidden * heads * width + 2 * hidden * groups * width
        embeddings = vocab * hidden * (1 if config.get("tie_word_embeddings") else 2)
        params = embeddings + layers * (attention + 3 * hidden * inner + 2 * hidden) + hidden
        return cls(float(params), layers, hidden, heads, vocab)


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if value is None and default is not None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"'{key}' has to be a whole number above 0, not {value!r}")
    return value


MINISTRAL_3B = ModelShape(params=3.4e9, layers=26, hidden=3072, heads=32, vocab=131072)
"""The model of the study this project began with."""


@dataclass(frozen=True, slots=True)
class TrainShape:
    """How it is trained."""

    batch: int = 1
    """Sequences per device and step, before accumulation."""
    length: int = 2048
    """Tokens per sequence."""
    optimiser: Optimiser = "adamw_bf16"
    lora_rank: int | None = None
    """None trains all parameters."""
    quantised: bool = False
    """4-bit frozen weights under LoRA."""
    checkpointing: bool = True
    eager_attention: bool = False
    prefix_mask: bool = True
    """A materialised mask of T by T, as the prefill study needs it."""
    fused_loss: bool = False
    """Cross entropy in chunks: the logits never exist as a whole."""
    shards: int = 1
    """GPUs that share gradients and optimiser states (ZeRO-2)."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The verdict with its reasons."""

    verdict: Verdict
    need_gib: float
    have_gib: float
    """What the card gives, the reserved part taken off; NaN when unknown."""
    worst: str
    """The largest term."""
    terms: dict[str, float]
    """GiB of each term."""
    advice: str = ""
    """What would make it fit; empty when it does."""


def memory_terms(model: ModelShape, train: TrainShape) -> dict[str, float]:
    """GiB of every term."""
    if train.lora_rank is None:
        trained, frozen = model.params, 0.0
    else:
        # two factors on the four attention and three feed-forward matrices, about 9 hidden widths in all
        trained = 2.0 * train.lora_rank * model.hidden * 9 * model.layers
        frozen = model.params
    optimiser, master = STATE_BYTES[train.optimiser]
    gradient = 2.0
    per_trained = 2.0 + (gradient + optimiser + master) / max(1, train.shards)
    tokens = float(train.batch * train.length)
    layer = 34.0 * tokens * model.hidden
    # with checkpointing only the layers' inputs are kept, and one layer at a time is recomputed
    kept = 2.0 * tokens * model.hidden * model.layers + layer
    activations = kept if train.checkpointing else layer * model.layers
    logits = tokens * model.vocab * (2 + 4 + 4) * (0.05 if train.fused_loss else 1.0)
    attention = float(train.batch * train.length**2 * 2) if train.prefix_mask else 0.0
    if train.eager_attention:
        attention += float(train.batch * model.heads * train.length**2 * 4)
    states = trained * per_trained + frozen * (0.55 if train.quantised else 2.0)
    parts = {
        "weights and optimiser": states / GIB,
        "activations": activations / GIB,
        "logits": logits / GIB,
        "attention": attention / GIB,
    }
    parts["overhead"] = OVERHEAD_GIB + FRAGMENTATION * sum(parts.values())
    return parts


def memory_fit(model: ModelShape, train: TrainShape, vram_gib: float | None) -> Fit:
    """Judge one GPU. `vram_gib` None or 0 gives `unknown` with the need still worked out."""
    terms = memory_terms(model, train)
    need = sum(terms.values())
    worst = max((k for k in terms if k != "overhead"), key=lambda k: terms[k])
    if not vram_gib:
        return Fit("unknown", need, float("nan"), worst, terms)
    have = vram_gib - RESERVED_GIB
    verdict: Verdict = "fits" if need <= FITS * have else "tight" if need <= TIGHT * have else "no"
    advice = "" if verdict == "fits" else _advice(model, train, have)
    return Fit(verdict, need, have, worst, terms, advice)


Change = tuple[str, dict[str, Any]]


def _advice(model: ModelShape, train: TrainShape, have: float) -> str:
    """The mildest set of changes that makes it fit: first what costs no quality, then the optimiser, last LoRA."""
    free: list[Change] = []
    if not train.checkpointing:
        free.append(("gradient checkpointing", {"checkpointing": True}))
    if train.eager_attention:
        free.append(("sdpa attention", {"eager_attention": False}))
    if train.batch > 1:
        free.append((f"batch 1 with {train.batch} accumulation steps", {"batch": 1}))
    if not train.fused_loss:
        free.append(("a fused cross entropy", {"fused_loss": True}))
    hard: list[Change] = []
    if train.lora_rank is None:
        place = OPTIMISER_ORDER.index(train.optimiser) if train.optimiser in OPTIMISER_ORDER else len(OPTIMISER_ORDER)
        hard += [(name, {"optimiser": name}) for name in OPTIMISER_ORDER[place + 1 :]]
        hard.append(("LoRA", {"lora_rank": 16}))
        hard.append(("LoRA on 4-bit weights", {"lora_rank": 16, "quantised": True}))
    elif not train.quantised:
        hard.append(("4-bit weights", {"quantised": True}))
    for last in [free[: n + 1] for n in range(len(free))] + [[*free, change] for change in hard]:
        if _fits(model, train, last, have):
            return " and ".join(name for name, _ in _pruned(model, train, last, have))
    return "a GPU with more memory"


def _fits(model: ModelShape, train: TrainShape, changes: list[Change], have: float) -> bool:
    for _, fields in changes:
        train = replace(train, **fields)
    return sum(memory_terms(model, train).values()) <= FITS * have


def _pruned(model: ModelShape, train: TrainShape, changes: list[Change], have: float) -> list[Change]:
    """Without the changes that turn out not to be needed."""
    kept = list(changes)
    for change in changes:
        fewer = [c for c in kept if c is not change]
        if _fits(model, train, fewer, have):
            kept = fewer
    return kept


@functools.lru_cache(maxsize=4096)
def largest_batch(model: ModelShape, train: TrainShape, vram_gib: float) -> int:
    """Largest batch per device, a power of two up to 1024, that still fits; 0 when not even one sequence does."""
    best = 0
    batch = 1
    while batch <= 1024 and memory_fit(model, replace(train, batch=batch), vram_gib).verdict == "fits":
        best, batch = batch, batch * 2
    return best
