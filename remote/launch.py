"""Launch: rent, boot, let us in, ship, arm the guard, start, first log line. Then nothing of it depends on the laptop.

The deed is a list of steps over the journal, each of which can be done again, so a launch that was cut anywhere is
either carried on (`resume_launch`) or undone. An error, or Ctrl-C, undoes it: the box is destroyed and proved gone
before this returns. Once the run was started nothing is undone any more: from then on the guard and kill end it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from remote.access import KEY_PATIENCE_S, Opener, own_key, reach, wait_for_ssh
from remote.arming import Wishes, arm, flags, keep_report, limits_for, read_guard, stand_again
from remote.bootstrap import Box, Phases, prepare
from remote.deeds import DeedResult
from remote.desk import Desk, Note
from remote.destroy import destroy
from remote.images import choose_image, image_in_words, onstart
from remote.journal import Deed
from remote.labels import new_label
from remote.money import bill
from remote.own_host import quiet
from remote.provider import Instance, MarketOffer, OfferGoneError, RateLimitedError, RejectedError, find, is_own
from remote.redact import redact
from remote.remote_run import Order, resolve_order, start_run
from remote.rent import BootError, Plan, check_offer, create_box, resolve, verify_row, wait_boot
from remote.target import Target, parse_host
from remote.transport import Transport, shell_path
from runner.errors import NotFoundError, TunewatchError, UnconfirmedError, UnreachableError
from runner.needs import specs
from runner.rundir import LOG, STATUS, read_status

__all__ = ["Launch", "choose_image", "launch", "onstart", "python_command", "resume_launch", "undo_launch"]

FIRST_LINE_S = 240.0
"""A trainer that imports torch and loads a model may be silent for so long."""
OWN_PATIENCE_S = 30.0
"""A machine of one's own does not boot: who cannot log in now cannot later."""
PREPARE_S = 900.0
"""Steps on the box are repeated for so long when the link breaks; each can be done again."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that was decided; kept in the journal, so that another process can carry it on."""

    order: Order
    plan: Plan
    wishes: Wishes
    python: str = "python3"
    """The interpreter to build on."""
    grace_s: float = 60.0
    unattended: bool = True
    """Whether the run may go on without a guard that was proved: never, unless the user said so."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "order": asdict(self.order), "plan": asdict(self.plan), "wishes": self.wishes.to_json(),
            "python": self.python, "grace_s": self.grace_s, "unattended": self.unattended,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Launch:
        """Read what `to_json` wrote."""
        order = dict(data["order"])
        order["overrides"] = tuple(order.get("overrides") or ())
        return cls(
            Order(**order), Plan(**data["plan"]), Wishes(**data["wishes"]), data["python"], data["grace_s"],
            data["unattended"],
        )  # fmt: skip


def launch(desk: Desk, request: Launch, open_pair: Opener, environment: Mapping[str, str] | None = None) -> DeedResult:
    """Do it. Raises what went wrong after undoing it; UnconfirmedError when a box may exist and bill."""
    env = dict(os.environ if environment is None else environment)
    resolve_order(request.order, env)  # a recipe that cannot be used is said before any money is spent
    desk = desk.at(request.plan.offer_id)
    deed = desk.journal.begin("launch", request.plan.run, launch=request.to_json())
    with deed:
        return _carry_on(desk, deed, request, open_pair, env)


def resume_launch(
    desk: Desk, deed_id: str, open_pair: Opener, environment: Mapping[str, str] | None = None
) -> DeedResult:
    """Carry on a launch that was cut; same outcome and errors as `launch`."""
    env = dict(os.environ if environment is None else environment)
    with desk.journal.resume(deed_id) as deed:
        request = Launch.from_json(deed.data["launch"])
        return _carry_on(desk.at(request.plan.offer_id), deed, request, open_pair, env)


def undo_launch(desk: Desk, deed_id: str, open_pair: Opener | None = None) -> DeedResult:
    """End a launch that was cut: destroy what it rented, if anything, and close it."""
    with desk.journal.resume(deed_id) as deed:
        desk = desk.at(int(deed.data["launch"]["plan"]["offer_id"]))
        try:
            instance_id = _known_instance(desk, deed)
        except UnconfirmedError:
            return desk.result(ok=False, state="unconfirmed", run=deed.run, instance_id=None)
        if instance_id is None:
            deed.close("nothing rented")
            return desk.result(ok=True, state="destroyed", run=deed.run, instance_id=None)
        state = _undo(desk, deed, instance_id, "undone", open_pair)
        return desk.result(ok=state == "destroyed", state=state, run=deed.run, instance_id=instance_id)


def _carry_on(desk: Desk, deed: Deed, request: Launch, open_pair: Opener, env: Mapping[str, str]) -> DeedResult:
    plan = request.plan
    offer: MarketOffer | None = None
    try:
        instance_id = _known_instance(desk, deed)
        if instance_id is None:
            if deed.data.get("label"):
                deed.close("nothing rented")
                raise OfferGoneError("The rental left nothing behind; it was closed.", hint="Launch again.")
            with desk.step("offer", f"{plan.offer_id}") as note:
                offer = check_offer(desk, plan)
                plan = replace(plan, image=choose_image(offer, plan.image))
                price = offer.dph_total
                if plan.bid_usd_per_h is not None:
                    price += plan.bid_usd_per_h - offer.dph_base
                note.detail = f"{offer.num_gpus}x {offer.gpu_name}, ${price:.4f}/h with {plan.disk_gb:g} GB"
            with desk.step("rent") as note:
                label = str(new_label(desk.journal.laptop(), plan.run))
                instance_id = create_box(desk, deed, plan, offer, label)
                note.detail = f"{desk.called(instance_id)}{image_in_words(offer, plan.image)}"
        return _on_the_box(desk, deed, request, plan, offer, instance_id, open_pair, env)
    except UnconfirmedError:
        raise
    except (TunewatchError, KeyboardInterrupt) as error:
        if deed.record.closed is None:
            _after_failure(desk, deed, error, open_pair)
        raise


def _known_instance(desk: Desk, deed: Deed) -> int | None:
    """The box of this deed, looked for by label when its answer was lost; UnconfirmedError while that fails."""
    found = deed.data.get("instance_id")
    if isinstance(found, int):
        return found
    label = deed.data.get("label")
    if not label:
        return None
    refused = deed.data.get("answer") == "refused"
    age = desk.clock() - deed.record.opened
    # what did not show within minutes of the request will not come: then one look is enough
    lookups = (0.0,) if refused or age > 600 else (0.0, 5.0, 15.0, 30.0, 60.0)
    desk.listing()  # raises when the account cannot be looked at: then nothing is concluded
    return resolve(desk, deed, str(label), lookups=lookups)


def _after_failure(desk: Desk, deed: Deed, error: BaseException, open_pair: Opener) -> None:
    why = error.message if isinstance(error, TunewatchError) else "interrupted"
    instance_id = deed.data.get("instance_id")
    if isinstance(error, RejectedError) and error.new_contract is not None:
        instance_id = error.new_contract
    label = deed.data.get("label")
    if not isinstance(instance_id, int) and label and deed.data.get("answer") != "refused":
        # asked for, and no answer was heard: a quick look now, and reconcile later when it does not show
        instance_id = resolve(desk, deed, str(label), lookups=(0.0, 5.0, 15.0))
        if instance_id is None:
            return
    if not isinstance(instance_id, int):
        deed.close("failed", why=why)
        return
    if deed.data.get("started"):
        deed.close("running", why=why, instance=instance_id, box={"state": "running"})
        return
    if isinstance(error, (BootError, UnreachableError)) and not is_own(instance_id):
        _keep_evidence(desk, deed, instance_id, why)
    _undo(desk, deed, instance_id, why, open_pair)
    if isinstance(error, TunewatchError):
        box = desk.journal.box(instance_id)
        gone = box is not None and box.gone
        error.exists = "" if gone else f"{desk.called(instance_id)}, unconfirmed: it may still bill"


def _undo(desk: Desk, deed: Deed, instance_id: int, why: str, open_pair: Opener | None) -> Any:
    if is_own(instance_id) and not _quiet(desk, deed, instance_id, open_pair):
        deed.failed("destroy", instance=instance_id, box={"state": "unconfirmed"}, taken=False)
        return "unconfirmed"
    word = "giving back" if is_own(instance_id) else "destroying"
    with desk.step("undo", f"{word} {desk.called(instance_id)}") as note:
        label = str(deed.data.get("label") or "")
        state = destroy(desk, deed, instance_id, note, label=label)
    if state == "destroyed":
        deed.close("failed", instance=instance_id, why=why)
    return state


def _quiet(desk: Desk, deed: Deed, instance_id: int, open_pair: Opener | None) -> bool:
    """Whether it is known that nothing of this launch lives on a machine of one's own."""
    if not deed.data.get("run_dir"):
        return True  # nothing was put there yet
    row = find(desk.listing(), instance_id)
    with desk.step("end what was begun") as note:
        try:
            if row is None or open_pair is None:
                raise UnreachableError("the host was not asked")
            host, _ = reach(row, open_pair)
            with host:
                note.detail = quiet(host, str(deed.data["run_dir"]), name=deed.run, progress=desk.progress, grace_s=5.0)
        except TunewatchError as error:
            note.ok, note.detail = False, f"its run may still train: {error.message}"
    return note.ok is not False


