"""What can be done with the lines of a log: wrapped, read sideways, chosen, copied, saved, thinned."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.log_room import Room, numbered, ready, until
from tui.widgets.log_view import LogView


async def test_wrapped_every_letter_of_the_last_lines_is_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"{n}:{'x' * 300}:{n}\n" for n in range(50)))
    app = Room(path)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("w")
        await pilot.pause()
        page = "".join(row[4:] for row in app.rows())
        for n in (47, 48, 49):
            assert f"{n}:{'x' * 300}:{n}" in page
        await pilot.press("home")
        assert app.rows()[0].split()[-1].startswith("0:xxx")
        await pilot.press("w")
        assert app.rows()[1].split()[-1].startswith("1:xxx")


async def test_sideways_shows_the_rest_of_a_long_line(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"{'x' * 200}{n:>4}\n" for n in range(50)))
    app = Room(path)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.pause()
        await pilot.press("right", "right", "right", "right")
        assert app.rows()[-1].endswith("49")
        assert "from column" in app.state()


async def test_a_click_on_an_evaluation_tells_its_step_and_equal_values_by_their_place(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    evals = [f"{{'eval_loss': '{loss}', 'eval_runtime': '7.7'}}\n" for loss in ("1.118", "1.372", "1.372")]
    path.write_text("start\n" + evals[0] + "a\n" + evals[1] + "b\n" + evals[2] + "c\n")
    app = Room(path)
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot, app)
        for line, step in ((1, 100), (3, 200), (5, 300)):
            await pilot.click(LogView, offset=(20, line))
            await until(pilot, lambda: bool(app.chosen))
            message = app.chosen.pop()
            assert (message.target, message.step) == ("box:/x", step)
            assert f"of step {step}" in app.state()
        await pilot.click(LogView, offset=(20, 2))
        await pilot.pause()
        assert app.chosen == []


async def test_enter_on_an_evaluation_leaves_with_its_step(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("start\n{'eval_loss': '1.118'}\n")
    app = Room(path)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: bool(app.results))
        assert app.results == [100]


async def test_the_line_under_the_cursor_is_copied_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("first\n\x1b[31m" + "long " * 60 + "\x1b[0m\n")
    app = Room(path)
    async with app.run_test(size=(40, 10)) as pilot:
        await ready(pilot, app)
        await pilot.press("y")
        assert app.clipboard == "long " * 60


async def test_saving_writes_the_lines_shown_and_never_over_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = Room(numbered(tmp_path / "log.txt", 100))
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("f", "9", "enter")
        await until(pilot, lambda: app.view.row_count == 19)
        await pilot.press("W")
        await until(pilot, lambda: len(list(tmp_path.iterdir())) == 2 and not app.workers)
        saved = next(path for path in tmp_path.iterdir() if path.name.startswith("log-"))  # noqa: ASYNC240
        assert saved.read_text() == "".join(f"line {n}\n" for n in range(100) if "9" in str(n))
        app.logs._save(saved)
        await until(pilot, lambda: not app.workers)
        assert len(saved.read_text().splitlines()) == 19


async def test_bars_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"start\n\r  8%|#  | 457/6000 [21:47<4:20:10, 2.82s/it]\n\n 8%|#| 4/6 [0s]{'loss': 1}\nend\n")
    app = Room(path)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("b")
        await until(pilot, lambda: app.view.row_count == 3)
        assert "no bars: 3 lines" in app.state()
        await pilot.press("escape")
        await until(pilot, lambda: app.view.row_count == 5)
