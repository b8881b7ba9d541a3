"""What one training process wrote: its steps, and which dict line belongs to which step.

A dict line carries no step, and under `2>&1 | tee` its text comes late: stdout waits in a buffer, the bar on stderr
does not. But each time the Trainer writes a line, tqdm clears its bars first and draws them again after: that *write
event* is in the bytes at once, and the frame drawn after it shows the true step. So:

- The i-th write event belongs to the i-th dict line (first in, first out), whatever lies between them.
- The step of an event is the step of the next training frame; several clears without one between are one event.
- An evaluation writes while its own bar is open, so its events are told from those of the loss lines by their shape.
- Where the first line comes between its own clear and its own frame, stdout is not buffered (`direct`), and an event
  without a dict was somebody else's writing.
- A line whose event is missing (the log was cut) gets a step only if the epoch it prints leaves no other choice.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from dataclasses import dataclass, field

from runner.history import EvalPoint, Frame, Pause, TrainPoint
from runner.log_words import Record, to_number
from runner.thin import Thinned, thin_frames, thin_train

_OPEN = 64
"""Lines that may wait for their step: one so far behind the newest keeps the step it has, or none."""


@dataclass(slots=True, eq=False)
class Entry:
    """One dict line and what is known of its step."""

    record: Record
    step: int | None = None
    seen_at: int | None = None
    """The training frame before it: its step cannot be lower."""
    followed_by: int | None = None
    """The training frame right after it, where it had no event of its own."""
    declared: bool = False
    """Whether the line said its step itself."""
    point: EvalPoint | None = None
    """What a settled evaluation amounts to, made once; None for one that prints no eval_loss."""
    settled: bool = False
    """Whether an evaluation's step is proved or given up: it never changes again."""


@dataclass(slots=True, eq=False)
class Event:
    """One write: a clear of the bars and the frame after it."""

    evaluation: bool
    step: int | None = None
    """None until the bar is drawn again."""
    entries: list[Entry] = field(default_factory=list)
    """Lines that were paired with it before its step was known."""
    words: bool = False
    """Whether text that is no dict came between the clear and the frame."""


