"""M1 to M6: the new box is made ready while the old one trains. Whatever fails here costs the old run nothing.

Every function is one state, may be done again after a crash, and returns what the journal has to remember of it.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from remote.access import own_key, wait_for_ssh
from remote.arming import Wishes, arm, limits_for, read_guard
from remote.bootstrap import put_secrets
from remote.by_hub import Fetch, OnHub, fetcher, prefix_of, uploaded
from remote.checkpoint_transfer import Cargo, End, SourceSpoiledError, carry, newest_checkpoint
from remote.decision import Decision, decide, instance_offer, seconds_per_step
from remote.desk import Note
from remote.labels import new_label
from remote.launch import choose_image, python_command
from remote.money import bill
from remote.move import Move
from remote.on_hub import newest_on_hub
from remote.provider import Instance
from remote.recovery_policy import refuse_if_over
from remote.remote_run import PASSED_ON
from remote.rent import check_offer, create_box, resolve, verify_row, wait_boot
from remote.transport import Transport
from runner.atomic import read_object
from runner.box.limits import RELEASE
from runner.errors import NotFoundError, ProviderError, RefusedError, UnreachableError
from runner.history import RunHistory
from runner.log import LogReader
from runner.metrics import MetricsReader
from runner.rundir import CHECKPOINTS, LOG, METRICS

PROBATION_S = 2 * 3600.0
"""A new box that nobody tends to for so long ends itself: the laptop that rented it is gone."""
PINNED = "pinned"
"""Folder in the old run directory with hard links to the checkpoint that is being brought over."""
FIRST_SAVE_S = 1800.0
"""The old run is given so long for its first checkpoint."""
EVAL_TOLERANCE = 1e-3
"""Relative difference of the eval loss between two kinds of hardware that is rounding and nothing else."""
REHEARSE_S = 1800.0
TAIL = 1 << 20
"""Bytes of metrics.jsonl in which the newest upload is looked for."""


class RehearsalError(RefusedError):
    """The new box does not do with the checkpoint what the old one did."""


def create(move: Move, note: Note) -> dict[str, Any]:
    """M1: rent by one request. A rental whose answer was lost is looked for by its label and never sent again."""
    desk, deed, plan = move.desk, move.deed, move.request.launch.plan
    known = deed.data.get("instance_id")
    label = deed.data.get("label")
    if known is None and label:
        # what did not show within minutes of the request will not come: then one look is enough
        lookups = (0.0,) if desk.clock() - deed.record.opened > 600 else (0.0, 5.0, 15.0, 30.0, 60.0)
        desk.listing()
        known = resolve(desk, deed, str(label), lookups=lookups)
        if known is None:
            raise ProviderError("The rental left nothing behind.", hint="The old run is untouched; migrate again.")
    if known is None:
        offer = check_offer(desk, plan)
        plan = replace(plan, image=choose_image(offer, plan.image))
        known = create_box(desk, deed, plan, offer, str(new_label(desk.journal.laptop(), plan.run)))
        line = {"inet_up": offer.inet_up, "inet_down": offer.inet_down}
        desk.journal.put_box(known, **line)
    note.detail = f"instance {known}"
    return {"new_instance_id": known}


def boot(move: Move, note: Note) -> dict[str, Any]:
    """M2: it is the box that was quoted, our key is let in, and it runs."""
    desk, plan = move.desk, move.request.launch.plan
    verify_row(desk, move.deed, move.new_id, plan, None)
    _, public = own_key(desk.journal.home)
    desk.patiently(lambda: desk.provider.attach_key(move.new_id, public), for_s=60.0)
    row = wait_boot(desk, move.deed, move.new_id, plan, note)
    note.detail = f"{row.gpu_name}, ${row.dph_total:.4f}/h"
    return {"booted_at": desk.clock()}


def prepare_box(move: Move, note: Note) -> dict[str, Any]:
    """M3: code, environment, and a guard with a short deadline, before anything of value is there."""
    desk = move.desk
    row = move.row(move.new_id)
    if row is None:
        raise UnreachableError(f"Instance {move.new_id} is gone.")
    host, pair = wait_for_ssh(desk, row, move.open_pair, note)
    move.keep(move.new_id, host)
    box = desk.patiently(lambda: move.box(move.new_id), for_s=600.0)
    new_dir = f"{box.root}/runs/{move.request.run}"
    host.run(f"mkdir -p {shlex.quote(new_dir)}/{CHECKPOINTS}", timeout=20.0)
    # nothing on this box is worth keeping yet: at its deadline the guard may destroy it
    host.put(b"", f"{new_dir}/{RELEASE}")
    probation = Wishes(deadline_s=from_now(host, new_dir, PROBATION_S), keep=True)
    arm_guard(move, row, host, new_dir, probation, note)
    for phase, seconds in box.seconds.items():
        desk.journal.add_phase(row.machine_id, move.request.launch.plan.image, phase, seconds)
    return {"new_dir": new_dir, "ssh_kind": pair.kind}


def from_now(host: Transport, run_dir: str, seconds: float) -> float:
    """A moment `seconds` from now on the clock of the guard that stands there: it counts from its first arming."""
    elapsed = read_guard(host, run_dir).get("elapsed_s")
    return seconds + (float(elapsed) if isinstance(elapsed, (int, float)) else 0.0)


def arm_guard(move: Move, row: Instance, host: Transport, run_dir: str, wishes: Wishes, note: Note) -> None:
    """Arm the guard of the new box, or give the one that stands its new limits.

    What the old box has cost counts against the budget of the run.
    """
    desk = move.desk
    spent = sum(bill(desk.journal, box, desk.clock()).total for box in (move.old_id, row.id))
    url = str(getattr(desk.provider, "url", ""))
    limits = limits_for(row, wishes, url=url, spent_usd=spent)
    box = move.box(row.id)
    desk.patiently(lambda: arm(desk, host, run_dir, limits, lambda words: python_command(box, words), note), for_s=60.0)


def save(move: Move, note: Note) -> dict[str, Any]:
    """M4: name the newest whole checkpoint of the old run; wait for the first one where there is none yet."""
    desk = move.desk
    carried = move.deed.data.get("cargo")
    if move.is_dead(move.old_id):
        if carried is not None:
            note.detail = f"the old box is gone; step {carried['step']} is used"
            return {}
        try:
            _wake(move, note)
        except RefusedError as error:
            left = from_the_hub(move, error)
            note.detail = f"step {left.step}, {left.size / 1e6:.0f} MB, on the Hub; {error.message}"
            return {"cargo": left.to_json()}
    if move.request.recovery is not None:
        refuse_if_over(move.status(move.old_id, move.request.old_dir), move.request.run)
    until = desk.mono() + FIRST_SAVE_S
    while True:
        cargo, torn = newest(move, move.old_id, move.request.old_dir, pin=True)
        if cargo is not None:
            note.detail = f"step {cargo.step}, {cargo.size / 1e6:.0f} MB" + (f"; passed over {torn[0]}" if torn else "")
            return {"cargo": cargo.to_json()}
        status = move.status(move.old_id, move.request.old_dir)
        if status is None or status.ended or desk.mono() > until:
            raise RefusedError(
                "There is no whole checkpoint of the run to go on from.", hint="Start it anew with tunewatch launch."
            )
        note.say(f"waiting for the first checkpoint, the run is at step {status.step or 0}")
        desk.sleep(2.0)


def newest(
    move: Move, instance_id: int, run_dir: str, *, at_most: int | None = None, pin: bool = False
) -> tuple[Cargo | None, list[str]]:
    """The newest whole checkpoint of the run on a box, wherever its trainer puts them; `pin` keeps it from pruning."""
    end = move.end(instance_id)
    found: list[Cargo] = []
    passed: list[str] = []
    for folder in move.folders():
        place = f"{run_dir}/{PINNED}/{folder.replace('/', '-')}" if pin else None
        cargo, torn = newest_checkpoint(end, f"{run_dir}/{folder}", at_most=at_most, pin=place)
        passed += torn
        if cargo is not None:
            found.append(cargo)
    return max(found, key=lambda c: c.step, default=None), passed


def from_the_hub(move: Move, why: RefusedError) -> Cargo:
    """What the run uploaded last, where its box cannot be read; raises `why` when that is nothing."""
    recipe = move.recipe()
    repo = recipe.train.hf_repo_id or move.order.hf_repo_id
    if repo:
        cargo = newest_on_hub(repo, prefix_of(recipe.name, move.request.run), move.env)
        if cargo is not None:
            return cargo
        why.message += f" {repo} holds no whole checkpoint of it either."
    raise why


def _wake(move: Move, note: Note) -> None:
    """A halted box still has its disk: it is started to be read, never to train."""
    desk, row = move.desk, move.row(move.old_id)
    if row is None:
        raise RefusedError(
            f"Instance {move.old_id} is gone, and with it its checkpoints.", hint="Start anew with tunewatch launch."
        )
    if row.status == "offline":
        raise RefusedError(f"The host of instance {move.old_id} is offline.", hint="Try again when it is back.")
    note.say(f"instance {move.old_id} is {row.status}; starting it to read its disk")
    move.deed.intent("wake", instance=move.old_id)
    try:
        desk.patiently(lambda: desk.provider.start(move.old_id), for_s=30.0)
        until = desk.mono() + 300.0
        while move.is_dead(move.old_id):
            if desk.mono() > until:
                raise UnreachableError(f"Instance {move.old_id} does not start.")
            desk.sleep(3.0)
    except ProviderError as error:
        raise RefusedError(
            f"Instance {move.old_id} cannot be started to read its checkpoints: {error.message}",
            hint="Its disk stays, and bills, until it is destroyed; try again later.",
        ) from error
    move.deed.done("wake", instance=move.old_id)


def transfer(move: Move, note: Note) -> dict[str, Any]:
    """M5: bring the checkpoint over. One that turns out spoiled, or was pruned meanwhile, gives way to another."""
    cargo = Cargo.from_json(move.deed.data["cargo"])
    at_most: int | None = None
    for _ in range(4):
        try:
            done = carry(
                move.desk, cargo, source_of(move, cargo), move.end(move.new_id),
                f"{move.new_dir}/{CHECKPOINTS}/checkpoint-{cargo.step}", note, usd_per_h=move.usd_per_h(),
                hub=hub_of(move, cargo),
            )  # fmt: skip
        except (SourceSpoiledError, NotFoundError) as error:
            if OnHub.from_place(cargo.path) is not None:
                raise
            if isinstance(error, SourceSpoiledError):
                at_most = cargo.step - 1
            note.say(f"{error.message} Looking for another.")
            other, _ = newest(move, move.old_id, move.request.old_dir, at_most=at_most, pin=True)
            if other is None:
                raise RefusedError("No checkpoint of the run could be brought over whole.") from error
            cargo = other
            continue
        rate = done.bytes / 1e6 / done.seconds if done.seconds > 0 else 0.0
        note.detail = f"step {cargo.step}, {done.bytes / 1e6:.1f} MB by {done.way}, {rate:.0f} MB/s"
        return {
            "cargo": cargo.to_json(), "transfer_s": done.seconds, "transfer_bytes": done.bytes, "transfer_way": done.way
        }  # fmt: skip
    raise RefusedError("The old run prunes its checkpoints faster than they can be brought over.")


def source_of(move: Move, cargo: Cargo) -> End | None:
    """The old box as an end of a transfer; None for a checkpoint that is on the Hub alone."""
    return None if OnHub.from_place(cargo.path) is not None else move.end(move.old_id, door=True)


def hub_of(move: Move, cargo: Cargo) -> Fetch | None:
    """How to fetch a checkpoint from the Hub; None for a run that does not upload, or has not uploaded this one."""
    known = OnHub.from_place(cargo.path)
    if known is not None:
        return fetcher(known, move.box(move.new_id).python, move.env)
    recipe = move.recipe()
    repo = recipe.train.hf_repo_id or move.order.hf_repo_id
    if not repo:
        return None
    host, path = move.host(move.old_id), f"{move.request.old_dir}/{METRICS}"
    # an upload follows its save within a few hundred events
    tail = host.read_from(path, max(0, host.stat(path).size - TAIL), limit=TAIL, timeout=30.0).data
    events = [event for line in tail.splitlines() if (event := read_object(line)) is not None]
    where = uploaded(events, repo, move.request.run, recipe.name, cargo.step)
    return None if where is None else fetcher(where, move.box(move.new_id).python, move.env)


def rehearse(move: Move, note: Note) -> dict[str, Any]:
    """M6: the new box shows that it goes on from this checkpoint as the old one would, and how fast."""
    cargo = Cargo.from_json(move.deed.data["cargo"])
    if cargo.global_step is not None and cargo.global_step != cargo.step:
        raise RehearsalError(f"The checkpoint of step {cargo.step} says that it is of step {cargo.global_step}.")
    if move.recipe().kind == "command":
        note.detail = f"step {cargo.step} is there whole; a foreign trainer is not tried beforehand"
        return {}
    said = _rehearsed(move, cargo)
    check_rehearsal(said, cargo)
    step_s = float(said["step_s"])
    words = [f"step {said['global_step']}", f"{step_s:.3f} s per step"]
    if said.get("eval_loss") is not None:
        words.append(f"eval loss {said['eval_loss']:.4f}" + ("" if cargo.eval_loss is None else " as before"))
    facts: dict[str, Any] = {"rehearsal": said}
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


def check_rehearsal(said: dict[str, Any], cargo: Cargo) -> None:
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


def _rehearsed(move: Move, cargo: Cargo) -> dict[str, Any]:
    """Run the rehearsal on the new box with the order's own words and secrets; its answer."""
    host, box, order = move.host(move.new_id), move.box(move.new_id), move.order
    q = shlex.quote
    folder = f"{move.new_dir}/rehearsal"
    given = {name: move.env[name] for name in PASSED_ON if move.env.get(name)}
    put_secrets(host, f"{folder}/secrets", given)
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
    answer = host.run(
        f"cd {q(folder)} && . ./secrets && PYTHONPATH={q(box.code)} {q(box.python)} -m runner.study.rehearse "
        f"{shlex.join(words)} 2>rehearsal.err; rc=$?; rm -f secrets; [ $rc -eq 0 ] || tail -n 5 rehearsal.err >&2; "
        "exit $rc",
        timeout=REHEARSE_S,
    )  # fmt: skip
    if answer.rc != 0:
        raise RehearsalError(f"The rehearsal on the new box ended with {answer.rc}: {answer.complaint}.")
    return dict(json.loads(answer.stdout.splitlines()[-1]))


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
