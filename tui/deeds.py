"""Deeds from the screens: each is the command of the same name, run in a process of its own.

The screen and the command line cannot differ that way; a deed goes on when the screen is left, because everything that
costs money is journalled by the command itself. Nothing here decides: the dialog says what will happen, asks, and shows
what the command tells.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote.deeds import DeedStep
from remote.home import home
from runner.autostop import StopRule
from runner.errors import Exit
from tui import words
from tui.commands.common import STEPS
from tui.snapshot import QuoteRow, RunSnapshot

_LOOK_S = 0.05
"""Seconds between two looks at what a command says."""
_KEPT_S = 7 * 86400.0
COMPLAINT = "tunewatch: "
"""How the sentence of an error begins among the lines that a command says."""


@dataclass(frozen=True, slots=True)
class Deed:
    """What is to be done, and what a person has to know before."""

    title: str
    command: tuple[str, ...]
    """Words after `tunewatch`."""
    says: tuple[str, ...]
    """What happens, what is lost, what goes on billing."""
    verb: str
    name: str = ""
    """What has to be typed back; empty when a press of the button is enough."""

    def as_typed(self) -> str:
        """The command as one would type it."""
        return shlex.join(["tunewatch", *self.command])


@dataclass(frozen=True, slots=True)
class DeedEnd:
    """How it ended."""

    ok: bool
    code: int
    state: str
    text: str
    document: Mapping[str, Any] = field(default_factory=dict)
    """What the command printed with `--json`."""


Told = str | DeedStep
"""A phase that begins or has ended, or a line that the command says beside them."""


def run_deed(deed: Deed, say: Callable[[Told], None]) -> DeedEnd:
    """Run the command, telling each phase and each line that it says. Blocks; for a thread of its own.

    The command writes into files and not into pipes: it goes on undisturbed when this process is left.
    """
    folder = home() / "deeds"
    folder.mkdir(parents=True, exist_ok=True)
    _tidy(folder)
    stem = folder / f"{deed.command[0]}-{uuid.uuid4().hex[:8]}"
    spoken, printed = stem.with_suffix(".err"), stem.with_suffix(".out")
    with spoken.open("wb") as err, printed.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tui", *deed.command, "--yes", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, STEPS: "json"},
            start_new_session=True,
        )
    said: list[str] = []
    with spoken.open("rb") as lines:
        rest = b""
        while True:
            over = process.poll() is not None
            *whole, rest = (rest + lines.read()).split(b"\n")
            for raw in [*whole, rest] if over else whole:
                line = raw.decode("utf-8", "replace").rstrip()
                if line.strip():
                    told = _step_of(line) or line
                    said += [line] if told is line else []
                    say(told)
            if over:
                break
            time.sleep(_LOOK_S)
    end = _end_of(process.returncode, said, _document(printed.read_text("utf-8", "replace")))
    for path in (spoken, printed):
        path.unlink(missing_ok=True)
    return end


def _end_of(code: int, said: Sequence[str], document: dict[str, Any]) -> DeedEnd:
    state = str(document.get("state", "done" if code == 0 else "failed"))
    if state == "unconfirmed" or (code == Exit.UNCONFIRMED and state != "running"):
        text = "unconfirmed: it may still bill. tunewatch reconcile looks again."
        return DeedEnd(False, code, "unconfirmed", text, document)
    if code == 0:
        return DeedEnd(True, code, state, state, document)
    return DeedEnd(False, code, state, _complaint(said) or f"exit {code}", document)


def _complaint(said: Sequence[str]) -> str:
    """The sentence of the error with what to do about it; the last line where there is no such sentence."""
    starts = [number for number, line in enumerate(said) if line.startswith(COMPLAINT)]
    if not starts:
        return said[-1].strip() if said else ""
    return " ".join(line.strip() for line in said[starts[-1] :]).removeprefix(COMPLAINT)


def _step_of(line: str) -> DeedStep | None:
    if not line.startswith('{"name": '):
        return None
    found = _document(line)
    return DeedStep(str(found["name"]), found.get("ok"), str(found.get("detail", "")), found.get("s"))


def _tidy(folder: Path) -> None:
    """Take away what deeds have left whose screen did not live to read their end."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _KEPT_S:
                path.unlink()


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def rule_deed(name: str, target: str, rule: StopRule) -> Deed:
    """Let the run go on under another auto-stop rule."""
    command = ["rule", target, "--patience", str(rule.patience), "--min-delta", f"{rule.min_delta:.9g}"]
    command += ["--min-steps", str(rule.min_steps), "--count-from", rule.count_from]
    return Deed("another rule", tuple(command), (f"{name} goes on under: {rule.in_words()}.",), "Apply")


def stop_deed(snapshot: RunSnapshot) -> Deed:
    """End training with a checkpoint; the box stays."""
    says = [f"{snapshot.name} saves a checkpoint and stops training at about step {snapshot.step}."]
    says.append("Nothing is lost.")
    if snapshot.dph:
        says.append(f"The box stays and goes on billing {words.usd(snapshot.dph)} an hour.")
    return Deed("stop training", ("stop", snapshot.target), tuple(says), "Stop")


def kill_deed(snapshot: RunSnapshot) -> Deed:
    """End training and destroy the box."""
    says = [f"{snapshot.name} saves a checkpoint and stops; then its box is destroyed with everything on it."]
    unsaved = unsaved_steps(snapshot)
    if unsaved:
        says.append(f"{unsaved} steps lie since the last checkpoint seen; they are lost if the box does not answer.")
    says.append("Log and results come here first; a checkpoint that is not on the Hub is gone for good.")
    if snapshot.dph:
        says.append(f"It bills {words.usd(snapshot.dph)} an hour until the provider's list no longer has it.")
    name = short_name(snapshot)
    return Deed("kill: stop and destroy the box", ("kill", snapshot.name), tuple(says), "Destroy", name)


def migrate_deed(snapshot: RunSnapshot, offer: QuoteRow) -> Deed:
    """Move the run to another offer."""
    says = [
        f"{snapshot.name} moves to {offer.gpu} ({words.usd(offer.dph)}/h, offer {offer.offer_id}).",
        "The old box goes on training until the new one has proved that it can; both bill meanwhile.",
    ]
    if math.isfinite(offer.hours[1]) and math.isfinite(offer.usd[1]):
        says.append(f"There: {words.hours(offer.hours[1])} h and {words.usd(offer.usd[1])} to the end.")
    if snapshot.stay is not None:
        stay = snapshot.stay
        there = f"{words.hours(stay.hours[1])} h and {words.usd(stay.usd[1])}"
        says.append(f"Staying: {there}. A move that does not pay is refused.")
    command = ("migrate", snapshot.name, "--to", offer.offer_id)
    return Deed("migrate", command, tuple(says), "Move", short_name(snapshot))


def short_name(snapshot: RunSnapshot) -> str:
    """What has to be typed: the last part of the name."""
    return snapshot.name.rstrip("/").rsplit("/", 1)[-1]


def unsaved_steps(snapshot: RunSnapshot) -> int | None:
    """Steps since the last save that was seen; None when none was."""
    saves = [p.step for p in snapshot.history.pauses if p.kind == "save"]
    return snapshot.step - saves[-1] if saves and snapshot.step is not None else None
