"""Masked evaluation against the stock lm-eval model class on the same requests."""

from __future__ import annotations

import random
import time

import torch
from lm_eval.models.huggingface import HFLM
from transformers import Ministral3ForCausalLM

from runner.study.demo.model import byte_tokenizer, demo_config
from runner.study.evaluate import MaskedLM
from runner.study.mask import PrefixMinistral3Config, PrefixMinistral3ForCausalLM

REQUESTS, ROUNDS, BATCH = 64, 2, 16
SHAPE = {"hidden_size": 512, "intermediate_size": 1536, "head_dim": 64, "num_attention_heads": 8}


def main() -> None:
    """Print requests per second of processor time and the ratio; the two take turns."""
    torch.set_num_threads(1)  # two threads that wait for each other on a shared processor measure the waiting
    rng = random.Random(3)
    requests = [
        ((str(n), "x"), rng.choices(range(97, 122), k=rng.randint(40, 160)), rng.choices(range(97, 122), k=8))
        for n in range(REQUESTS)
    ]
    settings = demo_config(**SHAPE).to_dict()
    config = PrefixMinistral3Config(**{k: v for k, v in settings.items() if k not in ("model_type", "architectures")})
    model, tokenizer = PrefixMinistral3ForCausalLM(config).eval(), byte_tokenizer()
    ours = MaskedLM(model, tokenizer, "prompt_bidirectional", batch_size=BATCH, max_length=512)
    causal = Ministral3ForCausalLM(demo_config(**SHAPE)).eval()
    stock = HFLM(pretrained=causal, tokenizer=tokenizer, batch_size=BATCH, max_length=512, device="cpu")
    best = {"ours": 0.0, "stock": 0.0}
    for _ in range(ROUNDS):
        for name, model in (("ours", ours), ("stock", stock)):
            began = time.process_time()
            model._loglikelihood_tokens(requests, disable_tqdm=True)
            best[name] = max(best[name], REQUESTS / (time.process_time() - began))
    a, b = best["ours"], best["stock"]
    print(f"masked evaluation  {a:.0f} requests/s  stock HFLM {b:.0f} requests/s  {a / b:.2f}x (goal 0.95x)")


if __name__ == "__main__":
    main()
