"""`tunewatch estimate`: finish time and bill per offer, from typed numbers or from a live run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from runner.autostop import CountFrom, StopRule
from runner.errors import NotFoundError, UsageError
from runner.history import RunHistory
from tui.commands.common import emit_json, json_option


@click.command(short_help="Finish time and bill per offer.")
@click.argument("target", required=False)
@click.option("--steps", type=click.IntRange(min=1), help="Steps planned in all; a target says it itself.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Steps per second, evals included.")
@click.option("--offers", "offers_file", type=click.Path(), help="Offers file; without it the bundled examples.")
@click.option("--here", help="Id of the offer that the run is on.")
@click.option("--dph", type=click.FloatRange(min=0), help="USD per hour of the box the run is on.")
@click.option("--budget", type=click.FloatRange(min=0), help="USD from now.")
@click.option("--deadline", help="From now, 90s, 45m, 10h, or an ISO time.")
@click.option("--patience", type=click.IntRange(min=1), help="Auto-stop: evals without gain; a run may declare it.")
@click.option("--min-delta", type=click.FloatRange(min=0), help="Auto-stop: the gain that counts.")
@click.option("--min-steps", type=click.IntRange(min=0), help="Auto-stop: not before this step.")
@click.option("--count-from", type=click.Choice(["min_steps", "start"]), help="Auto-stop: which evals are judged.")
@json_option
def command(
    target: str | None,
    steps: int | None,
    rate: float | None,
    offers_file: str | None,
    here: str | None,
    dph: float | None,
    budget: float | None,
    deadline: str | None,
    patience: int | None,
    min_delta: float | None,
    min_steps: int | None,
    count_from: CountFrom | None,
    as_json: bool,
) -> None:
    r"""Say for each offer when the run would be done there and what it would cost.

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
    if target is None:
        from estimator.quote import scenario_quotes

        table = scenario_quotes(steps or 0, rate or 0.0, offers, here=running_offer(offers, here))
        document: dict[str, Any] = {"quotes": [q.to_json() for q in table.quotes], "stay": None}
    else:
        from remote.bets import BetBook
        from remote.forecast import forecast_run

        box = running_offer(offers, here)
        history = read_history(target)
        document = forecast_run(
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
            widen=BetBook().calibration().widen,
        ).to_json()
        if document["throughput"] is None:
            raise NotFoundError(f"{target} does not tell its speed yet.", hint="Give --rate, or wait for a few steps.")
        if document["projected"] is None:
            raise UsageError(f"{target} does not say how many steps are planned.", hint="Give --steps.")
    if as_json:
        emit_json(document)
        return
    for line in table_lines(document):
        click.echo(line)


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
    return lines
