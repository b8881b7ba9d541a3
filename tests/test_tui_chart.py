"""The chart: what must be visible is visible, what is not finite is a gap, and cells map back to data."""

from __future__ import annotations

import importlib
import math
from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tui.axes import ChartSpec, Mark, Span, VLine, decimate, layout, series, smooth, ticks
from tui.chart import PLOTEXT_NAMES, by_plotext, lines_of, render_chart
from tui.dots import braille
from tui.palette import Palette

ROLES = ("raw", "line", "second", "best", "min_steps", "patience", "projected", "stop")
PALETTE = Palette(
    roles={role: f"#{20 + 20 * i:02x}8080" for i, role in enumerate(ROLES)},
    shades={"patience": "#202010", "projected": "#201020"},
    text="#888888",
    grid="#303030",
    cursor="#ffffff",
)
ASCII = Palette(PALETTE.roles, PALETTE.shades, "#888888", "#303030", "#ffffff", marker="ascii")


@pytest.mark.parametrize("name", PLOTEXT_NAMES)
def test_the_installed_plotext_has_every_name_that_the_chart_uses(name):
    module = importlib.import_module("plotext")
    assert callable(reduce(getattr, name.split("."), module))


def test_one_spike_among_a_hundred_thousand_points_reaches_the_top_of_the_chart():
    curve = series([(i, 100.0 if i == 77_777 else 1.0) for i in range(100_000)])
    spec = ChartSpec((curve,))
    geometry = layout(spec, 80, 12)
    row, column = geometry.row_of(100.0), geometry.column_of(77_777)
    line = render_chart(spec, 80, 12, PALETTE).plain.split("\n")[row]
    around = line[geometry.gutter + column : geometry.gutter + column + 3]
    assert any("⠀" < glyph <= "⣿" for glyph in around)


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan), st.just(math.inf)), min_size=1, max_size=400))
@settings(max_examples=60, deadline=None)
def test_decimation_keeps_the_lowest_and_the_highest_value(values):
    curve = series(enumerate(values))
    kept = [curve.ys[i] for i, _ in decimate(curve, 0, len(values) - 1, 10)]
    finite = [v for v in curve.ys if math.isfinite(v)]
    assert (min(kept), max(kept)) == (min(finite), max(finite)) if finite else kept == []
    assert len(kept) <= max(3 * 10, 2 * 10)


@given(
    st.lists(st.tuples(st.floats(0, 500), st.one_of(st.floats(-9, 9), st.just(math.nan))), min_size=1, max_size=60),
    st.integers(14, 120),
    st.integers(4, 30),
    st.one_of(st.none(), st.tuples(st.floats(0, 200), st.floats(201, 500))),
)
@settings(max_examples=150, deadline=None)
def test_the_dots_of_a_curve_are_those_that_plotext_sets(points, width, height, window):
    curve = series(points)
    geometry = layout(ChartSpec((curve,), x_range=window), width, height)
    if geometry is None:
        return
    lines = lines_of(curve, geometry.drawn[0], geometry)
    theirs = [row.replace("\u2800", " ").ljust(geometry.columns) for row in by_plotext(lines, geometry, "braille")]
    assert braille(lines, geometry.columns, geometry.rows) == theirs[: geometry.rows]


def test_nan_is_a_gap_and_does_not_enter_the_axis():
    values = [1.0] * 40 + [math.nan] * 20 + [2.0] * 40
    spec = ChartSpec((series(enumerate(values)),))
    geometry = layout(spec, 100, 10)
    assert 0.9 < geometry.y_lo <= 1.0
    assert 2.0 <= geometry.y_hi < 2.1
    picture = render_chart(spec, 100, 10, PALETTE).plain.split("\n")[: geometry.rows]
    middle = geometry.gutter + 1 + geometry.column_of(50)
    assert not any("⠀" < line[middle : middle + 1] <= "⣿" for line in picture)


