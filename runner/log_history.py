"""Puts what the processes of a log wrote together into one RunHistory, without changing anything by looking.

A process that was resumed goes on with the trajectory before it; one that began again at 0 drops it. A step that was
evaluated twice counts once, with the newer value: that is the model which goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from runner.history import EvalPoint, Frame, Pause, RunHistory, TrainPoint
from runner.log_process import Process, eval_point, train_point

NOT_TEXT = "this is not a text file: name the file that the trainer's console output goes to"
"""The warning of a history read from a file that is no log of anything."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader holds at one moment."""

    processes: list[Process]
    current: Process | None
    clock_s: float
    """What the bar's clock shows for the current process, in seconds."""
    crashed: bool
    crash_words: str
    traceback: str
    facts: Mapping[str, str]
    run_id: str | None


def compose(reading: Reading, bytes_read: int, *, binary: bool = False) -> RunHistory:
    """Make the history of the newest run in a log; `binary` is whether its bytes are no text at all."""
    chain = _chain(reading.processes)
    if not chain:
        return RunHistory(
            source="log" if bytes_read else "none",
            run_id=reading.run_id,
            ended="crashed" if reading.crashed else None,
            end_reason=reading.crash_words if reading.crashed else "",
            traceback=reading.traceback,
            facts=dict(reading.facts),
            warnings=(_no_trainer(bytes_read, binary),) if reading.run_id is None and not reading.facts else (),
            bytes_read=bytes_read,
        )
    last = chain[-1]
    evals = _evals(chain)
    ended, reason = _ending(last, reading)
    max_steps = last.total
    if max_steps is None and reading.facts.get("max_steps", "").isdigit():
        max_steps = int(reading.facts["max_steps"])
    return RunHistory(
        source="log",
        run_id=reading.run_id,
        max_steps=max_steps,
        step=last.n if last.n is not None else (last.end.step if last.end is not None else None),
        elapsed_s=_elapsed(chain, reading) if last.total is not None else None,
        train=_train(chain),
        evals=evals,
        pending_evals=_pending(last, evals),
        frames=_frames(chain),
        pauses=_pauses(chain),
        ended=ended,
        end_reason=reason,
        traceback=reading.traceback if reading.crashed else "",
        facts=dict(reading.facts),
        warnings=tuple(_warnings(chain, evals)),
        bytes_read=bytes_read,
    )


def _elapsed(chain: list[Process], reading: Reading) -> float:
    return sum(max(p.elapsed, reading.clock_s) if p is reading.current else p.elapsed for p in chain)


def _chain(processes: list[Process]) -> list[Process]:
    """The processes of the newest run, oldest first."""
    chosen = list(processes)
    while len(chosen) > 1 and not chosen[-1].confirmed and _finished(chosen[-2]):
        chosen.pop()  # some bar after a finished training (a prediction, say) until it proves to be another training
    if not chosen:
        return []
    start = len(chosen) - 1
    while start > 0 and _goes_on(chosen[start], chosen[start - 1], chosen[:start]):
        start -= 1
    return chosen[start:]


def _finished(process: Process) -> bool:
    return process.end is not None


def _goes_on(process: Process, before: Process, earlier: list[Process]) -> bool:
    """Whether a process was resumed from the one before it.

    A process that begins at 0 shows small steps, and its first line at the same step as the first one did; a resumed
    one jumps from 0 past its checkpoint, at a rate that no training has.
    """
    if process.resumed is not None:
        return process.resumed
    if process.total is None or before.total is None:
        return process.total is not None or not _finished(before)
    if process.first_n is None:
        return not _finished(before)
    first_line = next((p.first_event for p in earlier if p.from_zero and p.first_event is not None), None)
    if process.first_event is not None and first_line is not None:
        return process.first_event > first_line and process.first_n > first_line
    if process.first_n == 1:
        return False
    rate = before.n / before.elapsed if before.n and before.elapsed >= 2 else before.first_rate
    if process.first_rate is None or rate is None:
        return not _finished(before)
    return process.first_rate > 3 * rate


def _ending(last: Process, reading: Reading) -> tuple[Literal["finished", "stopped", "crashed"] | None, str]:
    if reading.crashed:
        return "crashed", reading.crash_words
    if last.end is None:
        return None, ""
    if last.complete:
        return "finished", "all steps are done"
    return "stopped", f"training closed at step {last.n} of {last.total}"


