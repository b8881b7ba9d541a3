"""The runs known here: run directories under ./runs, runs started elsewhere, and what was watched over SSH.

Started and watched runs stand in a small registry, `runs.json` under `home()`: a list that is read whole, replaced
whole, and never the only copy of anything that matters.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from remote.target import Target, parse_target
from runner.box.proc import is_alive
from runner.errors import NotFoundError

_KEPT = 500
"""Entries; the oldest go first."""


@dataclass(frozen=True, slots=True)
class KnownRun:
    """One run that can be named."""

    name: str
    """`<kind>/<stamp>` of the run directory, or the path of a foreign log; unique."""
    target: str
    """What `watch` takes."""
    recipe: str | None = None
    instance_id: int | None = None
    mirror: str | None = None
    """Local path of the mirrored log; None for a local run."""
    noted: float = 0.0
    """Seconds since the epoch when it was last noted, on the laptop's clock; for the order only."""
    attach: str | None = None
    """The command that opens the run's tmux session, where it has one."""


def known_runs(home: Path, root: Path = Path("runs")) -> list[KnownRun]:
    """All known runs, the newest first: the registry, and run directories under `root` that it does not name."""
    listed = _read(home)
    seen = {_local_path(run) for run in listed}
    found = [run for run in _local_runs(root) if _local_path(run) not in seen]
    return sorted([*listed, *found], key=lambda run: run.noted, reverse=True)


def find_run(name: str, home: Path, root: Path = Path("runs")) -> Target:
    """Where the run called `name` is; any ending of a name that fits one run alone will do.

    Raises NotFoundError that suggests the nearest names.
    """
    runs = known_runs(home, root)
    exact = [run for run in runs if run.name == name]
    fits = exact or [run for run in runs if run.name.endswith(f"/{name}") or run.name.startswith(f"{name}/")]
    if len(fits) == 1 or exact:
        return parse_target(fits[0].target)
    if fits:
        raise NotFoundError(
            f"'{name}' fits {len(fits)} known runs.", hint="Name one: " + ", ".join(r.name for r in fits[:6]) + "."
        )
    near = difflib.get_close_matches(name, [run.name for run in runs], n=3, cutoff=0.4)
    hint = (
        f"Did you mean {' or '.join(near)}?" if near else "tunewatch runs lists them; a path or host:/path works too."
    )
    raise NotFoundError(f"'{name}' is neither a path here nor a known run.", hint=hint)


def note_run(run: KnownRun, home: Path) -> None:
    """Remember a run, replacing what was known under its name or target."""
    with _locked(home):
        others = [r for r in _read(home) if r.name != run.name and r.target != run.target]
        kept = sorted([*others, replace(run, noted=time.time())], key=lambda r: r.noted)[-_KEPT:]
        _write(home, kept)


def list_runs(home: Path, root: Path = Path("runs")) -> list[dict[str, Any]]:
    """Rows of `runs --json`: every known run with its state, from local files and mirrors alone.

    A run elsewhere that was not over when last seen is `unreachable`: nobody asked its host just now. What it was then
    is its `seen_state`, and `seen_age_s` are the seconds since something new of it arrived; both are None for others.
    """
    return [_row(run, home) for run in known_runs(home, root)]


def _row(run: KnownRun, home: Path) -> dict[str, Any]:
    from remote.mirror import mirror_folder
    from runner import rundir
    from runner.log import LogReader
    from runner.metrics import MetricsReader
    from runner.state import judge_state

    target = parse_target(run.target)
    local = target.kind == "local"
    folder = Path(target.path) if local else mirror_folder(target, home)
    status = rundir.read_status(folder / rundir.STATUS)
    mirrors = [] if local else sorted(p for p in folder.glob("*") if p.with_name(p.name + ".mirror.json").exists())
    log = folder / rundir.LOG if local or not mirrors else next((p for p in mirrors if p.name != rundir.METRICS), None)
    reader: LogReader | MetricsReader = LogReader()
    source = log
    if (folder / rundir.METRICS).exists():
        reader, source = MetricsReader(), folder / rundir.METRICS
    if source is not None and source.is_file():
        with source.open("rb") as file:
            while data := file.read(1 << 20):
                reader.feed(data)
    history = reader.history()
    alive, age = None, None
    if local and status is not None and status.pid:
        alive = is_alive(status.pid, status.start_ticks, status.boot_id)
    if local and source is not None and source.exists():
        age = max(0.0, time.time() - source.stat().st_mtime)
    seen = status is not None or history.bytes_read > 0
    state = judge_state(history, status, log_age_s=age, alive=alive, link_ok=local)[0] if seen else None
    unasked = state == "unreachable"
    then = judge_state(history, status, log_age_s=None, alive=None)[0] if unasked else None
    arrived = max((p.stat().st_mtime for p in [*mirrors, folder / rundir.STATUS] if p.exists()), default=None)
    step = history.step if history.step is not None else (status.step if status is not None else None)
    mirror = None if local or log is None or not log.exists() else str(log)
    return {
        "name": run.name,
        "target": run.target,
        "recipe": run.recipe,
        "state": state,
        "step": step,
        "max_steps": history.max_steps,
        "instance_id": run.instance_id,
        "mirror": mirror,
        "seen_state": then,
        "seen_age_s": max(0.0, time.time() - arrived) if unasked and arrived is not None else None,
        "attach": run.attach,
    }


def note_watched(target: Target, home: Path, mirror: Path) -> None:
    """Remember a target on another machine that answered, unless it is known already."""
    if all(run.target != str(target) for run in _read(home)):
        note_run(KnownRun(str(target), str(target), None, target.instance_id, str(mirror)), home)


def _local_path(run: KnownRun) -> str:
    return str(Path(run.target).resolve()) if ":" not in run.target else run.target


def _local_runs(root: Path) -> list[KnownRun]:
    runs = []
    for folder in root.glob("*/*/"):
        # a kind that holds one recorded sample and its parts is no list of runs
        with contextlib.suppress(OSError):
            if any((folder / name).exists() for name in ("log.txt", "status.json", "metrics.jsonl")):
                name = f"{folder.parent.name}/{folder.name}"
                runs.append(KnownRun(name, str(folder), folder.parent.name, noted=folder.stat().st_mtime))
    return runs


def _read(home: Path) -> list[KnownRun]:
    """The registry; an unreadable one counts as empty, because everything in it can be named by hand."""
    try:
        rows: Any = json.loads((home / "runs.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    known = {f.name for f in fields(KnownRun)}
    return [
        KnownRun(**{k: v for k, v in row.items() if k in known})
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and isinstance(row.get("name"), str) and isinstance(row.get("target"), str)
    ]


def _write(home: Path, runs: list[KnownRun]) -> None:
    handle, beside = tempfile.mkstemp(prefix=".runs.", dir=home)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump([asdict(run) for run in runs], out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        Path(beside).replace(home / "runs.json")
    finally:
        Path(beside).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    with (home / "runs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
