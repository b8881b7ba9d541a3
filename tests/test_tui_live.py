"""The live screen under keys and mouse: what a person does, and what then stands on the screen."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import DataTable, Input

from runner.history import EvalPoint, RunHistory
from runner.metrics import MetricsWriter
from runner.rundir import RunDir
from tests.support.tui import BIG, SMALL, TARGET, app_with, demo_history, frozen, history, plain, snapshot, told, until
from tui.app import SnapshotArrived, TunewatchApp
from tui.axes import ChartSpec
from tui.curves import View
from tui.keys import KEYS, bindings, markdown
from tui.screens.live import LiveScreen
from tui.session import Session, WatchPlan
from tui.widgets.chart_pane import ChartPane
from tui.widgets.panes import TextPane
from tui.widgets.status_line import StatusLine


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path / "home"))


def spec(app, name="loss") -> ChartSpec:
    return app.screen.query_one(f"#{name}", ChartPane).spec


async def test_everything_that_matters_stands_on_one_screen():
    async with app_with(frozen(snapshot())).run_test(size=BIG) as pilot:
        await pilot.pause()
        text = plain(pilot.app)
        for wanted in (
            "457/6000", "ETA 26m30s", "$0.27 → $0.60", "live 0.4s", "train loss", "eval_loss", "s/step",
            "min_steps 600", "stop ~1000", "waiting for step 600", "not judged", "stay: this box",
            "0.23 / 0.33 / 1.11", "'eval_loss': '1.400'",
        ):  # fmt: skip
            assert wanted in text, wanted


async def test_at_80x24_one_pane_is_shown_and_digits_change_it():
    async with app_with(frozen(snapshot())).run_test(size=SMALL) as pilot:
        await pilot.pause()
        for key, name in zip("123456", ("loss", "eval", "speed", "stop", "quotes", "tail"), strict=True):
            await pilot.press(key)
            await pilot.pause()
            shown = [w.id for w in pilot.app.screen.query("ChartPane, TextPane") if w.display and w.size.height > 3]
            assert shown == [name]
            assert pilot.app.screen.query_one(f"#{name}").size.height >= 14
        text = plain(pilot.app)
        for wanted in ("457/6000", "ETA 26m30s", "$0.60", "waiting for step 600", "stay: this box"):
            assert wanted in text


async def test_a_click_on_a_tab_opens_its_pane():
    async with app_with(snapshot()).run_test(size=SMALL) as pilot:
        await pilot.pause()
        await pilot.click("#tabs", offset=(12, 0))
        await until(lambda: pilot.app.screen.chosen == "eval", pilot)


async def test_maximise_shows_one_pane_alone_and_back():
    async with app_with(snapshot()).run_test(size=BIG) as pilot:
        await pilot.pause()
        await pilot.press("2", "z")
        await pilot.pause()
        assert pilot.app.screen.query_one("#eval").size.width > 110
        assert not pilot.app.screen.query_one("#quotes").display
        await pilot.press("z")
        await pilot.pause()
        assert pilot.app.screen.query_one("#quotes").display


async def test_the_cursor_moves_on_all_charts_at_once_and_is_read_out():
    async with app_with(snapshot()).run_test(size=BIG) as pilot:
        await pilot.pause()
        await pilot.press(*["left"] * 40)
        cursors = {spec(pilot.app, name).cursor for name in ("loss", "eval", "speed")}
        assert len(cursors) == 1
        assert cursors != {None}
        await pilot.pause()
        assert "step 4" in str(pilot.app.screen.query_one("#eval").border_subtitle)
        assert "smoothed" in str(pilot.app.screen.query_one("#loss").border_subtitle)
        await pilot.press("0")
        assert spec(pilot.app).cursor is None


async def test_zoom_pan_and_reset_by_keys():
    async with app_with(snapshot()).run_test(size=BIG) as pilot:
        await pilot.pause()
        await pilot.press("plus", "plus")
        lo, hi = spec(pilot.app).x_range
        await pilot.press("shift+left")
        panned = spec(pilot.app).x_range
        assert panned[0] < lo
        assert panned[1] - panned[0] == pytest.approx(hi - lo)
        for _ in range(12):
            await pilot.press("minus")
        assert spec(pilot.app).x_range is None
        await pilot.press("plus", "0")
        assert spec(pilot.app).x_range is None


async def test_the_wheel_zooms_a_click_points_and_a_drag_pans():
    async with app_with(snapshot()).run_test(size=BIG) as pilot:
        await pilot.pause()
        pane = pilot.app.screen.query_one("#loss", ChartPane)
        await pilot.click("#loss", offset=(30, 4))
        x = spec(pilot.app).cursor
        assert pane.geometry().column_of(x) == 30 - 1 - pane.geometry().gutter - 1
        from textual.events import MouseScrollUp

        for _ in range(5):
            at = {"x": 30, "y": 4, "screen_x": pane.region.x + 30, "screen_y": pane.region.y + 4}
            keys = {"shift": False, "meta": False, "ctrl": False}
            pane.post_message(MouseScrollUp(pane, delta_x=0, delta_y=1, button=0, **at, **keys))
        await until(lambda: spec(pilot.app).x_range is not None, pilot)
        await until(lambda: spec(pilot.app).x_range[1] - spec(pilot.app).x_range[0] < 400, pilot)
        before = spec(pilot.app).x_range
        await pilot.mouse_down("#loss", offset=(40, 4))
        await pilot.hover("#loss", offset=(50, 4))
        await pilot.mouse_up("#loss", offset=(50, 4))
        assert spec(pilot.app).x_range[0] < before[0]
        assert spec(pilot.app).cursor == x, "a drag is no click"


async def test_smoothing_x_modes_and_log_axes():
    async with app_with(snapshot()).run_test(size=BIG) as pilot:
        await pilot.pause()
        assert "smoothed 0.9" in str(pilot.app.screen.query_one("#loss").border_title)
        await pilot.press("]")
        assert "smoothed 0.95" in str(pilot.app.screen.query_one("#loss").border_title)
        await pilot.press(*["["] * 8)
        assert len(spec(pilot.app).series) == 1, "without smoothing the raw curve is the bright one"
        await pilot.press("y")
        assert spec(pilot.app).log_y
        assert not spec(pilot.app, "eval").log_y
        await pilot.press("x")
        assert spec(pilot.app).x_time
        await pilot.press("x")
        assert spec(pilot.app).log_x
        await pilot.press("x")
        assert pilot.app.screen.view == View(smoothing=0, log_y=frozenset({"loss"}))


async def test_help_lists_every_key_and_the_palette_has_every_action():
    async with app_with(snapshot()).run_test(size=(120, 120)) as pilot:
        await pilot.pause()
        live = pilot.app.screen
        titles = {c.help for c in pilot.app.get_system_commands(live)}
        assert {k.sentence for k in KEYS if k.place == "live"} <= titles
        await pilot.press("question_mark")
        await pilot.pause()
        text = plain(pilot.app)
        assert all(key.sentence[:50] in text for key in KEYS)
        await pilot.press("escape")
        assert pilot.app.screen is live


def test_every_key_of_the_table_has_an_action_that_exists():
    from tui.screens.logs import LogsScreen
    from tui.screens.offers import OffersScreen
    from tui.screens.runs import RunsScreen

    homes = {
        "everywhere": TunewatchApp, "live": LiveScreen, "logs": LogsScreen, "runs": RunsScreen, "offers": OffersScreen,
    }  # fmt: skip
    missing = [
        f"{key.place}: {key.action}"
        for key in KEYS
        if not hasattr(
            TunewatchApp if key.action.startswith("app.") else homes[key.place],
            f"action_{key.action.removeprefix('app.').split('(')[0]}",
        )
    ]
    assert missing == []


def test_no_two_actions_of_one_place_share_a_key_and_the_table_is_written_out():
    for place in ("live", "logs", "runs", "offers"):
        keys = [k for key in KEYS if key.place in (place, "everywhere") for k in key.keys.split(",")]
        assert len(keys) == len(set(keys)), place
        assert bindings(place)
    page = Path(__file__).parent.parent / "docs" / "keys.md"
    assert page.read_text().endswith(markdown()), "make shots writes it anew"


async def test_leaving_says_that_the_run_goes_on_and_how_to_see_it_again(monkeypatch):
    app, said = app_with(snapshot()), []
    async with app.run_test(size=BIG) as pilot:
        await pilot.pause()
        leave = app.exit
        monkeypatch.setattr(app, "exit", lambda *a, message=None, **k: (said.append(message), leave(*a, **k)))
        await pilot.press("q")
    assert said == [f"stage5/20260215-104518 goes on.  See it again:  tunewatch watch {TARGET}"]


async def test_a_newer_snapshot_is_shown_and_a_fault_of_the_link_is_told():
    async with app_with(frozen(snapshot())).run_test(size=BIG) as pilot:
        await pilot.pause()
        newer = snapshot(history(480), state="unreachable", reason="the host does not answer")
        pilot.app.post_message(SnapshotArrived(newer))
        await until(lambda: "480/6000" in plain(pilot.app), pilot)
        assert "⚠ the host does not answer" in plain(pilot.app)


async def test_a_study_shows_its_stages():
    async with app_with(frozen(snapshot(demo_history(), dph=0.0))).run_test(size=BIG) as pilot:
        await pilot.pause()
        text = plain(pilot.app)
        assert "✓ stage1 0.930 › ✓ stage2 0.574 › ▸ stage5" in text
        assert "$0.00" in text


async def test_an_empty_run_is_a_screen_that_says_what_is_missing():
    empty = snapshot(RunHistory(), state="starting", reason="no step yet", tail=("",))
    async with app_with(empty).run_test(size=BIG) as pilot:
        await pilot.pause()
        text = plain(pilot.app)
        for wanted in ("no training loss yet", "no eval yet", "no step time yet", "two"):
            assert wanted in text


async def test_a_terminal_too_small_says_so_and_works_again_when_it_grows():
    async with app_with(frozen(snapshot())).run_test(size=BIG) as pilot:
        await pilot.resize_terminal(30, 8)
        await pilot.pause()
        assert "needs 40 columns" in plain(pilot.app)
        await pilot.resize_terminal(*BIG)
        await until(lambda: "stay: this box" in plain(pilot.app), pilot)


async def test_themes_change_the_colours_of_the_charts_and_one_is_safe_for_any_colour_vision():
    async with app_with(snapshot()).run_test(size=BIG) as pilot:
        await pilot.pause()
        colours = set()
        for _ in range(3):
            colours.add(pilot.app.screen.query_one("#loss", ChartPane).palette.roles["line"])
            await pilot.press("T")
            await pilot.pause()
        assert len(colours) == 3
        assert "#56b4e9" in {c.lower() for c in colours}, "the blue of Okabe and Ito"


async def test_the_screen_reads_a_run_directory_that_grows_and_shows_it_again_at_once(tmp_path):
    """A real run directory, the real poller, the real feed; then a second application on the same run."""
    run = RunDir.create("stage5", tmp_path)
    run.open_log()
    writer = MetricsWriter(run.metrics)
    writer.write(
        "start", max_steps=100, rule={"patience": 2, "min_delta": 0.01, "min_steps": 20, "count_from": "start"}
    )
    for step in range(1, 21):
        writer.write("train", step=step, loss=3.0 / step, step_s=0.1)
    app = TunewatchApp(Session(interval=0.05), plan=WatchPlan(str(run.path)))
    async with app.run_test(size=BIG) as pilot:
        await until(lambda: "20/100" in plain(app), pilot)
        writer.write("eval", step=20, eval_loss=1.25, eval_runtime=0.5)
        writer.write("train", step=21, loss=0.14, step_s=0.1)
        await until(lambda: "21/100" in plain(app) and "1.2500" in plain(app), pilot)
        await pilot.press("q")
    again = TunewatchApp(Session(interval=0.05), plan=WatchPlan(str(run.path)))
    async with again.run_test(size=BIG) as pilot:
        await until(lambda: "21/100" in plain(again), pilot, seconds=5)


async def test_the_list_of_runs_sorts_filters_marks_and_opens(monkeypatch):
    first = snapshot()
    second = snapshot(history(900), target="runs/stage5/other")
    app = app_with(first, second, open_first=False)
    monkeypatch.setattr(type(app.session), "known", lambda self: [])
    async with app.run_test(size=BIG) as pilot:
        table = app.screen.query_one(DataTable)
        await until(lambda: table.row_count == 2, pilot)
        assert "stage5/other" in plain(app)
        await pilot.press("space", "down", "space", "c")
        await until(lambda: type(app.screen).__name__ == "CompareScreen", pilot)
        assert len(spec(app, "eval").series) == 2
        await pilot.press("escape")
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, LiveScreen), pilot)


async def test_the_market_sorts_shows_the_front_and_pins_the_present_box():
    async with app_with(frozen(snapshot())).run_test(size=(160, 40)) as pilot:
        await pilot.pause()
        await pilot.press("o")
        await pilot.pause()
        table = pilot.app.screen.query_one(DataTable)
        assert table.row_count == 5
        assert str(table.get_row_at(0)[0]) == "stay: this box"
        await pilot.press("p")
        assert table.row_count < 5
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, LiveScreen)


def test_panes_are_text_only_and_never_touch_the_floor_below():
    """Widgets do no I/O: none of them imports `remote`."""
    import tui.widgets

    for path in Path(tui.widgets.__file__).parent.glob("*.py"):
        assert "remote" not in [w for line in path.read_text().splitlines() if "import" in line for w in line.split()]


async def test_the_same_snapshot_again_redraws_nothing():
    one = frozen(snapshot())
    async with app_with(one).run_test(size=BIG) as pilot:
        await pilot.pause()
        pane = pilot.app.screen.query_one("#loss", ChartPane)
        drawn = pane._drawn[1]
        pilot.app.post_message(SnapshotArrived(replace(one, at=2.0)))
        await pilot.pause()
        pane.refresh()
        await pilot.pause()
        assert pane._drawn[1] is drawn
        assert pilot.app.screen.query_one(StatusLine).snapshot.at == 2.0
        assert pilot.app.screen.query_one("#stop", TextPane)


async def test_garbage_in_the_filter_is_a_sentence_and_the_list_stays(monkeypatch):
    app = app_with(snapshot(), open_first=False)
    monkeypatch.setattr(type(app.session), "known", lambda self: [])
    async with app.run_test(size=BIG) as pilot:
        table = app.screen.query_one(DataTable)
        await until(lambda: table.row_count == 1, pilot)
        await pilot.press("slash")
        app.screen.query_one("#filter", Input).value = "loss<<(abc"
        await until(lambda: app.screen.query_one("#trouble").display, pilot)
        assert table.row_count == 1
        app.screen.query_one("#filter", Input).value = "state:finished"
        await until(lambda: table.row_count == 0, pilot)


async def test_what_happens_is_kept_in_the_list_of_events_and_leads_back_to_its_step():
    async with app_with(frozen(snapshot())).run_test(size=BIG) as pilot:
        await pilot.pause()
        pilot.app.notices.take(snapshot())
        run = history(490)
        better = replace(run, evals=(*run.evals, EvalPoint(480, 0.9, 7.7)))
        pilot.app.post_message(SnapshotArrived(snapshot(better)))
        await until(lambda: pilot.app.notices.events, pilot)
        await pilot.press("e")
        await until(lambda: "0.9" in plain(pilot.app) and "480" in plain(pilot.app), pilot)
        await pilot.press("enter")
        await until(lambda: isinstance(pilot.app.screen, LiveScreen), pilot)
        assert spec(pilot.app).cursor == 480


async def test_export_writes_pictures_tables_and_a_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with app_with(frozen(snapshot())).run_test(size=BIG) as pilot:
        await pilot.pause()
        await pilot.press("E")
        await until(lambda: any("exports" in n.message for n in told(pilot)), pilot)
    kinds = sorted(p.name.split("-")[-1].split(".", 1)[-1] for p in (tmp_path / "exports").iterdir())
    assert kinds == ["csv", "csv", "md", "png", "svg"]
    svg = next((tmp_path / "exports").glob("*.svg")).read_text()
    assert not re.search(r">[^<]*[⠀-⣿]{2}[^<]*<", svg), "each braille glyph stands at a place of its own"
    assert next((tmp_path / "exports").glob("*.png")).read_bytes().startswith(b"\x89PNG")


async def test_the_whole_log_opens_and_a_chosen_eval_moves_the_cursor(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("hello\n{'eval_loss': '1.118', 'eval_runtime': '7.7', 'epoch': '0.03'}\nbye\n")
    async with app_with(frozen(snapshot(log_path=log))).run_test(size=BIG) as pilot:
        await pilot.pause()
        await pilot.press("L")
        await until(lambda: "hello" in plain(pilot.app) and "bye" in plain(pilot.app), pilot)
        pilot.app.screen.dismiss(300)
        await until(lambda: isinstance(pilot.app.screen, LiveScreen), pilot)
        assert spec(pilot.app).cursor == 300


async def test_the_list_of_runs_is_one_screen_however_often_it_is_asked_for(monkeypatch):
    app = app_with(frozen(snapshot()), open_first=False)
    monkeypatch.setattr(type(app.session), "known", lambda self: [])
    async with app.run_test(size=BIG) as pilot:
        await until(lambda: app.screen.query_one(DataTable).row_count == 1, pilot)
        depth = len(app.screen_stack)
        for _ in range(3):
            await pilot.press("enter")
            await until(lambda: isinstance(app.screen, LiveScreen), pilot)
            await pilot.press("R")
            await until(lambda: not isinstance(app.screen, LiveScreen), pilot)
        assert len(app.screen_stack) == depth
