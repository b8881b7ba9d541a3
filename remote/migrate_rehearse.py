"""M6: the new box shows on the old one's checkpoint that it goes on as the old one would, and how fast.

One of our recipes is rehearsed by `runner.study.rehearse`: the checkpoint is loaded, evaluated on the run's own eval
set, and trained on for some timed steps. Somebody else's trainer is rehearsed where its recipe says how it is told to
end early (`[foreign] rehearse`): in a copy of its work tree, with its own resume arguments. What is found is compared
with what the old box wrote: the eval loss of the checkpoint's step, and the losses of the steps after it, which the old
one has trained meanwhile.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remote.bootstrap import deliver, put_secrets
from remote.checkpoint_transfer import Cargo
from remote.decision import Decision, decide, instance_offer, seconds_per_step
from remote.desk import Note
from remote.given import ship_named
from remote.move import Move
from remote.remote_run import PASSED_ON
from remote.ship import work_tree
from remote.transport import Transport
from runner.atomic import read_object
from runner.errors import NotFoundError, RefusedError
from runner.history import RunHistory
from runner.log import LogReader
from runner.metrics import MetricsReader
from runner.rundir import CHECKPOINTS, LOG, METRICS

EVAL_TOLERANCE = 1e-3
"""Relative difference of the eval loss between two kinds of hardware that is rounding and nothing else."""
TRAIN_TOLERANCE = 0.02
"""The same for the mean training loss of the first steps: each step carries the rounding of those before it."""
REHEARSE_S = 1800.0
TAIL = 1 << 20
"""Bytes of metrics.jsonl in which the newest events are looked for."""


class RehearsalError(RefusedError):
    """The new box does not do with the checkpoint what the old one did."""


def rehearse(move: Move, note: Note) -> dict[str, Any]:
    """The state M6; returns what the journal keeps. Raises RehearsalError, and RefusedError when it does not pay."""
    cargo = Cargo.from_json(move.deed.data["cargo"])
    if cargo.global_step is not None and cargo.global_step != cargo.step:
        raise RehearsalError(f"The checkpoint of step {cargo.step} says that it is of step {cargo.global_step}.")
    recipe = move.recipe()
    if recipe.kind != "command":
        said = _ours(move, cargo)
    elif recipe.foreign.rehearse:
        said = _foreign(move, cargo)
    else:
        note.detail = (
            f"step {cargo.step} is there whole; not tried beforehand: the recipe does not say how its trainer is told "
            "to end early (foreign.rehearse)"
        )
        return {}
    check_rehearsal(said, cargo)
    words = [f"step {said['global_step']}"]
    if said.get("eval_loss") is not None:
        words.append(f"eval loss {said['eval_loss']:.4f}" + ("" if cargo.eval_loss is None else " as before"))
    compared = check_losses(said, cargo.step, old_events(move))
    if compared:
        words.append(f"losses of {compared} as before")
    facts: dict[str, Any] = {"rehearsal": {**said, "compared": compared}}
    if said.get("step_s") is None:
        note.detail = ", ".join([*words, "too few steps to time"])
        return facts
    step_s = float(said["step_s"])
    words.append(f"{step_s:.3f} s per step")
    decision = _again(move, step_s)
    if decision is not None:
        facts["decision_after_rehearsal"] = decision.to_json()
        words.append(f"speed {decision.speed:.2f}")
        if not decision.pays and not move.request.forced:
            raise RefusedError(
                f"Measured there, the move does not pay: {decision.why}", hint="Add --force to move all the same."
            )
    note.detail = ", ".join(words)
    return facts


def check_rehearsal(said: Mapping[str, Any], cargo: Cargo) -> None:
    """Compare what the new box found with what the old one wrote; raises RehearsalError naming the difference."""
    if said.get("global_step") != cargo.step:
        raise RehearsalError(f"The new box loads step {said.get('global_step')} from the checkpoint of {cargo.step}.")
    loss = said.get("eval_loss")
    if cargo.eval_loss is None or loss is None:
        return
    allowed = EVAL_TOLERANCE * max(1.0, abs(cargo.eval_loss))
    if not abs(float(loss) - cargo.eval_loss) <= allowed:
        raise RehearsalError(
            f"The eval loss at step {cargo.step} is {loss:.6g} on the new box and was {cargo.eval_loss:.6g} on the "
            f"old one; {allowed:.1g} would be rounding."
        )


def check_losses(said: Mapping[str, Any], begin: int, events: Sequence[Mapping[str, Any]]) -> str:
    """Compare the training losses after step `begin` with those of the old box, as far as both have them.

    A line of the old box is the mean since the line before it. Returns which steps were compared, in words, empty for
    none; raises RehearsalError naming the first that differs.
    """
    there = said.get("losses") or []
    lines = [(int(e["step"]), float(e["loss"])) for e in events if _is_line(e)]
    first = last = None
    for (before, _), (step, loss) in itertools.pairwise(lines):
        if before < begin or step > begin + len(there) or step <= before:
            continue
        mean = sum(there[before - begin : step - begin]) / (step - before)
        allowed = TRAIN_TOLERANCE * max(1.0, abs(loss))
        if not abs(mean - loss) <= allowed:
            raise RehearsalError(
                f"The training loss at step {step} is {mean:.6g} on the new box and was {loss:.6g} on the old one; "
                f"{allowed:.1g} would be rounding."
            )
        first, last = first or before + 1, step
    return "" if first is None else f"steps {first} to {last}"


def _is_line(event: Mapping[str, Any]) -> bool:
    return event.get("event") == "train" and isinstance(event.get("step"), int) and isinstance(event.get("loss"), float)


def old_events(move: Move, *, alive: bool = False) -> list[dict[str, Any]]:
    """The newest events of the run on its old box; empty when it cannot be asked, or writes none.

    With `alive` the box was just seen, and the provider is not asked once more.
    """
    if not alive and move.is_dead(move.old_id):
        return []
    host, path = move.host(move.old_id), f"{move.request.old_dir}/{METRICS}"
    try:
        tail = host.read_from(path, max(0, host.stat(path).size - TAIL), limit=TAIL, timeout=30.0).data
    except NotFoundError:
        return []
    return [event for line in tail.splitlines() if (event := read_object(line)) is not None]


def _ours(move: Move, cargo: Cargo) -> dict[str, Any]:
    """Run the rehearsal on the new box with the order's own words and secrets; its answer."""
    host, box, order = move.host(move.new_id), move.box(move.new_id), move.order
    q = shlex.quote
    folder = _folder(move, host)
    named = order.recipe
    if Path(order.recipe).is_file():
        named = f"{folder}/recipe.toml"
        host.put(Path(order.recipe), named)
    words = [named, "--checkpoint", f"{move.new_dir}/{CHECKPOINTS}/checkpoint-{cargo.step}"]
    words += ["--steps", str(move.request.rehearse_steps), "--run-dir", folder]
    if order.config is not None:
        host.put(Path(order.config), f"{folder}/config-given.toml")
        words += ["--config", f"{folder}/config-given.toml"]
    for pair in order.overrides:
        words += ["--set", pair]
    words += ship_named(host, move.recipe())
    answer = host.run(
        f"cd {q(folder)} && . ./secrets && PYTHONPATH={q(box.code)} {q(box.python)} -m runner.study.rehearse "
        f"{shlex.join(words)} 2>rehearsal.err; rc=$?; rm -f secrets; [ $rc -eq 0 ] || tail -n 5 rehearsal.err >&2; "
        "exit $rc",
        timeout=REHEARSE_S,
    )  # fmt: skip
    if answer.rc != 0:
        raise RehearsalError(f"The rehearsal on the new box ended with {answer.rc}: {answer.complaint}.")
    return dict(json.loads(answer.stdout.splitlines()[-1]))


