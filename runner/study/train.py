"""One fine-tune: a plain Hugging Face Trainer with our model class, our collator and a handful of callbacks.

`log.txt` is therefore real Trainer output and everything the Trainer can do (DDP and FSDP through torchrun, every
scheduler and optimiser) works. How a run ended is its `Outcome`; what is kept of it lies in the run directory.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from runner import rundir
from runner.autostop import Phase, StopRule, StopState
from runner.config import write_resolved
from runner.errors import RunExit, UsageError
from runner.metrics import MetricsWriter, last_rule_change
from runner.recipe import Recipe
from runner.requests import RULE, Request, refuse_rest
from runner.rundir import RunDir
from runner.study import rate
from runner.study.callbacks import (
    AutoStop,
    Checkpoints,
    Metrics,
    StopFlag,
    StopOnNonFinite,
    StopOnRequest,
    saved_machine,
    saved_rules,
    say,
)
from runner.study.data import PrefixCollator, Prepared
from runner.study.hub import Uploader
from runner.study.load import seal_adapter, with_adapter
from runner.study.memory import Shape
from runner.study.requests import SAVE_HANDLER, Obey
from runner.study.shard import ShardedTrainer, sharding_arguments

_OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit", "adafactor": "adafactor"}
"""Our words to the Trainer's; adamw_8bit needs bitsandbytes and a GPU."""


@dataclass(frozen=True)
class Outcome:
    """How a fine-tune ended."""

    step: int
    code: RunExit
    reason: str
    """In words: the horizon, the plateau, who asked, which number was not finite."""
    runtime_s: float
    """Of this process, evaluations and saves included."""
    machine: StopState | None
    """The auto-stop's last state; None when no rule was set."""
    best: Path | None
    """The whole checkpoint with the lowest eval_loss; the newest one where nothing was evaluated."""


