"""What the journal holds: its rows, deeds, boxes and metered stretches as values, and how they are written as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from remote.redact import redact

Phase = Literal["open", "intent", "done", "failed", "note", "close"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the history."""

    seq: int
    at: float
    deed: str | None
    kind: str
    run: str
    epoch: int
    step: str
    phase: Phase
    instance: int | None
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BoxRecord:
    """What is remembered of a rented box. `state` is one of renting, booting, ready, running, stopped, destroying,
    unconfirmed, destroyed, lost.
    """

    instance: int
    run: str
    label: str
    state: str
    data: Mapping[str, Any]

    @property
    def gone(self) -> bool:
        """Proved not to exist."""
        return self.state == "destroyed"

    @property
    def called(self) -> str:
        """What it is called within a sentence."""
        return str(self.data.get("called") or f"instance {self.instance}")

    @property
    def as_typed(self) -> str:
        """What a command takes for it: its number, or host:NAME."""
        called = self.called
        return "host:" + called.removeprefix("host ") if called.startswith("host ") else str(self.instance)


@dataclass(frozen=True, slots=True)
class DeedRecord:
    """A deed as it stands in the journal."""

    id: str
    kind: str
    run: str
    epoch: int
    opened: float
    closed: float | None
    outcome: str | None
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MeterRow:
    """A stretch of time (seconds since the epoch) in which a box had one status and one price."""

    instance: int
    start: float
    stop: float
    status: str
    gpu_usd_h: float
    disk_usd_h: float


def as_text(data: Mapping[str, Any]) -> str:
    """JSON of plain values; whatever looks like a secret is taken out of every text in it."""
    return json.dumps(_clean(dict(data)), ensure_ascii=False, default=str)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {str(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(inner) for inner in value]
    return value


def row_from(found: tuple[Any, ...]) -> Row:
    """An event as the database holds it."""
    seq, at, deed, kind, run, epoch, step, phase, instance, data = found
    return Row(seq, at, deed, kind, run, epoch, step, phase, instance, json.loads(data))


def deed_from(found: tuple[Any, ...]) -> DeedRecord:
    """A deed as the database holds it."""
    deed_id, kind, run, epoch, opened, closed, outcome, data = found
    return DeedRecord(deed_id, kind, run, epoch, opened, closed, outcome, json.loads(data))


def box_from(found: tuple[Any, ...]) -> BoxRecord:
    """A box as the database holds it."""
    instance, run, label, state, data = found
    return BoxRecord(instance, run, label, state, json.loads(data))
