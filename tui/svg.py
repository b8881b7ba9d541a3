"""Pictures of the screen that look alike everywhere: glyphs that a fallback font draws wider get a place of their own.

Textual writes a run of equal style as one text element. Braille and box glyphs usually come from another font than
letters, with another advance: in one element their curve is stretched (step 457 stands where 560 should). One element
per glyph, each at its column, keeps every renderer honest.
"""

from __future__ import annotations

import html
import re

CELL = 12.2
"""Width of a cell in Textual's SVG: 20 px of Fira Code times 0.61."""

_TEXT = re.compile(r'<text((?: [\w-]+="[^"]*")*)>([^<]*)</text>')
_X = re.compile(r' x="([\d.]+)"')
_DROPPED = re.compile(r' (?:x|textLength)="[^"]*"')


def settled(svg: str) -> str:
    """The SVG with every element that holds such glyphs split into one per glyph."""
    return _TEXT.sub(_split, svg)


def _split(match: re.Match[str]) -> str:
    attributes, glyphs = match.group(1), html.unescape(match.group(2))
    place = _X.search(attributes)
    if place is None or not any(0x2190 <= ord(c) <= 0x28FF for c in glyphs):
        return match.group(0)
    x, rest = float(place.group(1)), _DROPPED.sub("", attributes)
    return "".join(
        f'<text{rest} x="{x + CELL * i:.1f}">{html.escape(c)}</text>'
        for i, c in enumerate(glyphs)
        if c not in " \N{NO-BREAK SPACE}"
    )
