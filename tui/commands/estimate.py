"""`tunewatch estimate`: finish time and bill per offer, from typed numbers or from a live run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.autostop import CountFrom, StopRule
from runner.errors import NotFoundError, UsageError
from runner.history import RunHistory
from tui.commands.common import emit_json, json_option

if TYPE_CHECKING:  # numpy comes with these, and --help has no need of it
    from estimator.memory import Optimiser
    from estimator.migration import Migration
    from estimator.offer import Offer
    from estimator.whatif import RuleOutcome
    from estimator.workload import Workload
    from remote.forecast import RunForecast

OPTIMISERS = ("adamw", "adamw_bf16", "adamw_8bit", "adafactor", "sgd")
"""Those of `estimator.memory`, said again so that --help needs no numpy; a test holds the two together."""


@click.command(short_help="Finish time and bill per offer.")
@click.argument("target", required=False)
@click.option("--steps", type=click.IntRange(min=1), help="Steps planned in all; a target says it itself.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Steps per second, evals included.")
@click.option("--offers", "offers_file", type=click.Path(), help="Offers file; without it the bundled examples.")
@click.option("--here", help="Id of the offer that the run is on.")
@click.option("--dph", type=click.FloatRange(min=0), help="USD per hour of the box the run is on.")
@click.option("--probe", multiple=True, metavar="ID=RATE", help="Steps per second measured on an offer's own box.")
@click.option("--budget", type=click.FloatRange(min=0), help="USD from now.")
@click.option("--deadline", help="From now, 90s, 45m, 10h, or an ISO time.")
@click.option("--patience", type=click.IntRange(min=1), help="Auto-stop: evals without gain; a run may declare it.")
@click.option("--min-delta", type=click.FloatRange(min=0), help="Auto-stop: the gain that counts.")
@click.option("--min-steps", type=click.IntRange(min=0), help="Auto-stop: not before this step.")
@click.option("--count-from", type=click.Choice(["min_steps", "start"]), help="Auto-stop: which evals are judged.")
@click.option("--model", "model_config", type=click.Path(), help="config.json of the model: judges the memory.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences per device and step."
)
@click.option("--length", type=click.IntRange(min=1), default=2048, show_default=True, help="Tokens per sequence.")
@click.option("--optimiser", type=click.Choice(OPTIMISERS), default="adamw_bf16", show_default=True)
@click.option("--lora", type=click.IntRange(min=1), help="LoRA rank; without it all parameters are trained.")
@click.option("--no-checkpointing", is_flag=True, help="Activations are kept, not recomputed.")
@click.option("--what-if", is_flag=True, help="With a target: what other auto-stop rules would do.")
@json_option
def command(
    target: str | None,
    steps: int | None,
    rate: float | None,
    offers_file: str | None,
    here: str | None,
    dph: float | None,
    probe: tuple[str, ...],
    budget: float | None,
    deadline: str | None,
    patience: int | None,
    min_delta: float | None,
    min_steps: int | None,
    count_from: CountFrom | None,
    model_config: str | None,
    batch: int,
    length: int,
    optimiser: Optimiser,
    lora: int | None,
    no_checkpointing: bool,
    what_if: bool,
    as_json: bool,
) -> None:
    """Say for each offer when the run would be done there and what it would cost.

    With --steps and --rate the scenario table is shown: the rate 20 % faster, as given, and 40 % slower, always to the
    last step. With a TARGET the numbers come from the live run, as P10, P50 and P90, and the row "stay" leaves out the
    setup that is already paid.

    \b
    tunewatch estimate --steps 6000 --rate 0.349
    tunewatch estimate box:/root/run/log.txt --offers offers.json --budget 5
    """
    from remote.market import load_offers, running_offer

    if target is None and (steps is None or rate is None):
        raise UsageError("Without a target both --steps and --rate are needed.", hint="See tunewatch estimate --help.")
    offers = load_offers(offers_file)
    work = workload(model_config, batch, length, optimiser, lora, checkpointing=not no_checkpointing)
    if target is None:
        from estimator.quote import scenario_quotes

        table = scenario_quotes(steps or 0, rate or 0.0, offers, work=work, here=running_offer(offers, here))
        document: dict[str, Any] = {"quotes": [q.to_json() for q in table.quotes], "stay": None}
    else:
        from remote.bets import BetBook
        from remote.forecast import forecast_run, other_rules

        box = running_offer(offers, here)
        history = read_history(target)
        book = BetBook()
        found = forecast_run(
            history,
            asked_rule(history.rule, patience, min_delta, min_steps, count_from),
            offers,
            dph=dph,
            here=box,
            budget=budget,
            deadline_h=None if deadline is None else hours_from_now(deadline),
            max_steps=steps,
            rate=rate,
            scenario=rate is not None,
            workload=of_recipe(work, target),
            probes=probes(probe, offers),
            widen=book.calibration().widen,
            own_runs=book.own_runs(),
        )
        if found.rule == history.rule and rate is None:  # a rule that was only typed is not the one that will end it
            with suppress(OSError):  # a home that cannot be written costs a bet, not the answer
                book.follow(history, found.stop)
        document = found.to_json()
        document["moves"] = [] if found.stay is None else [m.to_json() for m in moves(found, offers)]
        document["rules"] = [rule_row(row) for row in other_rules(found)] if what_if else []
        document["calibration"] = book.calibration().in_words()
        if document["throughput"] is None:
            raise NotFoundError(f"{target} does not tell its speed yet.", hint="Give --rate, or wait for a few steps.")
        if document["projected"] is None:
            raise UsageError(f"{target} does not say how many steps are planned.", hint="Give --steps.")
    if as_json:
        emit_json(document)
        return
    for line in table_lines(document):
        click.echo(line)


def workload(
    model_config: str | None, batch: int, length: int, optimiser: Optimiser, lora: int | None, *, checkpointing: bool
) -> Workload | None:
    """What a box has to hold, from the model's config.json; None leaves the memory verdict open."""
    if model_config is None:
        return None
    from estimator.memory import ModelShape, TrainShape
    from estimator.workload import Workload

    try:
        shape = ModelShape.from_config(json.loads(Path(model_config).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {model_config}.") from error
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{model_config} is not a model's config.json: {error}.") from error
    train = TrainShape(
        batch=batch, length=length, optimiser=optimiser, lora_rank=lora, checkpointing=checkpointing, prefix_mask=False
    )
    return Workload(model_gb=shape.params * 2 / 1e9, model=shape, train=train)


def of_recipe(work: Workload | None, target: str) -> Workload:
    """The workload with the recipe of a known run: own finished runs of the same recipe say how fast a GPU is."""
    from estimator.workload import Workload
    from remote.home import home
    from remote.known import known_runs

    known = (run.recipe for run in known_runs(home()) if target in (run.target, run.name))
    return replace(work or Workload(), recipe=next(known, None) or "")


def probes(typed: Sequence[str], offers: Sequence[Offer]) -> dict[str, float]:
    """`ID=RATE` as rates by offer; UsageError for another form, NotFoundError for an id that is not listed."""
    rates: dict[str, float] = {}
    for text in typed:
        name, _, number = text.partition("=")
        try:
            rate = float(number)
        except ValueError:
            rate = math.nan
        if not (math.isfinite(rate) and rate > 0):
            raise UsageError(f"'{text}' is not a probe.", hint="--probe OFFER_ID=0.41, in steps per second.")
        if name not in {offer.id for offer in offers}:
            raise NotFoundError(f"There is no offer {name} in the list.")
        rates[name] = rate
    return rates


def moves(found: RunForecast, offers: Sequence[Offer]) -> list[Migration]:
    """What moving to each offer would bring; the box the run is on is left out."""
    from remote.forecast import weigh_move

    here = found.plan.here if found.plan is not None else None
    weighed = [weigh_move(found, offer) for offer in offers if here is None or offer.id != here.id]
    return [answer for answer in weighed if answer is not None]


def rule_row(row: RuleOutcome) -> dict[str, Any]:
    """One other rule as JSON."""
    rule = row.rule
    return {
        "rule": {
            "patience": rule.patience,
            "min_delta": rule.min_delta,
            "min_steps": rule.min_steps,
            "count_from": rule.count_from,
        },
        "stop": {"mean": row.stop, "p10": row.p10, "p50": row.p50, "p90": row.p90, "p_early": row.p_early},
        "best_loss": row.best_loss,
        "hours": row.hours,
        "usd": row.usd,
        "usd_per_0.001": row.usd_per_milli,
        "p_false_stop": row.p_false_stop,
    }


def read_history(target: str) -> RunHistory:
    """What is known of the target now, read to its end once."""
    from remote.feed import RunFeed

    feed = RunFeed(target)
    try:
        return feed.settle().history
    finally:
        feed.close()


def asked_rule(
    declared: StopRule | None,
    patience: int | None,
    min_delta: float | None,
    min_steps: int | None,
    count_from: CountFrom | None,
) -> StopRule | None:
    """The declared rule with what was typed over it; None when neither says anything: nothing stops the run then."""
    typed: dict[str, Any] = {
        "patience": patience,
        "min_delta": min_delta,
        "min_steps": min_steps,
        "count_from": count_from,
    }
    given = {key: value for key, value in typed.items() if value is not None}
    if not given:
        return declared
    return replace(declared or StopRule(), **given)


def hours_from_now(text: str) -> float:
    """`90s`, `45m`, `10h` or an ISO time as hours from now; UsageError for anything else."""
    from datetime import UTC, datetime

    units = {"s": 1 / 3600, "m": 1 / 60, "h": 1.0, "d": 24.0}
    try:
        if text[-1:] in units:
            return max(0.0, float(text[:-1]) * units[text[-1]])
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is neither a duration like 10h nor an ISO time.") from error
    if moment.tzinfo is None:
        moment = moment.astimezone()
    return max(0.0, (moment - datetime.now(UTC)).total_seconds() / 3600)


def table_lines(document: dict[str, Any]) -> list[str]:
    """The table for people: one line an offer, hours and USD as optimistic / base / pessimistic."""
    head = f"{'offer':>10}  {'gpu':<16} {'$/h':>7}  {'hours opt/base/pess':>21}  {'USD opt/base/pess':>22}  notes"
    lines = [head]
    stay = document["stay"]
    rows = ([("stay", stay)] if stay else []) + [(q["offer_id"], q) for q in document["quotes"]]
    for name, quote in rows:
        hours = " / ".join(f"{quote['hours'][k]:.2f}" for k in ("opt", "base", "pess"))
        usd = " / ".join(f"{quote['usd'][k]:.2f}" for k in ("opt", "base", "pess"))
        notes = "; ".join(quote["notes"])
        lines.append(f"{name:>10}  {quote['gpu']:<16} {quote['dph']:>7.4f}  {hours:>21}  {usd:>22}  {notes}".rstrip())
    projected = document.get("projected")
    if projected and projected["method"] in ("ended", "stopped"):
        lines += ["", f"The run has ended at step {projected['p50']}."]
    elif projected and projected["method"] == "horizon":
        lines += [
            "",
            f"No auto-stop rule is known: counted to step {projected['p50']} (--patience gives one).",
        ]
    elif projected:
        span = f"{projected['p50']} (80 %: {projected['p10']} to {projected['p90']})"
        lines += ["", f"Expected stop: step {span}, early with probability {projected['p_early']:.0%}."]
    over = projected is not None and projected["method"] in ("ended", "stopped")
    best = None if over else max(document.get("moves") or [], key=lambda m: float(m["mean_saves_usd"]), default=None)
    if best:
        lines.append(f"Best move for money, {best['offer_id']}: {best['why']}")
    for row in document.get("rules") or []:
        rule = row["rule"]
        lines.append(
            f"  patience {rule['patience']:>2}, min_delta {rule['min_delta']:g}, min_steps {rule['min_steps']:>5}: "
            f"stop {row['stop']['p50']:>6}, ${row['usd']:.2f}, best loss {row['best_loss']:.4f}, "
            f"false stop {row['p_false_stop']:.0%}"
        )
    if document.get("calibration"):
        lines.append(document["calibration"])
    return lines
