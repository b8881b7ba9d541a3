"""A recipe as a value: every setting of a run with its unit, its default and when it has an effect.

`runner.config` reads recipes from TOML; this file only says what there is to decide.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from runner.autostop import StopRule

Kind = Literal["demo", "stage1", "stage2", "stage3", "stage4", "stage5", "command"]
MaskMode = Literal["causal", "prompt_bidirectional"]
"""How the prompt attends: like a language model, or to all of itself. The answer is causal under both."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which weights, and how the prompt attends."""

    base: str = ""
    """Hub id, local directory, or "demo" for the committed miniature."""
    revision: str = "main"
    """Branch, tag or commit of a Hub id."""
    checkpoint: str = ""
    """Fine-tuned weights to evaluate (stage 4, comparison): a checkpoint directory, a Hub id, or `owner/name/folder` of
    a Hub repository, where a run's folder stands for its newest whole checkpoint."""
    mask: MaskMode = "causal"
    """How the prompt attends: causally, or to all of itself. The answer is causal under both."""
    attention: Literal["sdpa", "eager", "flex_attention"] = "sdpa"
    """The kernels that honour the mask; flash attention does not and is not offered."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the weights are held in."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Prompt/answer pairs and how they are tokenised."""

    dataset: str = ""
    """Hub id, a .jsonl file, or "demo" for the four tasks."""
    dataset_config: str = ""
    dataset_split: str = "train"
    prompt_field: str = "prompt"
    """Column of the prompt; `a+b` joins two columns with a blank line, empty ones left out."""
    answer_field: str = "answer"
    template: Literal["plain", "chat"] = "plain"
    """Whether the prompt goes through the tokenizer's chat template."""
    train_samples: int = 50_000
    eval_samples: int = 250
    max_length: int = 1024
    """Tokens; a longer prompt loses its left end, an answer is never cut."""
    seed: int = 17
    """Of the split, the order of the data and every random draw of the run."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The fine-tune; unused by the evaluation stages."""

    max_steps: int = 6000
    """Optimiser steps: the horizon, reached only if the auto-stop does not end the run sooner."""
    batch_size: int = 1
    """Examples per process and micro-step."""
    eval_batch_size: int = 4
    grad_accum: int = 16
    """Micro-steps per optimiser step."""
    learning_rate: float = 2e-5
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = "constant_with_warmup"
    """The schedules of transformers that need no more than the warm-up and the horizon."""
    warmup_ratio: float = 0.03
    """Share of max_steps."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"
    precision: Literal["fp32", "bf16_autocast"] = "fp32"
    """bf16_autocast computes in bfloat16 over whatever the weights are held in."""
    activation_checkpointing: bool = False
    loss_chunk: int = 0
    """Positions per slice of the cross-entropy, so that logits never stand whole in memory; 0 is one piece."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """With several processes (`--nproc`): a copy of the model on each (ddp), or one model divided over all (fsdp).
    auto divides it when a copy does not fit the card."""
    lora_rank: int = 0
    """0 trains all weights; otherwise needs the package peft."""
    eval_steps: int = 100
    logging_steps: int = 10
    save_steps: int = 200
    keep_local: int = 3
    """Whole checkpoints kept on disk, the best and the newest always among them."""
    hf_repo_id: str = ""
    """Where checkpoints are uploaded; empty for nowhere."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """The downstream tasks behind the macro."""

    tasks: tuple[str, ...] = ()
    """lm-eval task names; ("demo",) is the exact match on the four tasks."""
    task_path: str = ""
    """Directory of own task YAML files."""
    fewshot: int = 0
    limit: int = 0
    """Items per task; 0 for all."""
    comparison: bool = True
    """After stage 4 the same weights under the causal mask, too: what the fine-tune costs where that is used."""
    eval_dtype: Literal["as_trained", "float32", "bfloat16"] = "as_trained"
    """What the weights are held in while the tasks of a fine-tune run; as in stage 1, or the difference means less."""
    downstream_samples: int = 1000
    """Items over all tasks of the miniature study."""


@dataclass(frozen=True, kw_only=True)
class CommandSettings:
    """A foreign trainer: any command that writes a Hugging Face Trainer log."""

    command: tuple[str, ...] = ()
    """The argument list; a string is split like a shell does."""
    workdir: str = "."
    """Directory to ship and to start in, relative to the recipe's file."""
    log: str = "log.txt"
    """Where the command writes its log, relative to workdir; its output is in the run's log.txt in any case."""
    checkpoints: str = ""
    """Directory of its checkpoint-N folders, relative to workdir; empty when it writes none."""
    resume: tuple[str, ...] = ()
    """Arguments added to resume; `{checkpoint}` stands for the path."""
    rehearse: tuple[str, ...] = ()
    """Arguments added to resume and end soon, before a run moves: `{until}` is the step to end at, `{steps}` how many
    that are. Empty: the trainer is not tried on the new box beforehand."""
    setup: tuple[str, ...] = ()
    """A command that prepares the box (installs what the trainer needs); empty for none."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that was decided about one run."""

    name: str
    """`stage5`, or the file's stem; the folder under runs/."""
    kind: Kind
    title: str = ""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    foreign: CommandSettings = field(default_factory=CommandSettings)
    stop_rule: StopRule | None = None
    """None when nothing but the horizon ends the run."""
    path: Path | None = None
    """The file it came from."""

    @property
    def max_steps(self) -> int:
        """The horizon in optimiser steps."""
        return self.train.max_steps

    @property
    def eval_steps(self) -> int:
        """Steps between two evaluations."""
        return self.train.eval_steps

    @property
    def mask(self) -> MaskMode:
        """How the prompt attends."""
        return self.model.mask

    @property
    def trains(self) -> bool:
        """Whether this recipe changes weights."""
        return self.kind in ("demo", "stage3", "stage5", "command")

    # the names by which a foreign recipe is spoken of
    @property
    def command(self) -> tuple[str, ...]:
        """Argument list of a foreign trainer; empty for our own kinds."""
        return self.foreign.command

    @property
    def workdir(self) -> Path:
        """Directory of a foreign trainer that has to be shipped, absolute when the recipe is a file."""
        return (self.path.parent if self.path else Path()) / self.foreign.workdir

    @property
    def log(self) -> str:
        """The foreign trainer's own log, relative to workdir."""
        return self.foreign.log

    @property
    def checkpoints(self) -> str:
        """The foreign trainer's checkpoint directory, relative to workdir."""
        return self.foreign.checkpoints

    @property
    def resume(self) -> tuple[str, ...]:
        """Arguments with which a foreign trainer resumes."""
        return self.foreign.resume
