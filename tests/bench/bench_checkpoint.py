"""What a checkpoint costs training beyond writing it: hashing, sealing, pruning and handing it to the upload."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from runner import rundir
from runner.study.callbacks import Checkpoints
from runner.study.demo.model import demo_config
from runner.study.hub import Uploader
from runner.study.mask import PrefixMinistral3Config, PrefixMinistral3ForCausalLM

SHAPE = {"hidden_size": 512, "intermediate_size": 1536, "head_dim": 64, "num_attention_heads": 8}
ROUNDS = 3


class SlowHub:
    """A Hub whose every answer takes until the benchmark is over."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def create_repo(self, *_: Any, **__: Any) -> None:
        """Wait."""
        self.over.wait()
        raise ConnectionError("the benchmark is over")


def main() -> None:
    """Print the seconds of the local save and of everything after it that training waits for, and their ratio."""
    torch.set_num_threads(1)
    settings = demo_config(**SHAPE).to_dict()
    config = PrefixMinistral3Config(**{k: v for k, v in settings.items() if k not in ("model_type", "architectures")})
    model = PrefixMinistral3ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(3, 250, (1, 8))
    model(input_ids=ids, prompt_ids=torch.zeros_like(ids)).logits.sum().backward()
    optimizer.step()
    hub = SlowHub()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        uploader = Uploader("me/repo", "bench", lambda **_: None, api=hub, pauses_s=())
        seal = Checkpoints(root, keep=2, best_step=lambda: None)
        seal.on_sealed, seal.may_prune = uploader.offer, uploader.may_prune
        saves, seals, size = [], [], 0
        for step in range(1, ROUNDS + 1):
            place = root / f"checkpoint-{step}"
            began, wall = time.process_time(), time.perf_counter()
            model.save_pretrained(place)
            torch.save(optimizer.state_dict(), place / "optimizer.pt")
            for path in place.iterdir():  # a save that a power cut does not undo
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            saved, saved_wall = time.process_time(), time.perf_counter()
            seal.on_save(
                SimpleNamespace(world_size=1), SimpleNamespace(is_world_process_zero=True, global_step=step), None
            )
            saves.append((saved - began, saved_wall - wall))
            seals.append((time.process_time() - saved, time.perf_counter() - saved_wall))
            size = sum(entry["bytes"] for entry in (rundir.read_manifest(place) or {}).values())
        hub.over.set()
        uploader.close(60.0)
    (a, a_wall), (b, b_wall) = (min(pairs, key=lambda pair: pair[1]) for pairs in (saves, seals))
    print(
        f"checkpoint of {size / 1e6:.0f} MB  local save {a_wall:.2f} s  seal and hand over {b_wall:.2f} s  "
        f"{b_wall / a_wall:.2f}x (goal below 1x; processor {b:.2f} s to {a:.2f} s)"
    )


if __name__ == "__main__":
    main()
