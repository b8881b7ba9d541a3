"""The one frozen value that crosses from the polling thread to the screen, and how it is made.

`SnapshotMaker` joins what a feed read with the auto-stop replay and the forecast. It holds no file and no clock: the
thread that polls calls `make` with what it read and when. The screen may keep, compare and throw away snapshots; tests
build them by hand and post them at the widgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from runner.autostop import Judgement, StopRule, StopState, judge, replay
from runner.history import RunHistory, RunState

if TYPE_CHECKING:
    from estimator.offer import Offer
    from remote.forecast import RunForecast
    from tui.calibrating import Calibrating

LinkWord = Literal["live", "stale", "reconnecting", "offline"]
DEFAULT_RULE = StopRule()
FORECAST_S = 2.0
"""Seconds between two forecasts while only training goes on; an eval, a new rule or the end has one at once."""


class LinkView(NamedTuple):
    """How fresh what is shown is."""

    word: LinkWord = "live"
    age_s: float | None = 0.0
    """Seconds since the host last answered."""
    detail: str = ""


class Projection(NamedTuple):
    """Where the run will probably stop."""

    p10: int
    p50: int
    p90: int
    p_early: float
    """Probability of a stop before the last planned step."""

    def to_json(self) -> dict[str, float]:
        """The `projected` of `watch --json`."""
        return {"p10": self.p10, "p50": self.p50, "p90": self.p90, "p_early": self.p_early}


@dataclass(frozen=True, slots=True)
class QuoteRow:
    """Finish time and bill on one offer, as optimistic, base and pessimistic."""

    offer_id: str
    gpu: str
    dph: float
    """USD per hour."""
    hours: tuple[float, float, float]
    usd: tuple[float, float, float]
    fits: str = "unknown"
    speed: float = 1.0
    setup_h: float = 0.0
    notes: tuple[str, ...] = ()
    pareto: bool = False
    stay: bool = False
    place: str = ""
    reliability: float | None = None
    vram_gib: float | None = None
    document: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The row as `estimate --json` prints it."""


class Ruling(NamedTuple):
    """What one auto-stop rule makes of the run."""

    rule: StopRule
    state: StopState
    judgements: tuple[Judgement, ...] = ()
    projection: Projection | None = None


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """Everything the screens show of one run at one moment."""

    target: str
    name: str = ""
    history: RunHistory = field(default_factory=RunHistory)
    state: RunState = "starting"
    reason: str = ""
    link: LinkView = field(default_factory=LinkView)
    ruling: Ruling = field(default_factory=lambda: Ruling(DEFAULT_RULE, StopState()))
    declared: bool = False
    """Whether the run itself declared the rule; otherwise it is an assumption of the watcher."""
    other: Ruling | None = None
    """For a run that declared none: the same rule with the other `count_from`."""
    step_s: float | None = None
    """Seconds per training step, evals and saves excluded."""
    eval_s: float | None = None
    effective_sps: float | None = None
    """Steps per second with evals and saves in."""
    drift: float | None = None
    """Relative change of the step time from the first to the second half of what was measured."""
    eta_s: float | None = None
    """Seconds to the last planned step on this box."""
    eta_stop_s: float | None = None
    """Seconds to the P50 stop on this box."""
    quotes: tuple[QuoteRow, ...] = ()
    stay: QuoteRow | None = None
    dph: float | None = None
    """USD per hour of the box; 0.0 for this machine, None when unknown."""
    usd_spent: float | None = None
    usd_at_end: float | None = None
    health: Mapping[str, Any] = field(default_factory=dict)
    log_path: str | None = None
    tail: tuple[str, ...] = ()
    """The last lines of the log, bars collapsed."""
    warnings: tuple[str, ...] = ()
    at: float = 0.0
    """Monotonic seconds when it was made."""
    estimated: bool = True
    """Whether a forecast was tried; the first snapshot of a run comes before it."""

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self.state in ("finished", "stopped", "crashed")

    @property
    def lost(self) -> bool:
        """Whether it does not look as if it trained, and nobody ended it."""
        return self.state in ("crashed", "silent", "unreachable")

    @property
    def step(self) -> int | None:
        """Steps done."""
        return self.history.step


class Feed(Protocol):
    """What is needed of `remote.feed.RunFeed`."""

    def tick(self) -> Any:
        """Read what is new; returns a `FeedState`."""

    def close(self) -> None:
        """Let go of files and links."""


