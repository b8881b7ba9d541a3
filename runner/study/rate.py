"""How fast a fine-tune trains, in tokens per second and as a share of what the card could do at best."""

from __future__ import annotations

from runner.study.memory import Shape

PEAK_TFLOPS: dict[str, float] = {
    "A100": 312,
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "A40": 150,
    "RTX A6000": 155,
    "L40S": 362,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""Dense bf16 tensor throughput in 1e12 operations per second, from the makers' data sheets; a name is looked for in
what CUDA calls the card, the longer one first."""


def flops_per_token(shape: Shape, length: int) -> float:
    """Operations to train on one token: 6 per parameter, and the attention's 12 * layers * hidden * length.

    The account of the PaLM paper (appendix B), which nanoGPT prints too; recomputed activations are not counted.
    """
    return 6.0 * shape.parameters + 12.0 * shape.layers * shape.hidden * length


def utilisation(tokens_per_s: float, shape: Shape, length: int, card: str, cards: int = 1) -> float | None:
    """Model FLOPs utilisation, 0 to 1; None for a card whose peak is not in the table."""
    known = sorted((name for name in PEAK_TFLOPS if name.lower() in card.lower()), key=len)
    if not known:
        return None
    return tokens_per_s * flops_per_token(shape, length) / (PEAK_TFLOPS[known[-1]] * 1e12 * cards)


def in_words(tokens_per_s: float, shape: Shape, length: int, card: str | None, cards: int = 1) -> str:
    """`12,345 tokens/s, MFU 41 %`; without a known card only the first."""
    share = utilisation(tokens_per_s, shape, length, card, cards) if card else None
    return f"{tokens_per_s:,.0f} tokens/s" + ("" if share is None else f", MFU {share:.0%}")
