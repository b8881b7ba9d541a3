"""Rows of the provider's API read into our values: named fields only, every odd value survived, no secret taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard, cast

from remote.provider import (
    HOURS_PER_MONTH,
    KNOWN_STATUS,
    Charge,
    Instance,
    MarketOffer,
    PriceIncrease,
    SshPair,
    Status,
)

_ESTIMATOR_FIELDS = (
    "id", "gpu_name", "num_gpus", "gpu_ram", "dph_total", "dph_base", "storage_cost", "inet_up_cost", "inet_down_cost",
    "inet_up", "inet_down", "dlperf", "gpu_mem_bw", "total_flops", "gpu_max_power", "reliability", "duration",
    "disk_space", "geolocation", "verification", "is_bid", "min_bid",
)  # fmt: skip
_TEXT_FIELDS = ("gpu_name", "geolocation", "verification")
_LONGEST = 500
_LARGEST = 2**53


def is_row(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether an answer is a JSON object."""
    return isinstance(value, dict)


def number(value: Any) -> float | None:
    """A finite number, also when it came as text."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def whole(value: Any) -> int | None:
    """A whole number that JSON and a database can hold, also when it came as text."""
    result = number(value)
    return int(result) if result is not None and abs(result) <= _LARGEST and result == int(result) else None


def word(value: Any) -> str:
    """A short text without surrounding space; empty for anything else.

    Hosts write some of these texts: what would move the cursor of a terminal, or cannot be printed, becomes a space.
    """
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() else " " for c in value[: 2 * _LONGEST]).strip()[:_LONGEST]


def offer_from(row: Any, disk_gb: float, *, spot: bool) -> MarketOffer | None:
    """A listing; None when it lacks what a rental needs (id, GPU, price).

    The total is worked out again for `disk_gb`: `dph_total` of the row is right only for the disk of the search.
    """
    if not is_row(row):
        return None
    offer_id, machine, name = whole(row.get("id")), whole(row.get("machine_id")), word(row.get("gpu_name"))
    base = number(row.get("dph_base"))
    storage = max(0.0, number(row.get("storage_cost")) or 0.0)
    said = number(row.get("dph_total")) or 0.0
    if base is None and said:
        base = max(0.0, said - (number(row.get("storage_total_cost")) or 0.0))
    if offer_id is None or not name or base is None or base < 0:
        return None
    total = max(base + storage * disk_gb / HOURS_PER_MONTH, said)
    kept: dict[str, Any] = {}
    for key in _ESTIMATOR_FIELDS:
        value = row.get(key)
        if key in _TEXT_FIELDS:
            kept[key] = word(value) or None
        elif key == "is_bid":
            kept[key] = spot
        else:
            reading = number(value)
            kept[key] = reading if reading is not None and reading >= 0 else None
    kept.update(id=offer_id, dph_total=total, dph_base=base, num_gpus=max(1, whole(row.get("num_gpus")) or 1))
    return MarketOffer(
        id=offer_id,
        machine_id=machine or 0,
        host_id=whole(row.get("host_id")),
        gpu_name=name,
        num_gpus=max(1, whole(row.get("num_gpus")) or 1),
        gpu_ram_mb=number(row.get("gpu_ram")) or 0.0,
        dph_base=base,
        dph_total=total,
        storage_cost=storage,
        disk_gb=disk_gb,
        disk_space_gb=number(row.get("disk_space")),
        inet_up_cost=number(row.get("inet_up_cost")) or 0.0,
        inet_down_cost=number(row.get("inet_down_cost")) or 0.0,
        inet_up=number(row.get("inet_up")),
        inet_down=number(row.get("inet_down")),
        reliability=number(row.get("reliability2")) or number(row.get("reliability")),
        duration_s=number(row.get("duration")),
        cuda_max=number(row.get("cuda_max_good")),
        # a row that does not say is as verified as the search that brought it
        verified=row.get("verification", "verified") == "verified" or row.get("verified") is True,
        place=word(row.get("geolocation")).lstrip(", "),
        min_bid=number(row.get("min_bid")),
        spot=spot,
        direct_ports=whole(row.get("direct_port_count")) or 0,
        rentable=row.get("rentable") is not False,
        dlperf=number(row.get("dlperf")),
        row=kept,
    )


def instance_from(row: Any, user: str, clean: Callable[[str], str]) -> Instance | None:
    """An instance row; None only when it has no id. A status word of tomorrow is "unknown"."""
    if not is_row(row):
        return None
    instance_id = whole(row.get("id"))
    if instance_id is None:
        return None
    said = word(row.get("actual_status"))
    status = "provisioning" if not said else (said if said in KNOWN_STATUS else "unknown")
    base, total = number(row.get("dph_base")), number(row.get("dph_total"))
    disk = number(row.get("storage_total_cost"))
    if disk is None:
        disk = max(0.0, total - base) if total is not None and base is not None else 0.0
    if total is None:
        total = (base or 0.0) + disk
    return Instance(
        id=instance_id,
        label=word(row.get("label")),
        status=cast(Status, status),
        intended=word(row.get("intended_status")),
        status_word=said,
        message=clean(word(row.get("status_msg"))),
        spot=row.get("is_bid") is True,
        machine_id=whole(row.get("machine_id")),
        host_id=whole(row.get("host_id")),
        gpu_name=word(row.get("gpu_name")),
        num_gpus=max(1, whole(row.get("num_gpus")) or 1),
        gpu_ram_mb=number(row.get("gpu_ram")) or 0.0,
        gpu_util=number(row.get("gpu_util")),
        dph_base=base if base is not None else max(0.0, total - disk),
        dph_total=total,
        disk_usd_per_h=disk,
        disk_gb=number(row.get("disk_space")) or 0.0,
        inet_up_cost=number(row.get("inet_up_cost")) or 0.0,
        inet_down_cost=number(row.get("inet_down_cost")) or 0.0,
        start_date=number(row.get("start_date")),
        end_date=number(row.get("end_date")),
        min_bid=number(row.get("min_bid")),
        cur_state=word(row.get("cur_state")),
        next_state=word(row.get("next_state")),
        image=word(row.get("image_uuid")),
        ssh=ssh_pairs(row, user),
    )


def ssh_pairs(row: Mapping[str, Any], user: str) -> tuple[SshPair, ...]:
    """The ways in, each complete in itself: direct from `public_ipaddr` and `ports`, proxy from `ssh_host`."""
    pairs: list[SshPair] = []
    ports = row.get("ports")
    bindings = ports.get("22/tcp") if is_row(ports) else None
    address = word(row.get("public_ipaddr"))
    if isinstance(bindings, list) and address:
        for binding in bindings:
            port = whole(binding.get("HostPort")) if is_row(binding) else None
            if port is not None and 0 < port < 65536:
                pairs.append(SshPair("direct", address, port, user))
                break
    host, port = word(row.get("ssh_host")), whole(row.get("ssh_port"))
    if host and port is not None and 0 < port < 65536:
        pairs.append(SshPair("proxy", host, port, user))
    return tuple(pairs)


def charge_from(row: Any) -> Charge | None:
    """A line of the bill."""
    if not is_row(row) or not isinstance(row.get("source"), str):
        return None
    instance_id = whole(row["source"].rpartition("-")[2])
    if instance_id is None:
        return None
    items: dict[str, float] = {}
    lines = row.get("items")
    for item in lines if isinstance(lines, list) else ():
        if is_row(item) and isinstance(item.get("type"), str):
            items[item["type"]] = items.get(item["type"], 0.0) + (number(item.get("amount")) or 0.0)
    return Charge(
        instance_id,
        number(row.get("start")) or 0.0,
        number(row.get("end")) or 0.0,
        number(row.get("amount")) or sum(items.values()),
        items,
    )


def increase_from(row: Any) -> PriceIncrease | None:
    """A request for a higher price; the provider counts in USD per second."""
    if not is_row(row):
        return None
    key, contract = whole(row.get("pending_price_increase_id")), whole(row.get("contract_id"))
    if key is None or contract is None:
        return None
    old, new = (_per_second(row, when) for when in ("old", "new"))
    if new <= 0:
        return None
    return PriceIncrease(key, contract, old * 3600, new * 3600, number(row.get("contract_end_date")))


def _per_second(row: Mapping[str, Any], when: str) -> float:
    parts = (number(row.get(f"{when}_{part}_costpersec")) for part in ("gpu", "disk_ram"))
    return sum(part for part in parts if part is not None)