def _foreign(move: Move, cargo: Cargo) -> dict[str, Any]:
    """The same for somebody else's trainer: its own command, told to end some steps after the checkpoint."""
    host, box, recipe = move.host(move.new_id), move.box(move.new_id), move.recipe()
    steps, q = move.request.rehearse_steps, shlex.quote
    folder = _folder(move, host)
    tree, _ = deliver(host, work_tree(recipe.workdir))
    given = {
        "{checkpoint}": f"{move.new_dir}/{CHECKPOINTS}/checkpoint-{cargo.step}",
        "{until}": str(cargo.step + steps),
        "{steps}": str(steps),
    }
    words = list(recipe.command)
    for part in (*recipe.resume, *recipe.foreign.rehearse):
        for name, value in given.items():
            part = part.replace(name, value)
        words.append(part)
    setup = f"{shlex.join(recipe.foreign.setup)} && " if recipe.foreign.setup else ""
    answer = host.run(
        f"cd {q(folder)} && rm -rf work {METRICS} {LOG} && cp -R {q(tree)} work && cd work && . ../secrets && "
        f"PATH={q(box.python.rpartition('/')[0])}:$PATH TUNEWATCH_RUN_DIR={q(folder)} PYTHONUNBUFFERED=1 && "
        f"export PATH TUNEWATCH_RUN_DIR PYTHONUNBUFFERED && {setup}"
        f"timeout {REHEARSE_S - 60:.0f} {shlex.join(words)} >../{LOG} 2>&1 </dev/null; rc=$?; cd ..; rm -f secrets; "
        f"[ $rc -eq 0 ] || tail -n 5 {LOG} >&2; rm -rf work; exit $rc",
        timeout=REHEARSE_S,
    )  # fmt: skip
    if answer.rc != 0:
        raise RehearsalError(
            f"The trainer's rehearsal on the new box ended with {answer.rc}: {answer.complaint}.",
            hint=f"It ran: {shlex.join(words)}",
        )
    return measured(history_of(host, folder), cargo.step)


