"""How fast a log is caught up, what appended bytes cost in a long one, and what memory it takes.

Reference: reading the same bytes line by line in Python (`for line in file`), which understands nothing of them, and
one regular expression over a memory map, which finds the frames and pairs nothing.
"""

from __future__ import annotations

import mmap
import re
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from runner.log import LogReader

FRAMES = 1_000_000
LOSS_EVERY, EVAL_EVERY = 10, 500


def make_log(path: Path, first: int, last: int, total: int = 2 * FRAMES) -> int:
    """Write the console log of steps `first` to `last`, as transformers 5 does; returns its size in bytes."""
    clear = b"\r" + b" " * 90 + b"\r"
    with path.open("wb") as file:
        if first == 1:
            file.write(b"\r  0%%|          | 0/%d [00:00<?, ?it/s]" % total)
        for n in range(first, last + 1):
            seconds = n // 3
            bar = b"\xe2\x96\x88" * (10 * n // total) + b" " * (10 - 10 * n // total)
            clock = b"%d:%02d:%02d" % (seconds // 3600, seconds // 60 % 60, seconds % 60)
            frame = b"\r%3d%%|%b| %d/%d [%b<92:35:33,  3.00it/s]" % (100 * n // total, bar, n, total, clock)
            file.write(frame)
            if n % LOSS_EVERY == 0:
                file.write(clear + b"{'loss': '%.4g', 'grad_norm': '0.77', 'learning_rate': '2e-05'," % (1 + 9 / n))
                file.write(b" 'epoch': '%.4g'}\n" % (n / 6250) + frame)
            if n % EVAL_EVERY == 0:
                inside = b"\r  0%|          | 0/16 [00:00<?, ?it/s]\x1b[A"
                file.write(b"\n" + inside + clear + b"\n" + clear + b"\x1b[A{'eval_loss': '%.4g'," % (1 + 3 / n))
                file.write(b" 'eval_runtime': '7.7', 'epoch': '%.4g'}\n" % (n / 6250) + frame)
                file.write(b"\n\r100%|##########| 16/16 [00:00<00:00, 9.00it/s]\x1b[A\n\r" + b" " * 50 + b"\x1b[A")
    return path.stat().st_size


def timed(work: Callable[[], object]) -> float:
    """Seconds of one core that a call takes; what else the machine does is left out."""
    start = time.process_time()
    work()
    return time.process_time() - start


def pieces(data: bytes, count: int) -> list[bytes]:
    """Cut into `count` pieces of equal size."""
    size = len(data) // count
    return [data[i * size : (i + 1) * size] for i in range(count)]


def row(name: str, ours: float, reference: float, unit: str) -> None:
    """Print one line of the table."""
    print(f"{name:50} {ours:10.2f} {unit:5} {reference:10.2f} {unit:5} {ours / reference:8.3f}")


def main() -> None:
    """Print `name  ours  reference  ratio`."""
    print(f"{'name':50} {'ours':>16} {'reference':>16} {'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.txt"
        size = make_log(path, 1, FRAMES)
        megabytes = size / 1e6

        reader = LogReader()

        def catch_up() -> None:
            with path.open("rb") as file:
                while piece := file.read(1 << 20):
                    reader.feed(piece)

        def lines() -> int:
            with path.open("rb") as file:
                return sum(1 for _ in file)

        def frames() -> int:
            pattern = re.compile(rb"(\d+)/(\d+) \[([\d:]+)<[^\]]*\]")
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return sum(1 for _ in pattern.finditer(mapped))

        ours = megabytes / timed(catch_up)
        row(f"catching up {megabytes:.0f} MB, MB/s (lines)", ours, megabytes / timed(lines), "MB/s")
        row(f"catching up {megabytes:.0f} MB, MB/s (regex)", ours, megabytes / timed(frames), "MB/s")

        history = reader.history()
        expected = FRAMES // EVAL_EVERY
        right = [e.step for e in history.evals] == [EVAL_EVERY * (i + 1) for i in range(expected)]
        print(f"  read {len(history.evals)} of {expected} evaluations, steps right: {right}, at step {history.step}")

        rounds, more = 100, Path(folder) / "more.txt"
        make_log(more, FRAMES + 1, FRAMES + 100_000)
        fresh = more.read_bytes()
        make_log(more, 1, 100_000)
        early = more.read_bytes()
        short = LogReader()
        row(
            "100 kB appended and looked at (vs to an empty log)",
            timed(lambda: [(reader.feed(p), reader.history()) for p in pieces(fresh, rounds)]) / rounds * 1e3,
            timed(lambda: [(short.feed(p), short.history()) for p in pieces(early, rounds)]) / rounds * 1e3,
            "ms",
        )
        row(
            "looking again, nothing new, us (vs a dict lookup)",
            timed(lambda: [reader.history() for _ in range(10000)]) / 10000 * 1e6,
            timed(lambda: [{"a": 1}["a"] for _ in range(10000)]) / 10000 * 1e6,
            "us",
        )

        tracemalloc.start()
        small = LogReader()
        with path.open("rb") as file:
            small.feed(file.read(size // 4))
        quarter = tracemalloc.get_traced_memory()[0] / 1e6
        tracemalloc.stop()
        seen = len(small.history().evals)
        print(f"  memory after {megabytes / 4:.0f} MB of log: {quarter:.1f} MB, {seen} evaluations")


if __name__ == "__main__":
    sys.exit(main())
