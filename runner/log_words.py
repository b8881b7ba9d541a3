"""Understands the words of a Trainer's log: its dict lines, what it says of itself, and how it died.

Values are kept as printed and turned into numbers only here: transformers 5 writes quoted strings of four significant
digits (`'loss': '4.947'`, `'nan'`), 4.x bare numbers and a bare nan that no literal parser takes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_PAIR = re.compile(
    rb"""['"]([^'"]{1,200})['"]:\s*(?:'([^']*)'|"([^"]*)"|(?:[A-Za-z_][\w.]*\()?([-+]?[\w.][\w.+-]*)\)?)"""
)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf|infinity)", re.IGNORECASE)


class Record:
    """One dict line of the Trainer: keys to printed values."""

    __slots__ = ("quoted", "values")

    def __init__(self, raw: bytes) -> None:
        self.values: dict[str, str] = {}
        self.quoted = b"'epoch': '" in raw
        for key, single, double, bare in _PAIR.findall(raw):
            value = single or double or bare
            self.values.setdefault(key.decode("utf-8", "replace"), value.decode("utf-8", "replace"))

    def number(self, key: str) -> float | None:
        """The value of a key, None when it is absent or no number."""
        return to_number(self.values.get(key))

    @property
    def is_trainers(self) -> bool:
        """Whether the Trainer wrote it: each of its lines carries the epoch, and numbers where a loss is named."""
        if self.number("epoch") is None:
            return False
        return all(self.number(k) is not None for k in ("loss", "eval_loss", "train_loss") if k in self.values)

    @property
    def is_end(self) -> bool:
        """Whether it closes the training; `train_runtime` alone does not (token counting puts it in every line)."""
        return "train_loss" in self.values and "loss" not in self.values

    @property
    def is_eval(self) -> bool:
        """Whether an evaluation wrote it."""
        return any(k.startswith("eval_") for k in self.values) and "loss" not in self.values and not self.is_end

    def step(self) -> tuple[int, int | None] | None:
        """`(step, max_steps)` where the line itself says it, as some forks do; None otherwise."""
        both = self.values.get("global_step/max_steps", "")
        found = re.fullmatch(r"(\d{1,12})/(\d{1,12})", both)
        if found:
            return int(found.group(1)), int(found.group(2))
        alone = self.values.get("global_step", "")
        return (int(alone), None) if re.fullmatch(r"\d{1,12}", alone) else None

    def epoch_slack(self) -> float:
        """Half a unit of the last digit of the printed epoch, in epochs: 5.x prints four digits, 4.x two decimals."""
        text = self.values.get("epoch", "")
        value = to_number(text)
        if value is None or not math.isfinite(value):
            return math.inf
        if self.quoted:
            magnitude = math.floor(math.log10(abs(value))) if value else -4
            return 0.5 * 10.0 ** (magnitude - 3)
        decimals = len(text.partition(".")[2]) if "." in text and "e" not in text.lower() else 0
        return 0.5 * 10.0 ** -max(2, decimals)


def to_number(text: str | None) -> float | None:
    """A printed number as a float, None when it is none; takes what numpy and torch wrap around it."""
    if text is None or not _NUMBER.fullmatch(text):
        return None
    return float(text)


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