@given(
    st.lists(st.tuples(st.floats(0, 1e7), st.floats(allow_nan=True, allow_infinity=True)), max_size=60),
    st.integers(0, 130),
    st.integers(0, 40),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_any_values_at_any_size_make_a_picture_that_fits(points, width, height, log_x, log_y):
    curve = series(points)
    spec = ChartSpec(
        (curve, smooth(curve, 0.9)),
        vlines=(VLine(600.0, "min_steps 600", "min_steps"),),
        spans=(Span(10, 20, "patience"),),
        marks=(Mark(600, 1.0, "★", "best"),),
        cursor=300.0,
        log_x=log_x,
        log_y=log_y,
    )
    lines = render_chart(spec, width, height, PALETTE).plain.split("\n")
    assert len(lines) <= max(height, 1)
    assert all(len(line) <= max(width, 0) for line in lines)


@given(st.floats(0.1, 1e6), st.floats(0.1, 1e6), st.booleans(), st.data())
@settings(max_examples=80, deadline=None)
def test_a_column_maps_to_an_x_that_maps_back_to_it(a, b, log_x, data):
    spec = ChartSpec((series([(a, 1.0), (a + b, 2.0)]),), log_x=log_x)
    geometry = layout(spec, 90, 10)
    column = data.draw(st.integers(0, geometry.columns - 1))
    assert geometry.column_of(geometry.x_at(column)) == column


def test_smoothing_starts_at_the_first_value_and_follows_a_constant():
    curve = smooth(series(enumerate([3.0, 3.0, math.nan, 3.0])), 0.9)
    assert [round(y, 12) for y in curve.ys if math.isfinite(y)] == [3.0, 3.0, 3.0]
    assert curve.gaps == (2,)


def test_points_out_of_order_are_drawn_in_order_of_their_step():
    """A resumed run writes steps again that the crashed one had reached."""
    curve = series([(1, 1.0), (2, 2.0), (3, 3.0), (2, 2.5), (4, 4.0)])
    assert list(curve.xs) == [1, 2, 2, 3, 4]


@pytest.mark.parametrize(
    ("lo", "hi", "wanted", "kwargs", "labels"),
    [
        (0, 6000, 6, {}, ["0", "1k", "2k", "3k", "4k", "5k", "6k"]),
        (0, 1200, 6, {}, ["0", "200", "400", "600", "800", "1k", "1.2k"]),
        (1.0, 1.5, 4, {}, ["1.0", "1.2", "1.4"]),
        (0.9, 1.65, 3, {}, ["1.00", "1.25", "1.50"]),
        (0, 7200, 5, {"time": True}, ["0m", "30m", "1h00", "1h30", "2h00"]),
        (0.01, 10, 4, {"log": True}, ["0.01", "0.1", "1", "10"]),
        (2e-5, 4e-5, 2, {}, ["2e-05", "3e-05", "4e-05"]),
    ],
)
def test_ticks_are_round_and_short(lo, hi, wanted, kwargs, labels):
    assert [label for _, label in ticks(lo, hi, wanted, **kwargs)] == labels


def test_lines_marks_and_their_names_are_drawn():
    spec = ChartSpec(
        (series([(0, 2.0), (500, 1.0), (1000, 1.5)], dots=True),),
        vlines=(VLine(600, "min_steps 600", "min_steps"), VLine(650, "P50 650", "projected")),
        marks=(Mark(500, 1.0, "★", "best"),),
    )
    picture = render_chart(spec, 80, 14, PALETTE).plain
    for wanted in ("min_steps 600", "P50 650", "★", "┊", "●", "┤"):
        assert wanted in picture


def test_the_ascii_chart_has_no_letter_outside_ascii():
    spec = ChartSpec(
        (series(enumerate([1.0, 3.0, 2.0] * 9), dots=True),),
        vlines=(VLine(3, "x", "stop"),),
        marks=(Mark(2, 2.0, "★", "best"),),
        cursor=5,
    )
    assert render_chart(spec, 60, 10, ASCII).plain.isascii()


def test_an_empty_chart_says_why():
    assert "no eval yet" in render_chart(ChartSpec(empty="no eval yet"), 40, 8, PALETTE).plain


def test_zoom_cuts_the_curve_at_the_window():
    spec = ChartSpec((series([(0, 0.0), (100, 100.0)]),), x_range=(40.0, 60.0))
    geometry = layout(spec, 60, 12)
    assert (geometry.x_lo, geometry.x_hi) == (40.0, 60.0)
    assert max(render_chart(spec, 60, 12, PALETTE).plain) > "⠀"