def fine_tune(
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    data: Prepared,
    run: RunDir,
    writer: MetricsWriter | None,
    flag: StopFlag,
    *,
    resume: Path | None = None,
    uploader: Uploader | None = None,
    extra: tuple[Any, ...] = (),
    sharded: bool = False,
) -> Outcome:
    """Train by `recipe` into `run`, from `resume` (a whole checkpoint) or from the model as it is.

    `writer` is None on all ranks but the first. `uploader` is offered every whole checkpoint. `extra` are more
    callbacks. `sharded` divides the model over the ranks (`runner.study.shard`). Raises UsageError for settings that
    cannot work here; disk and memory errors come through as they are (`runner.study.stages` knows their codes).
    """
    arguments = training_arguments(recipe, run, sharded=sharded)
    set_seed(recipe.data.seed)
    stop = _auto_stop(recipe, run, resume, first=writer is not None)
    handlers = {**SAVE_HANDLER, **({RULE: stop.change_rule} if stop is not None else {})}
    obey = Obey(run.path, writer, handlers, look_every_s=flag.look_every_s)
    asked, broken = StopOnRequest(flag, writer), StopOnNonFinite()
    seal = Checkpoints(run.checkpoints, recipe.train.keep_local, lambda: stop.machine.best_step if stop else None)
    if uploader is not None:
        seal.on_sealed, seal.may_prune = uploader.offer, uploader.may_prune
    if recipe.train.optimizer == "adamw_8bit":
        extra = (AllStatesIn8Bit(), *extra)
    callbacks: list[Any] = [callback for callback in (stop, obey, asked, broken, seal, *extra) if callback is not None]
    metrics: Metrics | None = None
    if writer is not None:
        metrics = Metrics(writer, run.checkpoints, _tokens_per_step(recipe, data, arguments))
        callbacks.append(metrics)
        if stop is not None:
            stop.on_judged = metrics.judged
            stop.on_changed = _recorder(recipe, run, metrics)
    if resume is not None and (over := _already_over(recipe, run, resume)) is not None:
        return over
    model.loss_chunk = recipe.train.loss_chunk
    if recipe.train.lora_rank:
        model = with_adapter(model, recipe.train.lora_rank)
        seal.before_seal = lambda folder: seal_adapter(folder, recipe.mask)
    trainer = (ShardedTrainer if sharded else Trainer)(
        model=model,
        args=arguments,
        data_collator=PrefixCollator(tokenizer.pad_token_id, recipe.mask),
        train_dataset=data.train,
        eval_dataset=data.evaluate,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    began = time.monotonic()
    if writer is not None:
        _announce(recipe, run, writer, arguments, resume, stop, obey.kinds)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    machine = stop.machine if stop else None
    code, reason = _verdict(recipe, trainer.state.global_step, machine, asked.stopped, broken.stopped)
    if code is RunExit.FINISHED and trainer.state.global_step != seal.last_step:
        # the horizon is no multiple of save_steps: the last weights would be lost
        trainer._save_checkpoint(model, trial=None)
        trainer.callback_handler.on_save(arguments, trainer.state, trainer.control)
    runtime = time.monotonic() - began
    if writer is not None:
        refuse_rest(run.path, writer.write, detail="training is over", step=trainer.state.global_step)
    if arguments.process_index == 0:
        say(f"training ended at step {trainer.state.global_step}/{recipe.max_steps} after {runtime:.0f} s: {reason}")
        if metrics is not None and metrics.tokens_per_s is not None:
            card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
            length = round(data.train.mean_length())
            say(rate.in_words(metrics.tokens_per_s, Shape.of(model.config), length, card, arguments.world_size))
    return Outcome(trainer.state.global_step, code, reason, runtime, machine, best_of(run, machine))


def training_arguments(recipe: Recipe, run: RunDir, *, sharded: bool = False) -> TrainingArguments:
    """The Trainer's own settings for a recipe. Raises UsageError for what this machine or an option does not allow."""
    train, cuda = recipe.train, torch.cuda.is_available()
    more: dict[str, Any] = {"activation_checkpointing": train.activation_checkpointing}
    if sharded:
        more = sharding_arguments(train.activation_checkpointing, adapter=train.lora_rank > 0)
    if train.optimizer == "adamw_8bit":
        _need_8bit(cuda)
    if recipe.model.attention == "flex_attention" and not cuda:
        raise UsageError(
            "flex_attention trains on a CUDA GPU only: on a processor it has no backward pass.",
            hint="--set attention=sdpa, which honours the same mask.",
        )
    try:
        return TrainingArguments(
            output_dir=str(run.checkpoints),
            max_steps=train.max_steps,
            per_device_train_batch_size=train.batch_size,
            per_device_eval_batch_size=train.eval_batch_size,
            gradient_accumulation_steps=train.grad_accum,
            learning_rate=train.learning_rate,
            lr_scheduler_type=train.lr_scheduler,
            warmup_steps=_warmup(train.warmup_ratio, train.max_steps),
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            optim=_OPTIMIZERS[train.optimizer],
            bf16=train.precision == "bf16_autocast",
            logging_steps=train.logging_steps,
            logging_nan_inf_filter=False,  # a loss that is no number must be seen, not averaged away
            eval_strategy="steps",
            eval_steps=train.eval_steps,
            save_strategy="steps",
            save_steps=train.save_steps,
            save_total_limit=None,  # `Checkpoints` prunes, by whole and best
            prediction_loss_only=True,
            remove_unused_columns=False,  # prompt_ids is not in the stock signature
            label_names=["labels"],
            dataloader_num_workers=0,
            seed=recipe.data.seed,
            data_seed=recipe.data.seed,
            use_cpu=not cuda,
            dataloader_pin_memory=cuda,
            ddp_find_unused_parameters=False,
            report_to="none",
            disable_tqdm=False,
            **more,
        )
    except ValueError as error:
        raise UsageError(f"The Trainer refuses these settings: {str(error).splitlines()[0]}") from error


def best_of(run: RunDir, machine: StopState | None) -> Path | None:
    """The whole checkpoint with the lowest eval_loss, or the newest whole one when that is not there."""
    if machine is not None and machine.best_step is not None:
        best = run.checkpoints / f"checkpoint-{machine.best_step}"
        if (best / rundir.MANIFEST).is_file():
            return best
    return rundir.newest_whole_checkpoint(run.checkpoints, hashes=False)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of a save means that the disk is full; torch and safetensors wrap the system's own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    return "No space left on device" in text or "PytorchStreamWriter failed writing file" in text


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the card's memory ran out: torch has a class for it, the libraries below it and the driver have words."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in text.lower() or "CUBLAS_STATUS_ALLOC_FAILED" in text or "cudaErrorMemoryAlloc" in text)
    )


def _warmup(ratio: float, max_steps: int) -> float:
    """The Trainer reads `warmup_steps` below 1 as a share; a share of 1 or more would be read as steps."""
    return ratio if ratio < 1 else float(max_steps)


class AllStatesIn8Bit(TrainerCallback):
    """Takes back that the Trainer has the embedding's states held in 32 bits.

    That is advice for training from nothing. Of a vocabulary of 131,072 it is 2.3 GiB, which a card of 40 GB does not
    have left. bitsandbytes reads its list of exceptions at the first step, so this comes before it.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Empty the list."""
        from bitsandbytes.optim import GlobalOptimManager

        GlobalOptimManager.get_instance().module_weight_config_triple.clear()


