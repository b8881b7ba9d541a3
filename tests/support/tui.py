"""Frozen runs for the screens: values made by hand, posted without a thread, a file or a clock."""

from __future__ import annotations

import asyncio
import math
import random
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from textual import events
from textual.keys import _get_unicode_name_from_key

from remote.market import load_offers
from runner.autostop import StopRule
from runner.history import EvalPoint, Frame, Pause, RunHistory, StageResult, TrainPoint
from tui.app import TunewatchApp
from tui.market import LiveMarket
from tui.poller import Watch
from tui.session import Session, WatchPlan
from tui.snapshot import LinkView, Projection, QuoteRow, RunSnapshot, SnapshotMaker

RULE = StopRule(patience=4, min_delta=0.003, min_steps=600)
TARGET = "runs/stage5/20260215-104518"
BIG, SMALL = (120, 40), (80, 24)


def history(step: int = 457, *, max_steps: int = 6000, rule: StopRule | None = RULE, every: int = 100) -> RunHistory:
    """A run like the one this project began with, at `step`: 2.79 s a step, an eval of 7.7 s every 100 steps."""
    noise = random.Random(7)
    train, evals, frames, pauses = [], [], [], []
    elapsed = 0.0
    for at in range(1, step + 1):
        elapsed += 2.79 + 0.05 * math.sin(at / 40)
        if at % 5 == 0:
            loss = 1.05 + 1.9 * math.exp(-at / 70) + 0.06 * noise.gauss(0, 1) + (0.9 if at == 335 else 0)
            train.append(TrainPoint(at, round(loss, 4), grad_norm=1.3, learning_rate=2e-5, epoch=at / 6250))
            frames.append(Frame(at, round(elapsed, 2), 0))
        if at % every == 0 and at >= 2 * every:
            value = {200: 1.118, 300: 1.372, 400: 1.4}.get(at, round(1.35 + 0.05 * math.exp(-(at - 400) / 300), 4))
            evals.append(EvalPoint(at, value, 7.7, printed=str(value)))
            pauses.append(Pause(at, "eval", 7.7, 0))
            elapsed += 7.7
    return RunHistory(
        source="metrics",
        max_steps=max_steps,
        step=step,
        elapsed_s=elapsed,
        train=tuple(train),
        evals=tuple(evals),
        frames=tuple(frames),
        pauses=tuple(pauses),
        rule=rule,
        bytes_read=1,
    )


def demo_history() -> RunHistory:
    """A study that has two stages behind it and trains the third."""
    stages = (
        StageResult("stage1", 0.93, {"sum": 0.9, "reverse": 0.96}),
        StageResult("stage2", 0.574, {"sum": 0.5, "reverse": 0.65}),
    )
    return replace(history(300, max_steps=2000), stages=stages, stage="stage5")


@dataclass(frozen=True)
class Read:
    """What a feed's tick returns, as far as a snapshot needs it."""

    history: RunHistory
    state: str = "running"
    reason: str = ""
    link: LinkView = field(default_factory=lambda: LinkView("live", 0.4))
    log_path: Any = None
    health: Any = None
    warnings: tuple[str, ...] = ()
    problem: Any = None


def snapshot(
    run: RunHistory | None = None,
    *,
    target: str = TARGET,
    dph: float | None = 0.7411,
    tail: tuple[str, ...] = (),
    **read: Any,
) -> RunSnapshot:
    """A snapshot as the poller makes it, offers of the bundled market included."""
    offers = load_offers()
    maker = SnapshotMaker(target, "/".join(target.split("/")[-2:]), offers=offers[:6], dph=dph)
    return maker.make(Read(run if run is not None else history(), **read), at=1.0, tail=tail or TAIL)


def frozen(one: RunSnapshot) -> RunSnapshot:
    """The snapshot with forecast and quotes replaced by fixed ones: pictures must not change with the estimator."""
    quotes = (
        QuoteRow("1", "A100 SXM4", 0.7411, (0.9, 1.04, 1.9), (0.67, 0.77, 1.41), "yes", 1.0, 0.6, vram_gib=40.0),
        QuoteRow("2", "A100 SXM4", 0.6676, (1.1, 1.21, 2.1), (0.73, 0.81, 1.4), "yes", 0.945, 0.75, vram_gib=40.0),
        QuoteRow("3", "H100 PCIe", 1.1347, (1.2, 1.38, 2.0), (1.36, 1.57, 2.27), "yes", 1.1435, 1.0, vram_gib=80.0),
        QuoteRow("4", "RTX 4090", 0.34, (1.4, 1.9, 3.1), (0.48, 0.65, 1.05), "no", 0.6, 0.5, vram_gib=24.0),
    )
    stay = QuoteRow("stay", "this box", 0.7411, (0.31, 0.44, 1.5), (0.23, 0.33, 1.11), "yes", stay=True)
    fixed = Projection(900, 1000, 2400, 0.93)
    ruling = one.ruling._replace(projection=fixed)
    times = (
        {} if one.ended else {"eta_s": 15700.0, "eta_stop_s": 1590.0, "usd_at_end": 0.6 if one.dph else one.usd_at_end}
    )
    return replace(
        one,
        ruling=ruling,
        quotes=quotes,
        stay=None if one.ended else stay,
        step_s=2.79,
        eval_s=7.7,
        drift=0.012,
        **times,
    )


TAIL = (
    "***** Running training *****",
    "  Num examples = 50,000",
    "{'loss': '1.204', 'grad_norm': '1.31', 'learning_rate': '2e-05', 'epoch': '0.0704'}",
    "{'eval_loss': '1.400', 'eval_runtime': '7.736', 'epoch': '0.064'}",
    "{'loss': '1.113', 'grad_norm': '1.27', 'learning_rate': '2e-05', 'epoch': '0.0728'}",
    "  8%|▊         | 457/6000 [21:47<4:20:37,  2.82s/it]",
)


class QuietSession(Session):
    """A session that polls nothing and remembers nothing: the test posts."""

    def recall(self, target: str) -> None:
        return None

    def watch(self, plan: Any) -> None:
        self._watched[plan.target] = Watch(lambda: None, SnapshotMaker(plan.target, plan.target))

    def rented(self, target: str) -> bool:
        return self.instances.get(target) is not None


def app_with(*snapshots: RunSnapshot, open_first: bool = True, **options: Any) -> TunewatchApp:
    """The application with these snapshots already known, opened on the first."""
    plan = WatchPlan(snapshots[0].target) if open_first and snapshots else None
    app = TunewatchApp(QuietSession(), plan=plan, **options)
    app.market = LiveMarket(enabled=False)  # whatever keys the machine that tests may have
    app.live_prices = False
    for one in snapshots:
        app.snapshots[one.target] = one
    return app


def told(pilot: Any) -> list[Any]:
    """The notices on the screen."""
    return list(pilot.app._notifications)


def plain(app: Any) -> str:
    """Everything that stands on the screen, as text."""
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


async def strike(key: str, pilot: Any) -> None:
    """A key as a fast typist gives it: handed to the program and handled, without `press`'s waits until the process is
    idle and every animation has ended (0.1 s a key and more). For tests that type a lot."""
    try:
        character = unicodedata.lookup(_get_unicode_name_from_key(key))
    except KeyError:
        character = key if len(key) == 1 else None
    pilot.app.post_message(events.Key(key, character))
    await pilot.pause(0)


async def until(condition: Callable[[], object], pilot: Any, seconds: float = 120.0) -> None:
    """Let the application work until `condition` holds."""
    for _ in range(int(seconds / 0.02)):
        await pilot.pause()
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"it did not come true within {seconds:g} s")
