"""Offers as rows of the market screen: cells, bars on one scale, and the front that nothing beats. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from rich.text import Text

from tui import words
from tui.snapshot import QuoteRow

COLUMNS: tuple[tuple[str, str], ...] = (
    ("gpu", "GPU"),
    ("price", "$/h"),
    ("hours", "hours opt/base/pess"),
    ("usd", "$ opt/base/pess"),
    ("bar", "$ on one scale"),
    ("delta", "against staying"),
    ("fits", "fits"),
    ("vram", "VRAM"),
    ("reliability", "reliable"),
    ("place", "place"),
    ("notes", "notes"),
)
SORTS: Mapping[str, Callable[[QuoteRow], float | str]] = {
    "usd": lambda q: q.usd[1],
    "hours": lambda q: q.hours[1],
    "price": lambda q: q.dph,
    "gpu": lambda q: q.gpu,
    "reliability": lambda q: -(q.reliability or 0.0),
    "vram": lambda q: -(q.vram_gib or 0.0),
}
BAR = 18


def front(rows: Sequence[QuoteRow]) -> set[str]:
    """Ids of the offers that no other beats in both base hours and base dollars, among those that have a quote and are
    not known to be too small.
    """
    able = [r for r in rows if math.isfinite(r.usd[1]) and math.isfinite(r.hours[1]) and r.fits != "no"]
    return {
        a.offer_id
        for a in able
        if not any(
            b.hours[1] <= a.hours[1] and b.usd[1] <= a.usd[1] and (b.hours[1] < a.hours[1] or b.usd[1] < a.usd[1])
            for b in able
        )
    }


def bar(usd: tuple[float, float, float], most: float, width: int = BAR, mark: str = "●") -> str:
    """Optimistic to pessimistic dollars as a line with the base marked, on a scale from 0 to `most`.

    >>> bar((1.0, 2.0, 4.0), 4.0, 9)
    '  ├─●───┤'
    """
    if not all(map(math.isfinite, usd)):
        return ""
    lo, base, hi = (min(round(u / most * (width - 1)), width - 1) if most > 0 else 0 for u in usd)
    line = [" "] * width
    line[lo : hi + 1] = "─" * (hi + 1 - lo)
    line[lo], line[hi] = "├", "┤"
    line[base] = mark
    return "".join(line)


LIMITS: Mapping[str, str] = {"p_under_budget": "under ${:g}", "p_before_deadline": "in {:.3g} h"}
"""The chances that a quote can carry, and the titles of their columns; the number is the limit."""


def titles(limits: Mapping[str, float]) -> list[tuple[str, str]]:
    """The columns with the chances asked for, which stand beside the price."""
    asked = [(name, LIMITS[name].format(limit)) for name, limit in limits.items()]
    return [*COLUMNS[:2], *asked, *COLUMNS[2:]]


def chance(row: QuoteRow, name: str) -> float | None:
    """The probability to stay under a limit; None where the quote has none."""
    value = row.document.get(name)
    return float(value) if isinstance(value, int | float) else None


def over(row: QuoteRow, limits: Mapping[str, float]) -> bool:
    """Whether a limit is more likely missed than kept."""
    return any(p < 0.5 for name in limits if (p := chance(row, name)) is not None)


def cells(
    row: QuoteRow,
    stay: QuoteRow | None,
    most: float,
    colours: Mapping[str, str],
    on_front: bool,
    limits: Mapping[str, float] | None = None,
) -> list[Text]:
    """The cells of a row, one for each of `titles(limits)`; dim where a limit will probably be missed."""
    asked = limits or {}
    out = _plain_cells(row, stay, most, colours, on_front)
    out[2:2] = [Text(percent(chance(row, name)), justify="right") for name in asked]
    if over(row, asked):
        for cell in out:
            cell.stylize("dim")
    return out


def percent(p: float | None) -> str:
    """A probability for people: what is not certain is never 0 or 100."""
    return "–" if p is None else "<1%" if 0 < p < 0.01 else ">99%" if 0.99 < p < 1 else f"{p:.0%}"


def _plain_cells(
    row: QuoteRow, stay: QuoteRow | None, most: float, colours: Mapping[str, str], on_front: bool
) -> list[Text]:
    colour = colours.get("primary", "") if row.stay else colours.get("success", "") if on_front else ""
    head = f"stay: {row.gpu}" if row.stay else row.gpu
    delta = Text("", justify="right")
    if stay is not None and not row.stay:
        usd, hours = row.usd[1] - stay.usd[1], row.hours[1] - stay.hours[1]
        delta = Text(f"{words.signed(usd, 2)} $  {words.signed(hours, 2)} h", justify="right")
        delta.stylize(colours.get("success" if usd < 0 else "text-muted-hex", ""))
    fits_colour = {"no": "error", "tight": "warning", "fits": "success", "yes": "success"}.get(row.fits, "")
    return [
        Text(words.shorten(head, 22), style=f"bold {colour}" if row.stay else colour),
        Text(f"{row.dph:.4f}", justify="right"),
        _three(row.hours),
        _three(row.usd),
        Text(bar(row.usd, most, mark=words.UNBEATEN if on_front else "●"), style=colour),
        delta,
        Text(row.fits, style=colours.get(fits_colour, "")),
        Text("" if row.vram_gib is None else f"{row.vram_gib:.0f} G", justify="right"),
        Text("" if row.reliability is None else f"{row.reliability * 100:.1f}%", justify="right"),
        Text(words.shorten(row.place, 18)),
        Text(", ".join(row.notes), style="dim"),
    ]


def _three(values: tuple[float, float, float]) -> Text:
    if values[0] != values[0]:
        return Text("–", justify="right")
    low, base, high = (f"{v:.2f}" for v in values)
    return Text.assemble((low, "dim"), (" / ", "dim"), (f"{base:>5}", "bold"), (" / ", "dim"), (high, "dim"))


def offer_fields(row: QuoteRow) -> dict[str, object]:
    """What the filter language can ask of an offer."""
    return {
        "gpu": row.gpu,
        "id": row.offer_id,
        "price": row.dph,
        "dph": row.dph,
        "hours": row.hours[1],
        "usd": row.usd[1],
        "fits": row.fits,
        "vram": row.vram_gib,
        "reliability": row.reliability,
        "place": row.place,
        "notes": " ".join(row.notes),
    }
