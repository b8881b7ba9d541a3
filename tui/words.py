"""Numbers as people read them on a narrow screen: durations, dollars, losses, ages. Pure, and the same everywhere."""

from __future__ import annotations

import math

UNBEATEN = "◆"
"""Marks an offer that no other beats in both time and money: not by its colour alone."""


def duration(seconds: float | None, *, parts: int = 2) -> str:
    """`43s`, `6m43s`, `4h20m`, `2d03h`; `?` when unknown.

    >>> duration(403), duration(15600), duration(None)
    ('6m43s', '4h20m', '?')
    """
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "?"
    if seconds < 10 and seconds != round(seconds):
        return f"{seconds:.1f}s"
    total = round(seconds)
    units = (("d", total // 86400), ("h", total // 3600 % 24), ("m", total // 60 % 60), ("s", total % 60))
    first = next((i for i, (_, n) in enumerate(units) if n), 3)
    shown = units[first : first + parts]
    return "".join(f"{n:02d}{unit}" if i else f"{n}{unit}" for i, (unit, n) in enumerate(shown))


def age(seconds: float | None) -> str:
    """An age in one unit: `0.4s`, `23s`, `5m`, `2h`, `3d`."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}s"
    return duration(seconds, parts=1)


def usd(amount: float | None) -> str:
    """Dollars and cents; `$?` when unknown, no cents from a thousand up."""
    if amount is None or not math.isfinite(amount):
        return "$?"
    return f"${amount:,.0f}" if abs(amount) >= 1000 else f"${amount:.2f}"


def hours(value: float | None) -> str:
    """Hours with two digits after the point, one from a hundred up."""
    if value is None or not math.isfinite(value):
        return "?"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def loss(value: float | None) -> str:
    """A loss with four digits after the point, fewer when it is large; `nan` and `inf` as they are.

    >>> loss(1.118), loss(0.00012), loss(float("nan"))
    ('1.1180', '1.20e-04', 'nan')
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def per_step(seconds: float | None) -> str:
    """Seconds per step: `2.82 s/step`, `85 ms/step`."""
    if seconds is None or not math.isfinite(seconds):
        return "? s/step"
    return f"{seconds * 1000:.0f} ms/step" if seconds < 0.5 else f"{seconds:.2f} s/step"


def count(number: float | None) -> str:
    """A whole number, with thousands as `12.3k` from ten thousand up."""
    if number is None:
        return "?"
    if abs(number) < 10_000:
        return f"{number:.0f}"
    return f"{number / 1e6:.3g}M" if abs(number) >= 1e6 else f"{number / 1e3:.3g}k"


def signed(value: float | None, digits: int = 4) -> str:
    """A difference with its sign, a true minus, aligned with others."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.{digits}f}".replace("-", "−")


def percent(share: float | None) -> str:
    """`42%` of a share between 0 and 1."""
    return "?" if share is None or not math.isfinite(share) else f"{share * 100:.0f}%"


def shorten(text: str, width: int) -> str:
    """Cut in the middle, so that both ends of a name stay readable."""
    if len(text) <= width:
        return text
    if width < 3:
        return text[:width]
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