class Process:
    """Everything one process wrote, from its first frame (or first dict, where there are no bars) on."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.number = 0
        """Its place among the processes of the run, as its frames and pauses name it."""
        self.n: int | None = None
        """The newest step that a frame showed."""
        self.elapsed = 0.0
        """Seconds, as the bar shows them."""
        self.from_zero = False
        """Whether its first frame is in the log; if not, the log begins in the middle of it."""
        self.aligned = True
        """Whether the next line is known to belong to the next event; not so where a log begins in the middle."""
        self.first_n: int | None = None
        """The first step above 0 that a frame showed: one more than the checkpoint it was resumed from, at least."""
        self.first_rate: float | None = None
        """Steps per second that the bar showed at `first_n`: absurdly high after a resume."""
        self.first_event: int | None = None
        """The first step at which something was written."""
        self.first_epoch: float | None = None
        self.last_epoch: float | None = None
        self.resumed: bool | None = None
        """Whether it goes on with what was written before; None while that is not known."""
        self.confirmed = False
        """Whether its bar proved to be the Trainer's."""
        self.direct: bool | None = None
        """Whether stdout is unbuffered; None until the first dict line."""
        self.nested_seen = False
        self.evals: list[Entry] = []
        self.train: Thinned[TrainPoint] = Thinned(thin_train)
        self.odd_gradient: TrainPoint | None = None
        """The first loss line whose gradient was not finite."""
        self.waiting: list[Entry] = []
        """Loss lines whose step is not known yet."""
        self.end: Entry | None = None
        """The closing line, with train_loss."""
        self.frames: Thinned[Frame] = Thinned(thin_frames)
        self.pauses: list[Pause] = []
        """In the order of their steps."""
        self.evals_s = self.saves_s = 0.0
        """Seconds of all evaluations that printed theirs, and of all saves whose length is known."""
        self.events: deque[Event] = deque()
        self.event: Event | None = None
        """The write under way: cleared, not yet drawn again."""
        self.cleared = False
        """Whether any write event was seen at all."""
        self.crashed = False
        self.frames_after_crash = 0
        self.lost_evals: list[int] = []
        """Evaluations whose text never came, because the process died with it."""
        self.block: list[Entry] = []
        """Lines of a first flush that cannot be paired before it ends (see `close_block`)."""
        self._proved_evals = self._eval_gcd = 0
        """How many evaluations have a proved step above 0, and the greatest common divisor of those."""
        self._scale: list[tuple[int, float, Record]] = []
        """`(step, epoch, line)` of the first and the newest lines whose step is proved."""

    # --- write events ---

    def clear(self, evaluation: bool) -> None:
        """Take a clear of the bars."""
        if self.event is None:
            self.event = Event(evaluation)
            self.events.append(self.event)
            self.cleared = True

    def redraw(self, n: int) -> None:
        """Take the training frame that follows a clear: now the event has its step."""
        event, self.event = self.event, None
        if event is None:
            return
        self.confirmed = True
        event.step = n
        if self.first_event is None:
            self.first_event = n
        if not self.aligned:
            self._align_on(event)
        for entry in event.entries:
            self._settle(entry, n)
        if event.entries:
            return
        if self.direct is True and self.events and self.events[-1] is event:
            self.events.pop()

    def take(self, record: Record) -> Entry:
        """Take a dict line of the Trainer and find its event."""
        entry = Entry(record, seen_at=self.n)
        said = record.step()
        if said is not None:
            entry.step, entry.declared = said[0], True
        if record.is_end:
            self.end = entry
        elif record.is_eval:
            self._take_eval(entry)
        else:
            self.waiting.append(entry)
        if self.aligned or entry.declared:
            self._pair(entry, self._pop(record))
        elif self.event is not None:
            self.event.entries.append(entry)
        elif self.events:
            self.block.append(entry)
        return entry

    def _take_eval(self, entry: Entry) -> None:
        self.evals.append(entry)
        self.evals_s += entry.record.number(b"eval_runtime") or 0
        if entry.declared:
            self._prove(entry)
        if len(self.evals) > _OPEN:
            self._give_up(self.evals[-1 - _OPEN])

    def _prove(self, entry: Entry) -> None:
        """Count in an evaluation whose step is proved."""
        if entry.step:
            self._proved_evals += 1
            self._eval_gcd = math.gcd(self._eval_gcd, entry.step)

    def _give_up(self, entry: Entry) -> None:
        """Leave an evaluation with the step that can be inferred by now, or without one."""
        if not entry.settled:
            entry.point, entry.settled = eval_point(entry, self.infer(entry)), True

    def _align_on(self, event: Event) -> None:
        """Find out, at the first lines of a log that begins in the middle of a run, what they belong to.

        One line inside the only event so far: not buffered. Several inside one event: a full buffer was flushed, these
        are lines of events from before the log's first byte.
        """
        others = [e for e in self.events if e is not event and not e.words]
        if len(event.entries) == 1 and not others and self.direct is None:
            self.events.clear()
            self.aligned = self.direct = True
        elif event.entries:
            event.entries.clear()
            self.direct = False

    def close_block(self) -> None:
        """Pair the lines of the first flush of a log that begins in the middle of a run.

        Events from before the log's first byte are missing, but a flush leaves nothing behind: its last line belongs
        to the newest event, and so on backwards.
        """
        block, self.block = self.block, []
        found: list[tuple[Entry, Event | None]] = []
        for entry in reversed(block):
            while self.events and self.events[-1].evaluation != entry.record.is_eval:
                self.events.pop()
            found.append((entry, self.events.pop() if self.events else None))
        for entry, event in reversed(found):
            self._pair(entry, event)
        if block:
            self.events.clear()
            self.direct, self.aligned = False, True

    def _pair(self, entry: Entry, event: Event | None) -> None:
        if event is None:
            if entry.step is not None:
                self._settle(entry, entry.step)
            elif self.total is None or len(self.waiting) > _OPEN:
                self._release()
        elif event.step is None:
            if self.direct is None:
                self.direct = not self.events
            event.entries.append(entry)
        else:
            self.direct = False
            self._settle(entry, event.step)

    def _release(self) -> None:
        """Let the oldest loss line go with the step it has, or without one: its event is not in the log."""
        if self.waiting:
            entry = self.waiting.pop(0)
            entry.step = self.infer(entry)
            self._keep(entry)

    def _pop(self, record: Record) -> Event | None:
        """The event that a line belongs to, taken out of the queue with all before it; None when it has none."""
        if self.direct is not False and self._only_one_writing():
            self.events.clear()
            return self.event
        wanted = [i for i, e in enumerate(self.events) if e.evaluation == record.is_eval]
        if record.is_eval:
            if not wanted and not self.nested_seen:
                wanted = list(range(len(self.events)))
            if b"eval_loss" in record.values:
                known = self._last_eval()
                wanted = [i for i in wanted if known is None or (self.events[i].step or math.inf) > known]
        if not wanted:
            return None
        chosen = wanted[0]
        epoch = record.epoch
        if epoch is not None and self.direct is False:
            slack = record.epoch_slack()
            if not self._fits(self.events[chosen].step, epoch, slack):
                chosen = next((i for i in wanted if self._fits(self.events[i].step, epoch, slack)), chosen)
        event = self.events[chosen]
        for _ in range(chosen + 1):
            self.events.popleft()
        return event

    def _only_one_writing(self) -> bool:
        """Whether the write under way is the only one that can be waiting for a line.

        A write with words but no dict in it was somebody else's where stdout is not buffered; where it is, chance put
        the words there, and the line is still to come. Which of the two holds is known with the first line.
        """
        return self.event is not None and all(e is self.event or e.words for e in self.events)

    def _last_eval(self) -> int | None:
        """The step of the newest evaluation that has one; the line being taken is already in the list."""
        newest = self.evals[: -1 - _OPEN : -1]
        return next((e.step for e in newest if e.step is not None), None)

    def _settle(self, entry: Entry, step: int) -> None:
        """Give a line its proved step."""
        if entry.settled:
            return
        if not entry.declared:
            entry.step = step
            if entry.record.is_eval and not entry.record.is_end:
                self._prove(entry)
        epoch, proved = entry.record.epoch, entry.step
        if epoch is not None and proved is not None and math.isfinite(epoch):
            if len(self._scale) >= 8:
                del self._scale[2]
            self._scale.append((proved, epoch, entry.record))
        if self.waiting and entry is self.waiting[0]:
            self._keep(self.waiting.pop(0))
        elif entry in self.waiting:
            self.waiting.remove(entry)
            self._keep(entry)
        elif entry.record.is_eval:
            entry.point, entry.settled = eval_point(entry, proved), True
            runtime = entry.point.eval_runtime if entry.point is not None else None
            if proved is not None and runtime is not None and math.isfinite(runtime):
                insort(self.pauses, Pause(proved, "eval", runtime, self.number))

    def _keep(self, entry: Entry) -> None:
        point = train_point(entry)
        if point is None:
            return
        self.train.append(point)
        if self.odd_gradient is None and point.grad_norm is not None and not math.isfinite(point.grad_norm):
            self.odd_gradient = point

    # --- time ---

    def reading(self, step: int) -> None:
        """Keep what the bar's clock shows at a step."""
        self.frames.append(Frame(step, self.elapsed, self.number))

    def saved(self, step: int, seconds: float) -> None:
        """Take a save after `step` and how long it took."""
        self.saves_s += seconds
        insort(self.pauses, Pause(step, "save", seconds, self.number))

    def renumber(self, number: int) -> None:
        """Give the process its place in the run, which is known once it is known which ones belong together."""
        if number != self.number:
            self.number = number
            self.frames.change(lambda f: f._replace(process=number))
            self.pauses = [p._replace(process=number) for p in self.pauses]

    # --- epochs ---

    def steps_per_epoch(self) -> float | None:
        """As the proved lines say it; None without one."""
        best = max(
            (s for s in self._scale if s[1] > 0), key=lambda s: s[1] / max(s[2].epoch_slack(), 1e-12), default=None
        )
        return best[0] / best[1] if best else None

    def _fits(self, step: int | None, epoch: float, slack: float) -> bool:
        """Whether a step and a printed epoch can belong together, by the nearest proved line."""
        scale = self.steps_per_epoch()
        if step is None or scale is None or not math.isfinite(epoch):
            return True
        near = min(self._scale, key=lambda s: abs(s[1] - epoch))
        want = near[0] + (epoch - near[1]) * scale
        return abs(step - want) <= 1 + (slack + near[2].epoch_slack()) * scale + 0.02 * abs(want - near[0])

    def infer(self, entry: Entry) -> int | None:
        """The step of a line whose event is not in the log; None unless only one step is possible."""
        if entry.step is not None:
            return entry.step
        if entry.followed_by is not None and self.direct is True:
            return entry.followed_by
        if entry.seen_at is not None and self.event is not None and entry in self.event.entries and self._is_slow():
            return entry.seen_at
        epoch = entry.record.epoch
        if epoch is None or not math.isfinite(epoch):
            return None
        slack = entry.record.epoch_slack()
        for step, other, _ in reversed(self._scale):
            if other == epoch and slack * (self.steps_per_epoch() or math.inf) <= 1:
                return step
        scale = self.steps_per_epoch()
        if scale is None:
            return None
        near = min(self._scale, key=lambda s: abs(s[1] - epoch))
        middle = near[0] + (epoch - near[1]) * scale
        width = (slack + near[2].epoch_slack()) * scale + 0.005 * abs(middle - near[0])
        low, high = math.ceil(middle - width - 1e-6), math.floor(middle + width + 1e-6)
        if entry.seen_at is not None and self.direct is True:
            low = max(low, entry.seen_at)
        elif entry.seen_at is not None and self.direct is False:
            high = min(high, entry.seen_at)  # late text is never ahead of its step
        if self.total is not None:
            high = min(high, self.total)
        cadence = self._cadence() if entry.record.is_eval else 0
        if cadence > 1:
            first = -(-low // cadence) * cadence
            return first if first <= high < first + cadence else None
        if low == high:
            return low
        return None

    def _is_slow(self) -> bool:
        """Whether every step is drawn: tqdm leaves out only frames that come within a tenth of a second."""
        return self.n is not None and self.n >= 2 and self.elapsed >= 0.4 * self.n and self.from_zero

    def _cadence(self) -> int:
        """The step that divides all proved evaluation steps, 0 with fewer than two of them."""
        return self._eval_gcd if self._proved_evals >= 2 else 0

    # --- the end ---

    def close(self) -> None:
        """Another process began: what this one has not written by now is lost."""
        if self.event is not None and self.event.step is None and self.event in self.events:
            self.events.remove(self.event)
        self.event = None
        self.lost_evals = [e.step for e in self.events if e.evaluation and e.step is not None]
        self.events.clear()
        for entry in self.evals[-_OPEN:]:
            self._give_up(entry)

    def pending(self) -> list[int]:
        """Steps of evaluations that were written while their text is still on its way."""
        return [e.step for e in self.events if e.evaluation and e.step is not None] if self.direct is not True else []

    @property
    def complete(self) -> bool:
        """Whether the bar reached its end (or there is no bar to say otherwise)."""
        step = max((s for s in (self.n, self.end.step if self.end else None) if s is not None), default=None)
        return self.total is None or step is None or step >= self.total


def prints_again(process: Process, record: Record) -> bool:
    """Whether a line without an event prints an evaluation once more: user code printing its metrics."""
    if not record.is_eval or not process.evals:
        return False
    known = process.evals[-1].record
    if process.end is not None and known.epoch == record.epoch:
        return True
    pairs = [(known.number(k), record.number(k)) for k in (b"eval_loss", b"eval_runtime", b"epoch")]
    return all(a is not None and b is not None and f"{a:.3g}" == f"{b:.3g}" for a, b in pairs)


def train_point(entry: Entry) -> TrainPoint | None:
    """A loss line as a point of the history; None for a line without a loss."""
    values = entry.record.values
    loss = to_number(values.get(b"loss"))
    if loss is None:
        return None
    return TrainPoint(
        entry.step,
        loss,
        to_number(values.get(b"grad_norm")),
        to_number(values.get(b"learning_rate")),
        entry.record.epoch,
        # the Trainer's own count, or that of TRL
        tokens=to_number(values.get(b"num_input_tokens_seen", values.get(b"num_tokens"))),
    )


def eval_point(entry: Entry, step: int | None) -> EvalPoint | None:
    """An evaluation's line as a point of the history; None for one that prints no eval_loss."""
    record = entry.record
    loss = record.number(b"eval_loss")
    if loss is None:
        return None
    return EvalPoint(step, loss, record.number(b"eval_runtime"), record.epoch, record.printed(b"eval_loss"))
