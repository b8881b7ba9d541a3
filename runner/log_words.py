"""Understands the words of a Trainer's log: its dict lines, what it says of itself, and how it died.

Values are kept as printed and turned into numbers only here: transformers 5 writes quoted strings of four significant
digits (`'loss': '4.947'`, `'nan'`), 4.x bare numbers and a bare nan that no literal parser takes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_PAIR = re.compile(
    rb"""['"]([^'"]{1,200}+)['"]:\s*+(?:'([^']*+)'|"([^"]*+)"|(?:[A-Za-z_][\w.]*+\()?+([-+]?[\w.][\w.+-]*+))"""
)


_LOSSES = (b"loss", b"eval_loss", b"train_loss")
_STEP_OF = re.compile(rb"(\d{1,12})/(\d{1,12})")


class Record:
    """One dict line of the Trainer: keys to printed values, as bytes."""

    __slots__ = ("epoch", "is_end", "is_eval", "is_trainers", "quoted", "values")

    values: dict[bytes, bytes]

    def __init__(self, raw: bytes) -> None:
        self.values = {key: single or double or bare for key, single, double, bare in _PAIR.findall(raw)}
        self.quoted = b"epoch': '" in raw
        self.epoch = to_number(self.values.get(b"epoch"))
        """Epochs done; None in a dict that the Trainer did not write."""
        is_loss = b"loss" in self.values
        self.is_trainers = self.epoch is not None and (
            to_number(self.values[b"loss"]) is not None
            if is_loss
            else all(to_number(self.values[k]) is not None for k in _LOSSES if k in self.values)
        )
        """Whether the Trainer wrote it: each of its lines carries the epoch, and numbers where a loss is named."""
        self.is_end = not is_loss and b"train_loss" in self.values
        """Whether it closes the training; `train_runtime` alone does not (token counting puts it in every line)."""
        self.is_eval = not is_loss and not self.is_end and any(k.startswith(b"eval_") for k in self.values)
        """Whether an evaluation wrote it."""

    def number(self, key: bytes) -> float | None:
        """The value of a key, None when it is absent or no number."""
        return to_number(self.values.get(key))

    def printed(self, key: bytes) -> str:
        """The value of a key as it stands in the log; empty when it is absent."""
        return self.values.get(key, b"").decode("utf-8", "replace")

    def step(self) -> tuple[int, int | None] | None:
        """`(step, max_steps)` where the line itself says it, as some forks do; None otherwise."""
        if b"global_step" not in self.values and b"global_step/max_steps" not in self.values:
            return None
        both = _STEP_OF.fullmatch(self.values.get(b"global_step/max_steps", b""))
        if both:
            return int(both.group(1)), int(both.group(2))
        alone = self.values.get(b"global_step", b"")
        return (int(alone), None) if alone.isdigit() and len(alone) <= 12 else None

    def epoch_slack(self) -> float:
        """Half a unit of the last digit of the printed epoch, in epochs: 5.x prints four digits, 4.x two decimals."""
        value = self.epoch
        if value is None or not math.isfinite(value):
            return math.inf
        text = self.values.get(b"epoch", b"")
        if self.quoted:
            magnitude = math.floor(math.log10(abs(value))) if value else -4
            return float(0.5 * 10.0 ** (magnitude - 3))
        decimals = len(text.partition(b".")[2]) if b"." in text and b"e" not in text.lower() else 0
        return float(0.5 * 10.0 ** -max(2, decimals))


class EvalSets:
    """The sets of a run that evaluates several: its lines name them, `eval_<set>_loss`, and print no `eval_loss`.

    One of them has to stand for the run in curve and verdict. The log does not say which one the trainer goes by, so
    it is the first, and the history says so.
    """

    MOST = 64
    _NAME = re.compile(rb"eval_(.{1,100})_loss")

    def __init__(self) -> None:
        self.names: list[bytes] = []

    def place(self, record: Record) -> None:
        """Let a line of the first set say `eval_loss` and `eval_runtime`; leave every other line as it is."""
        values = record.values
        if not record.is_eval or b"eval_loss" in values:
            return
        name = next((found.group(1) for found in map(self._NAME.fullmatch, values) if found), None)
        if name is None:
            return
        if name not in self.names and len(self.names) < self.MOST:
            self.names.append(name)
        if name == self.names[0]:
            for of in (b"loss", b"runtime"):
                if b"eval_%b_%b" % (name, of) in values:
                    values[b"eval_" + of] = values[b"eval_%b_%b" % (name, of)]

    def words(self) -> str:
        """What a person has to know of the choice; empty where there was none."""
        if not self.names:
            return ""
        shown = self.names[0].decode("utf-8", "replace")
        if len(self.names) == 1:
            return f"the evaluations print no eval_loss: eval_{shown}_loss is shown for it"
        return f"{len(self.names)} sets are evaluated: eval_{shown}_loss, the first, is shown as eval_loss"


def to_number(text: bytes | None) -> float | None:
    """A printed number as a float (nan and inf are numbers), None when it is none."""
    if text is None:
        return None
    try:
        return None if b"_" in text else float(text)
    except ValueError:
        return None


def seconds(elapsed: bytes) -> float:
    """`[N days, ][H:]MM:SS` in seconds; 0 for what is no time."""
    days, comma, clock = elapsed.rpartition(b", ")
    total = 0
    try:
        for part in clock.split(b":"):
            total = total * 60 + int(part)
        return float(total + (86400 * int(days.split()[0]) if comma else 0))
    except ValueError:
        return 0.0


