"""tunewatch beside `wandb leet` (curves) and `toolong` (logs): the same data, the same terminal, in turn, in one run.

    python -m tests.bench.bench_side_by_side                          installs both into a temporary folder, with pip
    python -m tests.bench.bench_side_by_side --wandb W --toolong T    takes `wandb` and `tl` that are there already

Each program runs in a tmux of 120x40 of its own, and the screen is read as a person would: text that stands there.
Rounds alternate, and the best of them counts: what the machine can do beside its other work. Lines of
`name  ours  theirs  ratio`; below 1 we are ahead. Memory is the proportional share (PSS) of the whole process tree,
when everything asked for is on the screen. Nothing of the two is a dependency of ours.

leet reads `.wandb` files: its run is written by wandb itself, offline, and its newest step is appended to the file as
the bytes that wandb wrote, so that no delay of the writer counts. `wandb leet` is a launcher in Python for a program
in Go; the row `leet, its core alone` starts that program without the launcher.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 5
STEPS = 20_000
LOG_LINES = 1_000_000
PATIENCE_S = 60.0
MARK = 777.125
"""The loss of the step that is appended: no other number of the frame looks like it."""
LOG_MARK = "the line that was appended"
WRITE_WANDB = f"""
import json, sys, wandb
losses, evals = json.load(open(sys.argv[1]))
settings = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True)
run = wandb.init(project="bench", mode="offline", dir=sys.argv[2], settings=settings)
evals = dict(map(tuple, evals))
for step, loss in enumerate(losses, 1):
    row = {{"train/loss": loss}}
    if step in evals:
        row["eval/loss"] = evals[step]
    run.log(row, step=step)
