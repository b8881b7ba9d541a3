"""The Logs screen as a person meets it: keys and mouse in, lines and words out, on real growing files."""

from __future__ import annotations

import queue
import random
from pathlib import Path

import pytest
from textual.pilot import Pilot

from runner.history import RunHistory
from tests.support.log_room import HISTORY, Room, numbered, ready, until
from tui.logindex import Change, LogIndex
from tui.logscan import Search
from tui.logtext import Pattern
from tui.logwork import LOOK_S, LogWork, Report
from tui.screens.logs import LogsScreen
from tui.snapshot import RunSnapshot

SIZES = pytest.mark.parametrize("size", [(120, 40), (80, 24), (40, 10)])


@SIZES
async def test_the_newest_lines_show_and_new_ones_follow(tmp_path: Path, size: tuple[int, int]) -> None:
    path = numbered(tmp_path / "log.txt", 5000)
    app = Room(path)
    async with app.run_test(size=size) as pilot:
        await ready(pilot, app)
        assert app.rows()[-1].endswith("line 4999")
        assert app.state().startswith("following · 5,000/5,000")
        with path.open("a") as file:
            file.write("a new one\n")
        await until(pilot, lambda: app.view.row_count == 5001)
        assert app.rows()[-1].endswith("a new one")


@SIZES
async def test_scrolled_up_it_counts_what_is_new_and_end_follows_again(tmp_path: Path, size: tuple[int, int]) -> None:
    path = numbered(tmp_path / "log.txt", 5000)
    app = Room(path)
    async with app.run_test(size=size) as pilot:
        await ready(pilot, app)
        await pilot.press("up")
        before = app.rows()
        with path.open("a") as file:
            file.writelines(f"new {n}\n" for n in range(213))
        await until(pilot, lambda: app.view.row_count == 5213)
        assert "213 new lines, End to follow" in app.state()
        assert app.rows() == before
        await pilot.press("end")
        assert app.rows()[-1].endswith("new 212")
        assert app.state().startswith("following")


async def test_the_wheel_stops_following_and_reaching_the_end_starts_it(tmp_path: Path) -> None:
    app = Room(numbered(tmp_path / "log.txt", 500))
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        app.view._on_mouse_scroll_up(_wheel(app, "up"))
        app.view.on_mouse_scroll_up()
        await until(pilot, lambda: app.view.scroll_offset.y < app.view.max_scroll_y)
        assert not app.view.follow
        await pilot.press("end")
        await until(pilot, lambda: app.view.follow and app.view.scroll_offset.y == app.view.max_scroll_y)


def _wheel(app: Room, way: str) -> object:
    from textual import events

    kind = events.MouseScrollUp if way == "up" else events.MouseScrollDown
    return kind(app.view, 5, 5, 0, 0, 0, shift=False, meta=False, ctrl=False)


async def type_text(pilot: Pilot[None], text: str) -> None:
    names = {" ": "space", "(": "left_parenthesis", "'": "apostrophe", "_": "underscore", ".": "full_stop"}
    await pilot.press(*[names.get(c, c) for c in text])


async def test_search_counts_and_goes_round(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"{'Needle' if n % 100 == 7 else 'hay'} {n}\n" for n in range(1000)))
    app = Room(path)
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot, app)
        await pilot.press("slash")
        await type_text(pilot, "needle")
        await pilot.press("enter")
        await until(pilot, lambda: "hit 10 of 10" in app.state())
        assert app.view.cursor == 907
        await pilot.press("n")
        assert app.view.cursor == 7
        assert "round the end" in app.state()
        await pilot.press("N", "N")
        assert (app.view.cursor, "hit 9 of 10" in app.state()) == (807, True)
        await pilot.press("escape")
        assert app.logs.search is None
        assert app.view.cursor == 807


