"""The stages of the study: what each kind of recipe does, and how its end is told.

Stage 1 evaluates the base model causally, stage 2 with the prompt attending to itself, stage 3 and 5 fine-tune under
that mask, stage 4 evaluates the result under it, and the comparison after it evaluates it causally. Stage 5 and the
miniature study run stage 4 and the comparison themselves and end in summary.json. Whatever happens, the last event in
metrics.jsonl says how the run ended and with which code; a stage that an earlier process of this run has finished is
not run again.
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from runner import rundir
from runner.config import write_resolved
from runner.errors import RunExit, TunewatchError, UsageError
from runner.metrics import MetricsReader, MetricsWriter
from runner.recipe import MaskMode, Recipe
from runner.requests import refuse_rest
from runner.rundir import RunDir
from runner.study import demo
from runner.study.callbacks import StopFlag, say
from runner.study.data import Prepared, prepare, read_pairs
from runner.study.hub import Uploader
from runner.study.load import Loaded, load_model, load_tokenizer, read_config, set_mask
from runner.study.memory import Shape, Verdict, card_gib, shards_of, verdict
from runner.study.train import Outcome, fine_tune, is_disk_full, is_out_of_memory, training_arguments

_LAST_UPLOAD_S = 3600.0
"""Seconds that the end of a run waits for its last upload; whoever stops it sooner has the local copy."""


class Asked(Exception):  # noqa: N818 - not an error: somebody asked this process to stop
    """Raised between two pieces of work when a stop was asked for."""


@dataclass(frozen=True)
class Score:
    """One task under one mask."""

    acc: float
    stderr: float
    n: int
    """Items."""


@dataclass(frozen=True)
class StageScores:
    """One stage: the macro is the unweighted mean over its tasks."""

    name: str
    mask: MaskMode
    tasks: Mapping[str, Score]
    details: Mapping[str, Any]
    """Versions, sample counts, metric names: what a reader needs to believe the numbers."""

    @property
    def macro(self) -> float:
        """Unweighted mean accuracy over the tasks."""
        return sum(score.acc for score in self.tasks.values()) / len(self.tasks)

    @property
    def macro_stderr(self) -> float:
        """Standard error of the macro, the tasks taken as independent."""
        return math.sqrt(sum(score.stderr**2 for score in self.tasks.values())) / len(self.tasks)

    def document(self) -> dict[str, Any]:
        """What metrics.json says."""
        return {
            "stage": self.name,
            "mask": self.mask,
            "macro": self.macro,
            "macro_stderr": self.macro_stderr,
            "macro_rule": "unweighted mean over tasks",
            "tasks": {task: {"acc": s.acc, "stderr": s.stderr, "n": s.n} for task, s in self.tasks.items()},
            **self.details,
        }


class Study:
    """One process of one recipe in one run directory."""

    def __init__(self, recipe: Recipe, run: RunDir, *, resume: Path | None = None) -> None:
        self.recipe = recipe
        self.run = run
        self.resume = resume
        self.rank = int(os.environ.get("RANK", "0"))
        self.flag = StopFlag(run.path)
        self.writer: MetricsWriter | None = None
        self.done: dict[str, dict[str, Any]] = {}
        """Stages with a result: name to {"macro", "tasks"}."""
        self.outcome: Outcome | None = None
        self.verdict: Verdict | None = None
        """The memory account, once the model's shape is known."""
        self.measuring = False
        """Whether downstream tasks are under way, and no training."""

    def main(self) -> RunExit:
        """Run the recipe to its end and return the exit code; never raises for what a run can meet."""
        self.run.path.mkdir(parents=True, exist_ok=True)
        self.flag.arm()
        if self.rank == 0:
            self._open()
        if self.recipe.kind == "demo" and "OMP_NUM_THREADS" not in os.environ:
            # a model this small gains nothing from a second thread, which waits at full load: that core is the
            # screen's. One thread also sums in one order, so the same seed gives the same digits
            torch.set_num_threads(1)
        joined = _join_ranks()
        code, reason = self._guarded(self._run)
        if joined and code in (RunExit.FINISHED, RunExit.AUTO_STOPPED, RunExit.STOPPED, RunExit.LIMIT):
            torch.distributed.destroy_process_group()  # in step with the others; after a failure nobody waits
        self.flag.disarm()
        if self.writer is not None:
            step = self.outcome.step if self.outcome else None
            refuse_rest(self.run.path, self.writer.write, detail=f"the run is over: {reason}", step=step)
            runtime = self.outcome.runtime_s if self.outcome else None
            self.writer.write("end", step=step, reason=reason, rc=int(code), runtime_s=runtime)
            self.writer.close()
        return code

    def _open(self) -> None:
        self.run.open_log()
        earlier = MetricsReader()
        if self.run.metrics.exists():
            earlier.feed(self.run.metrics.read_bytes())
        self.done = {s.name: {"macro": s.macro, "tasks": dict(s.tasks)} for s in earlier.history().stages}
        self.writer = MetricsWriter(self.run.metrics)
        write_resolved(self.run.config, self.recipe)

    def _guarded(self, work: Callable[[], tuple[RunExit, str]]) -> tuple[RunExit, str]:
        """Give each thing that can happen its exit code and one sentence in the log."""
        try:
            return work()
        except Asked as asked:
            say(f"stop: {asked}")
            return RunExit.STOPPED, f"asked: {asked}"
        except TunewatchError as error:
            if self.writer is not None:
                reason = f"refused: {error.message}"
                self.writer.write("end", step=None, reason=reason, rc=int(error.exit_code), runtime_s=None)
                self.writer.close()
                self.writer = None
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            if is_out_of_memory(error):
                say(out_of_memory(self.recipe, error, self.verdict, measuring=self.measuring))
                return RunExit.CUDA_OOM, "CUDA out of memory"
            if not is_disk_full(error):
                raise
            freed = self._drop_torn()
            kept = rundir.newest_whole_checkpoint(self.run.checkpoints, hashes=False)
            traceback.print_exc()
            say(
                f"disk full: {freed} torn checkpoint(s) removed; {kept.name if kept else 'no whole checkpoint'} is kept"
            )
            return RunExit.DISK_FULL, "disk full"

    def _drop_torn(self) -> int:
        torn = [p for p in rundir.checkpoints(self.run.checkpoints) if not (p / rundir.MANIFEST).is_file()]
        for path in torn:
            shutil.rmtree(path, ignore_errors=True)
        return len(torn)

    def _run(self) -> tuple[RunExit, str]:
        kind = self.recipe.kind
        if kind != "stage3":
            # after hours of training a misspelt task would be found too late
            check_tasks(self.recipe)
        if kind in ("stage1", "stage2", "stage4"):
            source = self.recipe.model.checkpoint if kind == "stage4" else self.recipe.model.base
            loaded = self.load(source)
            self.evaluate(kind, loaded, self.recipe.mask)
            if kind == "stage4" and self.recipe.evaluate.comparison:
                self.evaluate("non_prefill", loaded, "causal")
            return RunExit.FINISHED, "evaluated"
        if kind == "demo":
            base = self.load(self.recipe.model.base, mask="causal")
            self.evaluate("stage1", base, "causal")
            self.evaluate("stage2", base, "prompt_bidirectional")
        self.outcome = self._train()
        if self.outcome.code not in (RunExit.FINISHED, RunExit.AUTO_STOPPED):
            return self.outcome.code, self.outcome.reason
        # Trainer and model refer to each other: without this their memory would stand beside the next model's
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if kind != "stage3" and self.recipe.evaluate.tasks and self.outcome.best is not None:
            say(f"stage 4 and the comparison use {self.outcome.best.name}")
            wanted = self.recipe.evaluate.eval_dtype
            tuned = self.load(str(self.outcome.best), dtype=None if wanted == "as_trained" else wanted)
            self.evaluate("stage4", tuned, self.recipe.mask)
            self.evaluate("non_prefill", tuned, "causal")
        if self.rank == 0:
            self._summarise(self.outcome)
        return self.outcome.code, self.outcome.reason

    def load(
        self, source: str, *, mask: MaskMode | None = None, dtype: str | None = None, place: bool = True
    ) -> Loaded:
        """The weights of `source` under the recipe's mask (or another), on the device that is there if `place`."""
        model = self.recipe.model
        loaded = load_model(
            demo.source(source),
            mask=mask or self.recipe.mask,
            revision=model.revision,
            attention=model.attention,
            dtype=dtype or model.dtype,
        )
        for note in loaded.notes:
            say(f"model: {note}")
        if place and torch.cuda.is_available():
            loaded.model.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))
        return loaded

    def evaluate(self, name: str, loaded: Loaded, mask: MaskMode) -> None:
        """Run the downstream tasks under `mask` and record the stage."""
        if name in self.done:
            say(f"{name}: macro {self.done[name]['macro']:.4f}, from an earlier process of this run")
            return
        if (reason := self.flag.reason()) is not None:
            raise Asked(reason)
        if self.writer is not None:
            self.writer.write("stage_begin", name=name)
        set_mask(loaded.model, mask)
        self.measuring = True
        scores = downstream(self.recipe, name, loaded, mask)
        self.measuring = False
        if self.writer is None or scores is None:
            return
        tasks = {task: score.acc for task, score in scores.tasks.items()}
        self.done[name] = {"macro": scores.macro, "tasks": tasks}
        errors = {task: score.stderr for task, score in scores.tasks.items()}
        self.writer.write("stage", name=name, macro=scores.macro, tasks=tasks, stderr=errors)
        file = "metrics.json" if self.recipe.kind == name else f"metrics-{name}.json"
        rundir.write_atomic(self.run.path / file, json.dumps(scores.document(), indent=1).encode())
        shown = ", ".join(f"{task} {value:.3f}" for task, value in tasks.items())
        say(f"{name} ({mask}): macro {scores.macro:.4f} ({shown})")

    def _train(self) -> Outcome:
        if self.writer is not None:
            self.writer.write("stage_begin", name="stage3" if self.recipe.kind == "stage3" else "stage5")
        shards = self._plan()
        # whatever data and settings can have wrong with them is said before gigabytes of weights are read
        model = self.recipe.model
        data = training_data(self.recipe, load_tokenizer(demo.source(model.base), model.revision))
        if self.rank == 0:
            say(data.in_words())
        training_arguments(self.recipe, self.run, sharded=shards > 1)
        # what is divided goes to the cards in parts, so never whole
        loaded = self.load(model.base, place=shards == 1)
        if self.rank == 0:
            say(f"model: {loaded.model.num_parameters():,} parameters, mask {self.recipe.mask}")
        uploader = self._uploader()
        try:
            return fine_tune(
                self.recipe,
                loaded.model,
                loaded.tokenizer,
                data,
                self.run,
                self.writer,
                self.flag,
                resume=self.resume,
                uploader=uploader,
                sharded=shards > 1,
            )
        finally:
            if uploader is not None and not uploader.close(_LAST_UPLOAD_S):
                say(f"upload: the last one did not end within {_LAST_UPLOAD_S:.0f} s; the local copy is kept")

    def _plan(self) -> int:
        """Whether it fits, told before the weights are loaded; over how many processes the model is divided."""
        source, world = demo.source(self.recipe.model.base), int(os.environ.get("WORLD_SIZE", "1"))
        shape, card = Shape.of(read_config(source, self.recipe.model.revision)), card_gib()
        shards = shards_of(shape, self.recipe, card, world)
        self.verdict = verdict(shape, self.recipe, card, shards=shards)
        if self.rank == 0:
            if world > 1:
                say(
                    f"parallel: {world} processes, "
                    + ("one model divided over them (FSDP)" if shards > 1 else "a copy of the model on each (DDP)")
                )
            elif self.recipe.train.parallel == "fsdp":
                say("parallel: one process, so nothing is divided")
            say(self.verdict.in_words())
        return shards

    def _uploader(self) -> Uploader | None:
        """The background upload of rank 0, if the recipe names a repository."""
        repo = self.recipe.train.hf_repo_id
        if not repo or self.writer is None:
            return None
        writer = self.writer

        def report(**fields: Any) -> None:
            writer.write("upload", **fields)
            if fields["status"] != "queued":
                what = f"checkpoint-{fields['step']} {fields['status']} after {fields['seconds']} s"
                say(f"upload: {what}: {fields['detail']} {fields['revision'][:12]}".rstrip())

        def fenced(why: str) -> None:
            say(f"upload: refused, {why}")
            rundir.write_stop_request(self.run.path, f"fenced: {why}")

        status = rundir.read_status(self.run.status)
        return Uploader(
            repo, f"{self.recipe.name}-{self.run.path.name}", report,
            epoch=status.epoch if status is not None else 0, on_fenced=fenced,
        )  # fmt: skip

    def _summarise(self, outcome: Outcome) -> None:
        from runner.study.summary import write_summary

        write_summary(self.run, self.recipe, outcome)