def rate(rest: bytes) -> float | None:
    """Steps per second as the bar prints them, `32.80it/s` or `1.22s/it`; None where it prints none."""
    words = rest.rpartition(b", ")[2].split(b",")[0].strip()
    try:
        if words.endswith(b"s/it"):
            return 1 / float(words[:-4])
        return float(words[:-4]) if words.endswith(b"it/s") else None
    except (ValueError, ZeroDivisionError):
        return None


_FACT = re.compile(
    rb"(Num examples|Num Epochs|Instantaneous batch size per device|Total train batch size[^=]*|"
    rb"Gradient Accumulation steps|Total optimization steps|Number of trainable parameters|"
    rb"Training with DataParallel[^=]*) = ([\d,]+)"
)
_FACT_NAMES: Mapping[bytes, str] = {
    b"Num examples": "examples",
    b"Num Epochs": "epochs",
    b"Instantaneous batch size per device": "batch_per_device",
    b"Gradient Accumulation steps": "accumulation",
    b"Total optimization steps": "max_steps",
    b"Number of trainable parameters": "parameters",
}


def fact(line: bytes) -> tuple[str, str] | None:
    """What a line of the Trainer's info log says of the run, as `(name, digits)`; None for another line."""
    found = _FACT.search(line)
    if found is None:
        return None
    key = found.group(1)
    name = "batch_total" if key.startswith(b"Total train batch") else _FACT_NAMES.get(key)
    return (name, found.group(2).decode().replace(",", "")) if name else None


RESUME_HINT = re.compile(
    rb"Continuing training from|will skip to saved global_step|missing keys in the checkpoint model loaded|"
    rb"do not match the ones in the `?trainer_state\.json|Loading model from [^ ]*checkpoint-\d|Resum(?:ing|ed) from"
)
"""Words that only a process resumed from a checkpoint writes."""

INTERESTING = re.compile(
    rb"Traceback|Exception |Logging error|Killed|Terminated|Segmentation|Aborted|Bus error|CANCELLED|exitcode|"
    rb"Root Cause|optimization steps| = \d|ontinuing training|checkpoint|trainer_state|Resum|# tunewatch"
)
"""A line without any of these says nothing to a reader and is passed over."""

_DEATH = re.compile(
    rb"(?:.{0,200}line \d+: +\d+ +)?(Killed|Terminated|Segmentation fault|Aborted|Bus error)(?: *\(core dumped\))?"
    rb"(?:  .*)?$"
)
_CANCELLED = re.compile(rb"(slurmstepd: error: \*\*\* (?:JOB|STEP) .{0,200}CANCELLED.{0,200})")
_EXITCODE = re.compile(rb"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
_HARMLESS = re.compile(rb"Exception ignored in|--- Logging error ---|Exception in thread|Exception in callback")
_RANK = re.compile(rb"\[rank(\d+)\]:? ?|\[default(\d+)\]:? ?")
_FINAL = re.compile(
    rb"([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning|Failure|Timeout|[A-Z]\w*))(?:: .*|:?)$"
)


def death_notice(line: bytes) -> str:
    """The words of a shell or scheduler that say a process was ended; empty for another line."""
    found = _DEATH.match(line)
    if found:
        return found.group(1).decode()
    cancelled = _CANCELLED.match(line)
    if cancelled:
        return cancelled.group(1).decode("utf-8", "replace")
    code = _EXITCODE.search(line)
    return f"rank {code.group(2).decode()} failed with exit code {code.group(1).decode()}" if code else ""


class Tracebacks:
    """Collects tracebacks as they pass, apart by rank, and names the one that came first."""

    LINES = 80
    """Lines kept of each; the middle of a longer one is left out by dropping its oldest frames."""
    RANKS = 16

    def __init__(self) -> None:
        self._lines: dict[bytes, list[bytes]] = {}
        self._open: set[bytes] = set()
        self._harmless = False
        self.reason = ""
        """The exception line that closes the tracebacks of the rank that failed first."""

    def take(self, line: bytes) -> bool:
        """Take in a line of text. True when a traceback that matters begins with it."""
        if not self._open and b"Traceback" not in line:
            self._harmless = bool(_HARMLESS.search(line))
            return False
        label = _RANK.match(line)
        rank = label.group() if label else b""
        begin = line.find(b"Traceback (most recent call last)")
        if begin >= 0:
            if self._harmless:
                self._harmless = False
                return False
            if rank not in self._lines and len(self._lines) >= self.RANKS:
                return True
            self._lines.setdefault(rank, []).append(line[begin:])
            self._open.add(rank)
            return True
        if rank not in self._open:
            return False
        body = line[len(rank) :]
        kept = self._lines[rank]
        kept.append(body)
        if len(kept) > self.LINES:
            del kept[1 : len(kept) - self.LINES + 1]
        if _FINAL.match(body):
            self._open.discard(rank)
            if rank == next(iter(self._lines)):
                self.reason = body.decode("utf-8", "replace").strip()[:300]
        return False

    def quiet(self) -> None:
        """Take in a line that has nothing to do with any of this."""
        self._harmless = False

    @property
    def open(self) -> bool:
        """Whether a traceback is being read."""
        return bool(self._open)

    def text(self) -> str:
        """The first traceback, for reading; empty when there was none."""
        for lines in self._lines.values():
            return b"\n".join(lines).decode("utf-8", "replace")
        return ""
