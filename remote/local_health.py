"""How this machine is, for runs that are watched where they train: the same question as over SSH, asked of `sh` here.

One measurement serves every run on one file system. It is taken by a thread of its own and at most every ten seconds:
nvidia-smi may need one, and neither the poller nor a first curve waits for it. The first comes some seconds after the
first asking, because whoever only glances at a run does not want to know.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

from remote.health import SCRIPT, Health, read_health

EVERY_S = 10.0
FIRST_S = 3.0
_DEADLINE_S = 15.0


class LocalHealth:
    """The newest measurement by file system. Safe to ask from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[int, Health] = {}
        self._due: dict[int, float] = {}

    def newest(self, folder: Path, now: float | None = None) -> Health | None:
        """The last measurement with the disk of `folder`, None before the first; begins one when it is due.

        `now` is monotonic, in seconds.
        """
        at = time.monotonic() if now is None else now
        try:
            device = folder.stat().st_dev
        except OSError:
            return None
        with self._lock:
            due = self._due.setdefault(device, at + FIRST_S)
            if at >= due:
                self._due[device] = at + EVERY_S
                threading.Thread(
                    target=self._measure, args=(device, folder), name="measure this machine", daemon=True
                ).start()
            return self._newest.get(device)

    def _measure(self, device: int, folder: Path) -> None:
        sent = time.time()
        try:
            done = subprocess.run(
                ["sh", "-c", SCRIPT], capture_output=True, timeout=_DEADLINE_S, check=False,
                env={**os.environ, "DIR": str(folder), "PID": ""},
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return  # a machine without a shell is not measured; what was known keeps its age
        with self._lock:
            before = self._newest.get(device)
        measured = read_health(
            done.stdout.decode("utf-8", "replace"),
            now=time.monotonic(),
            wall_sent=sent,
            wall_got=time.time(),
            before=before,
        )
        with self._lock:
            self._newest[device] = measured


_SHARED = LocalHealth()


def this_machine(folder: Path) -> Health | None:
    """The newest measurement of this machine, with the disk that `folder` is on."""
    return _SHARED.newest(folder)
