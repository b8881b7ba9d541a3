"""What a migration carries in its hands: the request as it stands in the journal, and the two boxes.

The boxes are reached when they are first needed and again after the link broke; nothing here decides anything.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from remote.access import Opener, reach
from remote.alive import BOOT_ID, judge_alive
from remote.arming import PythonCommand, flags
from remote.bootstrap import Box, Phases, deliver, prepare
from remote.carry import Line
from remote.checkpoint_transfer import End
from remote.desk import Desk
from remote.direct import Door
from remote.journal import Deed, Journal
from remote.known_hosts import KnownHosts
from remote.launch import Launch, python_command
from remote.provider import Instance, find
from remote.remote_run import Order, resolve_order
from remote.ship import our_code
from remote.transport import Transport, shell_path
from runner.errors import NotFoundError, RefusedError, UnreachableError
from runner.needs import specs
from runner.recipe import Recipe
from runner.rundir import CHECKPOINTS, STATUS, Status, read_status

DEAD = ("stopped", "exited", "offline")
"""Statuses of a box that trains nothing for us any more: halted, ended by itself, or its host is gone."""
REACH_S = 45.0
"""A box that is listed as running is asked for so long before it counts as out of reach."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was decided, as the journal keeps it."""

    run: str
    old_id: int
    old_dir: str
    """The run directory on the old box, absolute."""
    old_label: str
    launch: Launch
    """Order, wishes and interpreter as the run was launched; the plan is that of the new box."""
    epoch: int
    """Under which the new trainer runs."""
    decision: Mapping[str, Any] | None = None
    forced: bool = False
    confirm_steps: int = 20
    """Steps on the new box after which the old one may go."""
    rehearse_steps: int = 20
    max_steps: int | None = None
    recovery: Mapping[str, Any] | None = None
    """Why this is done without being asked: cause and number; None for a move that a person wanted."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**{k: v for k, v in asdict(self).items() if k != "launch"}, "launch": self.launch.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Request:
        """Read what `to_json` wrote."""
        return cls(**{**data, "launch": Launch.from_json(data["launch"])})


@dataclass
class Move:
    """One migration in the hands of this process."""

    desk: Desk
    deed: Deed
    request: Request
    open_pair: Opener
    env: Mapping[str, str]
    _hosts: dict[int, Transport] = field(default_factory=dict)
    _boxes: dict[int, Box] = field(default_factory=dict)
    _seen: list[Instance] = field(default_factory=list)
    _code: dict[int, str] = field(default_factory=dict)

    @property
    def old_id(self) -> int:
        """The box the run is on."""
        return self.request.old_id

    @property
    def new_id(self) -> int:
        """The box it goes to; raises NotFoundError before one was rented."""
        found = self.deed.data.get("instance_id")
        if not isinstance(found, int):
            raise NotFoundError("No new box was rented.")
        return found

    @property
    def new_dir(self) -> str:
        """The run directory on the new box, absolute."""
        return str(self.deed.data["new_dir"])

    @property
    def order(self) -> Order:
        """What runs, under its name."""
        return replace(self.request.launch.order, name=self.request.run, epoch=self.request.epoch)

    def recipe(self) -> Recipe:
        """The recipe as it will run there; raises UsageError when its file is gone from here."""
        return resolve_order(self.request.launch.order, self.env)

    # -- boxes --------------------------------------------------------------------------------------------------------

    def row(self, instance_id: int) -> Instance | None:
        """The provider's row of a box, as it is now."""
        self._seen = self.desk.listing()
        return find(self._seen, instance_id)

    def seen(self, instance_id: int) -> Instance | None:
        """The same as it was last listed, for what does not change: its line, its prices, its address.

        A listing takes a second or more, and training stands still for some of the questions.
        """
        return find(self._seen, instance_id) or self.row(instance_id)

    def is_dead(self, instance_id: int) -> bool:
        """Whether the provider says that nothing runs on a box."""
        row = self.row(instance_id)
        return row is None or row.status in DEAD

    def host(self, instance_id: int) -> Transport:
        """A transport to a box. Raises UnreachableError when it cannot be reached for `REACH_S` seconds."""
        host = self._hosts.get(instance_id)
        if host is not None:
            return host
        row = self.row(instance_id)
        if row is None or row.status in DEAD:
            raise UnreachableError(f"Instance {instance_id} is {row.status if row is not None else 'gone'}.")
        box = self.desk.journal.box(instance_id)
        prefer = str(box.data.get("ssh_kind") or "") if box is not None else ""
        host, _ = self.desk.patiently(lambda: reach(row, self.open_pair, prefer=prefer), for_s=REACH_S)
        self._hosts[instance_id] = host
        return host

    def keep(self, instance_id: int, host: Transport, box: Box | None = None) -> None:
        """Use these from now on."""
        self._hosts[instance_id] = host
        if box is not None:
            self._boxes[instance_id] = box

    def forget(self, instance_id: int) -> None:
        """Close the link; the next use builds it anew."""
        host = self._hosts.pop(instance_id, None)
        self._boxes.pop(instance_id, None)
        self._code.pop(instance_id, None)
        if host is not None:
            host.close()

    def box(self, instance_id: int) -> Box:
        """A box that is ready for this run; costs two questions when it was made ready before."""
        if instance_id not in self._boxes:
            phases = Phases(self.desk.progress)
            recipe, host = self.recipe(), self.host(instance_id)
            needs = "command" if recipe.kind == "command" else "study"
            self._boxes[instance_id] = prepare(
                host, python=self.request.launch.python, needs=needs, more=specs(recipe), phases=phases
            )
        return self._boxes[instance_id]

    def close(self) -> None:
        """Give both links back."""
        for instance_id in list(self._hosts):
            self.forget(instance_id)

    # -- what is asked of them ----------------------------------------------------------------------------------------

    def status(self, instance_id: int, run_dir: str) -> Status | None:
        """What the supervisor on a box last wrote; None when no run was started there."""
        try:
            return read_status(self.host(instance_id).read_from(f"{run_dir}/{STATUS}", 0, limit=1 << 16).data)
        except NotFoundError:
            return None

    def lives(self, instance_id: int, run_dir: str) -> bool:
        """Whether a trainer of this run lives on a box: by its process, for a status may be the last of a dead one."""
        status = self.status(instance_id, run_dir)
        if status is None or status.ended or not status.pid:
            return False
        answer = self.host(instance_id).run(
            f"cat {BOOT_ID} 2>/dev/null; echo @; cat /proc/{int(status.pid)}/stat 2>/dev/null", timeout=15.0
        )
        boot, _, stat = answer.stdout.decode("utf-8", "replace").partition("@\n")
        return judge_alive(stat, boot.strip(), start_ticks=status.start_ticks, boot_id=status.boot_id)

    def aide(self, instance_id: int) -> PythonCommand:
        """Our small programs on a box, by the box's own interpreter: nothing is installed for them."""
        if instance_id in self._boxes:
            box = self._boxes[instance_id]
            return lambda words: python_command(box, words)
        if instance_id not in self._code:
            self._code[instance_id], _ = deliver(self.host(instance_id), our_code())
        code = self._code[instance_id]
        word = self.request.launch.python
        python = shell_path(word) if "/" in word else shlex.quote(word)
        return lambda words: f"PYTHONPATH={shlex.quote(code)} {python}{flags(words)} -m {words}"

    def end(self, instance_id: int, *, door: bool = False) -> End:
        """A box as an end of a transfer; with `door` as one that another box may reach."""
        row = self.seen(instance_id)
        # a row does not say how fast the line is, the offer that was rented did
        known = self.desk.journal.box(instance_id)
        data = known.data if known is not None else {}
        line = Line(
            _number(data.get("inet_up")), _number(data.get("inet_down")),
            row.inet_up_cost if row is not None else 0.0, row.inet_down_cost if row is not None else 0.0,
        )  # fmt: skip
        way_in = self._door(row) if door and row is not None else None
        return End(self.host(instance_id), self.aide(instance_id), line, way_in)

    def _door(self, row: Instance) -> Door | None:
        pair = next((pair for pair in row.ssh if pair.kind == "direct"), None)
        key = KnownHosts(self.desk.journal.home).known_key(f"vast-{row.id}")
        return Door(pair.host, pair.port, pair.user, key) if pair is not None and key else None

    def usd_per_h(self) -> float:
        """What both boxes cost together."""
        ids = (self.old_id, self.deed.data.get("instance_id"))
        rows = [self.seen(number) for number in ids if isinstance(number, int)]
        return sum(row.billing_usd_per_h for row in rows if row is not None)

    def folders(self) -> tuple[str, ...]:
        """Where checkpoints of this run may lie on a box, below its run directory."""
        foreign = self.recipe().checkpoints
        return (CHECKPOINTS, f"work/{foreign}") if foreign else (CHECKPOINTS,)


def launch_of(journal: Journal, instance_id: int) -> Launch:
    """How the run on a box was launched, from the deed that did it; raises RefusedError when no deed of ours did."""
    for row in reversed(journal.rows(instance=instance_id)):
        data: Mapping[str, Any] = journal.deed(row.deed).data if row.deed is not None else {}
        request = data.get("request", data)
        if isinstance(request, Mapping) and "launch" in request:
            return Launch.from_json(request["launch"])
    raise RefusedError(
        f"The run on instance {instance_id} was not launched by tunewatch, so it is not known how to start it again.",
        hint="Start it with tunewatch run or launch, then it can be moved.",
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
