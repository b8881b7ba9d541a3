"""What the Trainer calls while it trains: auto-stop, metrics sidecar, stop on request, the seal of a checkpoint.

Order matters and is set in `runner.study.train`: AutoStop judges an eval before Metrics writes it down, and Checkpoints
seals a checkpoint before anything may upload it. Only rank 0 writes; a decision to stop is the same on every rank.
"""

from __future__ import annotations

import math
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from runner import rundir
from runner.autostop import Phase, StopRule, StopState, advance, changed_rule, replay
from runner.errors import RefusedError
from runner.metrics import MetricsWriter
from runner.requests import Request


def say(line: str) -> None:
    """One plain line in log.txt, on a line of its own although a progress bar may stand open."""
    sys.stdout.write(f"\n{line}\n")
    sys.stdout.flush()


class AutoStop(TrainerCallback, ExportableState):
    """`runner.autostop` around the Trainer: judges each eval_loss, ends the run when the rule fires.

    The machine's state travels in trainer_state.json with every checkpoint. It is read back in `on_train_begin` and not
    by the Trainer's own restoring, which would rebuild this object without its links and with the old rule.

    The rule can be changed while the run goes on (`change_rule`): the machine is then what the new rule makes of all
    evals so far, and a plateau that it sees in them ends the run at once.
    """

    def __init__(self, rule: StopRule, *, instead_of: StopRule | None = None) -> None:
        self.rule = rule
        self.instead_of = instead_of or rule
        """The recipe's rule; another than `rule` after a change that was asked for."""
        self.machine = StopState()
        self.on_changed: Callable[[int, StopRule, StopRule, Request], None] | None = None
        """Called after a change with step, rule, the recipe's rule, and the request."""
        self.on_judged: Callable[[int, StopState, str], None] | None = None
        """Called after each judged eval with step, state and the reason in words."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the machine."""
        attributes = {"machine": self.machine.to_dict(), "instead_of": asdict(self.instead_of)}
        return {"args": {"rule": asdict(self.rule)}, "attributes": attributes}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the machine where the checkpoint left it."""
        saved = saved_machine(state.stateful_callbacks)
        if saved is None:
            return
        # the rule may have been changed after this checkpoint was written
        rules = saved_rules(state.stateful_callbacks)
        same = rules is not None and rules[0] == self.rule
        self.machine = saved if same or saved.stopped_at is not None else self._replayed(state)

    def _replayed(self, state: Any) -> StopState:
        """What the rule makes of every eval so far; the best one is looked for in all of them, whatever stopped."""
        evals = [(row["step"], row["eval_loss"]) for row in state.log_history if "eval_loss" in row]
        seen = replay(replace(self.rule, patience=len(evals) + 1), evals)
        return replace(replay(self.rule, evals), best=seen.best, best_step=seen.best_step)

    def change_rule(self, request: Request, state: Any, control: Any) -> str:
        """Handler of `rule`: go on under another rule. Raises RefusedError, and nothing has changed then."""
        if control.should_training_stop:
            raise RefusedError("the run is stopping already")
        try:
            rule = changed_rule(self.rule, request.body)
        except ValueError as error:
            raise RefusedError(str(error)) from error
        step, self.rule = state.global_step, rule
        machine = self._replayed(state)
        fired = machine.stopped_at
        if fired is not None:
            # it ends here and not where the rule would have ended it
            machine = replace(machine, stopped_at=step)
            control.should_training_stop = control.should_save = True
        self.machine = machine
        detail = rule.in_words() + (f"; it sees a plateau since step {fired}: stops now" if fired is not None else "")
        if state.is_world_process_zero:
            say(f"auto-stop: the rule was changed at step {step}: {detail}")
            if self.on_changed is not None:
                self.on_changed(step, rule, self.instead_of, request)
            if self.on_judged is not None:
                self.on_judged(step, machine, f"the rule was changed: {detail}")
        return detail

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Judge one eval; stop with a checkpoint on a plateau, without one when the loss is not finite."""
        before = self.machine
        self.machine = advance(self.rule, before, state.global_step, given["metrics"]["eval_loss"])
        if self.machine is before:
            return
        if self.machine.best_step == state.global_step:
            control.should_save = True
        if self.machine.phase is Phase.FIRED:
            control.should_training_stop = True
            # weights that give a loss which is not a number are no checkpoint to keep
            control.should_save = self.machine.reason == "plateau"
        words = _in_words(self.rule, self.machine, state.global_step)
        if state.is_world_process_zero:
            say(words)
            if self.on_judged is not None:
                self.on_judged(state.global_step, self.machine, words)


