"""M1 to M6: the new box is made ready while the old one trains. Whatever fails here costs the old run nothing.

Every function is one state, may be done again after a crash, and returns what the journal has to remember of it.
"""

from __future__ import annotations

import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from remote.access import own_key, wait_for_ssh
from remote.arming import Wishes, arm, limits_for, read_guard
from remote.asking import ask_for_save
from remote.by_hub import Fetch, OnHub, fetcher, prefix_of, uploaded
from remote.checkpoint_transfer import Cargo, End, SourceSpoiledError, carry, newest_checkpoint
from remote.desk import Note
from remote.labels import new_label
from remote.launch import choose_image, python_command
from remote.migrate_rehearse import old_events
from remote.money import bill
from remote.move import Move
from remote.on_hub import newest_on_hub
from remote.provider import Instance
from remote.recovery_policy import refuse_if_over
from remote.rent import check_offer, create_box, resolve, verify_row, wait_boot
from remote.transport import Transport
from runner.box.limits import RELEASE
from runner.errors import NotFoundError, ProviderError, RefusedError, UnreachableError
from runner.rundir import CHECKPOINTS

PROBATION_S = 2 * 3600.0
"""A new box that nobody tends to for so long ends itself: the laptop that rented it is gone."""
PINNED = "pinned"
"""Folder in the old run directory with hard links to the checkpoint that is being brought over."""
FIRST_SAVE_S = 1800.0
"""The old run is given so long for its first checkpoint."""
ANSWER_S = 120.0
"""The old run is given so long to take up the request for a checkpoint."""
SAVE_S = 900.0
"""And so long to have written it."""


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
    note.detail = f"it ends itself after {PROBATION_S / 3600:.0f} h in which nobody tends to it"
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
    asked = _asked(move, note)
    until = desk.mono() + (FIRST_SAVE_S if asked is None else SAVE_S)
    while True:
        cargo, torn = newest(move, move.old_id, move.request.old_dir, pin=True)
        status = move.status(move.old_id, move.request.old_dir)
        over = status is None or status.ended or desk.mono() > until
        if cargo is not None and (asked is None or cargo.step >= asked or over):
            words = ", saved for this" if asked is not None and cargo.step >= asked else ""
            note.detail = f"step {cargo.step}, {cargo.size / 1e6:.1f} MB{words}"
            note.detail += f"; passed over {torn[0]}" if torn else ""
            return {"cargo": cargo.to_json(), "asked_step": asked}
        if over:
            raise RefusedError(
                "There is no whole checkpoint of the run to go on from.", hint="Start it anew with tunewatch launch."
            )
        what = "first checkpoint" if asked is None else f"checkpoint of step {asked}"
        note.say(f"waiting for the {what}, the run is at step {status.step if status is not None else 0}")
        desk.sleep(2.0)


def _asked(move: Move, note: Note) -> int | None:
    """Ask the running trainer for a checkpoint now; the step that it saves at.

    None where it takes no requests (a foreign trainer, an older runner), is not alive, or does not answer: then the
    newest checkpoint it has written is used.
    """
    if not move.lives(move.old_id, move.request.old_dir):
        return None
    note.say("asking the old run for a checkpoint")
    try:
        ack = ask_for_save(move.host(move.old_id), move.request.old_dir, timeout=ANSWER_S)
    except RefusedError as error:
        note.say(error.message)
        return None
    return ack.step if ack is not None and ack.accepted else None


def newest(
    move: Move, instance_id: int, run_dir: str, *, at_most: int | None = None, pin: bool = False
) -> tuple[Cargo | None, list[str]]:
    """The newest whole checkpoint of the run on a box, wherever its trainer puts them; `pin` keeps it from pruning."""
    end = move.end(instance_id)

    def look(folder: str) -> tuple[Cargo | None, list[str]]:
        place = f"{run_dir}/{PINNED}/{folder.replace('/', '-')}" if pin else None
        return newest_checkpoint(end, f"{run_dir}/{folder}", at_most=at_most, pin=place)

    with ThreadPoolExecutor(thread_name_prefix="newest") as beside:
        seen = list(beside.map(look, move.folders()))
    found = [cargo for cargo, _ in seen if cargo is not None]
    passed = [words for _, torn in seen for words in torn]
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
        rate = f", {done.bytes / 1e6 / done.seconds:.0f} MB/s" if done.seconds > 0 and done.bytes > 1e6 else ""
        note.detail = f"step {cargo.step}, {done.bytes / 1e6:.1f} MB by {done.way}{rate}"
        return {
            "cargo": cargo.to_json(), "transfer_s": done.seconds, "transfer_bytes": done.bytes, "transfer_way": done.way
        }  # fmt: skip
    raise RefusedError("The old run prunes its checkpoints faster than they can be brought over.")


def source_of(move: Move, cargo: Cargo) -> End | None:
    """The old box as an end of a transfer; None for a checkpoint that is on the Hub alone."""
    return None if OnHub.from_place(cargo.path) is not None else move.end(move.old_id, door=True)


def hub_of(move: Move, cargo: Cargo, *, alive: bool = False) -> Fetch | None:
    """How to fetch a checkpoint from the Hub; None for a run that does not upload, or has not uploaded this one.

    With `alive` the old box was just seen.
    """
    known = OnHub.from_place(cargo.path)
    if known is not None:
        return fetcher(known, move.box(move.new_id).python, move.env)
    recipe = move.recipe()
    repo = recipe.train.hf_repo_id or move.order.hf_repo_id
    if not repo:
        return None
    # an upload follows its save within a few hundred events
    where = uploaded(old_events(move, alive=alive), repo, move.request.run, recipe.name, cargo.step)
    return None if where is None else fetcher(where, move.box(move.new_id).python, move.env)