def _keep_evidence(desk: Desk, deed: Deed, instance_id: int, why: str) -> None:
    """Why a box did not come up: its log and the provider's words, and its machine is not offered for a week."""
    box = desk.journal.box(instance_id)
    machine = box.data.get("machine_id") if box is not None else None
    if isinstance(machine, int) and machine:
        desk.journal.exclude(machine, why)
    folder = desk.journal.home / "launches"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        log = desk.provider.logs(instance_id, tail=400)
    except TunewatchError as error:
        log = f"(no log: {error.message})"
    (folder / f"{deed.id}.txt").write_text(redact(f"{why}\n\n{log}\n"), encoding="utf-8")


def _on_the_box(
    desk: Desk, deed: Deed, request: Launch, plan: Plan, offer: MarketOffer | None, instance_id: int,
    open_pair: Opener, env: Mapping[str, str],
) -> DeedResult:  # fmt: skip
    with desk.step("check the box"):
        row = verify_row(desk, deed, instance_id, plan, offer)
    with desk.step("SSH key") as note:
        _, public = own_key(desk.journal.home)
        deed.intent("key", instance=instance_id)
        if row.own:
            note.detail = "as your ssh_config says"
        try:
            desk.patiently(
                lambda: desk.provider.attach_key(instance_id, public), for_s=60.0,
                again_on=(UnreachableError, RateLimitedError),
            )  # fmt: skip
        except RejectedError as error:
            # the start script brought the key as well; whether that is enough shows at the next step
            note.ok, note.detail = None, error.message
        deed.done("key", instance=instance_id)
    with desk.step("boot") as note:
        row = wait_boot(desk, deed, instance_id, plan, note)
    _remember(desk, row, plan.image, "boot")
    with desk.step("SSH") as note:
        host, pair = wait_for_ssh(desk, row, open_pair, note, for_s=OWN_PATIENCE_S if row.own else KEY_PATIENCE_S)
        note.detail = f"{pair.kind} {pair.host}:{pair.port}"
    _remember(desk, row, plan.image, "ssh")
    with host:
        deed.done("ssh", instance=instance_id, box={"state": "ready", "ssh_kind": pair.kind})
        box = desk.patiently(lambda: _prepared(desk, request, row, host), for_s=PREPARE_S)
        for phase, seconds in box.seconds.items():
            desk.journal.add_phase(row.machine_id, plan.image, phase, seconds)
        run_dir = f"{box.root}/runs/{request.plan.run}"
        with desk.step("guard") as note:
            arm_box(desk, deed, request, row, host, box, run_dir, note)
        _start(desk, deed, request, host, box, run_dir, row, env)
        with desk.step("first log line") as note:
            note.detail = _first_line(desk, host, run_dir, note)
        keep_report(desk.journal, instance_id, read_guard(host, run_dir))
        _remember(desk, row, plan.image, "first log line")
    deed.close("running", instance=instance_id)
    return desk.result(ok=True, state="running", run=request.plan.run, instance_id=instance_id)


