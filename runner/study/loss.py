"""Cross-entropy in slices, so that logits (tokens x vocabulary) never stand whole in memory.

At 1,024 tokens and a vocabulary of 131,072 the logits of one example take 0.5 GB in float32, several times over with
their gradient. Each slice computes its logits, reduces them to one number and forgets them; the backward pass computes
them again.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IGNORE = -100


def chunked_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk: int, num_items: torch.Tensor | int | None
) -> torch.Tensor:
    """The causal language model loss of hidden states (B, L, D) against labels (B, L), shifted here.

    `weight` is the output embedding (V, D). Positions whose label is -100 take no part and cost nothing. The sum is
    divided by `num_items` when given (labels of the whole accumulated batch), else by the number of labels here;
    without any label the loss is 0. Equal to the unsliced loss up to rounding.
    """
    wanted = labels[:, 1:].reshape(-1)
    keep = wanted != IGNORE
    states = hidden[:, :-1].reshape(-1, hidden.shape[-1])[keep]  # (N, D)
    targets = wanted[keep].to(states.device)  # (N,)
    total = states.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets), chunk):
        piece = slice(start, start + chunk)
        total = total + checkpoint(_slice_loss, states[piece], weight, targets[piece], use_reentrant=False)
    if not len(targets):
        # keeps the graph whole, so that backward works on a batch without labels
        return total + 0.0 * hidden.sum().float()
    return total / (len(targets) if num_items is None else num_items)


def _slice_loss(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy((states @ weight.T).float(), targets, reduction="sum")
