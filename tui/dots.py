"""Curves as dots of Braille: eight to a cell, set where plotext 6 sets them, in a tenth of its time.

A line is sampled as often as its longer side has dots, both ends included. `tests/test_tui_chart.py` draws the same
curves with plotext and compares cell by cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Line = tuple[Sequence[float], Sequence[float]]
"""Shares of the axes, x and y, from 0 (left, bottom) to 1: neighbours are joined, a single point is a dot."""

_FIRST, _LAST = 0.5 + 0.0016585662, 0.5 + 0.001516152
"""How far inside the area its ends lie, in cells: about the middle of the first and of the last one."""
_BITS = (0x01, 0x08, 0x02, 0x10, 0x04, 0x20, 0x40, 0x80)
"""The bit of each dot of a cell, row by row."""
_GLYPHS = tuple(" " if bits == 0 else chr(0x2800 + bits) for bits in range(256))


def braille(lines: Iterable[Line], columns: int, rows: int) -> list[str]:
    """The rows of an area of `columns` x `rows` cells with all lines on it; a cell without a dot is a blank."""
    wide = 2 * columns
    across, up = 2 * (columns - _FIRST - _LAST), 4 * (rows - _FIRST - _LAST)
    dots: set[int] = set()
    for shares_x, shares_y in lines:
        xs = [2 * _FIRST + across * share for share in shares_x]
        ys = [4 * _FIRST + up * (1 - share) for share in shares_y]
        if not xs:
            continue
        x, y = xs[0], ys[0]
        dots.add(int(y) * wide + int(x))
        for x_end, y_end in zip(xs[1:], ys[1:], strict=True):
            right, down = x_end - x, y_end - y
            steps = max(abs(int(x_end) - int(x)), abs(int(y_end) - int(y)))
            if steps > 1:
                part = share = 1 / steps
                for _ in range(steps - 1):
                    dots.add(int(y + down * share) * wide + int(x + right * share))
                    share += part
            x, y = x_end, y_end
            dots.add(int(y) * wide + int(x))
    cells = [0] * (columns * rows)
    for dot in dots:
        row, column = divmod(dot, wide)
        cells[(row >> 2) * columns + (column >> 1)] |= _BITS[(row & 3) * 2 + (column & 1)]
    glyphs = [_GLYPHS[bits] for bits in cells]
    return ["".join(glyphs[start : start + columns]) for start in range(0, columns * rows, columns)]