def measured(history: RunHistory, begin: int) -> dict[str, Any]:
    """What a rehearsal's own log amounts to, in the words of `runner.study.rehearse`; raises RehearsalError."""
    trained = [(point.step, point.loss) for point in history.train if point.step is not None and point.step > begin]
    last = max([step for step, _ in trained] + [history.step or 0])
    if last <= begin:
        raise RehearsalError(f"The trainer ended without a step after {begin}; it does not go on from there.")
    every = [loss for _, loss in trained]
    unbroken = [step for step, _ in trained] == list(range(begin + 1, begin + 1 + len(trained)))
    return {
        "global_step": begin, "eval_loss": None, "steps": last - begin, "step_s": seconds_per_step(history),
        # a mean over several steps cannot be compared with another's
        "losses": every if unbroken else [], "device": "",
    }  # fmt: skip


def _folder(move: Move, host: Transport) -> str:
    """A folder beside the run's own files, with what the run is given of the laptop's environment."""
    folder = f"{move.new_dir}/rehearsal"
    put_secrets(host, f"{folder}/secrets", {name: move.env[name] for name in PASSED_ON if move.env.get(name)})
    return folder


def history_of(host: Transport, run_dir: str) -> RunHistory:
    """The history of a run from its metrics, from its log where it writes none; empty where there is neither."""
    readers: tuple[tuple[str, MetricsReader | LogReader], ...] = ((METRICS, MetricsReader()), (LOG, LogReader()))
    for name, reader in readers:
        offset = 0
        try:
            while chunk := host.read_from(f"{run_dir}/{name}", offset, timeout=60.0).data:
                reader.feed(chunk)
                offset += len(chunk)
        except NotFoundError:
            continue
        return reader.history()
    return RunHistory()


def _again(move: Move, step_s: float) -> Decision | None:
    """Weigh the move with the measured speed; what was paid for the new box so far is spent either way.

    None where the old box cannot be asked how fast it is: then there is nothing to stay on.
    """
    if move.request.decision is None or move.is_dead(move.old_id):
        return None
    history = history_of(move.host(move.old_id), move.request.old_dir)
    old, new = move.row(move.old_id), move.row(move.new_id)
    here_s = seconds_per_step(history)
    if old is None or new is None or here_s is None:
        return None
    return decide(
        history, instance_offer(old), instance_offer(new), measured_speed=here_s / step_s, setup_left_h=0.0,
        max_steps=move.request.max_steps,
    )  # fmt: skip
