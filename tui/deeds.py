"""Deeds from the screens: each is the command of the same name, run in a process of its own.

The screen and the command line cannot differ that way; a deed goes on when the screen is left, because everything that
costs money is journalled by the command itself. Nothing here decides: the dialog says what will happen, asks, and shows
what the command tells.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runner.errors import Exit
from tui import words
from tui.snapshot import QuoteRow, RunSnapshot


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


def run_deed(deed: Deed, say: Callable[[str], None]) -> DeedEnd:
    """Run the command, telling each line that it says. Blocks; for a thread of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tui", *deed.command, "--yes", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101 - both are pipes
    assert process.stderr is not None  # noqa: S101
    last = ""
    for line in process.stderr:
        if line.strip():
            last = line.strip()
            say(last)
    document = _document(process.stdout.read())
    code = process.wait()
    state = str(document.get("state", "done" if code == 0 else "failed"))
    if code == Exit.UNCONFIRMED or state == "unconfirmed":
        return DeedEnd(False, code, "unconfirmed", "unconfirmed: it may still bill. tunewatch reconcile looks again.")
    if code == 0:
        return DeedEnd(True, code, state, state)
    return DeedEnd(False, code, state, last.removeprefix("tunewatch: ") or f"exit {code}")


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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
    says.append("What is not on the Hub or in the mirror is gone for good.")
    if snapshot.dph:
        says.append(f"It bills {words.usd(snapshot.dph)} an hour until the provider's list no longer has it.")
    name = short_name(snapshot)
    return Deed("kill: stop and destroy the box", ("kill", snapshot.name), tuple(says), "Destroy", name)


def migrate_deed(snapshot: RunSnapshot, offer: QuoteRow) -> Deed:
    """Move the run to another offer."""
    says = [
        f"{snapshot.name} moves to {offer.gpu} ({words.usd(offer.dph)}/h, offer {offer.offer_id}).",
        "The old box goes on training until the new one has proved that it can; both bill meanwhile.",
        f"There: {words.hours(offer.hours[1])} h and {words.usd(offer.usd[1])} to the end.",
    ]
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
