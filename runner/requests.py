"""What the laptop asks of a run while it trains: one file per kind in the run directory, answered in metrics.jsonl.

    rule.request     go on under another auto-stop rule: {"patience", "min_delta", "min_steps", "count_from"}
    save.request     save a checkpoint now: {}

A file holds `{"id", "kind", "body", "wall"}`. The trainer looks for it between two steps, obeys or refuses, writes an
`ack` event `{request, id, accepted, detail, step}`, and takes the file away. (`stop.request` is older and has its own
shape in `runner.rundir`: the supervisor and the guard read it as well.)

The rules of this file:

- A request is whole or not there: it is written beside and renamed.
- One that was not taken up yet gives way to a newer one of its kind; the file that is removed is the one answered.
- Answered first, removed then: a trainer that dies between the two obeys twice, so obeying twice must be the same as
  obeying once.
- What cannot be read or is not known is refused in a sentence, never ignored: somebody waits for the answer.
- Standard library only, and the syntax of Python 3.9: it runs on a rented box before anything is installed there.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.atomic import PathLike, read_object, write_atomic

SUFFIX = ".request"
STOP = "stop"
"""The kind that is not ours: `runner.rundir.STOP_REQUEST`."""
RULE = "rule"
SAVE = "save"
_LONGEST = 1 << 16
"""Bytes; nothing that is asked of a run is longer."""

Answer = Callable[..., object]
"""`MetricsWriter.write`, or what takes the same words."""


@dataclass(frozen=True)
class Request:
    """One thing that was asked."""

    kind: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Names the answer that belongs to it."""
    body: Mapping[str, Any] = field(default_factory=dict)
    wall: float = 0.0
    """Seconds since the epoch by the clock of whoever asked; 0 when it is not known."""
    problem: str = ""
    """Why the file could not be read; empty when it could."""

    @property
    def file(self) -> str:
        """Its name in the run directory."""
        return self.kind + SUFFIX

    def to_bytes(self) -> bytes:
        """What the file holds; `parse_request` reads it back."""
        document = {"id": self.id, "kind": self.kind, "body": dict(self.body), "wall": self.wall or time.time()}
        return json.dumps(document).encode()


def parse_request(kind: str, raw: bytes) -> Request:
    """Read the bytes of `<kind>.request`. Never raises for content: `problem` says what is wrong with it."""
    data = read_object(raw[:_LONGEST])
    if data is None:
        return Request(kind, "", problem=f"{kind}{SUFFIX} is not a request that can be read")
    name, body, wall = data.get("id"), data.get("body"), data.get("wall")
    if not isinstance(name, str) or not isinstance(body, dict):
        return Request(kind, str(name or ""), problem=f"{kind}{SUFFIX} has no id or no body")
    known = float(wall) if isinstance(wall, (int, float)) and not isinstance(wall, bool) else 0.0
    return Request(kind, name, body, known)


def write_request(run_dir: PathLike, request: Request) -> None:
    """Put a request into a run directory of this machine. Raises OSError."""
    write_atomic(Path(run_dir) / request.file, request.to_bytes())


def pending(run_dir: PathLike) -> list[Request]:
    """What was asked and not answered yet, by kind; empty where the directory is gone."""
    found = []
    try:
        names = sorted(path.name for path in Path(run_dir).iterdir())
    except OSError:
        return []
    for name in names:
        kind = name[: -len(SUFFIX)] if name.endswith(SUFFIX) else ""
        if not kind or kind == STOP or kind.startswith("."):
            continue
        try:
            raw = (Path(run_dir) / name).read_bytes()
        except OSError:  # taken away, or replaced, since the folder was read
            continue
        found.append(parse_request(kind, raw))
    return found


def answer(
    run_dir: PathLike, request: Request, write: Answer, *, accepted: bool, detail: str, step: int | None
) -> None:
    """Write the `ack`, then take the file away, unless a newer request lies there by now."""
    write("ack", request=request.kind, id=request.id, accepted=accepted, detail=detail, step=step)
    path = Path(run_dir) / request.file
    try:
        if parse_request(request.kind, path.read_bytes()).id == request.id:
            path.unlink()
    except FileNotFoundError:
        return


def refuse_rest(run_dir: PathLike, write: Answer, *, detail: str, step: int | None) -> None:
    """Answer whatever is still asked of a run that can obey no longer."""
    for request in pending(run_dir):
        answer(run_dir, request, write, accepted=False, detail=detail, step=step)
