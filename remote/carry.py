"""Which way a checkpoint takes from box to box, and what that costs: a pure choice from sizes, bandwidth and prices.

Three ways, all ending in the same comparison of every file with the manifest's sha256:

- hub: the checkpoint was uploaded at this very step, and the new box downloads that revision.
- direct: the new box pulls from the old one with a key that lives as long as the transfer.
- laptop: this machine reads from the old box and writes to the new one, a few pieces in memory and nothing on its disk.
  Always possible.

Time costs money as well: while it lasts both boxes bill. So the ways are ordered by what they cost all told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WayName = Literal["hub", "direct", "laptop"]

LAPTOP_MBIT = 100.0
"""Mbit/s counted for the laptop's own line, each direction, until it was measured."""
SETUP_S = {"laptop": 0.2, "direct": 0.5, "hub": 10.0}
"""Seconds before the first byte: a key made, let in and taken out again; a repository looked up."""
GUESSED_MBIT = 200.0
"""Mbit/s counted for a box about whose line nothing is said."""


@dataclass(frozen=True, slots=True)
class Line:
    """A box's line."""

    up_mbit: float | None = None
    down_mbit: float | None = None
    up_usd_gb: float = 0.0
    down_usd_gb: float = 0.0


@dataclass(frozen=True, slots=True)
class Way:
    """One way with its forecast."""

    name: WayName
    seconds: float
    usd: float
    """Traffic at both boxes, and both boxes' time."""


def ways(
    size: int,
    old: Line,
    new: Line,
    *,
    usd_per_h: float,
    reachable: bool,
    on_hub: bool,
    laptop_mbit: float = LAPTOP_MBIT,
) -> list[Way]:
    """The possible ways for `size` bytes, best first. `usd_per_h` is what both boxes cost together.

    >>> old, new = Line(up_mbit=800), Line(down_mbit=1600)
    >>> [(w.name, round(w.seconds)) for w in ways(10**9, old, new, usd_per_h=1.4, reachable=True, on_hub=False)]
    [('direct', 12), ('laptop', 80)]
    """
    up, down = old.up_mbit or GUESSED_MBIT, new.down_mbit or GUESSED_MBIT
    gb = size / 1e9
    both = gb * (old.up_usd_gb + new.down_usd_gb)
    found = [_way("laptop", size, min(up, down, laptop_mbit), both, usd_per_h)]
    if reachable:
        found.append(_way("direct", size, min(up, down), both, usd_per_h))
    if on_hub:
        found.append(_way("hub", size, down, gb * new.down_usd_gb, usd_per_h))
    return sorted(found, key=lambda way: (way.usd, way.seconds))


def _way(name: WayName, size: int, mbit: float, traffic: float, usd_per_h: float) -> Way:
    seconds = SETUP_S[name] + size * 8e-6 / max(mbit, 1e-3)
    return Way(name, seconds, traffic + usd_per_h * seconds / 3600)
