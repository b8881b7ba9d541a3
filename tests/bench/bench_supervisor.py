"""What the supervisor and the metrics writer cost, against a step of the demo (50 ms on two cores).

Ours is the CPU the supervisor burns per second of training, and the wall time of one metrics line; the reference is
one step. A ratio of 0.01 is one per cent.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runner.box import proc
from runner.metrics import MetricsWriter
from runner.rundir import read_status

STEP_S = 0.05
"""Seconds: a fast step of the demo; the ratio is smaller for slower ones."""
WATCHED_S = 10.0
ROOT = Path(__file__).parent.parent.parent

TRAINER = """
import os, sys, time
from runner.metrics import MetricsWriter
writer = MetricsWriter(os.environ["TUNEWATCH_RUN_DIR"] + "/metrics.jsonl")
for step in range(1, 100000):
    time.sleep(0.05)
    writer.write("train", step=step, loss=1.5, grad_norm=0.5, learning_rate=1e-4, epoch=0.1, step_s=0.05)
"""


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, by the scheduler's nanoseconds: the ticks of /proc/PID/stat are too coarse."""
    return int((proc.PROC / str(pid) / "schedstat").read_text().split()[0]) / 1e9


def supervisor_cost() -> float:
    """CPU seconds of the supervisor per second of a run that writes 20 lines a second."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "runner.box.supervise", "--run-dir", str(run_dir), "--grace", "1", "--"]
        child = subprocess.Popen([*command, sys.executable, "-c", TRAINER], cwd=ROOT)
        try:
            while (status := read_status(run_dir / "status.json")) is None or not status.step:
                time.sleep(0.05)
            before, start = cpu_seconds(child.pid), time.monotonic()
            time.sleep(WATCHED_S)
            return (cpu_seconds(child.pid) - before) / (time.monotonic() - start)
        finally:
            child.terminate()
            child.wait()


def writer_cost(rounds: int = 20000) -> float:
    """Seconds of one metrics line."""
    with tempfile.TemporaryDirectory() as folder, MetricsWriter(Path(folder) / "m") as writer:
        start = time.perf_counter()
        for step in range(rounds):
            writer.write("train", step=step, loss=1.5, grad_norm=0.5, learning_rate=1e-4, epoch=0.1, step_s=0.05)
        return (time.perf_counter() - start) / rounds


def main() -> None:
    """Print `name  ours  reference  ratio`."""
    print(f"{'name':44} {'ours':>12} {'reference':>12} {'ratio':>8}")
    watching, writing = supervisor_cost() * STEP_S, writer_cost()
    for name, ours in (
        ("supervisor, CPU per step", watching),
        ("one metrics line per step", writing),
        ("both", watching + writing),
    ):
        print(f"{name:44} {ours * 1e6:9.1f} us {STEP_S * 1e6:9.0f} us {ours / STEP_S:8.5f}")


if __name__ == "__main__":
    main()
