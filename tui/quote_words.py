"""Quotes as text: each offer with hours and dollars as optimistic / base / pessimistic. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from tui import words
from tui.snapshot import QuoteRow, RunSnapshot

Colours = Mapping[str, str]


def panel(snapshot: RunSnapshot, colours: Colours, width: int) -> Text:
    """Two lines an offer on a narrow panel, one where there is room; the present box first, then by dollars."""
    if not snapshot.quotes and snapshot.stay is None:
        return Text(_why_none(snapshot), style="dim")
    rows = ordered(snapshot)
    return _wide(rows, colours, width) if width >= 80 else _narrow(rows, colours, width)


def _why_none(snapshot: RunSnapshot) -> str:
    if not snapshot.estimated:
        return "quoting …"
    if snapshot.step_s is None:
        return "quotes need the speed of the run: two readings of progress"
    if snapshot.history.max_steps is None:
        return "quotes need the number of planned steps, which this log does not tell"
    return "no offers are known"


def ordered(snapshot: RunSnapshot) -> list[QuoteRow]:
    """The box the run is on, then the offers from the cheapest on."""
    rows = sorted(snapshot.quotes, key=lambda q: (q.usd[1], q.hours[1]))
    return [snapshot.stay, *rows] if snapshot.stay is not None else rows


def _wide(rows: Sequence[QuoteRow], colours: Colours, width: int) -> Text:
    out = Text()
    head = f"{'GPU':<18} {'$/h':>7}   {'hours opt/base/pess':^21}   {'$ opt/base/pess':^22}\n"
    out.append(head, "dim")
    for row in rows:
        out.append(f"{words.shorten(name(row), 18):<18} ", _colour(row, colours))
        out.append(f"{row.dph:>7.4f}   ")
        out.append_text(_three(row.hours, words.hours, 5))
        out.append("   ")
        out.append_text(_three(row.usd, words.usd, 6))
        notes = words.shorten(", ".join(row.notes), max(width - 80, 0))
        out.append(f"  {notes}\n" if notes else "\n", "dim")
    return out


def _narrow(rows: Sequence[QuoteRow], colours: Colours, width: int) -> Text:
    out = Text()
    for row in rows:
        price = f"${row.dph:.4f}/h"
        room = max(width - len(price) - 1, 4)
        out.append(f"{words.shorten(name(row), room):<{room}} ", _colour(row, colours))
        out.append(f"{price}\n", "dim")
        out.append(" ")
        out.append_text(_three(row.hours, words.hours, 4))
        out.append(" h  $", "dim")
        out.append_text(_three(row.usd, _plain_usd, 4))
        out.append("\n")
    return out


def _three(values: tuple[float, float, float], said: object, width: int) -> Text:
    assert callable(said)  # noqa: S101 - one of our own two formatters
    out = Text()
    for number, (value, style) in enumerate(zip(values, ("dim", "bold", "dim"), strict=True)):
        out.append(" / " if number else "", "dim")
        out.append(f"{said(value):>{width}}", style)
    return out


def _plain_usd(amount: float) -> str:
    return words.usd(amount).removeprefix("$")


def name(row: QuoteRow) -> str:
    """What the row is called, with its mark where no other offer beats it."""
    if row.stay:
        return f"stay: {row.gpu}"
    return f"{row.gpu} {words.UNBEATEN}" if row.pareto else row.gpu


def _colour(row: QuoteRow, colours: Colours) -> str:
    if row.stay:
        return f"bold {colours.get('primary', '')}"
    if row.fits == "no":
        return colours.get("error", "")
    return colours.get("success", "") if row.pareto else ""