run.log({{"train/loss": {MARK}}}, step=len(losses) + 1)
run.finish()
"""


# the terminal ---------------------------------------------------------------------------------------------------------


_NUMBERS = itertools.count()


class Terminal:
    """One program in one tmux, started at once and ended with the block."""

    def __init__(self, words: list[str], environment: Mapping[str, str]) -> None:
        # a server of its own: the one before may still be ending
        self.socket = f"bench{os.getpid()}-{next(_NUMBERS)}"
        # compiled once, as on any machine, also where the environment of the bench forbids it
        words = ["env", "-u", "PYTHONDONTWRITEBYTECODE", *(f"{k}={v}" for k, v in environment.items()), *words]
        self.started = time.perf_counter()
        self._tmux("new-session", "-d", "-x", "120", "-y", "40", shlex.join(words))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server")

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-f", "/dev/null", "-L", self.socket, *words], capture_output=True, text=True, check=False
        )
        return done.stdout

    def frame(self) -> str:
        """What stands on the screen."""
        return self._tmux("capture-pane", "-p")

    def press(self, *keys: str) -> None:
        """Keys, by the names of tmux."""
        self._tmux("send-keys", *keys)

    def seconds_until(self, holds: Callable[[str], bool], since: float | None = None) -> float:
        """Seconds since the start (or `since`) until the frame holds. Raises TimeoutError with the last frame."""
        begun = self.started if since is None else since
        while True:
            frame = self.frame()
            now = time.perf_counter()
            if holds(frame):
                return now - begun
            if now - begun > PATIENCE_S:
                raise TimeoutError(f"not on the screen after {PATIENCE_S:.0f} s:\n{frame}")

    def processes(self) -> list[int]:
        """The program and all its children."""
        return _tree([int(pid) for pid in self._tmux("list-panes", "-F", "#{pane_pid}").split()])

    def memory_mb(self) -> float:
        """Proportional share of memory of all of them."""
        return sum(_pss_mb(pid) for pid in self.processes())

    def processor_s(self) -> float:
        """Processor time of all of them so far: unlike the time on the wall, it is not longer beside other work."""
        return sum(_processor_s(pid) for pid in self.processes())


def _tree(roots: list[int]) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(words[1])
    found = list(roots)
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid and child not in found]
    return found


def _processor_s(pid: int) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(ticks) for ticks in words[11:15]) / os.sysconf("SC_CLK_TCK")


def _pss_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return float(text.split("Pss:")[1].split()[0]) / 1024


# the data -------------------------------------------------------------------------------------------------------------


def values() -> tuple[list[float], list[tuple[int, float]]]:
    """Training losses of steps 1 … STEPS, and evals as (step, value): a noisy descent, the same for everybody."""
    import random

    noise = random.Random(7)
    losses = [1 + 2 / (1 + step / 2000) + 0.1 * noise.gauss(0, 1) for step in range(1, STEPS + 1)]
    return losses, [(step, 1.1 + 2 / (1 + step / 2000)) for step in range(200, STEPS + 1, 200)]


def our_run(folder: Path) -> Path:
    """The values as a run directory of ours."""
    from runner.metrics import MetricsWriter
    from runner.rundir import RunDir

    losses, evals = values()
    run = RunDir.create("bench", folder)
    run.open_log()
    writer = MetricsWriter(run.metrics)
    writer.write("start", max_steps=10 * STEPS, rule=None)
    at = dict(evals)
    for step, loss in enumerate(losses, 1):
        writer.write("train", step=step, loss=loss, step_s=0.5)
        if step in at:
            writer.write("eval", step=step, eval_loss=at[step], eval_runtime=1.0)
    return run.path


def wandb_run(folder: Path, python: Path, environment: Mapping[str, str]) -> tuple[Path, bytes]:
    """The values as a `.wandb` file without its newest step, and the bytes of that step."""
    data = folder / "values.json"
    data.write_text(json.dumps(values()))
    subprocess.run(
        [str(python), "-c", WRITE_WANDB, str(data), str(folder)], check=True, env={**os.environ, **environment},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    path = next(folder.glob("wandb/offline-run-*/*.wandb"))
    whole = path.read_bytes()
    begin, end = last_history(whole)
    path.write_bytes(whole[:begin])
    return path, whole[begin:end]


def last_history(whole: bytes) -> tuple[int, int]:
    """Where the record with MARK lies in a `.wandb` file: chunks of LevelDB's log format in blocks of 32 KiB, after a
    header of 7 bytes; a chunk has a head of 7 bytes (checksum, length, kind).
    """
    at, wanted = 7, str(MARK).encode()
    while at + 7 <= len(whole):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length = int.from_bytes(whole[at + 4 : at + 6], "little")
        if whole[at + 6] == 1 and wanted in whole[at : at + 7 + length]:
            return at, at + 7 + length
        at += 7 + length
    raise ValueError("the newest step is not one chunk of the file")


def big_log(path: Path) -> None:
    """A log of a million lines, as a trainer leaves it."""
    with path.open("w") as out:
        for n in range(LOG_LINES):
            out.write(f"2026-02-15 10:45:18,{n % 1000:03d} INFO trainer: micro step {n} tokens 8192 ok {n * 7}\n")


# the programs ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Best:
    """The best of several rounds, by name."""

    rows: dict[str, float] = field(default_factory=dict)

    def take(self, name: str, value: float) -> None:
        """Keep the smaller one."""
        self.rows[name] = min(value, self.rows.get(name, float("inf")))


def has_curve(frame: str) -> bool:
    """Whether a curve is drawn: more braille than any swatch or spinner has."""
    return sum("\u2801" <= glyph <= "\u28ff" for glyph in frame) >= 60


def has_mark(frame: str) -> bool:
    """Whether the loss that was appended is told, or is the end of an axis."""
    return re.search(r"(?<![\d.])(777|[78]\d\d(?:\.\d+)?[│┤┼└])", frame) is not None


def watch_curves(words: list[str], environment: Mapping[str, str], file: Path, more: bytes) -> Best:
    """One round: the first curve, memory, a step appended; the file is as it was afterwards."""
    best = Best()
    size = file.stat().st_size
    with Terminal(words, environment) as terminal:
        best.take("first curve, s", terminal.seconds_until(has_curve))
        best.take("processor time to it, s", terminal.processor_s())
        settle(terminal)
        best.take("memory, MB", terminal.memory_mb())
        since = append(file, more)
        best.take("step appended to frame, s", terminal.seconds_until(has_mark, since))
    os.truncate(file, size)
    return best


def watch_log(words: list[str], environment: Mapping[str, str], file: Path, opening: tuple[str, ...]) -> Best:
    """One round: the newest line, every line known, memory, a line appended."""
    best = Best()
    size = file.stat().st_size
    newest = f"micro step {LOG_LINES - 1} "
    with Terminal(words, environment) as terminal:
        best.take("newest line, s", terminal.seconds_until(lambda frame: newest in frame))
        best.take("processor time to it, s", terminal.processor_s())
        if opening:
            terminal.press(*opening)
            terminal.seconds_until(lambda frame: f"{LOG_LINES:,}/{LOG_LINES:,}" in frame)
        settle(terminal)
        best.take("memory, MB", terminal.memory_mb())
        since = append(file, f"{LOG_MARK}\n".encode())
        best.take("line appended to frame, s", terminal.seconds_until(lambda frame: LOG_MARK in frame, since))
    os.truncate(file, size)
    return best


def append(file: Path, more: bytes) -> float:
    """Append in one write; when, by the performance counter."""
    with file.open("ab", buffering=0) as out:
        out.write(more)
    return time.perf_counter()


def settle(terminal: Terminal) -> None:
    """Wait until the frame is the same for two seconds: it has read what there was (at most twenty)."""
    begun = time.perf_counter()
    same, last = begun, terminal.frame()
    while time.perf_counter() - same < 2 and time.perf_counter() - begun < 20:
        time.sleep(0.1)
        frame = terminal.frame()
        if frame != last:
            same, last = time.perf_counter(), frame


def compare(title: str, ours: Best, theirs: Best) -> None:
    """The rows of one comparison."""
    for name, value in ours.rows.items():
        other = theirs.rows[name]
        print(f"{title + ': ' + name:<52} {value:9.3f} {other:9.3f} {value / other:6.2f}", flush=True)


def merge(into: Best, more: Best) -> None:
    """Keep the better values of a round."""
    for name, value in more.rows.items():
        into.take(name, value)


def install(folder: Path) -> tuple[Path, Path] | None:
    """`wandb` and `tl` in an environment of their own; None, with a sentence, where pip cannot get them."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    done = subprocess.run(
        [str(folder / "bin" / "pip"), "install", "-q", "toolong", "wandb"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        print(f"toolong and wandb cannot be installed here, so nothing is compared: {reason[0]}")
        return None
    return folder / "bin" / "wandb", folder / "bin" / "tl"


def main() -> None:
    """Print the table."""
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    words.add_argument("--wandb", type=Path, help="the command wandb, of an environment of its own")
    words.add_argument("--toolong", type=Path, help="the command tl")
    words.add_argument("--rounds", type=int, default=ROUNDS)
    asked = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = (asked.wandb, asked.toolong) if asked.wandb and asked.toolong else install(root / "env")
        if found is None:
            return
        wandb, toolong = found
        mine = {
            "TUNEWATCH_HOME": str(root / "home"), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8",
            "PYTHONPYCACHEPREFIX": str(root / "compiled"),
        }  # fmt: skip
        other = {
            "HOME": str(root / "other"), "WANDB_MODE": "offline", "WANDB_SILENT": "true", "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8", "WANDB_CONFIG_DIR": str(root / "other"), "WANDB_CACHE_DIR": str(root / "other"),
            "PYTHONPYCACHEPREFIX": str(root / "compiled"),
        }  # fmt: skip
        (root / "other").mkdir()
        tunewatch = [sys.executable, "-m", "tui"]
        run = our_run(root / "ours")
        record, newest = wandb_run(root, wandb.parent / "python", other)
        step = json.dumps({"event": "train", "step": STEPS + 1, "loss": MARK, "step_s": 0.5}).encode() + b"\n"
        core = next(wandb.parent.parent.glob("lib/python*/site-packages/wandb/bin/wandb-core"))
        alone = [str(core), "leet", "run", "--base-url", "http://127.0.0.1:9", "--run-file", str(record)]
        log = root / "log.txt"
        big_log(log)
        curves, leet, go, lines, tl = Best(), Best(), Best(), Best(), Best()
        for _ in range(asked.rounds):
            merge(curves, watch_curves([*tunewatch, "watch", str(run)], mine, run / "metrics.jsonl", step))
            merge(leet, watch_curves([str(wandb), "leet", "run", str(record)], other, record, newest))
            merge(go, watch_curves([*alone, str(record.parent.parent)], other, record, newest))
            merge(lines, watch_log([*tunewatch, "watch", str(log)], mine, log, ("L",)))
            merge(tl, watch_log([str(toolong), str(log)], other, log, ()))
        print(f"{'name':<52} {'ours':>9} {'theirs':>9} {'ratio':>6}   best of {asked.rounds}")
        compare("leet", curves, leet)
        compare("leet, its core alone", curves, go)
        compare("toolong", lines, tl)


if __name__ == "__main__":
    main()