async def test_a_hit_is_marked_in_the_line(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("one needle two needle\n")
    app = Room(path)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("slash")
        await type_text(pilot, "needle")
        await pilot.press("enter")
        await until(pilot, lambda: app.logs.search is not None and app.logs.search.done)
        marked = [s.text for s in app.view.render_line(0) if s.style and s.style.underline]
        assert marked == ["needle", "needle"]


async def test_filters_work_while_they_are_typed_and_escape_takes_them_back(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"{'even' if n % 2 == 0 else 'odd'} {n}\n" for n in range(1000)))
    app = Room(path)
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot, app)
        await pilot.press("f")
        await type_text(pilot, "even")
        await until(pilot, lambda: app.view.row_count == 500)
        assert app.rows()[-1].endswith("even 998")
        await pilot.press("enter", "F")
        await type_text(pilot, "8")
        await until(pilot, lambda: 0 < app.view.row_count < 500)
        assert not any("8" in row.split("even")[-1] for row in app.rows() if row)
        assert "only even, without 8:" in app.state()
        await pilot.press("escape")
        await until(pilot, lambda: app.view.row_count == 500)
        assert app.logs.exclude is None


async def test_new_lines_pass_the_filter_too(tmp_path: Path) -> None:
    path = numbered(tmp_path / "log.txt", 100)
    app = Room(path)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("f")
        await type_text(pilot, "wanted")
        await pilot.press("enter")
        await until(pilot, lambda: "No line passes" in str(app.logs.query_one("#none").render()))
        with path.open("a") as file:
            file.write("not this\nwanted this\n")
        await until(pilot, lambda: app.view.row_count == 1)
        assert app.rows()[0].endswith("wanted this")


async def test_a_pattern_that_does_not_read_is_a_sentence_where_the_eye_is(tmp_path: Path) -> None:
    app = Room(numbered(tmp_path / "log.txt", 10))
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("slash", "left_parenthesis", "enter")
        assert app.logs.has_class("-asking")
        assert "missing ), unterminated subpattern at position 1" in str(app.logs.query_one("#fault").render())
        await pilot.press("escape")
        assert not app.logs.has_class("-asking")
        await pilot.press("colon", "x", "enter")
        assert "A step is a whole number, not 'x'." in str(app.logs.query_one("#fault").render())


async def test_jump_to_step_says_when_the_log_has_only_a_later_one(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    # tqdm draws the bar again after each line it lets through, then moves on, then clears itself for the next line
    frames = "".join(
        f"\r 1%| | {n - 10}/400 [00:03<01:00]\r 1%| | {n}/400 [00:04<01:00]\r{' ' * 30}\r{{'loss': {n}}}\n"
        for n in range(10, 400, 10)
    )
    path.write_text("start\n" * 50 + frames)
    app = Room(path)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        for step, line, words in ((100, 59, ""), (101, 60, "no line for step 101, the next one is 110")):
            await pilot.press("colon", *str(step), "enter")
            await until(pilot, lambda line=line: app.view.cursor == line)
            assert words in app.state()
            assert app.view.text_of(app.view.cursor) == f"{{'loss': {-(-step // 10) * 10}}}"
        await pilot.press("colon", *"9999", "enter")
        await until(pilot, lambda: "the log does not reach step 9,999" in app.state())


async def test_opened_from_a_chart_it_begins_at_the_step_of_the_cursor(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"step={n} loss=1\n" for n in range(1000)))
    app = Room(path)
    app.logs = LogsScreen(path, history=HISTORY, step=400)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.logs.is_running and app.view.cursor == 400)
        assert not app.view.follow


def test_an_idle_log_tells_nothing(tmp_path: Path) -> None:
    index = LogIndex(numbered(tmp_path / "log.txt", 50))
    told: queue.Queue[Report] = queue.Queue()
    work = LogWork(index, told.put)
    work.start()
    assert told.get(timeout=120).change is Change.RESTARTED
    with pytest.raises(queue.Empty):
        told.get(timeout=4 * LOOK_S)
    work.look_for(Search(index, Pattern("line 7")))
    assert not told.get(timeout=120).busy
    index.path.unlink()
    assert told.get(timeout=120).change is Change.MISSING
    with pytest.raises(queue.Empty):
        told.get(timeout=4 * LOOK_S)
    work.stop()
    work.join(120)
    assert not work.is_alive()