# --- series ---------------------------------------------------------------------------------------------------------


def _evals(chain: list[Process]) -> tuple[EvalPoint, ...]:
    points: list[EvalPoint] = []
    for process in chain:
        known: dict[int, int] = {p.step: i for i, p in enumerate(points) if p.step is not None}
        for entry in process.evals:
            point = entry.point or eval_point(entry, process.infer(entry))
            if point is None:
                continue
            if point.step is not None and point.step in known:
                points[known[point.step]] = point
                continue
            if point.step is not None:
                known[point.step] = len(points)
            points.append(point)
    if len(chain) > 1 and all(p.step is not None for p in points):
        points.sort(key=lambda p: p.step or 0)
    return tuple(points)


def _train(chain: list[Process]) -> tuple[TrainPoint, ...]:
    points: tuple[TrainPoint, ...] = ()
    for process in chain:
        new = process.train.items()
        late = [(train_point(entry), process.infer(entry)) for entry in process.waiting]
        placed = [p._replace(step=step) for p, step in late if p is not None and step is not None]
        if placed:
            new = tuple(sorted(new + tuple(placed), key=lambda p: -1 if p.step is None else p.step))
        start = next((p.step for p in new if p.step is not None), None)
        if points and start is not None:
            points = tuple(p for p in points if p.step is None or p.step < start)
        points = points + new if points else new
    return points


def _frames(chain: list[Process]) -> tuple[Frame, ...]:
    if len(chain) == 1:
        frames = chain[0].frames.items()
        return frames if not frames or frames[0].process == 0 else tuple(f._replace(process=0) for f in frames)
    return tuple(f._replace(process=i) for i, p in enumerate(chain) for f in p.frames.items())


def _pauses(chain: list[Process]) -> tuple[Pause, ...]:
    pauses = []
    for index, process in enumerate(chain):
        here = [p._replace(process=index) for p in process.pauses]
        for entry in process.evals:
            runtime = entry.point.eval_runtime if entry.point is not None else None
            if entry.step is not None and runtime is not None and math.isfinite(runtime):
                here.append(Pause(entry.step, "eval", runtime, index))
        pauses += sorted(here, key=lambda p: p.step)
    return tuple(pauses)


def _pending(last: Process, evals: tuple[EvalPoint, ...]) -> tuple[int, ...]:
    known = {e.step for e in evals}
    return tuple(step for step in dict.fromkeys(last.pending()) if step not in known)


def _no_trainer(bytes_read: int, binary: bool) -> str:
    """Why nothing can be shown of a file that we did not start ourselves."""
    if not bytes_read:
        return "the file is empty: nothing was written to it yet"
    if binary:
        return NOT_TEXT
    return "no line of a Hugging Face Trainer yet: training has not begun, or another program wrote this log"


def _warnings(chain: list[Process], evals: tuple[EvalPoint, ...]) -> list[str]:
    words = []
    odd = [e for e in evals if not math.isfinite(e.eval_loss)]
    if odd:
        first = odd[0]
        where = f"at step {first.step}" if first.step is not None else f"at epoch {first.epoch}"
        more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        words.append(f"eval_loss is {first.printed} {where}{more}")
    for process in chain:
        bad = process.odd_gradient
        if bad is not None:
            words.append(f"grad_norm is not finite at step {bad.step}: the loss printed from there on is not the loss")
            break
    last = chain[-1]
    if last.direct is False:
        words.append(
            "the output is buffered: each evaluation's line comes one evaluation late (PYTHONUNBUFFERED=1 mends it)"
        )
    lost = [step for p in chain for step in p.lost_evals]
    if lost:
        known = {e.step for e in evals}
        lost = [step for step in lost if step not in known]
    if lost:
        words.append(f"the value of the evaluation at step {lost[-1]} was lost with its process")
    if last.total is None and (evals or last.waiting or len(last.train)):
        words.append("no progress bar in this log: its lines do not tell their step")
    elif any(e.step is None for e in evals):
        words.append(f"{sum(e.step is None for e in evals)} evaluation(s) whose step the log does not tell")
    return words
