"""The market of the stand-in: offers with the provider's field names and units, and its search operators."""

from __future__ import annotations

import random
from typing import Any

HOURS_PER_MONTH = 720.0

_GPUS = (
    # name, MB per GPU, base $/h, dlperf, compute capability
    ("RTX 3090", 24576, 0.22, 43.0, 860),
    ("RTX 4090", 24564, 0.35, 95.0, 890),
    ("RTX 5090", 32607, 0.48, 130.0, 1200),
    ("A40", 46068, 0.40, 55.0, 860),
    ("RTX A6000", 49140, 0.45, 58.0, 860),
    ("L40S", 46068, 0.65, 98.0, 890),
    ("A100 SXM4", 40960, 0.66, 120.0, 800),
    ("A100 SXM4", 81920, 0.95, 130.0, 800),
    ("A100 PCIE", 81920, 0.85, 115.0, 800),
    ("H100 PCIE", 81559, 1.40, 200.0, 900),
    ("H100 SXM", 81559, 1.90, 260.0, 900),
    ("H200", 143771, 2.60, 280.0, 900),
)
_PLACES = ("Ontario, CA", "Sweden, SE", "Texas, US", "Czechia, CZ", "Iceland, IS", ", US", "Japan, JP", None)


def offer_row(offer_id: int, **given: Any) -> dict[str, Any]:
    """A complete offer; prices are left without disk until a search says how much disk it wants."""
    row: dict[str, Any] = {
        "id": offer_id,
        "ask_contract_id": offer_id,
        "bundle_id": offer_id // 7,
        "machine_id": 40_000 + offer_id % 1000,
        "host_id": 9_000 + offer_id % 300,
        "gpu_name": "A100 SXM4",
        "num_gpus": 1,
        "gpu_frac": 0.25,
        "gpu_ram": 40960,
        "gpu_total_ram": 40960,
        "dph_base": 0.7411,
        "storage_cost": 0.15,
        "inet_up_cost": 0.002,
        "inet_down_cost": 0.001,
        "inet_up": 812.4,
        "inet_down": 1504.2,
        "min_bid": 0.31,
        "cpu_ram": 257_000,
        "cpu_cores": 64,
        "cpu_cores_effective": 16.0,
        "disk_space": 420.0,
        "disk_bw": 1800.0,
        "dlperf": 120.0,
        "score": 210.0,
        "reliability": 0.991,
        "reliability2": 0.991,
        "duration": 2_400_000.0,
        "cuda_max_good": 12.8,
        "compute_cap": 800,
        "driver_version": "570.86.15",
        "verification": "verified",
        "verified": None,
        "hosting_type": 0,
        "geolocation": "Sweden, SE",
        "rentable": True,
        "rented": False,
        "external": False,
        "is_bid": False,
        "direct_port_count": 40,
        "static_ip": True,
        "pcie_bw": 23.1,
        "gpu_mem_bw": 1420.0,
        "gpu_max_power": 400.0,
    }
    row.update(given)
    row["gpu_total_ram"] = row["gpu_ram"] * row["num_gpus"]
    row["reliability2"] = row["reliability"]
    return row


def seed_offers(disk_gb: float = 0.0) -> list[dict[str, Any]]:
    """The study's three, priced so that dph_total is its figure at `disk_gb` of disk."""

    def base(total: float) -> float:
        return total - 0.15 * disk_gb / HOURS_PER_MONTH

    return [
        offer_row(7_000_001, dph_base=base(0.7411), machine_id=41001, host_id=9101),
        offer_row(7_000_002, dph_base=base(0.6676), machine_id=41002, host_id=9102, inet_down=640.0, dlperf=113.0),
        offer_row(
            7_000_003, dph_base=base(1.1347), machine_id=41003, host_id=9103, gpu_name="H100 PCIE",
            gpu_ram=81559, dlperf=200.0, compute_cap=900,
        ),
    ]  # fmt: skip


