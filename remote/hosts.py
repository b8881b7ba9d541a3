"""Plain SSH hosts as a market: machines of one's own, each with its price, let to nobody else.

    $TUNEWATCH_HOME/hosts.toml
    [box]                          # the name; also the Host in ssh_config
    address = "root@10.0.0.5:2222" # as `tunewatch run --host` takes it
    gpu = "RTX 4090"
    vram_gb = 24
    usd_per_h = 0.12               # electricity, or what somebody charges
    python = "/opt/conda/bin/python"   # the interpreter to build on, where it is not that of the settings

Renting a host writes down who uses it, destroying gives it back: nothing is created, nothing deleted on it, and its
price counts in between. It keeps the promises of `remote.provider`, which one suite holds against it and against the
market. In commands a host is called `host:NAME`.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remote.lock import FileLock
from remote.provider import (
    OWN_IDS,
    Account,
    Charge,
    Instance,
    MarketOffer,
    NoSuchInstanceError,
    OfferGoneError,
    Order,
    PriceIncrease,
    SshPair,
    Wanted,
    upper,
)
from remote.target import parse_host
from runner.atomic import write_atomic
from runner.errors import NotFoundError, RefusedError, UsageError

FILE = "hosts.toml"
STATE = "hosts.json"
_KEYS = {
    "address": str,
    "gpu": str,
    "vram_gb": (int, float),
    "usd_per_h": (int, float),
    "gpus": int,
    "disk_gb": (int, float),
    "python": str,
}
PREFIX = "host:"


class HostsProvider:
    """The hosts of one home directory."""

    name = "hosts"

    def __init__(self, home: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Read hosts.toml; a missing file is an empty market. Raises UsageError naming file, host and key."""
        self._home = home
        self._clock = clock
        self._hosts = _read(home / FILE)

    def called(self, instance_id: int) -> str:
        """A host by its name."""
        lease = self._leases().get(str(instance_id)) or {}
        name = next((name for name in self._hosts if host_id(name) == instance_id), lease.get("name"))
        return f"host {name or instance_id}"

    def search(self, wanted: Wanted) -> list[MarketOffer]:
        """Hosts that are free and fit, cheapest first."""
        taken = self._leases()
        offers = [self._offer(name, wanted.disk_gb) for name in self._hosts if str(host_id(name)) not in taken]
        return sorted((o for o in offers if _fits(o, wanted)), key=lambda offer: offer.dph_total)

    def offer(self, offer_id: int, *, disk_gb: float, spot: bool = False) -> MarketOffer:
        """One free host."""
        name = next((name for name in self._hosts if host_id(name) == offer_id), None)
        if name is None or str(offer_id) in self._leases() or spot:
            if name is None:
                there = ", ".join(PREFIX + one for one in self._hosts) or "none"
                raise OfferGoneError("There is no host of this name in hosts.toml.", hint=f"There are: {there}.")
            why = "cannot be had as an interruptible contract" if spot else "is in use"
            raise OfferGoneError(f"{upper(self.called(offer_id))} {why}.", hint="See: tunewatch instances.")
        return self._offer(name, disk_gb)

    def account(self) -> Account:
        """Nobody keeps an account with us."""
        return Account(None)

    def instances(self) -> list[Instance]:
        """The hosts in use."""
        return [self._instance(int(key), lease) for key, lease in sorted(self._leases().items())]

    def create(self, order: Order) -> int:
        """Take a host; raises OfferGoneError when somebody was quicker."""
        with self._locked() as leases:
            self.offer(order.offer_id, disk_gb=order.disk_gb)
            name = self.called(order.offer_id).removeprefix("host ")
            start = self._clock()
            leases[str(order.offer_id)] = {"label": order.label, "start": start, "stopped": False, "name": name}
        return order.offer_id

    def destroy(self, instance_id: int) -> None:
        """Give it back."""
        with self._locked() as leases:
            if leases.pop(str(instance_id), None) is None:
                raise NoSuchInstanceError(f"{upper(self.called(instance_id))} is not in use.")

    def stop(self, instance_id: int) -> None:
        """Count no more hours, keep it."""
        self._change(instance_id, stopped=True)

    def start(self, instance_id: int) -> None:
        """Count hours again."""
        self._change(instance_id, stopped=False)

    def label(self, instance_id: int, text: str) -> None:
        """Name the use."""
        self._change(instance_id, label=text)

    def attach_key(self, instance_id: int, public_key: str) -> None:
        """Nothing to do: a host of one's own lets its owner in."""
        if str(instance_id) not in self._leases():
            raise NoSuchInstanceError(f"{upper(self.called(instance_id))} is not in use.")

    def logs(self, instance_id: int, tail: int = 100) -> str:
        """A host has no container log."""
        return ""

    def charges(self, since: float, until: float) -> list[Charge]:
        """Nobody sends a bill."""
        return []

    def price_increases(self) -> list[PriceIncrease]:
        """Prices change when hosts.toml does."""
        return []

    def answer_increase(self, increase_id: int, *, accept: bool) -> None:
        """Nobody asks for more."""
        raise NotFoundError("No price increase is asked for.")

    def bid(self, instance_id: int, usd_per_h: float) -> None:
        """Nobody else bids."""
        raise RefusedError(f"{self.called(instance_id)} is a machine of your own: nobody bids for it.")

    # -- state --------------------------------------------------------------------------------------------------------

    def _offer(self, name: str, disk_gb: float) -> MarketOffer:
        spec = self._hosts[name]
        price = float(spec.get("usd_per_h", 0.0))
        ram = float(spec.get("vram_gb", 0.0)) * 1024
        gpus = int(spec.get("gpus", 1))
        row = {
            "id": PREFIX + name,
            "geolocation": "your own",
            "gpu_name": spec["gpu"],
            "num_gpus": gpus,
            "gpu_ram": ram or None,
            "dph_total": price,
        }
        return MarketOffer(
            id=host_id(name), machine_id=host_id(name), host_id=None, gpu_name=spec["gpu"], num_gpus=gpus,
            gpu_ram_mb=ram, dph_base=price, dph_total=price, storage_cost=0.0, disk_gb=disk_gb, verified=True,
            place="your own", own=name, row=row,
            disk_space_gb=float(spec["disk_gb"]) if "disk_gb" in spec else None,
        )  # fmt: skip

    def _instance(self, instance_id: int, lease: dict[str, Any]) -> Instance:
        name = next((name for name in self._hosts if host_id(name) == instance_id), str(lease.get("name") or ""))
        # a host that was taken out of hosts.toml while it was in use stays listed, and cannot be reached
        spec = self._hosts.get(name, {"gpu": "unknown", "address": ""})
        price = float(spec.get("usd_per_h", 0.0))
        pairs: tuple[SshPair, ...] = ()
        if spec["address"]:
            target = parse_host(spec["address"])
            pairs = (SshPair("direct", target.host or "", target.port or 22, target.user or ""),)
        stopped = bool(lease.get("stopped"))
        return Instance(
            id=instance_id, label=str(lease.get("label") or ""), status="stopped" if stopped else "running",
            intended="stopped" if stopped else "running", status_word="stopped" if stopped else "running",
            machine_id=instance_id, gpu_name=spec["gpu"], num_gpus=int(spec.get("gpus", 1)),
            gpu_ram_mb=float(spec.get("vram_gb", 0.0)) * 1024, dph_base=price, dph_total=price,
            start_date=float(lease.get("start") or 0.0), ssh=pairs, own=name or str(instance_id),
            address=spec["address"], python=str(spec.get("python", "")),
        )  # fmt: skip

    def _leases(self) -> dict[str, Any]:
        try:
            document = json.loads((self._home / STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{self._home / STATE} cannot be read.", hint="Remove it when no host is in use."
            ) from error
        return document if isinstance(document, dict) else {}

    def _change(self, instance_id: int, **fields: Any) -> None:
        with self._locked() as leases:
            if str(instance_id) not in leases:
                raise NoSuchInstanceError(f"{upper(self.called(instance_id))} is not in use.")
            leases[str(instance_id)].update(fields)

    def _locked(self) -> _Edit:
        return _Edit(self._home, self._leases)


class _Edit:
    """The leases under a lock, written whole at the end of the block unless it failed."""

    def __init__(self, home: Path, read: Callable[[], dict[str, Any]]) -> None:
        self._path = home / STATE
        self._lock = FileLock(home / "locks" / "hosts.lock")
        self._read = read
        self._leases: dict[str, Any] = {}

    def __enter__(self) -> dict[str, Any]:
        self._lock.acquire("A change of the hosts in use")
        self._leases = self._read()
        return self._leases

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                write_atomic(self._path, json.dumps(self._leases).encode())
                os.chmod(self._path, 0o600)  # noqa: PTH101 - one line with the write it belongs to
        finally:
            self._lock.release()


def host_id(name: str) -> int:
    """The number of a host, the same on every day: what offers and instances are called by."""
    return OWN_IDS + zlib.crc32(name.encode())


def parse_offer(text: str) -> int:
    """The number meant by `7000001` or `host:NAME`; raises UsageError."""
    text = text.strip()
    if text.startswith(PREFIX) and text.removeprefix(PREFIX):
        return host_id(text.removeprefix(PREFIX))
    if text.isdigit():
        return int(text)
    raise UsageError(
        f"'{text}' is no offer.", hint="Give the number of an offer, or host:NAME for a machine of your own."
    )


def _fits(offer: MarketOffer, wanted: Wanted) -> bool:
    return not (
        wanted.spot
        or (wanted.gpu is not None and offer.gpu_name.lower() != wanted.gpu.replace("_", " ").lower())
        or (wanted.max_price is not None and offer.dph_total > wanted.max_price)
        or (wanted.min_vram_gb is not None and offer.gpu_ram_mb < wanted.min_vram_gb * 1000)
        or (wanted.num_gpus is not None and offer.num_gpus != wanted.num_gpus)
        or (offer.disk_space_gb is not None and offer.disk_space_gb < wanted.disk_gb)
        or wanted.region is not None
    )


def _read(path: Path) -> dict[str, dict[str, Any]]:
    import tomli

    try:
        document = tomli.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomli.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be used: {error}.") from error
    for name, spec in document.items():
        if not isinstance(spec, dict) or "address" not in spec or "gpu" not in spec:
            raise UsageError(f"{path}: host [{name}] needs 'address' and 'gpu'.")
        for key, value in spec.items():
            if key not in _KEYS:
                raise UsageError(f"{path}: host [{name}] has no '{key}'.", hint=f"There are: {', '.join(_KEYS)}.")
            if isinstance(value, bool) or not isinstance(value, _KEYS[key]):  # type: ignore[arg-type]
                raise UsageError(f"{path}: '{key}' of host [{name}] cannot be {value!r}.")
        parse_host(spec["address"])
    if len({host_id(name) for name in document}) < len(document):
        raise UsageError(f"{path}: two hosts have names that cannot be told apart.", hint="Rename one of them.")
    return document
