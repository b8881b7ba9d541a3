"""Every kind of alert, raised by a change of what is known of a run or of what is rented, reaches its ways, once each.

The program writes to a terminal that keeps every byte; webhook and ntfy are a real server.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from textual.drivers.headless_driver import HeadlessDriver
from textual.message import Message
from textual.notifications import Notify

from runner.history import EvalPoint, Note, TrainPoint
from tests.support.tui import app_with, frozen, history, snapshot, until
from tests.test_announce import Receiver, receiver  # noqa: F401 - a fixture is used by being here
from tui.alerts import CALM_S, Volume
from tui.app import RentalArrived, SnapshotArrived
from tui.rental_view import MOVED, Alarm, RentalSnapshot
from tui.screens.events import EventsScreen
from tui.snapshot import LinkView, RunSnapshot
from tui.widgets.events import EventList

GPU = {"index": 0, "name": "A100", "util": 97.0}
LATE = CALM_S / 2


class Kept(HeadlessDriver):
    """A terminal that keeps what it is sent."""

    sent: list[str]

    @property
    def is_headless(self) -> bool:
        return False

    def write(self, data: str) -> None:
        self.__dict__.setdefault("sent", []).append(data)


def run_at(step: int, *, worst: float = 1.4, **read: Any) -> RunSnapshot:
    """A run that is at a step, its later evals flat."""
    one = history(step)
    evals = tuple(EvalPoint(e.step, e.eval_loss if e.step < 500 else worst, 7.7) for e in one.evals)  # type: ignore[operator]
    return snapshot(replace(one, evals=evals), **read)


def with_loss(value: float) -> RunSnapshot:
    one = history(457)
    return snapshot(replace(one, step=458, train=(*one.train, TrainPoint(458, value))))


def uploaded(*said: str) -> RunSnapshot:
    return snapshot(replace(history(457), notes=tuple(Note(400, "upload", text) for text in said)))


def disk(free: float) -> RunSnapshot:
    return snapshot(health={"disk_free": free * 1e9, "disk_total": 100e9})


def billed(spent: float) -> RunSnapshot:
    return replace(snapshot(), usd_spent=spent, usd_at_end=spent)


def util(share: float) -> RunSnapshot:
    return snapshot(health={"gpus": [{**GPU, "util": share}]})


def ended(state: Any, reason: str) -> RunSnapshot:
    return snapshot(state=state, reason=reason)


def linked(word: Any, age: float) -> RunSnapshot:
    return snapshot(link=LinkView(word, age))


Change = tuple[Callable[[], RunSnapshot], Callable[[], RunSnapshot], str, Volume]
RUNS: dict[str, Change] = {
    "auto-stop": (lambda: run_at(900), lambda: run_at(1000), "stopped it at step 1000: no more gain", Volume.BELL),
    "best eval": (lambda: run_at(500), lambda: run_at(500, worst=0.9), "0.9000 at step 500, was 1.118", Volume.TOAST),
    "not a number": (snapshot, lambda: with_loss(math.nan), "the training loss is not a number", Volume.BELL),
    "crashed": (snapshot, lambda: ended("crashed", "CUDA out of memory"), "CUDA out of memory", Volume.BELL),
    "finished": (snapshot, lambda: ended("finished", "the horizon"), "finished at step 457", Volume.BELL),
    "stopped": (snapshot, lambda: ended("stopped", "asked to"), "stopped at step 457: asked to", Volume.BELL),
    "silent": (snapshot, lambda: ended("silent", "nothing new"), "running → silent", Volume.LIST),
    "link lost": (snapshot, lambda: linked("offline", 130.0), "the run may be perfectly well", Volume.BELL),
    "link back": (lambda: linked("offline", 130.0), snapshot, "the host answers again", Volume.TOAST),
    "over budget": (lambda: billed(5.0), lambda: billed(51.0), "$51.00 spent, the budget is $50.00", Volume.BELL),
    "upload failed": (lambda: uploaded("done"), lambda: uploaded("done", "the upload failed: 403"), "403", Volume.BELL),
    "GPU idle": (lambda: util(0.0), lambda: util(1.0), "no GPU has done anything for 5m", Volume.BELL),
    "disk fills": (lambda: disk(50.0), lambda: disk(4.0), "4.0 GB free on the box, 4% of its disk", Volume.BELL),
    "warning": (snapshot, lambda: snapshot(warnings=("the [/b] clock",)), "the [/b] clock", Volume.LIST),
}
RENTED: dict[str, Alarm] = {
    "outbid": Alarm("notice outbid 7", "outbid", "Instance 7 was outbid.", "warning", True, "vast:7"),
    "guard": Alarm("guard 7", "guard", "Instance 7: its guard does not answer.", "error", True, "vast:7"),
    "past its limit": Alarm("late 7", "past its limit", "Instance 7 bills past its limit.", "error", True, "vast:7"),
    "may still bill": Alarm("unconfirmed 7", "may still bill", "Instance 7 is not proved gone.", "error", True, "a/7"),
    "gone": Alarm("gone 7", "gone", "Instance 7 is gone and bills no more.", "information", True, "a/7"),
    "recovery": Alarm(f"{MOVED}a/7", "recovery", "a/7 goes on elsewhere.", "information", True, "a/7"),
    "provider": Alarm("provider", "provider", "The provider does not answer.", "warning", False),
}


def looks(title: str, change: Change) -> tuple[RunSnapshot, RunSnapshot]:
    """A run of its own for each kind, seen twice."""
    named = [replace(frozen(make()), target=f"runs/{title}", name=f"a/{title}") for make in change[:2]]
    # the change is what was made, not the fixed money of pictures
    before, after = (
        replace(fixed, ruling=made.ruling, usd_spent=made.usd_spent, usd_at_end=made.usd_at_end)
        for fixed, made in zip(named, (change[0](), change[1]()), strict=True)
    )
    return replace(before, at=1.0), replace(after, at=1.0 + LATE)


async def test_every_alert_reaches_each_of_its_ways_once(receiver, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TUNEWATCH_WEBHOOK", receiver.url("/hook"))
    monkeypatch.setenv("TUNEWATCH_NTFY", receiver.url("/topic"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("TMUX", "VTE_VERSION", "TUNEWATCH_NTFY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    pairs = {title: looks(title, change) for title, change in RUNS.items()}
    volumes = {title: change[3] for title, change in RUNS.items()}
    volumes |= {title: Volume.BELL if alarm.loud else Volume.TOAST for title, alarm in RENTED.items()}
    words = {title: change[2] for title, change in RUNS.items()} | {t: a.text for t, a in RENTED.items()}
    app = app_with(*(before for before, _ in pairs.values()))
    app.driver_class = Kept
    app.session.budget = 50.0
    toasts: dict[str, str] = {}

    def seen(message: Message) -> None:
        if isinstance(message, Notify):
            toasts[message.notification.identity] = message.notification.title

    async with app.run_test(size=(120, 40), headless=False, notifications=True, message_hook=seen) as pilot:
        for before, _ in pairs.values():
            app.post_message(SnapshotArrived(before))
        await until(lambda: len(app.snapshots) == len(pairs), pilot)
        await pilot.pause()
        began = {event.title for event in app.notices.events}
        assert began <= {"link lost"}, "a first look tells what is wrong now, and no old news"
        for _ in range(3):  # what stands is told once, however often it is looked at
            for _, after in pairs.values():
                app.post_message(SnapshotArrived(after))
            app.post_message(RentalArrived(RentalSnapshot(alarms=tuple(RENTED.values()))))
            await pilot.pause()
        loud = [title for title, volume in volumes.items() if volume is Volume.BELL] + sorted(began)
        await until(lambda: len(receiver.got) >= 2 * len(loud), pilot)
        await until(lambda: len(app.notices.events) >= len(volumes) + len(began), pilot)
        told = [event.title for event in app.notices.events]
        written = [data for data in app._driver.sent if data == "\x07" or data.startswith("\x1b]9;")]  # type: ignore[union-attr]
        now = time.monotonic()
        assert all(event.at <= now for event in app.notices.events)
        assert all(now - e.at < 600 for e in app.notices.events if e.kind in ("billing", "moved")), "they have an age"
        await pilot.press("e")
        await until(lambda: isinstance(app.screen, EventsScreen), pilot)
        assert len(app.screen.query_one(EventList).events) == len(told)
    for title, volume in volumes.items():
        times = 2 if title in began else 1  # the run whose link comes back had lost it
        assert told.count(title) == times, title
        [*_, event] = [e for e in app.notices.events if e.title == title]
        assert words[title] in event.text, event.text
        assert list(toasts.values()).count(title) == (times if volume >= Volume.TOAST else 0), title
        sent = [body for path, _, body in receiver.got if path == "/hook" and body["title"] == title]
        noted = [body for path, _, body in receiver.got if path == "/" and body["title"] == f"tunewatch: {title}"]
        assert (len(sent), len(noted)) == ((times, times) if volume is Volume.BELL else (0, 0)), title
        desk = [data for data in written if data.startswith("\x1b]9;") and event.text[:60] in data]
        assert len(desk) == (1 if volume is Volume.BELL else 0), title
    assert written.count("\x07") == len(loud)


@pytest.mark.parametrize("size", [(120, 40), (80, 24)])
async def test_a_newer_best_takes_the_place_of_the_older_toast_and_any_text_is_shown_as_it_is(size):
    app = app_with(frozen(snapshot()))
    async with app.run_test(size=size, notifications=True) as pilot:
        for step, loss in ((500, 1.0), (600, 0.9), (700, 0.8)):
            run = history(step)
            run = replace(run, evals=(*run.evals[:-1], EvalPoint(step, loss, 7.7)))
            one = replace(snapshot(run), name="a/[/b] [run]")
            app.post_message(SnapshotArrived(one))
            await until(lambda one=one: app.snapshots[one.target] is one, pilot)
            await pilot.pause()
        toasts = [n.message for n in app._notifications]
        assert [t for t in toasts if "best eval_loss" in t] == [
            "a/[/b] [run]: best eval_loss 0.8000 at step 700, was 0.9000"
        ]
