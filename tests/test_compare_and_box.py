"""Runs over each other, the box beside a run, one cursor for curves and log, and who of two screens may act."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import DataTable

from runner.history import RunHistory, TrainPoint
from runner.metrics import MetricsReader, MetricsWriter
from tests.support.tui import BIG, SMALL, app_with, frozen, history, plain, snapshot, told, until
from tests.test_log_reader import CLEAR, bar, read, start
from tests.test_tui_live import _own_home  # noqa: F401 - the fixture is used by being here
from tests.test_tui_more import HEALTH
from tui.app import SnapshotArrived
from tui.curves import CurveCache, View, counts_tokens
from tui.logindex import LogIndex
from tui.logscan import step_near
from tui.run_rows import RunRow
from tui.screens.compare import CompareScreen
from tui.screens.logs import LogsScreen
from tui.seat import Seat
from tui.widgets.box_text import gpu_cell, pane_text, troubles
from tui.widgets.chart_pane import ChartPane


def counted(run: RunHistory, per_step: float) -> RunHistory:
    """The history of a trainer that counts its tokens."""
    return replace(run, train=tuple(p._replace(tokens=p.step * per_step) for p in run.train if p.step))


def named(number: int, **fields):
    """One of several runs."""
    return replace(frozen(snapshot(health=HEALTH)), target=f"runs/a/{number}", name=f"a/{number}", **fields)


# tokens ---------------------------------------------------------------------------------------------------------------


def test_tokens_are_read_from_what_trainers_count_and_from_our_own_rate(tmp_path):
    counts = b"'num_input_tokens_seen': '4096'", b"'num_tokens': 8192.0"
    read_lines = [
        read(start() + bar(9) + CLEAR + b"{'loss': 1.5, " + count + b", 'epoch': 0.04}\n" + bar(10)) for count in counts
    ]
    assert [history.train[0].tokens for history in read_lines] == [4096.0, 8192.0]
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write("start", max_steps=100, rule=None)
    writer.write("train", step=10, loss=2.0, step_s=0.5, tokens_per_s=4096.0)
    exact = MetricsReader()
    exact.feed((tmp_path / "metrics.jsonl").read_bytes())
    assert exact.history().train[-1].tokens == 0.5 * 4096 * 10


def test_an_axis_of_tokens_is_offered_only_where_they_are_counted_and_goes_both_ways():
    run = counted(history(400), 2048.0)
    assert counts_tokens(run)
    assert not counts_tokens(history(400))
    modes = []
    view = View()
    for _ in range(4):
        view = view.next_x_mode(tokens=True)
        modes.append(view.x_mode)
    assert modes == ["time", "log", "tokens", "step"]
    assert replace(view, x_mode="log").next_x_mode().x_mode == "step"
    cache = CurveCache()
    assert cache.x_of(run, 200, "tokens") == pytest.approx(200 * 2048.0)
    assert cache.step_of(run, 200 * 2048.0, "tokens") == 200
    assert cache.curve(run, "eval", "tokens").xs[0] == pytest.approx(200 * 2048.0)
    assert cache.curve(history(400), "eval", "tokens").xs == ()


async def test_five_runs_keep_their_colours_and_one_without_tokens_is_named(monkeypatch):
    runs = [named(n) for n in range(6)]
    runs[5] = replace(runs[5], history=counted(runs[5].history, 1000.0))
    app = app_with(*runs, open_first=False)
    monkeypatch.setattr(type(app.session), "known", lambda self: [])
    async with app.run_test(size=BIG) as pilot:
        await until(lambda: app.screen.query_one(DataTable).row_count == 6, pilot)
        screen = app.screen
        screen.query_one(DataTable).focus()
        for _ in range(6):
            await pilot.press("space", "down")
        assert len(screen.marked) == 5
        assert any("5 runs are marked" in n.message for n in told(pilot))
        before = dict(screen.marked)
        first = next(iter(before))
        screen.query_one(DataTable).move_cursor(row=screen.query_one(DataTable).get_row_index(first))
        await pilot.press("space")
        assert screen.marked == {target: mark for target, mark in before.items() if target != first}
        await pilot.press("space")
        assert screen.marked == before
        await pilot.press("c")
        await until(lambda: isinstance(app.screen, CompareScreen), pilot)
        await pilot.press("x", "x", "x")
        await until(lambda: "by tokens" in plain(app), pilot)
        assert plain(app).count("tells no tokens: left out") == 4
        roles = {s.role for s in app.screen.query_one("#eval", ChartPane).spec.series}
        assert roles == set("abcde")
        await pilot.press("x", "left", "left", "plus")
        await until(lambda: "at step" in plain(app), pilot)
        specs = [app.screen.query_one(f"#{name}", ChartPane).spec for name in ("eval", "loss")]
        assert specs[0].cursor == specs[1].cursor is not None
        assert specs[0].x_range == specs[1].x_range is not None
        await pilot.press("escape")
        await until(lambda: app.screen is screen, pilot)


# the box --------------------------------------------------------------------------------------------------------------


def test_the_pane_of_the_box_says_troubles_first_and_only_under_a_trainer_that_it_idles():
    idle = {**HEALTH, "gpus": ({**HEALTH["gpus"][0], "util": 1.0, "throttle": ""},), "disk_free": 50_000_000_000}
    assert troubles(idle, running=True) == ["the GPU idles while the run trains"]
    assert troubles(idle, running=False) == []
    text = pane_text(HEALTH, {}, 22.0, 45, running=True).plain
    assert text.splitlines()[:2] == ["⚠ GPU 0 is slowed down: thermal", "⚠ the disk fills: 3.0 GB free, 3%"]
    for wanted in ("A100-SXM4-40GB", "97%", "290/400 W", "88 °C", "30.0 of 40.0 GiB", "↓ 2.0 ↑ 1.0 MB/s", "cpu 35%"):
        assert wanted in text
    assert all(len(line) <= 45 for line in text.splitlines())


@pytest.mark.parametrize(
    ("gpus", "running", "cell"),
    [
        ((), True, ""),
        (({"name": "NVIDIA A100-SXM4-40GB", "util": 96.6},), True, "A100-SXM4-40GB 97%"),
        (({"name": "NVIDIA GeForce RTX 3090", "util": 50.0},) * 2, True, "2x RTX 3090 50%"),
        (({"name": "H100", "util": 50.0},), False, "H100"),
        (({"index": 0, "name": "", "util": None},), True, "GPU 0"),
    ],
)
def test_the_cell_of_a_list_has_number_name_and_use(gpus, running, cell):
    assert gpu_cell({"gpus": gpus}, running=running) == cell


def test_a_rented_run_that_was_not_measured_has_the_providers_name_of_its_gpu():
    row = RunRow("vast:1:/x", "x", instance_id=1, rented_gpu="RTX 4090")
    assert row.gpu == row.gpu_name == "RTX 4090"


async def test_the_box_is_a_pane_beside_the_run_with_its_age_and_alone_with_every_bar():
    one = frozen(snapshot(health=HEALTH))
    async with app_with(one).run_test(size=BIG) as pilot:
        await until(lambda: "A100-SXM4-40GB" in plain(pilot.app), pilot)
        assert " ago" in str(pilot.app.screen.query_one("#box").border_subtitle)
        await pilot.press("7", "z")
        await until(lambda: "load 4.2 on 16 cores" in plain(pilot.app), pilot)
        await pilot.press("z")
        pilot.app.post_message(SnapshotArrived(replace(one, health={})))
        await until(lambda: not pilot.app.screen.query_one("#box").display, pilot)
    async with app_with(one).run_test(size=SMALL) as pilot:
        await pilot.pause()
        await pilot.press("7")
        await until(lambda: "load 4.2 on 16 cores" in plain(pilot.app), pilot)


async def test_the_list_has_a_column_of_gpus_and_the_filter_knows_it(monkeypatch):
    other = replace(named(2), health={**HEALTH, "gpus": ({"name": "NVIDIA H100 80GB HBM3", "util": 3.0},)})
    app = app_with(named(1), other, open_first=False)
    monkeypatch.setattr(type(app.session), "known", lambda self: [])
    async with app.run_test(size=BIG) as pilot:
        await until(lambda: "A100-SXM4-40GB 97%" in plain(app), pilot)
        await pilot.press("slash", *"gpu:h100")
        await until(lambda: app.screen.query_one(DataTable).row_count == 1, pilot)
        assert "H100 80GB HBM3 3%" in plain(app)
        await pilot.press(*"x", "ctrl+u", *"gpo:h100")
        await until(lambda: "did you mean 'gpu'?" in plain(app), pilot)


async def test_a_run_that_begins_while_the_list_is_open_comes_into_it(monkeypatch):
    from tui.screens import runs

    monkeypatch.setattr(runs, "AGAIN_S", 0.05)
    app = app_with(open_first=False)
    there = [RunRow("vast:1:/a", "a", noted=1.0)]
    monkeypatch.setattr(type(app.session), "known", lambda self: list(there))
    async with app.run_test(size=BIG) as pilot:
        await until(lambda: app.screen.query_one(DataTable).row_count == 1, pilot, seconds=60)
        there.append(RunRow("vast:2:/b", "b", noted=2.0))
        await until(lambda: app.screen.query_one(DataTable).row_count == 2, pilot, seconds=60)
        there.pop(0)
        await until(lambda: set(app.screen.rows) == {"vast:2:/b"}, pilot, seconds=60)


# the cursor of curves and log -----------------------------------------------------------------------------------------


def log_of(folder: Path) -> Path:
    """A Trainer's log of sixty steps."""
    path = folder / "log.txt"
    with path.open("wb") as out:
        for n in range(10, 61, 10):
            out.write(b"a line of somebody else\n")
            out.write(b"\r %d%%|# | %d/6000 [00:%02d<09:59, 1.0s/it]\r{'loss': '1.%d'}\n" % (n // 60, n, n % 60, n))
    return path


def test_a_line_of_the_log_belongs_to_the_step_of_its_bar(tmp_path):
    index = LogIndex(log_of(tmp_path))
    index.open()
    while index.scan():
        pass
    steps = [step_near(index, line, 6000) for line in range(index.line_count)]
    assert steps[:6] == [None, 10, 10, 20, 20, 30]
    assert step_near(index, 3, 999) is None
    assert step_near(index, 10_000, 6000) is None
    index.close()


async def test_the_log_opens_at_the_cursor_of_the_charts_and_gives_it_back(tmp_path):
    run = replace(history(60, max_steps=6000), train=tuple(TrainPoint(n, 1.0) for n in range(10, 61, 10)))
    app = app_with(frozen(snapshot(run, log_path=str(log_of(tmp_path)))))
    async with app.run_test(size=BIG) as pilot:
        await pilot.pause()
        live = app.screen
        live.cursor_to(30)
        assert live.step_at_cursor() == 30
        await pilot.press("L")
        await until(lambda: isinstance(app.screen, LogsScreen) and app.screen.view.cursor == 5, pilot, seconds=60)
        await pilot.press("up", "up")
        assert app.screen.view.cursor == 3
        await pilot.press("escape")
        await until(lambda: app.screen is live and live.step_at_cursor() == 20, pilot)


# who acts -------------------------------------------------------------------------------------------------------------


def test_of_two_screens_on_one_home_the_second_looks_until_the_first_is_closed(tmp_path, monkeypatch):
    monkeypatch.delenv("TUNEWATCH_READ_ONLY", raising=False)
    first, second = Seat(tmp_path), Seat(tmp_path)
    assert first.take() == ""
    assert f"(process {os.getpid()}) acts on this project: this one is read-only" in second.take()
    assert os.environ["TUNEWATCH_READ_ONLY"] == "1"
    assert second.take() == ""
    first.leave()
    assert second.take() == "The other screen is closed: this one acts now."
    assert second.taken
    assert "TUNEWATCH_READ_ONLY" not in os.environ
    second.leave()


@pytest.mark.parametrize("size", [BIG, (80, 24)], ids=["big", "small"])
async def test_the_second_screen_says_so_in_its_top_line_and_refuses_deeds(size, tmp_path, monkeypatch):
    monkeypatch.delenv("TUNEWATCH_READ_ONLY", raising=False)
    first = Seat(tmp_path)
    first.take()
    app = app_with(frozen(snapshot()), seat=Seat(tmp_path))
    monkeypatch.setattr(type(app.session), "known", lambda self: [])
    async with app.run_test(size=size) as pilot:
        await until(lambda: any("this one is read-only" in n.message for n in told(pilot)), pilot)
        await until(lambda: "read-only" in plain(app).splitlines()[0], pilot)
        await pilot.press("S")
        why = "stopping a run is refused: another screen of tunewatch acts on this project. Close it"
        await until(lambda: any(why in n.message for n in told(pilot)), pilot)
        await pilot.press("R")
        await until(lambda: "read-only" in plain(app).splitlines()[0], pilot)
        first.leave()
        await until(lambda: not app.has_class("-read-only"), pilot, seconds=60)
        await until(lambda: "read-only" not in plain(app).splitlines()[0], pilot)