def random_offers(count: int, seed: int = 20260215) -> list[dict[str, Any]]:
    """`count` offers of a believable spread, always the same for the same seed."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        name, ram, price, dlperf, cap = rng.choice(_GPUS)
        gpus = rng.choice((1, 1, 1, 2, 4, 8))
        rows.append(
            offer_row(
                7_100_000 + index,
                machine_id=50_000 + index // 3,
                host_id=9_500 + index // 9,
                gpu_name=name,
                num_gpus=gpus,
                gpu_ram=ram,
                dph_base=round(price * gpus * rng.uniform(0.75, 1.6), 6),
                storage_cost=rng.choice((0.1, 0.15, 0.2, 0.3)),
                inet_up=round(rng.uniform(40, 4000), 1),
                inet_down=round(rng.uniform(80, 8000), 1),
                dlperf=round(dlperf * gpus * rng.uniform(0.9, 1.1), 3),
                score=round(rng.uniform(50, 400), 3),
                reliability=round(rng.uniform(0.85, 0.9995), 5),
                duration=rng.uniform(6, 2000) * 3600,
                cuda_max_good=rng.choice((12.2, 12.4, 12.8, 13.0)),
                compute_cap=cap,
                verification=rng.choice(("verified", "verified", "verified", "unverified", "deverified")),
                hosting_type=rng.choice((0, 0, 1)),
                geolocation=rng.choice(_PLACES),
                direct_port_count=rng.choice((0, 2, 40, 200)),
                min_bid=round(price * gpus * rng.uniform(0.3, 0.7), 6),
                disk_space=round(rng.uniform(20, 2000), 1),
            )
        )
    return rows


def priced(row: dict[str, Any], disk_gb: float, *, bid: bool) -> dict[str, Any]:
    """The row as a search for `disk_gb` of disk sees it."""
    disk_hour = row["storage_cost"] * disk_gb / HOURS_PER_MONTH
    base = row["min_bid"] if bid else row["dph_base"]
    total = base + disk_hour
    return {
        **row,
        "is_bid": bid,
        "dph_base": base,
        "storage_total_cost": disk_hour,
        "dph_total": total,
        "dph_total_adj": total + row["inet_up_cost"] + row["inet_down_cost"],
        "discounted_dph_total": total,
        "internet_up_cost_per_tb": row["inet_up_cost"] * 1024,
        "internet_down_cost_per_tb": row["inet_down_cost"] * 1024,
        "dlperf_per_dphtotal": row["dlperf"] / total if total else None,
        "search": {
            "gpuCostPerHour": base,
            "diskHour": disk_hour,
            "totalHour": total,
            "discountTotalHour": 0,
            "discountedTotalPerHour": total,
        },
    }


_SPECIAL = {"order", "type", "limit", "allocated_storage", "disable_bundling"}
_NUMERIC = ("gt", "gte", "lt", "lte")


class BadQueryError(ValueError):
    """The search asked for something the provider refuses."""


def search(offers: list[dict[str, Any]], query: dict[str, Any]) -> list[dict[str, Any]]:
    """Answer a flat search query. Numbers may come as strings, as the SDK's own string queries send them."""
    disk = float(query.get("allocated_storage", 5.0))
    kind = query.get("type", "on-demand")
    if kind not in ("on-demand", "bid", "reserved"):
        raise BadQueryError(f"unknown type {kind!r}")
    rows = [priced(row, disk, bid=kind == "bid") for row in offers]
    for name, conditions in query.items():
        if name in _SPECIAL:
            continue
        if not isinstance(conditions, dict):
            raise BadQueryError(f"{name}: expected an operator object")
        for operator, wanted in conditions.items():
            rows = [row for row in rows if _holds(row, name, operator, wanted)]
    for name, direction in reversed(query.get("order") or [["score", "desc"]]):
        rows.sort(key=lambda row: (row.get(name) is None, row.get(name) or 0), reverse=direction == "desc")
    limit = query.get("limit")
    return rows[: int(limit)] if limit else rows


def _holds(row: dict[str, Any], name: str, operator: str, wanted: Any) -> bool:
    if name == "verified":
        value: Any = row["verification"] == "verified"
    elif name == "datacenter":
        value = row["hosting_type"] == 1
    elif name == "geolocation":
        value = (row.get("geolocation") or "")[-2:]
    elif name in row:
        value = row[name]
    else:
        raise BadQueryError(f"unknown field {name}")
    if operator in ("in", "notin"):
        return (value in wanted) == (operator == "in")
    wanted = _like(value, wanted)
    if operator == "eq":
        return bool(value == wanted)
    if operator == "neq":
        return bool(value != wanted)
    if operator not in _NUMERIC:
        raise BadQueryError(f"unknown operator {operator}")
    if value is None:
        return False
    return bool({"gt": value > wanted, "gte": value >= wanted, "lt": value < wanted, "lte": value <= wanted}[operator])


def _like(value: Any, wanted: Any) -> Any:
    if isinstance(value, bool) and isinstance(wanted, str):
        return wanted.lower() == "true"
    if isinstance(value, (int, float)) and not isinstance(value, bool) and isinstance(wanted, str):
        return float(wanted)
    return wanted
