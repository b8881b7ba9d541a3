"""One word for how a run is, and the reason in a sentence: a pure judgement over what was read.

The rules of this file, in order:

1. What has ended stays ended: a status that says so, then a log or metrics that say so. No link fault changes that.
2. A link that is down says nothing about the run: `unreachable`, never `crashed`.
3. A supervised run whose process is gone without a word was lost (killed with its supervisor, or the box restarted).
4. A process that lives but stands still is `silent`: the text stopped for longer than this run ever paused.
5. With nothing but a log, silence is all that can be said: nothing in it tells a dead run from a long pause.
"""

from __future__ import annotations

from runner.errors import RunExit
from runner.history import RunHistory, RunState
from runner.rundir import Status

QUIET_FLOOR_S = 120.0
"""Seconds without a new line that are never worth a word: loading, compiling and saving take that long."""

_BY_CODE = {
    RunExit.FINISHED: "all steps are done",
    RunExit.AUTO_STOPPED: "the auto-stop rule fired",
    RunExit.STOPPED: "stopped on request, with a checkpoint",
    RunExit.LIMIT: "stopped at its budget or deadline",
    RunExit.CUDA_OOM: "CUDA out of memory",
    RunExit.DISK_FULL: "the disk is full",
    RunExit.ALREADY_RUNNING: "another trainer is already running on this run directory",
}


def judge_state(
    history: RunHistory,
    status: Status | None,
    *,
    log_age_s: float | None,
    alive: bool | None,
    link_ok: bool = True,
) -> tuple[RunState, str]:
    """Say how a run is.

    `log_age_s` is how long ago (seconds, by the box's own clock) the log last grew, None when not known. `alive` is
    whether the trainer's process was seen: None when nobody could look. `status` is None for a foreign run.
    """
    ended = _ended(history, status)
    if ended is not None:
        return ended
    if not link_ok:
        return "unreachable", "the host does not answer; that says nothing about the run"
    if alive is False:
        return "crashed", _lost(status)
    if status is not None and status.state == "stopping":
        return "running", status.reason or "asked to stop, saving"
    age = _stillness(status, log_age_s)
    patience = quiet_after(history)
    if age is not None and age > patience:
        lives = "its process lives" if alive else "nothing in it says why"
        return "silent", f"nothing new for {_span(age)}, {lives}"
    if not history.train and not history.evals and not history.step:
        return "starting", "no step yet"
    return "running", _progress(history)


def quiet_after(history: RunHistory) -> float:
    """Seconds without a line after which this run counts as silent: well over its steps, evals and saves so far."""
    longest_pause = max((p.seconds for p in history.pauses), default=0.0)
    return max(QUIET_FLOOR_S, 3 * longest_pause, 20 * _seconds_per_step(history))


def _seconds_per_step(history: RunHistory) -> float:
    """Recent seconds per step, over the newest stretch of one process; 0 when there is none."""
    recent = history.frames[-20:]
    if not recent:
        return 0.0
    last = recent[-1]
    first = next(f for f in recent if f.process == last.process)
    return (last.elapsed_s - first.elapsed_s) / (last.step - first.step) if last.step > first.step else 0.0


def _ended(history: RunHistory, status: Status | None) -> tuple[RunState, str] | None:
    if status is not None:
        if status.state not in ("finished", "stopped", "crashed"):
            return None  # the supervisor knows better than the text: stages follow a finished training
        by_code = _BY_CODE.get(RunExit(status.rc)) if status.rc in set(RunExit) else None
        reason = status.reason or history.end_reason or by_code or f"exit code {status.rc}"
        word: RunState = (
            "finished" if status.state == "finished" else "stopped" if status.state == "stopped" else "crashed"
        )
        return word, reason
    if history.ended is not None:
        return history.ended, history.end_reason or _end_words(history)
    return None


def _end_words(history: RunHistory) -> str:
    if history.ended == "finished":
        return "all steps are done"
    if history.ended == "stopped":
        return f"ended early, at step {history.step} of {history.max_steps}"
    return "a traceback ended it"


def _lost(status: Status | None) -> str:
    if status is None:
        return "the process is gone and its log does not say why"
    return "trainer and supervisor are gone without a last word: killed, or the box was restarted"


def _stillness(status: Status | None, log_age_s: float | None) -> float | None:
    """Seconds since something last moved: the log, or the step that the supervisor sees."""
    ages = [log_age_s] if log_age_s is not None else []
    if status is not None and status.step_mono is not None:
        ages.append(max(0.0, status.mono - status.step_mono))
    return min(ages) if ages else None


def _progress(history: RunHistory) -> str:
    if history.stage:
        return f"at {history.stage}"
    if history.step is not None and history.max_steps:
        return f"step {history.step} of {history.max_steps}"
    return f"step {history.step}" if history.step is not None else "training"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"
