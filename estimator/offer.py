"""One listing of the market, with the provider's own field names and units on the way in and plain ones inside.

Units inside: USD, hours, GB = 1e9 bytes, Mbit/s, GiB for GPU memory. Every field but id, GPU name and price may be
unknown (None); nothing is guessed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HOURS_PER_STORAGE_MONTH = 720.0
"""The provider's month: `storage_cost` is USD per GB and month of 720 h."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What is known of a box that can be rented."""

    id: str
    gpu: str
    dph: float
    """USD per hour, all GPUs, with the disk of the search in it (`dph_total`)."""
    num_gpus: int = 1
    gpu_ram_gib: float | None = None
    """Per GPU. The provider says MB and means MiB."""
    speed: float | None = None
    """Known speed relative to the box the run is on; None lets `estimator.speed` say."""
    setup_h: float | None = None
    """Known hours until the first step; None lets the phases be worked out."""
    dph_base: float | None = None
    """USD per hour without disk."""
    storage_cost: float | None = None
    """USD per GB and month of 720 h."""
    inet_up_cost: float | None = None
    """USD per GB."""
    inet_down_cost: float | None = None
    """USD per GB."""
    inet_up: float | None = None
    """Mbit/s."""
    inet_down: float | None = None
    """Mbit/s."""
    dlperf: float | None = None
    gpu_mem_bw: float | None = None
    """GB/s, live."""
    total_flops: float | None = None
    """TFLOP/s as the provider reports it, all GPUs."""
    gpu_max_power: float | None = None
    """W per GPU: a power-capped host is slower than its name."""
    reliability: float | None = None
    """0 to 1."""
    duration_h: float | None = None
    """Hours the offer stands (the provider counts seconds)."""
    interruptible: bool = False
    min_bid: float | None = None
    disk_gb: float | None = None
    """Most disk that can be asked for."""
    place: str = ""
    verified: bool | None = None
    current: bool = False
    """Whether this is the box the run is on."""
    example: bool = False
    """Not a live listing but one that ships with the project."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Offer:
        """Read a row as the provider's search gives it, or a line of an offers file.

        Raises ValueError with a sentence that names the field and the offer; unknown keys are ignored.
        """
        raw_id = row.get("id", row.get("ask_contract_id"))
        if raw_id is None or isinstance(raw_id, (bool, dict, list)):
            raise ValueError("an offer has no usable 'id'")
        name = str(raw_id)
        gpu = row.get("gpu_name")
        if not isinstance(gpu, str) or not gpu.strip():
            raise ValueError(f"offer {name}: 'gpu_name' has to be a text, not {gpu!r}")
        dph = _number(row, "dph_total", name)
        if dph is None:
            raise ValueError(f"offer {name}: 'dph_total' (USD per hour) is missing")
        speed = _number(row, "speed", name)
        if speed is not None and speed <= 0:
            raise ValueError(f"offer {name}: 'speed' has to be above 0, not {speed:g}")
        count = _number(row, "num_gpus", name)
        ram = _number(row, "gpu_ram", name)
        seconds = _number(row, "duration", name)
        verified = row.get("verified")
        if verified is None and isinstance(row.get("verification"), str):
            verified = row["verification"] == "verified"
        return cls(
            id=name,
            gpu=gpu.strip(),
            dph=dph,
            num_gpus=1 if count is None else max(1, round(count)),
            gpu_ram_gib=None if ram is None else ram / 1024,
            speed=speed,
            setup_h=_number(row, "setup_h", name),
            dph_base=_number(row, "dph_base", name),
            storage_cost=_number(row, "storage_cost", name),
            inet_up_cost=_number(row, "inet_up_cost", name),
            inet_down_cost=_number(row, "inet_down_cost", name),
            inet_up=_number(row, "inet_up", name),
            inet_down=_number(row, "inet_down", name),
            dlperf=_number(row, "dlperf", name),
            gpu_mem_bw=_number(row, "gpu_mem_bw", name),
            total_flops=_number(row, "total_flops", name),
            gpu_max_power=_number(row, "gpu_max_power", name),
            reliability=_number(row, "reliability2" if row.get("reliability") is None else "reliability", name),
            duration_h=None if seconds is None else seconds / 3600,
            interruptible=bool(row.get("is_bid") or row.get("interruptible")),
            min_bid=_number(row, "min_bid", name),
            disk_gb=_number(row, "disk_space", name),
            place=str(row.get("geolocation") or ""),
            verified=None if verified is None else bool(verified),
            current=bool(row.get("current") or row.get("rented")),
            example=bool(row.get("example")),
        )

    def disk_dph(self, disk_gb: float) -> float | None:
        """USD per hour that `disk_gb` of disk cost; None when the listing does not price storage."""
        return None if self.storage_cost is None else disk_gb * self.storage_cost / HOURS_PER_STORAGE_MONTH


def _number(row: Mapping[str, Any], key: str, name: str) -> float | None:
    """A finite number of 0 or more, or None when the key is absent or null."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"offer {name}: '{key}' has to be a number, not {value!r}")  # noqa: TRY004 - one kind of error for a bad row
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"offer {name}: '{key}' has to be a number of 0 or more, not {value!r}")
    return float(value)