@dataclass(frozen=True, slots=True)
class RuleChoice:
    """The rule options of the command line; None leaves a field to the run, or to the default."""

    patience: int | None = None
    min_delta: float | None = None
    min_steps: int | None = None
    count_from: Literal["min_steps", "start"] | None = None

    def over(self, declared: StopRule | None) -> tuple[StopRule, bool]:
        """The rule to judge by, and whether it is the one that the run declared."""
        given: dict[str, Any] = {
            k: v for k in ("patience", "min_delta", "min_steps", "count_from") if (v := getattr(self, k)) is not None
        }
        rule = replace(declared or DEFAULT_RULE, **given)
        return rule, declared is not None and rule == declared


@dataclass(slots=True)
class SnapshotMaker:
    """Makes snapshots of one run; keeps the last forecast while the history is the same."""

    target: str
    name: str
    choice: RuleChoice = RuleChoice()
    offers: Sequence[Offer] = ()
    here: Offer | None = None
    dph: float | None = None
    book: Calibrating | None = None
    """Keeps the forecast's bets; None for what is not to be remembered."""
    _last: RunSnapshot | None = None
    _live: bool = False
    """Whether the last look showed all there was of a run that goes on."""
    _made_of: RunHistory | None = None
    """The history of the last forecast, and when it was made (monotonic seconds)."""
    _made_at: float = 0.0
    _owed: bool = False
    """Whether training went on since then."""

    def use(self, offers: Sequence[Offer]) -> None:
        """Quote from other offers from the next look on."""
        self.offers = offers
        self._made_of = None

    def make(self, read: Any, *, at: float, tail: tuple[str, ...] = (), forecast: bool = True) -> RunSnapshot:
        """Join a `FeedState` with verdict and forecast. `at` is the monotonic time of the reading, in seconds.

        Without `forecast` the curve and the verdict are there at once, and whatever needs an estimate is not known.
        """
        history: RunHistory = read.history
        whole = bool(getattr(read, "caught_up", True))
        if not forecast:
            base = self._seen(history)
        else:
            base = self._followed(history, at) or self._judged(history, whole, at)
            self._live = whole and history.ended is None
        snapshot = replace(
            base,
            state=read.state,
            reason=read.reason or (str(read.problem) if read.problem is not None else ""),
            link=LinkView(read.link.word, read.link.age_s, read.link.detail),
            health=_as_mapping(read.health),
            log_path=str(read.log_path) if read.log_path else None,
            tail=tail,
            warnings=tuple(dict.fromkeys((*self._unkept(), *read.warnings, *history.warnings))),
            at=at,
        )
        if snapshot.ended:
            snapshot = replace(snapshot, eta_s=None, eta_stop_s=None, usd_at_end=snapshot.usd_spent)
        if forecast:
            self._last = snapshot
        return snapshot

    def _followed(self, history: RunHistory, at: float) -> RunSnapshot | None:
        """The last snapshot, brought up to a history in which only training went on; None where a forecast is due.

        A step is on the screen before the forecast that it changes a little: that comes with a later look.
        """
        last, made_of = self._last, self._made_of
        if last is None or made_of is None:
            return None
        if made_of is history:
            return last
        now = (history.ended, history.evals, history.rule, history.max_steps, history.run_id)
        then = (made_of.ended, made_of.evals, made_of.rule, made_of.max_steps, made_of.run_id)
        owed, self._owed = self._owed, True
        if now != then or (owed and at - self._made_at >= FORECAST_S):
            return None
        return replace(last, history=history, usd_spent=self._spent(history))

    def _seen(self, history: RunHistory) -> RunSnapshot:
        """What can be said without an estimate."""
        rule, declared = self.choice.over(history.rule)
        return RunSnapshot(
            target=self.target,
            name=self.name,
            history=history,
            ruling=_ruling(history, rule, None),
            declared=declared,
            dph=self.dph,
            usd_spent=self._spent(history),
            estimated=False,
        )

    def _spent(self, history: RunHistory) -> float | None:
        """USD for the time trained so far."""
        return None if self.dph is None else self.dph * (history.elapsed_s or 0.0) / 3600

    def _unkept(self) -> tuple[str, ...]:
        return (self.book.trouble,) if self.book is not None and self.book.trouble else ()

    def _forecast(self, history: RunHistory, rule: StopRule, declared: bool, whole: bool) -> RunForecast:
        """The forecast as wide as past bets ask for; it is a bet itself where the run obeys the rule."""
        from estimator.workload import Workload
        from remote.forecast import forecast_run

        here, book = self.here, self.book
        if book is None:
            return forecast_run(history, rule, self.offers, dph=self.dph or None, here=here)
        recipe = book.recipe(self.target)
        forecast = forecast_run(
            history,
            rule,
            self.offers,
            dph=self.dph or None,
            here=here,
            workload=Workload(recipe=recipe),
            widen=book.widen(),
            own_runs=book.own_runs(),
        )
        if declared and whole:
            book.follow(history, forecast.stop)
        if self._live and history.ended in ("finished", "stopped") and here is not None and forecast.throughput:
            # only an end that was seen: a run that is opened again would be counted again
            book.note_rate(recipe, here.gpu, forecast.throughput.effective_sps)
        return forecast

    def _judged(self, history: RunHistory, whole: bool, at: float) -> RunSnapshot:
        from remote.forecast import forecast_run

        self._made_of, self._made_at, self._owed = history, at, False
        rule, declared = self.choice.over(history.rule)
        forecast = self._forecast(history, rule, declared, whole)
        other = None
        if history.rule is None and self.choice.count_from is None:
            swapped = replace(rule, count_from="start" if rule.count_from == "min_steps" else "min_steps")
            other = _ruling(history, swapped, forecast_run(history, swapped))
        spent = self._spent(history)
        over = history.ended is not None
        stay = quote_row(forecast.stay, stay=True) if forecast.stay is not None and not over else None
        speed = forecast.throughput
        left = forecast.view.remaining
        return RunSnapshot(
            target=self.target,
            name=self.name,
            history=history,
            ruling=_ruling(history, rule, forecast),
            declared=declared,
            other=other,
            step_s=speed.step_s if speed else None,
            eval_s=speed.eval_s if speed else None,
            effective_sps=speed.effective_sps if speed else None,
            drift=speed.drift if speed else None,
            eta_s=speed.seconds(left) if speed and left is not None else None,
            eta_stop_s=forecast.eta_s,
            quotes=whole_run_quotes(history, self.offers)
            if over
            else tuple(quote_row(q, offers=self.offers) for q in forecast.quotes),
            stay=stay,
            dph=self.dph,
            usd_spent=spent,
            usd_at_end=None if spent is None else spent + (stay.usd[1] if stay else 0.0),
        )


