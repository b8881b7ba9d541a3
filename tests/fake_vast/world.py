"""The provider's side of the world: the account, the asks, the instances and what they cost.

Everything that happens later (a status change, an end of contract) is an event with a time; `tick` carries out what is
due in the order of time, metering up to each event, so a clock that jumps eight hours bills eight hours rightly.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from tests.fake_vast.boxes import DIRECT_HOST, PROXY_HOST, BoxHost, Container
from tests.fake_vast.market import HOURS_PER_MONTH, priced, seed_offers

BILLED = ("running", "frozen")
BOOT = ((0.0, None), (2.0, "created"), (4.0, "loading"), (10.0, "running"))
"""Seconds after the create, and the status from then on."""


@dataclass
class Box:
    """One contract."""

    id: int
    offer: dict[str, Any]
    label: str
    disk_gb: float
    is_bid: bool
    created: float
    request: dict[str, Any]
    api_key: str
    dph_base: float
    status: str | None = None
    intended: str = "running"
    cur: str = "unloaded"
    next: str = "running"
    message: str = ""
    end_date: float | None = None
    metered: float = 0.0
    gpu_usd: float = 0.0
    disk_usd: float = 0.0
    gpu_hours: float = 0.0
    disk_hours: float = 0.0
    down_gb: float = 0.0
    up_gb: float = 0.0
    started: float | None = None
    destroyed: float | None = None
    hidden_lists: int = 0
    """Successful listings in which it does not show yet."""
    lingering_lists: int = 0
    """Successful listings in which it still shows although destroyed."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keys of the row that a test wants to be odd."""
    events: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    container: Container | None = None
    destroyed_by: str = ""
    booting: bool = False
    """Its processes were started and its sshd does not greet yet."""

    @property
    def disk_usd_per_h(self) -> float:
        return float(self.offer["storage_cost"]) * self.disk_gb / HOURS_PER_MONTH

    def rebid(self, usd_per_h: float) -> None:
        self.dph_base = usd_per_h

    @property
    def usd(self) -> float:
        down = self.down_gb * float(self.offer["inet_down_cost"])
        return self.gpu_usd + self.disk_usd + down + self.up_gb * float(self.offer["inet_up_cost"])


P = ParamSpec("P")
T = TypeVar("T")


