"""Weights, gradients and optimiser states divided over the processes, for a model that no single card can train.

FSDP2 by way of accelerate, with one thing changed: what is saved is an ordinary checkpoint. A checkpoint does not say
how many processes wrote it, so a run that was sharded over four cards goes on on one, a run on one goes on on four, and
evaluation, audit, upload and move know of no difference. For that rank 0 gathers the whole model and the whole
optimiser in its host memory at each save (12 bytes per parameter with AdamW in float32), and gives them out again on
resume.

Every process still reads the weights into host memory once before they are divided: the host needs processes x weights
for that moment. transformers has a way around it (its own sharded loading), which cannot save the optimiser yet.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict as whole
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from runner.errors import UsageError

_WRAPPED = "_checkpoint_wrapped_module."
"""What activation checkpointing puts into a parameter's name."""


def sharding_arguments(activation_checkpointing: bool, *, adapter: bool) -> dict[str, Any]:
    """The part of TrainingArguments that asks for FSDP2, activation checkpointing included.

    A LoRA adapter takes the model's own checkpointing: FSDP's renames the layers, and peft then finds none of its
    weights to save. The price is a layer gathered once more in the backward pass.

    Gradients are divided after every micro-step: put aside whole until the optimiser's turn, as accelerate would, they
    would take the memory that dividing them saves.
    """
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "reshard_after_forward": True,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "activation_checkpointing": activation_checkpointing and not adapter,
        },
        "activation_checkpointing": activation_checkpointing and adapter,
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


class ShardedTrainer(Trainer):
    """The Trainer under FSDP2, with whole checkpoints in the layout of a run of one process."""

    model: Any
    optimizer: Any
    lr_scheduler: Any

    def create_accelerator_and_postprocess(self) -> None:
        """As in the Trainer, but for two things that accelerate does without a word.

        On CPUs it would fall back to a copy on every process. Under bf16 it would round the loss itself to bfloat16:
        steps of 0.008 at a loss of 1, where the auto-stop looks for gains of 0.003.
        """
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if not self.is_fsdp_enabled:
            from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True
        if self.accelerator.mixed_precision == "bf16":
            half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=None)
            state.fsdp_plugin.mixed_precision_policy = half

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the whole model from rank 0; every rank takes part in the gathering."""
        options = whole.StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = whole.get_model_state_dict(self.model, options=options)
        if self.args.should_save:
            tied = getattr(self.model, "all_tied_weights_keys", None) or {}  # what is tied here, not what could be
            self._save(output_dir, state_dict={name: value for name, value in state.items() if name not in tied})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        options = whole.StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = whole.get_optimizer_state_dict(self.model, self.optimizer, options=options)
        if self.args.should_save:
            torch.save(by_index(state), Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Give out the weights that rank 0 reads. Raises UsageError when they are not those of the model."""
        state: dict[str, Any] = {}
        if self.args.process_index == 0:
            state = read_weights(Path(resume_from_checkpoint))
            named = {n.replace(_WRAPPED, ""): p.requires_grad for n, p in self.model.named_parameters()}
            adapter = any(".lora_" in name for name in state)
            wanted = {name for name, trained in named.items() if trained or not adapter}
            if wrong := wanted ^ set(state):
                raise UsageError(f"{resume_from_checkpoint} has other weights than the model ({min(wrong)}).")
        # not strict: a tied weight is saved once and has two names
        options = whole.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        whole.set_model_state_dict(self.model if model is None else model, state, options=options)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        known = {id(parameter): name.replace(_WRAPPED, "") for name, parameter in self.model.named_parameters()}
        names = [[known[id(p)] for p in group["params"]] for group in self.optimizer.param_groups]
        state: dict[str, Any] = {}
        if self.args.process_index == 0:
            saved = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
            state = by_name(saved, names)
        options = whole.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        whole.set_optimizer_state_dict(self.model, self.optimizer, state, options=options)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))


def by_index(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state under parameter names, as the optimiser of one process writes it: under running numbers."""
    order = [name for group in state["param_groups"] for name in group["params"]]
    number = {name: n for n, name in enumerate(order)}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {number[name]: value for name, value in state["state"].items()}, "param_groups": groups}


def by_name(state: dict[str, Any], names: list[list[str]]) -> dict[str, Any]:
    """The way back: `names` are the parameters of each group, in the optimiser's order.

    Raises UsageError when the groups are not those of the checkpoint.
    """
    groups = state["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group) for group in names]:
        raise UsageError("The optimizer of this checkpoint has other parameters than the model.")
    flat = [name for group in names for name in group]
    numbered = dict(zip((n for group in groups for n in group["params"]), flat, strict=True))
    named = [{**group, "params": own} for group, own in zip(groups, names, strict=True)]
    return {"state": {numbered[n]: value for n, value in state["state"].items()}, "param_groups": named}


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint by the model's names, from one safetensors file or several with their index.

    Of a LoRA checkpoint the adapter alone; peft leaves the adapter's name out of the file.
    """
    from safetensors.torch import load_file

    if (adapter := checkpoint / "adapter_model.safetensors").is_file():
        own = re.compile(r"(\.lora_[AB])\.weight$")
        return {own.sub(r"\1.default.weight", name): value for name, value in load_file(adapter).items()}
    index = checkpoint / "model.safetensors.index.json"
    if not index.is_file():
        return dict(load_file(checkpoint / "model.safetensors"))
    parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return {name: value for part in parts for name, value in load_file(checkpoint / part).items()}