def whole_run_quotes(history: RunHistory, offers: Sequence[Offer]) -> tuple[QuoteRow, ...]:
    """What the whole run, as long as it was, would take and cost on each offer; empty while its speed is unknown."""
    from estimator.quote import scenario_quotes
    from estimator.throughput import throughput
    from remote.forecast import run_view

    speed = throughput(run_view(history))
    if speed is None or not history.step:
        return ()
    return tuple(quote_row(q, offers=offers) for q in scenario_quotes(history.step, speed.effective_sps, offers).quotes)


def _ruling(history: RunHistory, rule: StopRule, forecast: RunForecast | None) -> Ruling:
    pairs = history.eval_pairs()
    stop = forecast.stop if forecast is not None else None
    projection = Projection(int(stop.p10), int(stop.p50), int(stop.p90), float(stop.p_early)) if stop else None
    state = history.declared_stop if history.declared_stop and rule == history.rule else replay(rule, pairs)
    return Ruling(rule, state, tuple(judge(rule, pairs)), projection)


def quote_row(quote: Any, *, stay: bool = False, offers: Sequence[Offer] = ()) -> QuoteRow:
    """A quote of the estimator as a row, with what its offer says beside the price."""
    offer = next((o for o in offers if o.id == quote.offer_id), None)
    return QuoteRow(
        offer_id=str(quote.offer_id),
        gpu=quote.gpu,
        dph=quote.dph,
        hours=(quote.hours.opt, quote.hours.base, quote.hours.pess),
        usd=(quote.usd.opt, quote.usd.base, quote.usd.pess),
        fits=quote.fits,
        speed=quote.speed,
        setup_h=quote.setup_h,
        notes=tuple(quote.notes),
        pareto=bool(quote.pareto),
        stay=stay,
        place=offer.place if offer else "",
        reliability=offer.reliability if offer else None,
        vram_gib=offer.gpu_ram_gib if offer else None,
        document=quote.to_json(),
    )


def _as_mapping(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    from dataclasses import asdict, is_dataclass

    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else {}
