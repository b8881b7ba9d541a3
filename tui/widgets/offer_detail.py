"""Everything known of one offer in some lines: what the columns have no room for stands below the table. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.text import Text

from tui import words
from tui.offer_rows import LIMITS, chance, percent
from tui.snapshot import QuoteRow


def detail(
    row: QuoteRow, stay: QuoteRow | None, limits: Mapping[str, float], colours: Mapping[str, str], *, best: bool = False
) -> Text:
    """The offer under the cursor: what it is, what it would take and cost, against staying, and its risks. `best` says
    that no other offer is both cheaper and sooner.
    """
    out = Text()
    out.append("stay: this box" if row.stay else row.gpu, f"bold {colours.get('primary', '')}")
    facts = [
        f"${row.dph:.4f}/h",
        "" if row.vram_gib is None else f"{row.vram_gib:.0f} GiB, {_fits(row.fits)}{_batch(row)}",
        "" if row.reliability is None else f"reliable {row.reliability:.1%}",
        row.place.strip(", "),
        "" if row.stay else f"offer {row.offer_id}",
    ]
    out.append("   " + "   ".join(fact for fact in facts if fact))
    if math.isfinite(row.hours[1]) and math.isfinite(row.usd[1]):
        low, base, high = (f"{value:.2f}" for value in row.hours)
        cheap, usd, dear = (f"{value:.2f}" for value in row.usd)
        out.append("\nto the end  ", "dim")
        out.append(f"{low} / {base} / {high} h   ${cheap} / {usd} / {dear}")
        spread = row.document.get("speed_sd")
        sure = f" ± {spread:.0%}" if isinstance(spread, (int, float)) and spread else ""
        origin = (row.document.get("speed_sources") or ("",))[0]
        beside = [f"{row.speed:.2f}x the speed{sure}{origin and f' ({origin})'}" if not row.stay else ""]
        beside += [f"{words.duration(row.setup_h * 3600)} to set up" if row.setup_h else ""]
        out.append("".join(f"   {one}" for one in beside if one), "dim")
        out.append(_against(row, stay), colours.get("success" if stay and row.usd[1] < stay.usd[1] else "", ""))
        if best and not row.stay:
            out.append(f"   {words.UNBEATEN} no other offer is cheaper and sooner", "dim")
    if row.notes:
        out.append("\nmind        ", "dim").append(", ".join(row.notes), colours.get("warning", ""))
    chances = [(LIMITS[name].format(limit), chance(row, name)) for name, limit in limits.items()]
    known = [f"{title}: {percent(p)}" for title, p in chances if p is not None]
    if known:
        out.append("\nchances     ", "dim").append("   ".join(known))
    return out


def _against(row: QuoteRow, stay: QuoteRow | None) -> str:
    if stay is None or row.stay or not math.isfinite(stay.usd[1]):
        return ""
    usd, hours = row.usd[1] - stay.usd[1], row.hours[1] - stay.hours[1]
    return f"\nagainst staying: {words.usd(abs(usd))} {_more(usd)}, {words.hours(abs(hours))} h {_later(hours)}"


def _more(usd: float) -> str:
    return "saved" if usd < 0 else "more"


def _later(hours: float) -> str:
    return "sooner" if hours < 0 else "later"


def _batch(row: QuoteRow) -> str:
    largest = row.document.get("largest_batch")
    return f", batch up to {largest}" if isinstance(largest, int) and largest > 1 else ""


def _fits(word: str) -> str:
    said = {"fits": "it fits", "yes": "it fits", "tight": "tight for this run", "no": "too small for this run"}
    return said.get(word, "whether it fits is not known")