def saved_machine(stateful_callbacks: Any) -> StopState | None:
    """The auto-stop machine in a checkpoint's `stateful_callbacks`; None when there is none."""
    saved = (stateful_callbacks or {}).get(AutoStop.__name__)
    return StopState.from_dict(saved["attributes"]["machine"]) if saved else None


def saved_rules(stateful_callbacks: Any) -> tuple[StopRule, StopRule] | None:
    """The rule in a checkpoint's `stateful_callbacks`, and the recipe's that it stood for; None when there is none."""
    saved = (stateful_callbacks or {}).get(AutoStop.__name__)
    if not saved:
        return None
    rule = StopRule(**saved["args"]["rule"])
    return rule, StopRule(**saved["attributes"].get("instead_of", saved["args"]["rule"]))


def _in_words(rule: StopRule, machine: StopState, step: int) -> str:
    if machine.phase is Phase.FIRED and machine.reason == "non-finite":
        return f"auto-stop: fired at step {step}: eval_loss is not a finite number"
    best = f"best {machine.best:.4g} at step {machine.best_step}"
    if machine.phase is Phase.WAITING:
        return f"auto-stop: waiting for step {rule.min_steps}; {best}"
    if machine.phase is Phase.ARMED:
        return f"auto-stop: armed, reference {machine.reference:.4g} at step {machine.reference_step}; {best}"
    counted = f"{machine.bad} of {rule.patience} evals without a gain over {rule.min_delta:g}"
    if machine.phase is Phase.COUNTING:
        return f"auto-stop: counting, {counted}; {best}"
    return f"auto-stop: fired at step {step}: {counted}; {best}"


