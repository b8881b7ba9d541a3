"""Puts what the processes of a log wrote together into one RunHistory, without changing anything by looking.

A process that was resumed goes on with the trajectory before it; one that began again at 0 drops it. A step that was
evaluated twice counts once, with the newer value: that is the model which goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from runner.history import RunHistory
from runner.log_process import Process
from runner.log_series import Evals, Series, frames, pauses

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
    sets: str = ""
    """What is to be said of several evaluation sets; empty with one."""


def compose(reading: Reading, series: Series, bytes_read: int, *, binary: bool = False) -> RunHistory:
    """Make the history of the newest run in a log; `binary` is whether its bytes are no text at all.

    `series` is what the looks before this one already took in of the same log; a new one gives the same history.
    """
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
    evals = series.evals(chain)
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
        train=series.train(chain),
        evals=evals.points,
        pending_evals=_pending(last, evals),
        frames=frames(chain),
        pauses=pauses(chain),
        ended=ended,
        end_reason=reason,
        traceback=reading.traceback if reading.crashed else "",
        facts=dict(reading.facts),
        warnings=tuple(_warnings(chain, evals) + ([reading.sets] if reading.sets else [])),
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


def _pending(last: Process, evals: Evals) -> tuple[int, ...]:
    pending = dict.fromkeys(last.pending())
    known = {e.step for e in evals.points} if pending else set()
    return tuple(step for step in pending if step not in known)


def _no_trainer(bytes_read: int, binary: bool) -> str:
    """Why nothing can be shown of a file that we did not start ourselves."""
    if not bytes_read:
        return "the file is empty: nothing was written to it yet"
    if binary:
        return NOT_TEXT
    return "no line of a Hugging Face Trainer yet: training has not begun, or another program wrote this log"


def _warnings(chain: list[Process], evals: Evals) -> list[str]:
    words = []
    odd = [e for e in evals.points if not math.isfinite(e.eval_loss)] if evals.odd else []
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
        known = {e.step for e in evals.points}
        lost = [step for step in lost if step not in known]
    if lost:
        words.append(f"the value of the evaluation at step {lost[-1]} was lost with its process")
    if last.total is None and (evals.points or last.waiting or len(last.train)):
        words.append("no progress bar in this log, so its lines do not tell their step (disable_tqdm=False would)")
    elif evals.unplaced:
        words.append(f"{evals.unplaced} evaluation(s) whose step the log does not tell")
    return words
