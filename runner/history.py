"""What is known of a run, as frozen values: the readers of `runner.log` and `runner.rundir` make them, the forecast
and the screens read them. A history holds no file handle and no clock, and may cross threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from runner.autostop import StopRule, StopState

RunState = Literal["starting", "running", "finished", "stopped", "crashed", "silent", "unreachable"]
"""The words of `watch --json`; what is finer (stalled, lost, host gone) is said in the reason."""


class TrainPoint(NamedTuple):
    """One logged training line. Fields that the trainer did not print are None."""

    step: int | None
    """Optimiser step; None where the log cannot say (no progress bar)."""
    loss: float | None
    grad_norm: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None
    wall: float | None = None
    """Seconds since the epoch on the box's clock; only metrics.jsonl knows it."""
    tokens: float | None = None
    """Input tokens seen since the first step, where the trainer counts them."""


class EvalPoint(NamedTuple):
    """One evaluation."""

    step: int | None
    eval_loss: float
    """May be NaN or infinite: shown as a gap, never dropped."""
    eval_runtime: float | None = None
    """Seconds."""
    epoch: float | None = None
    printed: str = ""
    """The digits as they stand in the log: four significant ones in transformers 5."""
    wall: float | None = None


class Frame(NamedTuple):
    """A reading of progress: after `step` steps of process `process`, `elapsed_s` seconds had passed in it."""

    step: int
    elapsed_s: float
    process: int
    """0 for the first process that wrote the log, 1 after the first restart, and so on."""


class Pause(NamedTuple):
    """A stretch in which no step was trained."""

    step: int
    kind: Literal["eval", "save"]
    seconds: float
    process: int = 0


class StageResult(NamedTuple):
    """The macro of one stage of the study, with its tasks."""

    name: str
    macro: float
    tasks: Mapping[str, float]


class Note(NamedTuple):
    """Something that happened once: an upload, an acknowledgement, a fired rule."""

    step: int | None
    kind: str
    text: str
    wall: float | None = None


class Ack(NamedTuple):
    """The trainer's answer to something that was asked of it."""

    id: str
    kind: str
    """`rule`, `save`, `stop`."""
    accepted: bool
    detail: str
    step: int | None = None
    wall: float | None = None


@dataclass(frozen=True, slots=True)
class RunHistory:
    """Everything the monitor knows from log.txt or metrics.jsonl at one moment.

    Long series are thinned by their reader so that memory is bounded; extremes are always kept.
    """

    source: Literal["log", "metrics", "none"] = "none"
    run_id: str | None = None
    max_steps: int | None = None
    step: int | None = None
    elapsed_s: float | None = None
    """Seconds of training over all processes, evals and saves included."""
    train: tuple[TrainPoint, ...] = ()
    evals: tuple[EvalPoint, ...] = ()
    pending_evals: tuple[int, ...] = ()
    """Steps whose evaluation is done or under way while its value has not been written yet."""
    frames: tuple[Frame, ...] = ()
    pauses: tuple[Pause, ...] = ()
    ended: Literal["finished", "stopped", "crashed"] | None = None
    """What the text itself says about the end; None while nothing says so."""
    end_reason: str = ""
    traceback: str = ""
    """The last traceback or torchrun root cause, trimmed for reading; empty when there was none."""
    rule: StopRule | None = None
    """The auto-stop rule the run declared; None for a foreign run."""
    obeys: tuple[str, ...] = ()
    """Kinds of requests that this run answers while it trains; empty for a foreign run, or an older one of ours."""
    acks: tuple[Ack, ...] = ()
    """Its answers, oldest first."""
    declared_stop: StopState | None = None
    """The runner's own machine state; None for a foreign run."""
    stages: tuple[StageResult, ...] = ()
    stage: str | None = None
    """The stage under way, for a study of several."""
    notes: tuple[Note, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the log says of itself: examples, batch size, parameters, versions."""
    warnings: tuple[str, ...] = ()
    bytes_read: int = 0

    @property
    def stepless(self) -> bool:
        """Whether there are losses and nothing tells at which step: a log without a progress bar (disable_tqdm)."""
        return bool(self.train or self.evals) and self.step is None and self.max_steps is None

    def eval_pairs(self) -> list[tuple[int, float]]:
        """`(step, eval_loss)` of every eval whose step is known, in order: what the auto-stop machine takes."""
        return [(e.step, e.eval_loss) for e in self.evals if e.step is not None]