async def test_a_log_that_is_replaced_or_gone_is_said_and_the_new_one_shown(tmp_path: Path) -> None:
    path = numbered(tmp_path / "log.txt", 500, "old")
    app = Room(path)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("slash")
        await type_text(pilot, "line")
        await pilot.press("enter")
        path.unlink()
        await until(pilot, lambda: "the file is gone" in app.state())
        numbered(path, 3, "new line")
        await until(pilot, lambda: app.view.row_count == 3)
        assert app.rows()[2].endswith("new line 2")
        await until(pilot, lambda: app.logs.search is not None and len(app.logs.search) == 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"", "The log is empty so far."),
        (False, "The log has not been found yet."),
    ],
)
async def test_without_lines_there_is_a_sentence(tmp_path: Path, make: bytes | bool | None, words: str) -> None:
    path = tmp_path / "log.txt"
    if make is not None:
        path.write_bytes(make or b"")
    app = Room(None if make is False else path)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.logs.is_running and words in str(app.logs.query_one("#none").render()))
        await pilot.press("n", "enter", "y", "w", "down", "home", "end", "escape", "escape")


async def test_a_snapshot_brings_the_path_of_the_log_and_its_evals(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("{'eval_loss': '1.118'}\n")
    app = Room(None, RunHistory())
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.logs.is_running)
        app.logs.take(RunSnapshot("box:/x", history=HISTORY, log_path=str(path)))
        await ready(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: app.results == [100])


async def test_resized_to_nothing_and_back_the_screen_lives(tmp_path: Path) -> None:
    app = Room(numbered(tmp_path / "log.txt", 500))
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot, app)
        for wrap in (False, True):
            app.view.wrap = wrap
            for size in ((40, 10), (12, 4), (2, 1), (120, 40)):
                await pilot.resize_terminal(*size)
                await pilot.pause()
                await pilot.press("up", "pageup", "end")
        assert app.rows()[-1].endswith("line 499")


KEYS = [
    *("up", "down", "left", "right", "pageup", "pagedown", "home", "end", "enter", "escape", "space", "tab"),
    *("n", "N", "f", "F", "w", "b", "y", "slash", "colon", "g", "G", "l", "o", "s", "backspace"),
    *("left_parenthesis", "full_stop", "asterisk", "1", "9", "dollar_sign", "ctrl+u"),
]


PIECES = [b"more\n", b"\r 1/9 [..]", b"\xff\x00\n", b"x" * 70_000, b"{'eval_loss': 1}\n"]


@pytest.mark.slow
async def test_keys_at_random_on_a_log_that_grows_and_shrinks_break_nothing(tmp_path: Path) -> None:
    dice = random.Random(2)
    path = tmp_path / "log.txt"
    path.write_text("".join(f"{'loss' if n % 3 else 'lo'} {n}\n" for n in range(300)))
    app = Room(path)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        for turn in range(100):
            await pilot.press(dice.choice(KEYS))
            if turn % 20 == 0:
                with path.open("ab") as file:
                    file.write(dice.choice(PIECES))
            if turn % 40 == 39:
                path.write_bytes(b"anew\n" * dice.randrange(3))
            if turn % 30 == 29:
                await pilot.resize_terminal(*dice.choice([(120, 40), (40, 10), (5, 3)]))
            if not isinstance(app.screen, LogsScreen):
                app.logs = LogsScreen(path)
                app.push_screen(app.logs)
                await until(pilot, lambda: app.logs.is_running)
        while app.screen is app.logs:
            await pilot.press("escape")
        await pilot.resize_terminal(80, 24)
        app.logs = LogsScreen(path)
        app.push_screen(app.logs)
        path.write_text("the end\n")
        await until(pilot, lambda: app.logs.is_running and "the end" in app.rows()[0])
