"""Several processes on one machine: the same command once per rank, with the environment that torchrun would set.

Not torchrun itself, for two reasons: it turns every exit code but 0 into 1, and after SIGTERM it kills its workers
within 30 s, which is less than a large checkpoint takes. Here the exit code is the one of the run's contract, a stop
reaches all ranks and nobody hurries them; the grace of the supervisor alone limits it. A dying rank takes the others
along, since they would wait for it for ever. `torchrun -m runner ...` works too.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

from runner.errors import RunExit, UsageError

_ORDERLY = (RunExit.FINISHED, RunExit.AUTO_STOPPED, RunExit.STOPPED, RunExit.LIMIT)
_LEFT_BEHIND_S = 20.0
"""Seconds that the other ranks get to end by themselves after one has failed."""


def launch(arguments: list[str], nproc: int) -> int:
    """Run `python -m runner <arguments>` on `nproc` ranks and return the worst thing that happened to any of them.

    Raises UsageError when there are fewer GPUs than that; without any GPU the ranks share the processor.
    """
    if 0 < (cards := _cards()) < nproc:
        raise UsageError(
            f"--nproc {nproc}, and this machine has {cards} GPU{'s' if cards > 1 else ''}: one process each."
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(nproc), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "runner", *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(nproc)
    ]

    def pass_on(number: int, _: object) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    failed_at: float | None = None
    while any(process.poll() is None for process in ranks):
        if failed_at is None and any(process.poll() not in (None, *_ORDERLY) for process in ranks):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > _LEFT_BEHIND_S:
            for process in ranks:
                process.kill()
        time.sleep(0.1)
    codes = [process.returncode for process in ranks]
    # a code of the contract (out of memory, disk full) says more than the signal that then killed the others
    worst = max(codes, key=lambda code: (code not in _ORDERLY, code > 1))
    return worst if worst >= 0 else 128 - worst


def _cards() -> int:
    """GPUs that this process may use; counting them touches none."""
    import torch

    return int(torch.cuda.device_count())
