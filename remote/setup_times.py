"""How long a launch took on a machine before, for the setup time of its next quote. Pure."""

from __future__ import annotations

from collections.abc import Iterable

LAST = "first log line"
"""The phase that says a launch came to its end."""


def setup_hours(phases: Iterable[tuple[int | None, str, str, float]]) -> dict[int, float]:
    """Hours from the rental to the first log line per machine, from `(machine, image, phase, seconds)` rows.

    The newest reading of each phase counts; a machine on which no launch came to its end is left out.

    >>> setup_hours([(7, "i", "boot", 300.0), (7, "i", "boot", 120.0), (7, "i", LAST, 60.0), (8, "i", "boot", 5.0)])
    {7: 0.05}
    """
    newest: dict[int, dict[str, float]] = {}
    for machine, _, phase, seconds in phases:
        if machine:
            newest.setdefault(machine, {})[phase] = seconds
    return {machine: sum(by.values()) / 3600 for machine, by in newest.items() if LAST in by}
