"""Asks a running trainer for something and waits for its answer: another auto-stop rule, a checkpoint now.

The request is a file in the run directory (`runner.requests`), the answer an `ack` in metrics.jsonl with the same id;
both go through the transport, so a run on this machine and one across SSH are asked alike. A run that cannot answer (a
foreign log, an older runner, one that is over) is told from one that has not answered yet before anything is written.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remote.bootstrap import Phases
from remote.connect import open_transport
from remote.deeds import DeedResult, Progress, silent
from remote.feed import resolve
from remote.home import home as default_home
from remote.ssh_auth import AskPassphrase
from remote.stop import life_of
from remote.target import Target, parse_target
from remote.transport import Transport
from runner import rundir
from runner.autostop import StopRule, changed_rule
from runner.errors import NotFoundError, RefusedError, UnreachableError, UsageError
from runner.history import Ack, RunHistory
from runner.metrics import MetricsReader
from runner.requests import RULE, SAVE, Request

ANSWER_S = 300.0
"""Seconds to wait for an answer: a long evaluation, and the step after it."""
_LOOK_S = 0.3
_FILES = (rundir.LOG, rundir.METRICS)


@dataclass(frozen=True, slots=True)
class Asked:
    """How it went."""

    result: DeedResult
    rule: StopRule | None
    """The rule in force when it was over; None for a run without auto-stop."""
    ack: Ack | None = None
    """None while the run has not answered."""

    def to_json(self) -> dict[str, Any]:
        """The shape of every deed, with the rule and the answer."""
        rule = None if self.rule is None else {name: getattr(self.rule, name) for name in StopRule.__slots__}
        ack = None if self.ack is None else {k: v for k, v in self.ack._asdict().items() if k != "wall"}
        return {**self.result.to_json(), "rule": rule, "ack": ack}


def rule_in_force(text: str, *, home: Path | None = None, ask: AskPassphrase | None = None) -> tuple[str, RunHistory]:
    """The name of a run of ours and what it says of its rule (`rule`, `obeys`, `ended`).

    Raises NotFoundError, RefusedError for a run that is not ours, UnreachableError.
    """
    target = run_directory(resolve(parse_target(text), home))
    with open_transport(target, home=home, ask=ask) as host:
        return _name(target), _declared(host, target.path)


def change_rule(
    text: str, given: Mapping[str, Any], *, home: Path | None = None, progress: Progress = silent,
    timeout: float = ANSWER_S, ask: AskPassphrase | None = None,
) -> Asked:  # fmt: skip
    """`tunewatch rule RUN`: let the run go on under its rule with the fields `given` changed.

    Raises UsageError for a rule that makes no sense (nothing was asked then), RefusedError when the run cannot be asked
    or refuses, NotFoundError and UnreachableError. An answer that does not come within `timeout` seconds is no error:
    the request stays, and `ack` is None.
    """
    target = run_directory(resolve(parse_target(text), home or default_home()))
    phases = Phases(progress)
    with open_transport(target, home=home, ask=ask) as host:
        with phases.step("look") as say:
            known = _declared(host, target.path)
            in_force = _askable(host, target.path, known, RULE)
            say(in_force.in_words())
        try:
            rule = changed_rule(in_force, given)
        except ValueError as error:
            raise UsageError(f"{error}.") from error
        if rule == in_force:
            result = DeedResult(True, "done", _name(target), target.instance_id, tuple(phases.steps))
            return Asked(result, rule)
        body = {name: getattr(rule, name) for name in StopRule.__slots__}
        ack = ask_run(host, target.path, Request(RULE, body=body), phases=phases, timeout=timeout)
    if ack is None:
        result = DeedResult(False, "running", _name(target), target.instance_id, tuple(phases.steps))
        return Asked(result, in_force)
    if not ack.accepted:
        raise RefusedError(f"The run refused at step {ack.step}: {ack.detail}.")
    return Asked(DeedResult(True, "done", _name(target), target.instance_id, tuple(phases.steps)), rule, ack)


def ask_run(
    host: Transport, run_dir: str, request: Request, *, phases: Phases | None = None, timeout: float = ANSWER_S
) -> Ack | None:
    """Put `request` into a run directory and wait for its answer; None when none came within `timeout` seconds.

    A link that breaks while it waits is built anew for as long as there is time. Raises RefusedError when the run ends
    without having answered.
    """
    phases = phases or Phases(silent)
    metrics = f"{run_dir}/{rundir.METRICS}"
    with phases.step("request") as say:
        begin = host.stat(metrics).size
        host.put(request.to_bytes(), f"{run_dir}/{request.file}")
        say(f"{request.file} written")
    with phases.step("answer") as say:
        ack = _await_answer(host, run_dir, request.id, begin, time.monotonic() + timeout)
        if ack is None:
            say(f"none within {timeout:g} s; the request stays and is answered when the run gets to it")
        elif ack.accepted:
            say(f"acknowledged at step {ack.step}: {ack.detail}")
        else:
            say(f"refused at step {ack.step}: {ack.detail}")
    return ack


def ask_for_save(host: Transport, run_dir: str, *, timeout: float = ANSWER_S) -> Ack | None:
    """Ask a run that trains for a checkpoint at its next step, and wait for its answer.

    None when it takes no such request, or none came within `timeout` seconds. Raises RefusedError for a run that has
    no metrics of ours or is over, NotFoundError and UnreachableError.
    """
    known = _declared(host, run_dir)
    if SAVE not in known.obeys or known.ended is not None:
        return None
    return ask_run(host, run_dir, Request(SAVE), timeout=timeout)


def _await_answer(host: Transport, run_dir: str, name: str, begin: int, until: float) -> Ack | None:
    reader, offset, ended = MetricsReader(), begin, False
    while True:
        try:
            chunk = host.read_from(f"{run_dir}/{rundir.METRICS}", offset)
            offset += len(chunk.data)
            reader.feed(chunk.data)
            found = next((ack for ack in reader.history().acks if ack.id == name), None)
            if found is not None:
                return found
            if not chunk.data:
                if ended:
                    raise RefusedError("The run ended before it answered.")
                # the last words may be written between the two looks: read once more before believing it
                ended = _over(host, run_dir)
        except UnreachableError:
            if time.monotonic() >= until:
                raise
        if time.monotonic() >= until:
            return None
        if not ended:
            time.sleep(_LOOK_S)


def _over(host: Transport, run_dir: str) -> bool:
    status = _status(host, run_dir)
    return status is not None and (status.ended or not life_of(host, status).trainer)


def _status(host: Transport, run_dir: str) -> rundir.Status | None:
    try:
        return rundir.read_status(host.read_from(f"{run_dir}/{rundir.STATUS}", 0, limit=1 << 16).data)
    except NotFoundError:
        return None


def _declared(host: Transport, run_dir: str) -> RunHistory:
    """What the run says of itself: its last start, its rule since then. A whole metrics.jsonl is not sent for that."""
    metrics = f"{run_dir}/{rundir.METRICS}"
    try:
        host.stat(metrics)
    except NotFoundError:
        host.stat(run_dir)
        raise RefusedError(
            f"{run_dir} on {host.name} was not written by tunewatch's runner: its trainer takes no requests.",
            hint="The rule of such a run is only an assumption of the watcher: tunewatch watch --patience N.",
        ) from None
    answer = host.run(f'grep -aE \'"event": ?"(start|rule|end)"\' {shlex.quote(metrics)}')
    reader = MetricsReader()
    reader.feed(answer.stdout)
    return reader.history()


def _askable(host: Transport, run_dir: str, known: RunHistory, kind: str) -> StopRule:
    """The rule in force of a run that can be asked for another. Raises RefusedError with the reason."""
    if known.ended is not None or _over(host, run_dir):
        raise RefusedError("The run is over: there is nothing left to ask of it.")
    if known.run_id is None and not known.obeys and known.max_steps is None:
        raise RefusedError("The run does not train yet; it takes requests from its first step on.")
    if known.rule is None:
        raise RefusedError("This run was started without auto-stop: it has no rule to change.")
    if kind not in known.obeys:
        raise RefusedError(
            "This run does not take requests: it was started by an older tunewatch.",
            hint=f"It keeps its rule: {known.rule.in_words()}.",
        )
    return known.rule


def run_directory(target: Target) -> Target:
    """The directory of a run, where its log or its metrics were named."""
    folder, slash, name = target.path.rpartition("/")
    if name not in _FILES:
        return target
    return replace(target, path=folder if folder or not slash else "/") if slash else replace(target, path=".")


def _name(target: Target) -> str:
    parts = [part for part in target.path.split("/") if part]
    return "/".join(parts[-2:]) if parts else target.path