def _need_8bit(cuda: bool) -> None:
    import importlib.util

    if not cuda or importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            "The optimizer adamw_8bit needs a CUDA GPU and the package bitsandbytes.",
            hint="pip install bitsandbytes on the box, or --set optimizer=adamw.",
        )


def _tokens_per_step(recipe: Recipe, data: Prepared, arguments: TrainingArguments) -> float:
    examples = recipe.train.batch_size * recipe.train.grad_accum * arguments.world_size
    return float(examples * data.train.mean_length())


def standing_rule(recipe: Recipe, run: RunDir, resume: Path | None) -> StopRule | None:
    """The auto-stop rule to begin under: the recipe's, or what it was changed to while the run went on.

    A change is found in the run's own metrics.jsonl, or in the checkpoint where the run comes from elsewhere. It stands
    for as long as the recipe says what it said then: who changes the recipe's rule means the new one.
    """
    if recipe.stop_rule is None:
        return None
    known = last_rule_change(run.metrics)
    if known is None and resume is not None:
        saved = json.loads((resume / "trainer_state.json").read_text())
        known = saved_rules(saved.get("stateful_callbacks"))
    return known[0] if known is not None and known[1] == recipe.stop_rule else recipe.stop_rule


def _auto_stop(recipe: Recipe, run: RunDir, resume: Path | None, *, first: bool) -> AutoStop | None:
    rule = standing_rule(recipe, run, resume)
    if rule is None:
        return None
    if rule != recipe.stop_rule and first:
        write_resolved(run.config, replace(recipe, stop_rule=rule))
    return AutoStop(rule, instead_of=recipe.stop_rule)


def _recorder(recipe: Recipe, run: RunDir, metrics: Metrics) -> Callable[[int, StopRule, StopRule, Request], None]:
    """Writes a change of the rule where a later process and a person look for it: metrics.jsonl and config.toml."""

    def record(step: int, rule: StopRule, instead_of: StopRule, request: Request) -> None:
        metrics.changed(step, rule, instead_of, request)
        write_resolved(run.config, replace(recipe, stop_rule=rule))

    return record


def _announce(
    recipe: Recipe,
    run: RunDir,
    writer: MetricsWriter,
    arguments: TrainingArguments,
    resume: Path | None,
    stop: AutoStop | None,
    obeys: list[str],
) -> None:
    writer.write(
        "start",
        run_id=run.run_id(),
        max_steps=recipe.max_steps,
        pid=os.getpid(),
        world_size=arguments.world_size,
        resumed_from=rundir.checkpoint_step(resume) if resume else None,
        rule=asdict(stop.rule) if stop else None,
        obeys=obeys,
        mask=recipe.mask,
        recipe=recipe.name,
    )
    if stop is not None:
        changed = "" if stop.rule == stop.instead_of else ", as it was changed while the run went on"
        say(f"auto-stop: {stop.rule.in_words()}{changed}")


def _already_over(recipe: Recipe, run: RunDir, resume: Path) -> Outcome | None:
    """How the run of a checkpoint had ended, None when there is more to train.

    The Trainer itself would train one more step from a checkpoint at the horizon.
    """
    saved = json.loads((resume / "trainer_state.json").read_text())
    machine = saved_machine(saved.get("stateful_callbacks"))
    step, best = int(saved["global_step"]), best_of(run, machine)
    if machine is not None and machine.phase is Phase.FIRED:
        return Outcome(step, RunExit.AUTO_STOPPED, _reason_of(machine), 0.0, machine, best)
    if step >= recipe.max_steps:
        return Outcome(step, RunExit.FINISHED, f"the horizon of {recipe.max_steps} steps", 0.0, machine, best)
    return None


def _verdict(
    recipe: Recipe, step: int, machine: StopState | None, asked: str | None, broken: str | None
) -> tuple[RunExit, str]:
    if broken is not None:
        return RunExit.AUTO_STOPPED, f"non-finite: {broken}"
    if machine is not None and machine.phase is Phase.FIRED:
        return RunExit.AUTO_STOPPED, _reason_of(machine)
    if asked is not None:
        limit = any(word in asked.lower() for word in ("budget", "deadline", "idle", "limit", "fence"))
        return (RunExit.LIMIT if limit else RunExit.STOPPED), f"asked: {asked}"
    return RunExit.FINISHED, f"the horizon of {recipe.max_steps} steps"


def _reason_of(machine: StopState) -> str:
    if machine.reason == "non-finite":
        return f"non-finite: eval_loss at step {machine.stopped_at}"
    return "plateau"
