"""metrics.jsonl: what the trainer knows exactly (step, wall and monotonic time), one JSON object per line.

The writer runs inside the training process, the reader on the laptop; both use the standard library alone.

The rules of this file:

- A line is one `write` call on a file opened for appending, so a reader sees whole lines, and a crash tears at most
  the last one. A torn line is skipped by the reader; the next writer starts on a new line.
- Numbers that are not finite are written as the strings "nan", "inf" and "-inf", so that every line is strict JSON.
- A full disk never ends a training run: lines that could not be written are counted, and the next one that can be
  written is preceded by a `gap` event that says how many are missing.

Events: `start`, `train`, `eval`, `save`, `autostop`, `rule`, `upload`, `stage_begin`, `stage`, `ack`, `progress`,
`end`, `gap`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from runner.autostop import StopRule, StopState
from runner.history import Ack, EvalPoint, Frame, Note, Pause, RunHistory, StageResult, TrainPoint
from runner.thin import Thinned, thin_frames, thin_train

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_json(value: Any) -> Any:
    """Make a value strict JSON: non-finite floats become "nan", "inf" or "-inf", at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return value


class MetricsWriter:
    """Appends events to metrics.jsonl; made once per process, on rank 0."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.lost = 0
        """Events that could not be written since the last one that could (a full disk)."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._fd).st_size
        self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def write(self, event: str, **fields: Any) -> bool:
        """Append one event, stamped with `wall` (s since the epoch) and `mono` (s, monotonic).

        Returns False when it could not be written (counted in `lost`); raises TypeError for a value JSON does not know.
        """
        line = _line(event, fields)
        if self.lost:
            line = _line("gap", {"lost": self.lost}) + line
        if self._torn:
            line = b"\n" + line
        try:
            written = os.write(self._fd, line)
        except OSError:
            self.lost += 1
            return False
        if written < len(line):  # the disk filled up in the middle
            self.lost += 1
            self._torn = True
            return False
        self.lost, self._torn = 0, False
        return True

    def close(self) -> None:
        """Flush to disk and close; further writes are an error."""
        try:
            os.fsync(self._fd)
        finally:
            os.close(self._fd)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line(event: str, fields: Mapping[str, Any]) -> bytes:
    record = {"event": event, "wall": round(time.time(), 3), "mono": round(time.monotonic(), 4), **fields}
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a number that is not finite: rare, so the common case pays nothing for it
        text = json.dumps(to_json(record), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def _tokens(record: dict[str, Any], step: int | None) -> float | None:
    """Tokens since the first step: as counted, else the rate (per second) times the time of a step, for every step."""
    counted = _float(record.get("num_input_tokens_seen"))
    rate, step_s = _float(record.get("tokens_per_s")), _float(record.get("step_s"))
    if counted is not None or rate is None or step_s is None or step is None:
        return counted
    return rate * step_s * step


class MetricsReader:
    """Turns the bytes of a metrics.jsonl, fed in any pieces, into a RunHistory."""

    def __init__(self) -> None:
        self._rest = b""
        self._run = _Run()
        self._bytes = 0
        self._bad = 0
        self._history: RunHistory | None = None

    def feed(self, data: bytes) -> None:
        """Take in the next bytes of the file. Never raises for content."""
        if not data:
            return
        self._bytes += len(data)
        self._history = None
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.strip():
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            self._bad += 1
            return
        if not isinstance(record, dict) or not isinstance(record.get("event"), str):
            self._bad += 1
            return
        self._run = self._run.take(record)

    def history(self) -> RunHistory:
        """Everything known so far; the same object again while nothing was fed."""
        if self._history is None:
            self._history = self._run.history(self._bytes, self._bad)
        return self._history


class _Run:
    """What the events add up to. One `take` per event; an event of an unknown name changes nothing."""

    def __init__(self) -> None:
        self.run_id: str | None = None
        self.max_steps: int | None = None
        self.step: int | None = None
        self.process = -1
        self.start_mono: float | None = None
        self.elapsed_before = 0.0
        self.elapsed = 0.0
        self.train: Thinned[TrainPoint] = Thinned(thin_train)
        self.frames: Thinned[Frame] = Thinned(thin_frames)
        self.evals: dict[int | None, EvalPoint] = {}
        self.pauses: list[Pause] = []
        self.notes: list[Note] = []
        self.stages: dict[str, StageResult] = {}
        self.stage: str | None = None
        self.rule: StopRule | None = None
        self.declared: StopState | None = None
        self.obeys: tuple[str, ...] = ()
        self.acks: list[Ack] = []
        self.ended: str | None = None
        self.end_reason = ""
        self.facts: dict[str, str] = {}
        self.lost = 0
        self.odd_values: dict[str, None] = {}

    def take(self, record: dict[str, Any]) -> _Run:
        """Take in one event; returns the run it belongs to (a new one when training began again from nothing)."""
        handler = _HANDLERS.get(record["event"])
        if handler is None:
            return self
        return handler(self, record) or self

    # each handler takes one kind of event

    def _on_start(self, record: dict[str, Any]) -> _Run | None:
        resumed = _int(record.get("resumed_from"))
        if self.process >= 0 and resumed is None:
            fresh = _Run()
            fresh.stages, fresh.stage, fresh.notes = self.stages, self.stage, self.notes
            fresh.acks = self.acks
            fresh._on_start(record)
            return fresh
        self.process += 1
        self.elapsed_before += self.elapsed
        self.elapsed = 0.0
        self.start_mono = _float(record.get("mono"))
        self.run_id = _text(record.get("run_id")) or self.run_id
        self.max_steps = _int(record.get("max_steps")) or self.max_steps
        self.step = resumed or 0
        self.ended, self.end_reason = None, ""
        self.rule = _rule(record.get("rule")) or self.rule
        obeys = record.get("obeys")
        self.obeys = tuple(kind for kind in obeys if isinstance(kind, str)) if isinstance(obeys, list) else ()
        for name in ("mask", "recipe", "world_size", "pid"):
            if record.get(name) is not None:
                self.facts[name] = str(record[name])
        if resumed is not None:
            self.facts["resumed_from"] = str(resumed)
            self.train.drop_where(lambda p: p.step is not None and p.step > resumed)
        self.frames.append(Frame(self.step, 0.0, self.process))
        return None

    def _on_train(self, record: dict[str, Any]) -> None:
        step = self._reach(record)
        point = TrainPoint(
            step,
            self._number(record, "loss"),
            self._number(record, "grad_norm"),
            self._number(record, "learning_rate"),
            _float(record.get("epoch")),
            _float(record.get("wall")),
            _tokens(record, step),
        )
        self.train.append(point)

    def _on_progress(self, record: dict[str, Any]) -> None:
        self._reach(record)

    def _on_eval(self, record: dict[str, Any]) -> None:
        step = self._reach(record, frame=False)
        raw = record.get("eval_loss")
        loss = self._number(record, "eval_loss")
        runtime = _float(record.get("eval_runtime"))
        if loss is None:
            return
        printed = raw if isinstance(raw, str) else repr(raw)
        point = EvalPoint(step, loss, runtime, _float(record.get("epoch")), printed, _float(record.get("wall")))
        self.evals.pop(step, None)  # an eval that a resumed run repeats counts once, the newer one
        self.evals[step] = point
        if runtime is not None and step is not None:
            self.pauses.append(Pause(step, "eval", runtime, max(self.process, 0)))

    def _on_save(self, record: dict[str, Any]) -> None:
        step = self._reach(record, frame=False)
        seconds = _float(record.get("seconds"))
        if step is None:
            return
        if seconds is not None:
            self.pauses.append(Pause(step, "save", seconds, max(self.process, 0)))
        self._note(record, "save", _text(record.get("path")) or f"checkpoint-{step}")

    def _on_autostop(self, record: dict[str, Any]) -> None:
        state = record.get("state")
        if isinstance(state, dict):
            try:
                self.declared = StopState.from_dict(
                    {k: _NON_FINITE.get(v, v) if isinstance(v, str) else v for k, v in state.items()}
                )
            except (TypeError, ValueError):
                return
        if self.declared is not None and self.declared.stopped_at is not None:
            self._note(record, "autostop", _text(record.get("reason")) or "the auto-stop rule fired")

    def _on_upload(self, record: dict[str, Any]) -> None:
        words = [_text(record.get(k)) for k in ("status", "revision", "detail")]
        self._note(record, "upload", " ".join(w for w in words if w))

    def _on_stage_begin(self, record: dict[str, Any]) -> None:
        self.stage = _text(record.get("name")) or None

    def _on_stage(self, record: dict[str, Any]) -> None:
        name, macro = _text(record.get("name")), _float(record.get("macro"))
        if not name or macro is None:
            return
        tasks = record.get("tasks")
        scores: dict[str, float] = {}
        for task, value in (tasks if isinstance(tasks, dict) else {}).items():
            score = _float(value.get("acc")) if isinstance(value, dict) else _float(value)
            if score is not None:
                scores[str(task)] = score
        self.stages[name] = StageResult(name, macro, scores)
        if self.stage == name:
            self.stage = None

    def _on_ack(self, record: dict[str, Any]) -> None:
        self._note(record, "ack", " ".join(filter(None, (_text(record.get("request")), _text(record.get("detail"))))))
        name, kind, detail = (_text(record.get(key)) for key in ("id", "request", "detail"))
        accepted = record.get("accepted") is not False
        self.acks.append(Ack(name, kind, accepted, detail, _int(record.get("step")), _float(record.get("wall"))))

    def _on_rule(self, record: dict[str, Any]) -> None:
        self.rule = _rule(record.get("rule")) or self.rule

    def _on_end(self, record: dict[str, Any]) -> None:
        self._reach(record, frame=False)
        rc = _int(record.get("rc"))
        self.end_reason = _text(record.get("reason"))
        if rc == 0:
            self.ended = "finished"
        elif rc in (10, 11, 12):
            self.ended = "stopped"
        else:
            self.ended = "crashed"

    def _on_gap(self, record: dict[str, Any]) -> None:
        self.lost += _int(record.get("lost")) or 0

    # shared by them

    def _reach(self, record: dict[str, Any], *, frame: bool = True) -> int | None:
        """Note that the run got to the record's step, and when."""
        step = _int(record.get("step"))
        if step is None:
            return None
        self.step = step if self.step is None else max(step, self.step)
        mono = _float(record.get("mono"))
        elapsed = _float(record.get("elapsed_s"))
        if elapsed is None and mono is not None and self.start_mono is not None:
            elapsed = mono - self.start_mono
        if elapsed is not None and elapsed >= self.elapsed:
            self.elapsed = elapsed
            if frame:
                self.frames.append(Frame(step, elapsed, max(self.process, 0)))
        return step

    def _note(self, record: dict[str, Any], kind: str, text: str) -> None:
        self.notes.append(Note(_int(record.get("step")), kind, text, _float(record.get("wall"))))

    def _number(self, record: dict[str, Any], key: str) -> float | None:
        value = _float(record.get(key))
        if value is not None and not math.isfinite(value):
            self.odd_values[f"{key} at step {record.get('step')} is {record.get(key)}"] = None
        return value

    def history(self, bytes_read: int, bad: int) -> RunHistory:
        """Freeze what is known."""
        warnings = list(self.odd_values)[:5]
        if len(self.odd_values) > 5:
            warnings.append(f"{len(self.odd_values) - 5} more values are not finite")
        if bad:
            warnings.append(f"{bad} line(s) of metrics.jsonl could not be read")
        if self.lost:
            warnings.append(f"{self.lost} event(s) were not recorded (disk full)")
        history = RunHistory(
            source="metrics",
            run_id=self.run_id,
            max_steps=self.max_steps,
            step=self.step,
            elapsed_s=self.elapsed_before + self.elapsed if self.process >= 0 else None,
            train=self.train.items(),
            evals=tuple(sorted(self.evals.values(), key=lambda e: -1 if e.step is None else e.step)),
            frames=self.frames.items(),
            pauses=tuple(self.pauses),
            end_reason=self.end_reason,
            rule=self.rule,
            obeys=self.obeys,
            acks=tuple(self.acks),
            declared_stop=self.declared,
            stages=tuple(self.stages.values()),
            stage=self.stage,
            notes=tuple(self.notes),
            facts=dict(self.facts),
            warnings=tuple(warnings),
            bytes_read=bytes_read,
        )
        return replace(history, ended=cast("Any", self.ended))


_HANDLERS: dict[str, Any] = {
    name.removeprefix("_on_"): function for name, function in vars(_Run).items() if name.startswith("_on_")
}


def last_rule_change(path: str | os.PathLike[str]) -> tuple[StopRule, StopRule] | None:
    """The newest change of the auto-stop rule in a metrics.jsonl, as (new rule, the recipe's that it stands for).

    None when it was never changed, or there is no file.
    """
    found = None
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError:
        return None
    for line in lines:
        if b'"rule"' not in line[:40]:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("event") == "rule":
            new, old = _rule(record.get("rule")), _rule(record.get("instead_of"))
            if new is not None and old is not None:
                found = new, old
    return found


def _float(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            return None
    return _NON_FINITE.get(value) if isinstance(value, str) else None


def _int(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _rule(value: Any) -> StopRule | None:
    """The rule as the run declared it; None when it is absent or makes no sense."""
    if not isinstance(value, dict):
        return None
    known = {k: value[k] for k in ("patience", "min_delta", "min_steps", "count_from") if k in value}
    try:
        return StopRule(**known)
    except (TypeError, ValueError):
        return None
