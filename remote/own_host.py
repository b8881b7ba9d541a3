"""What is different on a machine of one's own: nothing can be switched off, so the run is what has to end.

Giving a host back deletes nothing and ends no process by itself. Whoever gives it back ends the run first and the guard
after it; while that cannot be done, the host stays in use and is called unconfirmed: its run may still train.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from remote.access import Opener, reach
from remote.deeds import Progress
from remote.desk import Desk
from remote.journal import MeterRow
from remote.provider import OWN_IDS, Instance
from remote.stop import stop_run
from remote.transport import Transport
from runner.atomic import read_object
from runner.box.limits import REPORT
from runner.errors import NotFoundError, RefusedError, TunewatchError


def quiet(host: Transport, run_dir: str, *, name: str, progress: Progress, grace_s: float | None) -> str:
    """End the run of a directory, if one lives there, and its guard; how it went. Raises UnreachableError."""
    how = "nothing was running"
    # no directory, or no status in it: nothing was ever started there
    with contextlib.suppress(NotFoundError, RefusedError):
        how = stop_run(host, run_dir, name=name, reason="given back", progress=progress, timeout=grace_s).state
    pid = _report(host, run_dir).get("pid")
    if isinstance(pid, int) and pid > 1:
        # a number may have passed to another process since
        host.run(f"tr '\\0' ' ' </proc/{pid}/cmdline 2>/dev/null | grep -q runner.box.guard && kill -TERM {pid}")
    return how


def settle_end(desk: Desk, row: Instance, host: Transport, run_dir: str) -> None:
    """When the guard has ended the run, the host's price counts no more from that moment on.

    The moment is told by the age of the guard's last report, both ends on the host's own clock. What was metered beyond
    it stays.
    """
    if not row.own or row.status != "running":
        return
    report = _report(host, run_dir)
    wall, clock = report.get("wall"), host.run("date +%s").text
    if report.get("word") != "ended" or not isinstance(wall, (int, float)) or not clock.isdigit():
        return
    at = desk.clock() - max(0.0, int(clock) - wall)
    rows = desk.journal.meter(row.id)
    start = rows[-1].stop if rows else (row.start_date or at)
    at = max(at, start)
    desk.journal.add_meter(MeterRow(row.id, start, at, "running", row.dph_total, 0.0))
    desk.journal.add_meter(MeterRow(row.id, at, at, "stopped", row.dph_total, 0.0))
    with contextlib.suppress(TunewatchError):
        desk.provider.stop(row.id)


def settle_all(desk: Desk, open_pair: Opener) -> None:
    """`settle_end` for every host in use that answers; one that does not says nothing."""
    for row in desk.at(OWN_IDS).provider.instances() if hasattr(desk.provider, "part") else ():
        box = desk.journal.box(row.id)
        folder = box.data.get("run_dir") if box is not None else None
        if row.status != "running" or not isinstance(folder, str):
            continue
        with contextlib.suppress(TunewatchError):
            host, _ = reach(row, open_pair)
            with host:
                settle_end(desk, row, host, folder)


def _report(host: Transport, run_dir: str) -> Mapping[str, Any]:
    with contextlib.suppress(NotFoundError, RefusedError):
        return read_object(host.read_from(f"{run_dir}/{REPORT}", 0).data) or {}
    return {}
