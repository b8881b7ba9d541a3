"""Why did the trainer end? A pure judgement from its exit code, what we did to it, and its last words.

Exit codes by the contract (`runner.errors.RunExit`) are taken at their word. Any other is a crash, unless it was we who
ended it, and its reason is looked for where it can be proved: the kernel's count of kills for memory, the last lines
of the log. Standard library only, and the syntax of Python 3.9.
"""

from __future__ import annotations

import re
import signal
from typing import NamedTuple

from runner.errors import RunExit

_CUDA_OOM = re.compile(
    rb"(?:torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|HIP out of memory)"
)
_DISK_FULL = re.compile(rb"(?:No space left on device|\[Errno 28\]|Disk quota exceeded|os error 28)")
_DONE = re.compile(rb"""\{['"]train_runtime['"][^{}]*['"]train_loss['"]""")
_FRAME = re.compile(rb"(\d+)/(\d+) \[[\d:]+<[^\]\r\n]*\](?!\x1b\[A)")


class Ending(NamedTuple):
    """How a run ended."""

    code: int
    """What the supervisor exits with: the contract's code, the trainer's own, or 128 + signal."""
    state: str
    """finished, stopped or crashed."""
    reason: str
    signal: int | None = None


_WORDS = {
    RunExit.FINISHED: ("finished", "all steps are done"),
    RunExit.AUTO_STOPPED: ("stopped", "the auto-stop rule fired"),
    RunExit.STOPPED: ("stopped", "stopped on request, with a checkpoint"),
    RunExit.LIMIT: ("stopped", "stopped at its budget or deadline"),
    RunExit.CUDA_OOM: ("crashed", "CUDA out of memory"),
    RunExit.DISK_FULL: ("crashed", "the disk is full"),
    RunExit.ALREADY_RUNNING: ("crashed", "another trainer is already running on this run directory"),
}


def judge_end(
    returncode: int | None, *, asked: str, killed: bool, oom_kills: int, tail: bytes, no_room: bool = False
) -> Ending:
    """Judge an ending.

    `returncode` is as `subprocess` gives it (negative for a signal), None when nobody could wait for it. `asked` is
    the reason of our stop, empty when we did not ask; `killed` whether we had to kill. `oom_kills` counts the kernel's
    kills for memory during the run. `tail` is the end of what this run wrote to its log; with `no_room` on the disk for
    a line more, the words that would explain a crash may be missing from it.
    """
    if returncode is None:
        return _by_signal(signal.SIGKILL, asked, killed, oom_kills) if killed else _unwaited(asked, tail)
    if returncode < 0:
        return _by_signal(-returncode, asked, killed, oom_kills)
    if returncode > 128 and returncode - 128 in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        return _by_signal(returncode - 128, asked, killed, oom_kills)  # a shell in between says it this way
    if returncode == RunExit.FINISHED and asked and not _all_steps(tail):
        return Ending(RunExit.STOPPED, "stopped", f"stopped on request ({asked})")
    if returncode in set(RunExit):
        state, reason = _WORDS[RunExit(returncode)]
        return Ending(returncode, state, f"{reason} ({asked})" if asked and state == "stopped" else reason)
    if _CUDA_OOM.search(tail):
        return Ending(RunExit.CUDA_OOM, "crashed", "CUDA out of memory")
    if _DISK_FULL.search(tail):
        return Ending(RunExit.DISK_FULL, "crashed", "the disk is full")
    if returncode == 127:
        return Ending(returncode, "crashed", "the command was not found (exit code 127)")
    said = _last_words(tail)
    if no_room and not said:
        return Ending(RunExit.DISK_FULL, "crashed", "the disk is full, not even the log had room for the reason")
    return Ending(returncode, "crashed", said or f"exit code {returncode}")


def _by_signal(number: int, asked: str, killed: bool, oom_kills: int) -> Ending:
    code = 128 + number
    if asked and killed:
        return Ending(code, "stopped", f"killed: it did not stop within its grace ({asked})", number)
    if asked:
        return Ending(code, "stopped", f"ended by the stop signal, without saving ({asked})", number)
    if number == signal.SIGKILL and oom_kills > 0:
        return Ending(code, "crashed", "killed by the kernel: the host ran out of memory (RAM, not GPU)", number)
    return Ending(code, "crashed", f"killed by {_signal_name(number)}", number)


def _unwaited(asked: str, tail: bytes) -> Ending:
    """The trainer outlived its first supervisor, so its exit code is lost: its own words are all there is."""
    if _all_steps(tail):
        return Ending(RunExit.FINISHED, "finished", "all steps are done")
    if asked or _DONE.search(tail):
        return Ending(RunExit.STOPPED, "stopped", asked or "training closed before its last step")
    if _CUDA_OOM.search(tail):
        return Ending(RunExit.CUDA_OOM, "crashed", "CUDA out of memory")
    if _DISK_FULL.search(tail):
        return Ending(RunExit.DISK_FULL, "crashed", "the disk is full")
    return Ending(1, "crashed", _last_words(tail) or "gone while its supervisor was away; exit code unknown")


def last_frame(tail: bytes) -> tuple[int, int] | None:
    """`(step, total)` of the newest bar in the end of a log, evaluation bars (which are nested) left out."""
    frames = _FRAME.findall(tail)
    return (int(frames[-1][0]), int(frames[-1][1])) if frames else None


def _all_steps(tail: bytes) -> bool:
    frame = last_frame(tail)
    return bool(_DONE.search(tail)) and (frame is None or frame[0] >= frame[1])


_GAVE_UP = re.compile(rb"(?:^|[\r\n])runner: ([^\r\n]+)")


def _last_words(tail: bytes) -> str:
    """The exception line of the last traceback, if the log ends with one; else what our runner said as it gave up."""
    start = tail.rfind(b"Traceback (most recent call last)")
    if start < 0:
        said = _GAVE_UP.findall(tail)
        return said[-1].decode("utf-8", "replace").strip()[:300] if said else ""
    for line in re.split(rb"[\r\n]+", tail[start:])[1:]:
        text = re.sub(rb"^\[rank\d+\]: ?", b"", line)
        if text[:1].strip() and re.match(rb"[A-Za-z_][\w.]*(?::|$)", text):
            return text.decode("utf-8", "replace").strip()[:300]
    return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
