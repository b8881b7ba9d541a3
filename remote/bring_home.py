"""What a run wrote comes home before its box ends: log, metrics and results, beside what a watch has mirrored already.

Checkpoints stay: they are what uploads are for, and a box is not kept alive for gigabytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from remote.journal import Journal
from remote.known import find_run
from remote.mirror import Mirror, mirror_folder
from remote.source import choose_log
from remote.target import Target
from remote.transport import LinkError, Transport
from runner import rundir
from runner.atomic import write_atomic
from runner.errors import NotFoundError

HOME_S = 120.0
"""At most so long: a box that bills is not kept for a log of gigabytes."""
_LARGEST = 4 << 20
"""Bytes of one result."""
_RESULTS = (rundir.STATUS, rundir.CONFIG, rundir.SUMMARY, rundir.SUMMARY_MD)


def bring_home(
    host: Transport, target: Target, home: Path, *, seconds: float = HOME_S, clock: Callable[[], float] = time.monotonic
) -> tuple[int, int]:
    """Fetch what is new of a run's files: how many there are here now, and their bytes. What is here is not fetched.

    Raises LinkError when it was not through after `seconds`, what the transport raises, and OSError of the disk here;
    what came until then stays.
    """
    until = clock() + seconds
    path = target.path.rstrip("/") or "/"
    store = mirror_folder(target, home)
    if not host.stat(path).is_dir:
        return 1, _grow(Mirror(host, path, store / path.rpartition("/")[2]), until, clock)
    names = host.listdir(path)
    store.mkdir(parents=True, exist_ok=True)
    try:
        log = choose_log(names, path)
    except NotFoundError:
        log = None
    count = size = 0
    for name in (rundir.METRICS, log):
        if name is not None and name in names:
            size += _grow(Mirror(host, f"{path}/{name}", store / name), until, clock)
            count += 1
    for name in filter(_is_result, names):
        data = host.read_from(f"{path}/{name}", 0, limit=_LARGEST, timeout=30.0).data
        write_atomic(store / name, data)
        size += len(data)
        count += 1
    return count, size


def target_of(journal: Journal, run: str, instance_id: int, run_dir: str) -> Target:
    """The target under which a box's run is watched, and its mirror found again."""
    try:
        found = find_run(run, journal.home)
    except NotFoundError:
        found = None
    # a name may be that of a run of the same recipe elsewhere
    if found is not None and found.instance_id == instance_id:
        return found
    return Target("vast", run_dir, instance_id=instance_id)


def _grow(copy: Mirror, until: float, clock: Callable[[], float]) -> int:
    """Pull until the copy has everything; its bytes."""
    while copy.pull(1.0).behind:
        if clock() > until:
            raise LinkError(f"The log is too long to be fetched in time; {copy.offset / 1e6:.0f} MB of it are here.")
    return copy.offset


def _is_result(name: str) -> bool:
    return name in _RESULTS or (
        name.endswith(".json") and (name.startswith("metrics") or name.endswith("_results.json"))
    )