def _prepared(desk: Desk, request: Launch, row: Instance, host: Transport) -> Box:
    phases = Phases(desk.progress)
    recipe = resolve_order(request.order, os.environ)
    needs = "command" if recipe.kind == "command" else "study"
    try:
        return prepare(host, python=row.python or request.python, needs=needs, more=specs(recipe), phases=phases)
    finally:
        desk.steps.extend(phases.steps)


def arm_box(
    desk: Desk, deed: Deed, request: Launch, row: Instance, host: Transport, box: Box, run_dir: str, note: Note
) -> None:
    """Arm the guard with the limits of a launch, what was spent until now in them; raises GuardError."""
    spent = bill(desk.journal, row.id, desk.clock()).total
    url = getattr(desk.provider, "url", "")
    known = desk.journal.box(row.id)
    price = float(known.data.get("dph_total") or 0.0) if known is not None else None
    limits = limits_for(row, request.wishes, url=url, spent_usd=spent, known_usd_per_h=price)
    deadline = request.wishes.deadline_s
    deed.intent("guard", instance=row.id, run_dir=run_dir)
    desk.patiently(
        lambda: arm(desk, host, run_dir, limits, lambda words: python_command(box, words), note),
        for_s=60.0, again_on=(UnreachableError,),
    )  # fmt: skip
    if not row.own:
        stand_again(host, box.root, run_dir, lambda words: python_command(box, words), limits)
    deed.done(
        "guard",
        instance=row.id,
        box={
            "run_dir": run_dir,
            "guard": "watching",
            "budget_usd": request.wishes.budget_usd,
            "lease_s": request.wishes.lease_s,
            "idle_s": request.wishes.idle_s,
            "deadline_at": None if deadline is None else desk.clock() + deadline,
        },
    )