class Metrics(TrainerCallback):
    """Writes metrics.jsonl: exact steps and times of everything, from rank 0."""

    def __init__(self, writer: MetricsWriter, checkpoints: Path, tokens_per_step: float) -> None:
        self.writer = writer
        self.checkpoints = checkpoints
        self.tokens_per_step = tokens_per_step
        """Mean tokens that one optimiser step trains on, over all processes; the rate in the log is made of it."""
        self._began = self._mark = self._told = time.monotonic()
        self._steps: list[float] = []
        """Seconds of each step since the last log line; evaluations and saves are not in it."""
        self._trained_s, self._trained = 0.0, 0

    @property
    def tokens_per_s(self) -> float | None:
        """Over all steps of this process, evaluations and saves left out; None before the first."""
        return self.tokens_per_step * self._trained / self._trained_s if self._trained else None

    def judged(self, step: int, machine: StopState, words: str) -> None:
        """Take in the auto-stop's judgement of an eval."""
        reason = machine.reason or words
        self.writer.write("autostop", step=step, state=machine.to_dict(), phase=str(machine.phase), reason=reason)

    def changed(self, step: int, rule: StopRule, instead_of: StopRule, request: Request) -> None:
        """Take in a change of the rule: this line is what a later process of the run goes by."""
        self.writer.write("rule", step=step, rule=asdict(rule), instead_of=asdict(instead_of), id=request.id)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clocks."""
        self._began = self._mark = self._told = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One optimiser step was made."""
        now = time.monotonic()
        self._steps.append(now - self._mark)
        self._trained_s, self._trained = self._trained_s + now - self._mark, self._trained + 1
        self._mark = now
        if now - self._told >= 1.0:
            self._told = now
            self.writer.write("progress", step=state.global_step, elapsed_s=round(now - self._began, 4))

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write a training line or an eval."""
        step, logs = state.global_step, given["logs"]
        if "eval_loss" in logs:
            kept = {k: v for k, v in logs.items() if k.startswith("eval_")}
            self.writer.write("eval", step=step, epoch=logs.get("epoch"), **kept)
        elif "loss" in logs:
            step_s = sum(self._steps) / len(self._steps) if self._steps else None
            self._steps.clear()
            self.writer.write(
                "train",
                step=step,
                **{key: logs.get(key) for key in ("loss", "grad_norm", "learning_rate", "epoch")},
                step_s=step_s,
                tokens_per_s=self.tokens_per_step / step_s if step_s else None,
            )
        self._mark = time.monotonic()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The next step's time begins after the evaluation."""
        self._mark = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint was written and sealed; its time is what passed since the last event."""
        now = time.monotonic()
        folder = self.checkpoints / f"checkpoint-{state.global_step}"
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        self.writer.write("save", step=state.global_step, seconds=now - self._mark, path=folder.name, bytes=size)
        self._mark = time.monotonic()


class StopFlag:
    """Whether somebody asked this process to stop: SIGTERM, SIGINT, or stop.request in the run directory."""

    def __init__(self, run_dir: Path, *, look_every_s: float = 1.0) -> None:
        self.run_dir = run_dir
        self.look_every_s = look_every_s
        """Seconds between two looks at the disk."""
        self.signal: int | None = None
        self._looked = 0.0
        self._request: rundir.StopRequest | None = None

    def arm(self) -> None:
        """Take over SIGTERM and SIGINT: they ask, and no longer kill. Main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._heard)

    def disarm(self) -> None:
        """Ignore both from here on: the run is over. While the interpreter ends it puts the default handlers back, and
        a SIGTERM that comes then (the supervisor's, for a request we have already obeyed) would make the exit code 143.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    def _heard(self, number: int, _: object) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # pressed twice: the person does not want to wait
        self.signal = number

    def reason(self) -> str | None:
        """Why to stop, None to go on."""
        if self.signal is not None:
            request = rundir.read_stop_request(self.run_dir)
            return request.reason if request else signal.Signals(self.signal).name
        now = time.monotonic()
        if self._request is None and now - self._looked >= self.look_every_s:
            self._looked = now
            self._request = rundir.read_stop_request(self.run_dir)
        return self._request.reason if self._request else None


class StopOnRequest(TrainerCallback):
    """Ends training with a checkpoint at the next step when the flag is up on any rank."""

    def __init__(self, flag: StopFlag, writer: MetricsWriter | None) -> None:
        self.flag = flag
        self.writer = writer
        self.stopped: str | None = None
        """The reason once it has stopped."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look once per step."""
        self._look(args, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation takes long enough to be asked in the middle of it."""
        self._look(args, state, control)

    def _look(self, args: Any, state: Any, control: Any) -> None:
        if self.stopped is not None or control.should_training_stop:
            return
        reason = self.flag.reason()
        if args.world_size > 1:
            reason = _agree(reason, args.device)
        if reason is None:
            return
        self.stopped = reason
        control.should_training_stop = control.should_save = True
        if state.is_world_process_zero:
            say(f"stop: {reason}; saving a checkpoint at step {state.global_step}")
            if self.writer is not None:
                self.writer.write("ack", request="stop", detail=reason, step=state.global_step)


def _agree(reason: str | None, device: Any) -> str | None:
    """The same answer on every rank: stop when any of them was asked."""
    from torch import distributed

    flag = torch.tensor(int(reason is not None), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return (reason or "asked of another rank") if int(flag) else None


class StopOnNonFinite(TrainerCallback):
    """Ends training when the logged loss or gradient is no finite number; such weights are not saved."""

    def __init__(self) -> None:
        self.stopped: str | None = None

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Look at each training line."""
        logs = given["logs"]
        bad = [key for key in ("loss", "grad_norm") if not math.isfinite(float(logs.get(key, 0.0)))]
        if bad and self.stopped is None:
            self.stopped = f"{bad[0]} is {float(logs[bad[0]])} at step {state.global_step}"
            control.should_training_stop = True
            control.should_save = control.should_evaluate = False
            if state.is_world_process_zero:
                say(f"stop: {self.stopped}; the last whole checkpoint is kept, nothing is saved over it")


class Checkpoints(TrainerCallback):
    """Seals each checkpoint with its manifest and prunes what is no longer needed.

    Kept are the newest `keep` whole ones and always the best. A checkpoint that must be uploaded first is not pruned
    before `may_prune` says so.
    """

    def __init__(self, directory: Path, keep: int, best_step: Callable[[], int | None]) -> None:
        self.directory = directory
        self.keep = keep
        self.best_step = best_step
        self.before_seal: Callable[[Path], None] = lambda _: None
        self.may_prune: Callable[[Path], bool] = lambda _: True
        self.on_sealed: Callable[[Path], None] | None = None
        self.last_step: int | None = None
        """Step of the newest checkpoint that was sealed; the same on every rank."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Every rank has written its part: hash it, say that it is whole, then tidy up; no rank goes on before."""
        meet = torch.distributed.barrier if args.world_size > 1 else lambda: None
        meet()
        if state.is_world_process_zero:
            self._seal(state)
        self.last_step = state.global_step
        meet()

    def _seal(self, state: Any) -> None:
        folder = self.directory / f"checkpoint-{state.global_step}"
        self.before_seal(folder)
        rundir.write_manifest(folder)
        if self.on_sealed is not None:
            self.on_sealed(folder)
        self.prune()

    def prune(self) -> None:
        """Remove what is neither best nor among the newest; torn ones too, but for one being written."""
        whole = [p for p in rundir.checkpoints(self.directory) if (p / rundir.MANIFEST).is_file()]
        torn = [p for p in rundir.checkpoints(self.directory) if p not in whole]
        best = self.best_step()
        spare = [p for p in whole[self.keep :] if rundir.checkpoint_step(p) != best and self.may_prune(p)]
        for path in spare + (torn if whole else []):
            # the marker goes first: a checkpoint that is half removed must not count as whole
            (path / rundir.MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)