def _join_ranks() -> bool:
    """Meet the other ranks, if there are any: evaluations share their requests before the Trainer exists."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or torch.distributed.is_initialized():
        return False
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return True


def training_data(recipe: Recipe, tokenizer: Any) -> Prepared:
    """The train and eval set of a recipe."""
    if recipe.data.dataset == "demo":
        return demo.prepared(recipe.data, tokenizer)
    if not recipe.data.dataset:
        raise UsageError("data.dataset is empty; it names a Hub data set or a .jsonl file.")
    return prepare(read_pairs(recipe.data), tokenizer, recipe.data)


def downstream(recipe: Recipe, name: str, loaded: Loaded, mask: MaskMode) -> StageScores | None:
    """The tasks of the recipe under `mask`; None on a rank that does not tell."""
    if recipe.evaluate.tasks == ("demo",):
        return demo.downstream(recipe, name, loaded, mask)
    from runner.study.evaluate import harness

    return harness(recipe, name, loaded, mask)


def check_tasks(recipe: Recipe) -> None:
    """Raise UsageError for a task of the harness that does not exist; nothing is fetched and no weight is read."""
    if recipe.evaluate.tasks and recipe.evaluate.tasks != ("demo",):
        from runner.study.evaluate import tasks_of

        tasks_of(recipe.evaluate)


def out_of_memory(recipe: Recipe, error: BaseException, account: Verdict | None, *, measuring: bool = False) -> str:
    """What to say when the card was too small: the account, and three ways out; others while the tasks run."""
    train = recipe.train
    if measuring:
        account = None  # it is that of training
        setting = "eval_dtype" if recipe.trains else "dtype"
        ways = [
            f"halve eval_batch_size (now {train.eval_batch_size})",
            f"{setting}=bfloat16 (weights are held in {recipe.model.dtype})",
            "a card with more memory; checkpoints are kept, and --resume goes on with what was not measured yet",
        ]
    else:
        ways = [
            f"halve batch_size (now {train.batch_size}) and double grad_accum (now {train.grad_accum})",
            f"shorten max_length (now {recipe.data.max_length}), or activation_checkpointing=true and loss_chunk=256",
            f"a smaller optimizer (now {train.optimizer}): adamw_8bit, adafactor, lora_rank=16; or parallel=fsdp",
        ]
    lines = [f"CUDA out of memory: {str(error).splitlines()[0]}", *([account.in_words()] if account else [])]
    lines += [f"  - {way}" for way in ways]
    return "\n".join(lines)
