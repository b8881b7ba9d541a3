"""A training step under the prefix mask against the stock causal step (sdpa, 512 tokens, this processor)."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from transformers import Ministral3ForCausalLM

from runner.study.demo.model import demo_config
from runner.study.mask import PrefixMinistral3Config, PrefixMinistral3ForCausalLM

LENGTH, BATCH, ROUNDS = 512, 1, 6
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}


def main() -> None:
    """Print milliseconds per step and the ratio, in processor time of one thread; the two take turns."""
    torch.set_num_threads(1)  # two threads that wait for each other on a shared processor measure the waiting
    config = demo_config(**SHAPE, max_position_embeddings=LENGTH)
    settings = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures")}
    ours = PrefixMinistral3ForCausalLM(PrefixMinistral3Config(**settings)).train()
    stock = Ministral3ForCausalLM(config).train()
    ids = torch.randint(0, 256, (BATCH, LENGTH))
    prompt_ids = torch.full_like(ids, -1)
    prompt_ids[:, : LENGTH // 2] = 0
    labels = torch.where(prompt_ids == 0, -100, ids)
    mask = torch.ones_like(ids)

    def prefix() -> None:
        ours(input_ids=ids, attention_mask=mask, prompt_ids=prompt_ids, labels=labels).loss.backward()

    def causal() -> None:
        stock(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()

    times: dict[Callable[[], None], list[float]] = {prefix: [], causal: []}
    for _ in range(ROUNDS):
        for step, seen in times.items():
            began = time.process_time()
            step()
            seen.append(time.process_time() - began)
    a, b = (min(times[step][1:]) * 1e3 for step in (prefix, causal))
    print(f"prefix step, L={LENGTH}  {a:.0f} ms  causal sdpa {b:.0f} ms  {a / b:.2f}x (goal 1.10x)")


if __name__ == "__main__":
    main()
