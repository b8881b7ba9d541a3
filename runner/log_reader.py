"""Which bar is the Trainer's, and where one process ends and the next begins: the sink of `runner.log_tokens`.

The rules of this file:

- The Trainer's bar has no description and is drawn on the first line; a bar inside it (followed by a move up) is an
  evaluation. A bar without description is taken for the Trainer's until it ends without ever having been written over.
- A frame that is not understood is held back until the next token; nothing is decided on a guess.
- A training bar whose count goes back is a new process. It goes on with the old trajectory when it was resumed; when
  it began again at 0, what was before is dropped (`runner.log_history` decides, when more is known).
- Looking (`now`) changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from runner.log_history import Reading
from runner.log_process import Entry, Process, prints_again
from runner.log_words import (
    INTERESTING,
    RESUME_HINT,
    EvalSets,
    Record,
    Tracebacks,
    death_notice,
    fact,
    rate,
    seconds,
)
from runner.rundir import parse_run_id
from runner.thin import LIMIT

_TEXT, _FRAME, _INSIDE, _LOWERED, _BELOW, _FEED, _UP, _RECORD, _CLEAR = range(9)
"""What the newest token was. _INSIDE is a frame of a bar inside the training bar. _FEED is the line feed that ends
words; _LOWERED ends none, so it moves the cursor down to a bar inside; _BELOW comes right after a bar inside."""
_LINE_FEEDS = (_LOWERED, _BELOW, _FEED)


class _Held(NamedTuple):
    """A frame that is not understood before the next token: a move up makes it a bar inside another."""

    n: int
    total: int
    elapsed: bytes
    rest: bytes
    lowered: bool = False
    """Whether the cursor had moved down before it, as for a bar inside another."""


class _Undo(NamedTuple):
    """The state before a frame."""

    n: int
    elapsed: bytes
    first_n: int | None
    frames: int


class TokenReader:
    """Takes the scanner's tokens; the sink of `runner.log_tokens`."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self.process: Process | None = None
        self._total = b""
        """Total of the training bar as its bytes stand in each frame; empty before the first one."""
        self._n = -1
        self._elapsed = b""
        self._next_reading = 0
        """The step from which on the bar's clock is worth keeping."""
        self._kept_clock = b""
        self._simple = False
        """A frame of the training bar that does not go back can only mean progress: nothing else has to be weighed."""
        self._writing = False
        """Bars were cleared to write above them and the training bar is not drawn again yet."""
        self._last = _FEED
        self._held: _Held | None = None
        self._nested_open = False
        self._opened_at = -1
        """The step at which the bar inside was opened: once training goes on, it is no evaluation that writes."""
        self._nested_totals: set[int] = set()
        self._moves = False
        """Whether the log has cursor movements; some viewers and collectors strip them."""
        self._undo: _Undo | None = None
        """What was before the newest frame, to take it back if it proves to be a bar inside."""
        self._orphan: Entry | None = None
        self._hint = False
        self._saving: tuple[int, float] | None = None
        self.crashed = False
        self._frames_after_crash = 0
        self.tracebacks = Tracebacks()
        self.death = ""
        self.facts: dict[str, str] = {}
        self.sets = EvalSets()
        self.run_id: str | None = None
        self._lines = 0

    # --- bars ---

    def frame(self, n: bytes, total: bytes, elapsed: bytes, rest: bytes) -> None:
        """Take a bar without description; the hot path of a long log."""
        if self._simple and total == self._total:
            step = int(n)
            if step >= self._n:
                self._n = step
                self._elapsed = elapsed
                self._last = _FRAME
                if step >= self._next_reading:
                    self._read_clock(step)
                if self._writing:
                    self._redrawn(step)
                return
        self._frame(_Held(int(n), int(total), elapsed, rest), total)

    def _frame(self, bar: _Held, total: bytes) -> None:
        lower, lowered = self._last in _LINE_FEEDS, self._last in (_LOWERED, _BELOW)
        if self._held is not None:
            self._release(nested=False)
        process = self.process
        if bar.total == 0:
            return
        if process is None or process.total is None:
            self._begin(bar)
        elif total == self._total:
            inside = lower and bar.total in self._nested_totals
            if inside or bar.n < self._n or (bar.n == 0 and self._over()):
                self._hold(bar)
            else:
                self._accept(bar)
        elif bar.total in self._nested_totals:
            self._nested(bar)
        else:
            self._hold(bar._replace(lowered=lowered))

    def _hold(self, bar: _Held) -> None:
        self._held = bar
        self._simple = False
        self._last = _FRAME

    def _release(self, *, nested: bool) -> None:
        """Decide about the frame that was held back, now that the next token is here."""
        bar, self._held = self._held, None
        self._sync()
        process = self.process
        if bar is None or process is None:
            return
        if nested:
            self._nested(bar)
        elif bar.total == process.total:
            if bar.n < self._n or (bar.n == 0 and self._over()):
                self._begin(bar)
            else:
                self._accept(bar)
        elif self._is_new(bar, process):
            self._begin(bar)
        elif not self._moves or bar.lowered:
            self._nested(bar)

    def _is_new(self, bar: _Held, process: Process) -> bool:
        """Whether a bar of another total on the first line begins another run."""
        fresh = bar.n == 0 or bar.rest.startswith(b"?")
        if not process.confirmed:
            return fresh or process.complete
        if self._over():
            return fresh
        return fresh and self._moves and not bar.lowered  # words of others may stand between a bar inside and its move

    def _nested(self, bar: _Held) -> None:
        """Take a bar inside the training bar: an evaluation."""
        process = self.process
        if process is None:
            return
        process.nested_seen = process.confirmed = True
        if process.total is not None:
            self._nested_totals.add(bar.total)
        if bar.n == 0 or bar.rest.startswith(b"?"):
            self._nested_open, self._opened_at = True, self._n
        self._last = _INSIDE
        if process.total in self._nested_totals:
            self._simple = False

    def _begin(self, bar: _Held) -> None:
        """Begin a process with its first frame."""
        old = self.process
        if old is not None and old.total is None and bar.n > 0:
            old.total, old.aligned = bar.total, False  # lines came before the first bar: it begins in the middle
        else:
            if old is not None:
                self._sync()
                old.elapsed = max(old.elapsed, seconds(self._elapsed))
                old.close()
                if not old.confirmed and not old.evals and not len(old.train) and not old.waiting:
                    self.processes.remove(old)
            self.process = Process(bar.total)
            self.process.from_zero = self.process.aligned = bar.n == 0
            self.processes.append(self.process)
            if old is not None:
                self.process.confirmed = old.confirmed and old.total == bar.total
                self.process.resumed = True if self._hint else None
                self._forget_crash()
        self._hint = False
        self._nested_open = self._writing = False
        self._orphan = None
        self._saving = None
        self._total = str(bar.total).encode()
        self._n, self._elapsed, self._undo = -1, b"", None
        self._next_reading, self._kept_clock = 0, b""
        if self.facts.get("max_steps") == str(bar.total):
            self._process().confirmed = True
        self._accept(bar)

    def _accept(self, bar: _Held) -> None:
        """Take a frame of the training bar."""
        process = self._process()
        self._simple = False
        self._undo = _Undo(self._n, self._elapsed, process.first_n, len(process.frames))
        if self.crashed:
            if self._frames_after_crash and bar.n > self._n:
                self._forget_crash()  # the second step after a traceback: training goes on
            self._frames_after_crash += 1
        if process.block:
            process.close_block()
        self._n = bar.n
        self._elapsed = bar.elapsed
        if bar.n >= self._next_reading:
            self._read_clock(bar.n)
        if self._saving is not None and bar.n > self._saving[0]:
            self._saved(bar.n, process)
        if process.first_n is None and bar.n > 0:
            process.first_n = bar.n
            process.first_rate = rate(bar.rest)
            if bar.n == 1 and process.from_zero and process.resumed is None:
                process.resumed = False
        if self._writing:
            self._redrawn(bar.n)
        if self._orphan is not None:
            if self._last in (_FEED, _RECORD):
                self._orphan.followed_by = bar.n
            self._orphan = None
        self._last = _FRAME
        self._simple = (
            bar.n > 0 and not self.crashed and self._saving is None and process.total not in self._nested_totals
        )

    def _redrawn(self, step: int) -> None:
        """Take the training frame that follows a clear."""
        self._writing = self._nested_open = False
        self._process().redraw(step)

    def _read_clock(self, step: int) -> None:
        """Keep a reading of the bar's clock, where it went on since the last one kept."""
        process = self._process()
        process.elapsed = max(process.elapsed, seconds(self._elapsed))
        if self._elapsed == self._kept_clock:
            return
        self._kept_clock = self._elapsed
        process.reading(step)
        # a long run is read ever more rarely, in proportion to its length
        self._next_reading = step + max(1, step // (LIMIT // 4))

    def _saved(self, step: int, process: Process) -> None:
        """Note how long a save took, where the bar's clock of whole seconds can tell."""
        before, at = self._saving or (0, 0.0)
        self._saving = None
        process.elapsed = max(process.elapsed, seconds(self._elapsed))
        per_step = max(0.0, at - process.saves_s - process.evals_s) / before if before else 0.0
        spent = process.elapsed - at - (step - before) * per_step
        if spent >= 2:
            process.saved(before, round(spent, 1))

    # --- the other tokens ---

    def clear(self) -> None:
        """Take bars that were cleared: something is being written above them."""
        if self._held is not None:
            self._release(nested=False)
        process = self.process
        if self._last == _BELOW and not self._moves:
            self._last = _TEXT  # cursor movements were stripped from this log: it is only the end of a bar inside
            return
        if process is not None and process.total is not None:
            if process.block:
                process.close_block()
            self._sync()
            process.clear(self._nested_open and self._n == self._opened_at)
            self._writing = True
        self._last = _CLEAR

    def newline(self) -> None:
        """Take a line feed."""
        if self._held is not None:
            self._release(nested=False)
        last = self._last
        self._last = _FEED if last in (_TEXT, _RECORD) else _BELOW if last == _INSIDE else _LOWERED

    def up(self) -> None:
        """Take a move up: a frame right before it was a bar inside another."""
        self._moves = True
        if self._held is not None:
            self._release(nested=True)
        elif self._last == _FRAME:
            self._take_back()
        elif self._last != _INSIDE:
            writing = self.process is not None and self.process.event is not None
            self._nested_open = self._nested_open and writing
        self._last = _UP

    def _take_back(self) -> None:
        """Undo the newest frame if it was taken for the training bar's: it was inside, with the same total."""
        undo, self._undo = self._undo, None
        process = self.process
        if undo is None or process is None or process.total is None:
            return
        bar = _Held(self._n, process.total, self._elapsed, b"?" if self._n == 0 else b"")
        if process.first_n == self._n and undo.first_n is None:
            process.first_n = None
        if len(process.frames) > undo.frames:
            process.frames.pop()
        self._n, self._elapsed = undo.n, undo.elapsed
        self._next_reading = 0
        if undo.n >= 0:
            self._nested(bar)
            return
        # the first frame of all: the log begins inside an evaluation
        self._total = b""
        process.total = process.n = None
        process.nested_seen = True

    def other_bar(self, description: bytes) -> None:
        """Take a bar with a description."""
        if self._held is not None:
            self._release(nested=False)
        if self._saving is None and self.process is not None and description.startswith(b"Writing model shards"):
            self._saving = (self._n, seconds(self._elapsed))
            self._simple = False
        self._last = _TEXT

    def record(self, raw: bytes) -> None:
        """Take a dict that stands alone."""
        if self._held is not None:
            self._release(nested=False)
        record = Record(raw)
        if not record.is_trainers:
            self.text(raw)
            return
        self.sets.place(record)
        self._last = _RECORD
        process = self._process_for(record)
        self._sync()
        if process.event is None and prints_again(process, record):
            return
        process.confirmed = True
        entry = process.take(record)
        said = record.step()
        if said is not None and said[1] is not None and process.total is None:
            process.total = said[1]
        if entry.step is None and process.event is None and not process.block:
            self._orphan = entry
            self._simple = False

    def _process_for(self, record: Record) -> Process:
        """The process that a dict line belongs to; where there are no bars, an epoch that goes back begins one."""
        process = self.process
        epoch = record.epoch
        if process is None:
            process = self.process = Process(None)
            self.processes.append(process)
        elif process.total is None and process.last_epoch is not None and (epoch or 0) < process.last_epoch:
            process.close()
            first = process.first_epoch
            process = self.process = Process(None)
            process.resumed = first is not None and epoch is not None and epoch > first
            self.processes.append(process)
            self._forget_crash()
        if epoch is not None:
            process.last_epoch = epoch
            if process.first_epoch is None:
                process.first_epoch = epoch
        return process

    def text(self, line: bytes) -> None:
        """Take a piece of text that is neither bar nor dict."""
        if self._held is not None:
            self._release(nested=False)
        self._last = _TEXT
        self._lines += 1
        process = self.process
        if process is not None and process.event is not None and line.strip():
            process.event.words = True
        if not self.tracebacks.open and INTERESTING.search(line) is None:
            self.tracebacks.quiet()
            return
        if self._lines == 1:
            self.run_id = parse_run_id(line) or self.run_id
        if self.tracebacks.take(line):
            self._crash()
            return
        if self.tracebacks.open:
            return
        found = fact(line)
        if found is not None:
            self.facts[found[0]] = found[1]
        if RESUME_HINT.search(line):
            self._hint = True
        death = death_notice(line)
        if death:
            self._crash()
            self.death = self.death or death

    # --- the state of it all ---

    def _crash(self) -> None:
        self.crashed = True
        self._frames_after_crash = 0
        self._simple = False

    def _forget_crash(self) -> None:
        self.crashed, self.death = False, ""
        self.tracebacks = Tracebacks()

    def _over(self) -> bool:
        return self.crashed or (self.process is not None and self.process.end is not None)

    def _process(self) -> Process:
        assert self.process is not None  # noqa: S101 (a frame is only accepted inside a process)
        return self.process

    def _sync(self) -> None:
        """Give the process the step that the hot path keeps to itself."""
        if self.process is not None and self._n >= 0 and self.process.total is not None:
            self.process.n = self._n

    def now(self) -> Reading:
        """What is known at this moment, without changing anything by looking."""
        self._sync()
        return Reading(
            processes=self.processes,
            current=self.process,
            clock_s=seconds(self._elapsed),
            crashed=self.crashed,
            crash_words=self.tracebacks.reason or self.death,
            traceback=self.tracebacks.text(),
            facts=self.facts,
            run_id=self.run_id,
            sets=self.sets.words(),
        )
