"""What every deed (launch, stop, kill, migrate, reconcile) reports, to the command line and to the screens alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class DeedStep:
    """One phase of a deed."""

    name: str
    ok: bool | None
    """None while it is under way."""
    detail: str = ""
    seconds: float | None = None


Progress = Callable[[DeedStep], None]
"""Called from the thread that does the deed, at the start (`ok=None`) and at the end of each phase."""

DeedState = Literal["done", "running", "stopped", "destroyed", "unconfirmed", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class DeedResult:
    """How a deed ended. `state` is "destroyed" only when the provider was seen twice without the instance."""

    ok: bool
    state: DeedState
    run: str | None = None
    instance_id: int | None = None
    steps: tuple[DeedStep, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The shape of `--json` for every deed."""
        return {
            "ok": self.ok,
            "state": self.state,
            "run": self.run,
            "instance_id": self.instance_id,
            "steps": [{"name": s.name, "ok": s.ok, "detail": s.detail, "seconds": s.seconds} for s in self.steps],
        }


def silent(step: DeedStep) -> None:
    """Progress for callers that do not look."""