def _alone(deed: Callable[Concatenate[World, P], T]) -> Callable[Concatenate[World, P], T]:
    """One at a time with the ticks and the requests, also when a test calls it."""

    @wraps(deed)
    def locked(self: World, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.lock:
            return deed(self, *args, **kwargs)

    return locked


class World:
    """The account and its boxes."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        offers: list[dict[str, Any]] | None = None,
        credit: float = 25.0,
        boot: tuple[tuple[float, str | None], ...] = BOOT,
        host: BoxHost | None = None,
    ) -> None:
        self.clock = clock
        self.offers = {row["id"]: row for row in (seed_offers() if offers is None else offers)}
        self.start_credit = credit
        self.boot = boot
        self.host = host
        self.boxes: dict[int, Box] = {}
        self.account_key = "acct-" + secrets.token_hex(24)
        self.account_ssh_keys: list[dict[str, Any]] = []
        self.price_increases: list[dict[str, Any]] = []
        self.answered: list[tuple[int, bool]] = []
        """Price increases that were accepted or rejected."""
        self.logs: dict[int, str] = {}
        self.hide_new = 0
        """Listings that a new box stays invisible for."""
        self.linger = 0
        """Listings that a destroyed box still shows in."""
        self.refuse_start = False
        self.key_delay = 0.0
        self.on_create: Callable[[Box], None] | None = None
        self.lock = threading.RLock()
        self._next_id = 31_460_000

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Carry out everything that is due."""
        with self.lock:
            now = self.clock()
            for box in self.boxes.values():
                self._advance(box, now)
            if self.credit() <= 0:
                for box in self.boxes.values():
                    if box.destroyed is None and box.intended == "running":
                        self.halt(box)

    def _advance(self, box: Box, now: float) -> None:
        while box.events:
            box.events.sort(key=lambda event: event[0])
            at, action = box.events[0]
            if at > now:
                break
            box.events.pop(0)
            self.meter(box, at)
            action()
        self.meter(box, now)
        if box.container is None or box.destroyed is not None:
            return
        if box.booting and box.container.open.is_set():
            self._enter(box, "running")
        if (box.booting or box.status == "running") and not box.container.alive():
            box.status, box.message, box.booting = "exited", "container exited", False

    def meter(self, box: Box, until: float) -> None:
        """Count what it costs up to a moment."""
        if box.destroyed is not None:
            until = min(until, box.destroyed)
        hours = max(0.0, until - box.metered) / 3600
        box.metered = max(box.metered, until)
        if box.status in BILLED:
            box.gpu_hours += hours
            box.gpu_usd += hours * box.dph_base
        if box.status != "offline":
            box.disk_hours += hours
            box.disk_usd += hours * box.disk_usd_per_h

    def credit(self) -> float:
        """What is left to spend."""
        return self.start_credit - sum(box.usd for box in self.boxes.values())

    # -- deeds --------------------------------------------------------------------------------------------------------

    @_alone
    def create(self, offer_id: int, request: dict[str, Any]) -> Box:
        """Rent; the checks are the server's."""
        offer = self.offers[offer_id]
        offer["rentable"] = False
        offer["rented"] = True
        disk = float(request.get("disk") or 10)
        bid = request.get("price") is not None
        base = float(request["price"]) if bid else float(offer["dph_base"])
        now = self.clock()
        self._next_id += 1
        box = Box(
            self._next_id, priced(offer, disk, bid=bid), request.get("label") or "", disk, bid, now, request,
            "inst-" + secrets.token_hex(24), base, metered=now, end_date=now + float(offer["duration"]),
            hidden_lists=self.hide_new, lingering_lists=self.linger,
        )  # fmt: skip
        if self.host is not None:
            box.container = self.host.create(box.id, request.get("onstart"))
            for key in self.account_ssh_keys:
                self.host.add_key(box.id, key["public_key"])
        for after, status in self.boot:
            box.events.append((now + after, lambda status=status: self.set_status(box, status)))
        assert box.end_date is not None
        box.events.append((box.end_date, lambda: self.halt(box)))
        self.boxes[box.id] = box
        if self.on_create is not None:
            self.on_create(box)
        self._advance(box, now)
        return box

    @_alone
    def set_status(self, box: Box, status: str | None) -> None:
        """Move a box to a status, with what that means for its processes."""
        if box.destroyed is not None:
            return
        if status == "running" and self.host is not None and box.container is not None:
            # it is called running when its sshd serves connections, however long that takes here
            self.host.start(box.id, self._environment(box))
            box.booting, box.status = True, "loading"
            return
        self._enter(box, status)

    def _enter(self, box: Box, status: str | None) -> None:
        box.status, box.booting = status, False
        if status == "running":
            box.cur = "running"
            box.started = box.started or self.clock()

    def _environment(self, box: Box) -> dict[str, str]:
        assert box.container is not None
        asked = {k: str(v) for k, v in (box.request.get("env") or {}).items() if not k.startswith("-")}
        return {
            **asked,
            "CONTAINER_ID": str(box.id),
            "CONTAINER_API_KEY": box.api_key,
            "VAST_CONTAINERLABEL": f"C.{box.id}",
            "PUBLIC_IPADDR": DIRECT_HOST,
            "VAST_TCP_PORT_22": str(box.container.direct_port),
        }

    @_alone
    def halt(self, box: Box) -> None:
        """Stop its processes; the disk stays."""
        if box.destroyed is not None:
            return
        box.booting = False
        box.events = [event for event in box.events if event[0] == box.end_date]
        if self.host is not None:
            self.host.stop(box.id)
        # said when it is done: who reads the word finds no process any more
        box.status, box.intended, box.cur, box.next = "exited", "stopped", "stopped", "stopped"

    @_alone
    def stop(self, box: Box) -> None:
        self.meter(box, self.clock())
        self.halt(box)

    def outbid(self, box: Box) -> None:
        """Somebody bid more: processes killed, disk kept and billed."""
        self.stop(box)

    @_alone
    def start(self, box: Box) -> bool:
        """Start again; False when the GPU was let to somebody else."""
        self.meter(box, self.clock())
        if self.refuse_start:
            return False
        box.intended, box.next = "running", "running"
        self.set_status(box, "running")
        return True

    @_alone
    def destroy(self, box: Box, by: str) -> None:
        self.meter(box, self.clock())
        box.destroyed, box.destroyed_by = self.clock(), by
        box.events.clear()
        box.intended, box.next = "deleted", "deleted"
        if self.host is not None:
            self.host.remove(box.id)

    @_alone
    def attach_key(self, box: Box, public_key: str) -> None:
        if self.host is None:
            return
        host = self.host
        box.events.append((self.clock() + self.key_delay, lambda: host.add_key(box.id, public_key)))
        self._advance(box, self.clock())

    # -- what is asked by tests ---------------------------------------------------------------------------------------

    def living(self) -> list[Box]:
        """What bills at this moment, seen by the provider itself."""
        with self.lock:
            self.tick()
            return [box for box in self.boxes.values() if box.destroyed is None]

    def row(self, box: Box) -> dict[str, Any]:
        """The instance row, with its odd parts."""
        running = box.status == "running"
        offer = box.offer
        total = box.dph_base + box.disk_usd_per_h
        container = box.container
        direct, proxy = (container.direct_port, container.proxy_port) if container else (40022, 17956)
        ports = {"22/tcp": [{"HostIp": ip, "HostPort": str(direct)} for ip in ("0.0.0.0", "::")]}
        env = [[k, v] for k, v in (box.request.get("env") or {}).items()]
        row = {
            "id": box.id,
            "label": box.label or None,
            "actual_status": box.status,
            "intended_status": box.intended,
            "cur_state": box.cur,
            "next_state": box.next,
            "status_msg": box.message,
            "is_bid": box.is_bid,
            "machine_id": offer["machine_id"],
            "host_id": offer["host_id"],
            "image_uuid": box.request.get("image"),
            "image_runtype": box.request.get("runtype", "ssh"),
            "num_gpus": offer["num_gpus"],
            "gpu_name": offer["gpu_name"],
            "gpu_ram": offer["gpu_ram"],
            "gpu_util": 97.0 if running else None,
            "gpu_temp": 61.0 if running else None,
            "disk_space": box.disk_gb,
            "disk_util": -1.0,
            "inet_up": offer["inet_up"],
            "inet_down": offer["inet_down"],
            "inet_up_cost": offer["inet_up_cost"],
            "inet_down_cost": offer["inet_down_cost"],
            "storage_cost": offer["storage_cost"],
            "ssh_host": PROXY_HOST,
            "ssh_port": proxy,
            "ssh_idx": "6",
            "machine_dir_ssh_port": direct + 1,
            "public_ipaddr": DIRECT_HOST + "\n",
            "local_ipaddrs": "10.0.0.4 172.17.0.1",
            "ports": ports if running else None,
            "direct_port_start": direct if running else -1,
            "start_date": box.created,
            "end_date": box.end_date,
            "uptime_mins": None,
            "duration": (box.end_date or 0) - self.clock(),
            "dph_base": box.dph_base,
            "dph_total": total,
            "storage_total_cost": box.disk_usd_per_h,
            "min_bid": offer.get("min_bid"),
            "search": offer["search"],
            "instance": {
                "gpuCostPerHour": box.dph_base if box.status in BILLED else 0,
                "diskHour": box.disk_usd_per_h,
                "totalHour": (box.dph_base if box.status in BILLED else 0) + box.disk_usd_per_h,
            },
            "extra_env": env or None,
            "onstart": box.request.get("onstart"),
            "jupyter_token": "jup-" + box.api_key[-12:],
            "dlperf": offer["dlperf"],
            "cuda_max_good": offer["cuda_max_good"],
            "reliability2": offer["reliability"],
            "verification": offer["verification"],
            "geolocation": offer["geolocation"],
        }
        row.update(box.overrides)
        return row

    def charges(self) -> list[dict[str, Any]]:
        """The bill, one row per instance, as `/charges/` words it."""
        rows = []
        for box in self.boxes.values():
            items = [
                ("gpu", f"{box.gpu_hours:.3f} hours at ${box.dph_base:.3f}/hour", box.gpu_usd),
                ("disk", f"{box.disk_hours:.3f} hours at ${box.disk_usd_per_h:.5f}/hour", box.disk_usd),
                ("bwd", f"{box.down_gb:.3f} GB", box.down_gb * box.offer["inet_down_cost"]),
                ("bwu", f"{box.up_gb:.3f} GB", box.up_gb * box.offer["inet_up_cost"]),
            ]
            rows.append(
                {
                    "start": box.created,
                    "end": box.metered,
                    "type": "instance",
                    "source": f"instance-{box.id}",
                    "description": box.offer["gpu_name"],
                    "amount": box.usd,
                    "metadata": {"label": box.label, "template_id": None},
                    "items": [{"type": kind, "description": text, "amount": usd} for kind, text, usd in items],
                }
            )
        return rows