def python_command(box: Box, words: str) -> str:
    """The shell command for `python -m <words>` with the code that was shipped."""
    python = f"{shell_path(box.python)}{flags(words)}"
    return f"cd {shell_path(box.root)} && PYTHONPATH={shell_path(box.code)} {python} -m {words}"


def _start(
    desk: Desk, deed: Deed, request: Launch, host: Transport, box: Box, run_dir: str, row: Instance,
    env: Mapping[str, str],
) -> None:  # fmt: skip
    """Start the run unless it lives already: this step may be repeated after a crash."""
    deed.intent("start", instance=row.id)
    status = None
    try:
        status = read_status(host.read_from(f"{run_dir}/{STATUS}", 0).data)
    except NotFoundError:
        status = None
    if status is None:
        recipe = resolve_order(request.order, env)
        phases = Phases(desk.progress)
        target = Target("vast", run_dir, instance_id=row.id)
        if row.own:
            # it can be watched without this journal, and after it was taken out of hosts.toml
            target = replace(parse_host(row.address), path=run_dir, instance_id=row.id)
        try:
            start_run(
                host, box, replace(request.order, name=request.plan.run), recipe, target=target,
                home=desk.journal.home, grace_s=request.grace_s, environment=env, phases=phases,
            )  # fmt: skip
        finally:
            desk.steps.extend(phases.steps)
    deed.done("start", instance=row.id, started=True, box={"state": "running"})


def _first_line(desk: Desk, host: Transport, run_dir: str, note: Note) -> str:
    """The first line the trainer itself wrote; the run is not in danger when it takes long."""
    until = desk.mono() + FIRST_LINE_S
    while desk.mono() < until:
        data = host.read_from(f"{run_dir}/{LOG}", 0, limit=1 << 14).data
        lines = [line for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
        own = [line for line in lines if not line.startswith("# tunewatch run ")]
        if own:
            return redact(own[0].strip()[:160])
        status = read_status(host.read_from(f"{run_dir}/{STATUS}", 0).data)
        if status is not None and status.ended:
            note.ok = status.state == "finished"
            return f"the run {status.state} without a line ({status.reason or status.rc})"
        desk.sleep(0.3)
    note.ok = None
    return f"no line within {FIRST_LINE_S:.0f} s; the run is alive"


def _remember(desk: Desk, row: Instance, image: str, phase: str) -> None:
    """Keep how long the last step took, for the setup time of later quotes on this machine."""
    seconds = desk.steps[-1].seconds if desk.steps else None
    if seconds is not None:
        desk.journal.add_phase(row.machine_id, image, phase, seconds)
