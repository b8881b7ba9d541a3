"""Cross-entropy in slices, so that logits (tokens x vocabulary) never stand whole in memory.

At 1,024 tokens and a vocabulary of 131,072 the logits of one example take 0.5 GB in float32, several times over with
their gradient. Each slice computes its logits, takes its loss and its share of the gradients from them at once (softmax
minus one-hot), and forgets them: nothing is computed again in the backward pass, and the gradient of the output
embedding, as large as the embedding itself, exists once and not once per slice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

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
    if not len(targets):
        # keeps the graph whole, so that backward works on a batch without labels
        return 0.0 * hidden.sum().float()
    total: torch.Tensor = _Sliced.apply(states, weight, targets, chunk, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return total / (len(targets) if num_items is None else num_items)


class _Sliced(torch.autograd.Function):
    """The summed loss of (N, D) states; its gradients are made with it."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int, learn: bool
    ) -> torch.Tensor:
        device = states.device.type
        computed_in = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        matrix = weight.to(computed_in)  # once, not once per slice
        to_states = torch.empty_like(states) if learn and ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight) if learn and ctx.needs_input_grad[1] else None
        total = states.new_zeros((), dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets), chunk):
                piece = states[start : start + chunk].to(computed_in)  # (n, D)
                target = targets[start : start + chunk, None]  # (n, 1)
                scores = (piece @ matrix.T).float()  # (n, V)
                norm = scores.logsumexp(-1, keepdim=True)
                total += (norm - scores.gather(1, target)).sum()
                if to_states is None and to_weight is None:
                    continue
                share = scores.sub_(norm).exp_()
                share.scatter_add_(1, target, torch.full_like(norm, -1.0))
                share = share.to(computed_in)
                if to_states is not None:
                    to_states[start : start + chunk] = share @ matrix
                if to_weight is not None:
                    to_weight += share.T @ piece
        ctx.save_for_backward(to_states, to_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        to_states, to_weight = ctx.saved_tensors
        # in place: a copy of the embedding's gradient is what this is there to avoid; nobody asks twice
        return (
            to_states.mul_(above) if to_states is not None else None,
            to_weight.mul_(above) if to_weight is not None else None,
            None, None, None,
        )  # fmt: skip
