"""The market screen against a real server in the place of the provider: live rows, faults, limits, vanished offers."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import DataTable, Input, Static

from remote.market import load_offers
from remote.vast import key_configured
from tests.fake_vast import FakeVast, faults
from tests.fake_vast.market import offer_row
from tests.support.tui import app_with, plain, snapshot, until
from tests.support.vast import as_laptop
from tui.market import LiveMarket, parse_budget, parse_deadline
from tui.offer_rows import cells, front, titles
from tui.screens.deed import DeedScreen
from tui.screens.launch import LaunchScreen
from tui.screens.offers import OffersScreen
from tui.snapshot import QuoteRow
from tui.widgets.offer_detail import detail

WIDE = (200, 40)
SEED = {"7000001", "7000002", "7000003"}


@dataclass
class Hand:
    """A clock moved by hand."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Market:
    fake: FakeVast
    clock: Hand = field(default_factory=Hand)

    @asynccontextmanager
    async def screen(self, *snapshots: Any) -> Any:
        """The Offers screen after its first answer."""
        app = app_with(*snapshots)
        app.session.offers = load_offers()
        app.market = LiveMarket(clock=self.clock)
        async with app.run_test(size=WIDE) as pilot:
            await pilot.press("o")
            await until(lambda: isinstance(app.screen, OffersScreen) and not app.screen._busy, pilot)
            yield pilot


@pytest.fixture
def market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Market]:
    with FakeVast() as fake:
        as_laptop(monkeypatch, fake, tmp_path / "home")
        yield Market(fake)


def table(pilot: Any) -> DataTable[Any]:
    return pilot.app.screen.query_one(DataTable)


def ids(pilot: Any) -> list[str]:
    return [str(row.key.value) for row in table(pilot).ordered_rows]


def head(pilot: Any) -> str:
    return str(pilot.app.screen.query_one("#head", Static).content)


def trouble(pilot: Any) -> str:
    box = pilot.app.screen.query_one("#trouble", Static)
    return str(box.content) if box.display else ""


async def settled(pilot: Any) -> None:
    screen = next(s for s in pilot.app.screen_stack if isinstance(s, OffersScreen))
    await until(lambda: not screen._busy, pilot)


async def typed(pilot: Any, key: str, text: str) -> None:
    await pilot.press(key)
    pilot.app.screen.query_one("#limit", Input).value = text
    await pilot.press("enter")
    await settled(pilot)


async def test_live_offers_stand_with_quotes_price_age_and_disk(market):
    async with market.screen(snapshot()) as pilot:
        assert set(ids(pilot)) == {"stay", *SEED}
        market.clock.now += 12
        pilot.app.screen._head()
        assert "live, 12s old" in head(pilot)
        body = next(body for name, body in market.fake.bodies if name == "search")
        disk = body["allocated_storage"]
        assert f"{disk:.0f} GB disk in the price" in head(pilot)
        assert disk > 60, "stage 5 of a 3B model keeps several checkpoints"
        quotes = {row.offer_id: row for row in pilot.app.screen._rows()}
        assert quotes["7000001"].dph == pytest.approx(0.7411 + 0.15 * disk / 720)
        assert quotes["7000001"].usd[0] <= quotes["7000001"].usd[1] <= quotes["7000001"].usd[2]
        assert "example" not in plain(pilot.app)


async def test_without_a_run_the_quotes_are_for_a_new_run_and_enter_opens_the_launch(market):
    async with market.screen() as pilot:
        assert set(ids(pilot)) == SEED
        assert all(row.hours[1] > 0 for row in pilot.app.screen._rows())
        chosen = ids(pilot)[0]
        await pilot.press("enter")
        await until(lambda: isinstance(pilot.app.screen, LaunchScreen), pilot)
        assert pilot.app.screen.offer.offer_id == chosen


async def test_enter_on_a_live_offer_moves_a_rented_run(market):
    one = snapshot()
    async with market.screen(one) as pilot:
        pilot.app.session.instances[one.target] = 31460000
        table(pilot).move_cursor(row=1)
        chosen = ids(pilot)[1]
        await pilot.press("enter")
        await until(lambda: isinstance(pilot.app.screen, DeedScreen), pilot)
        assert pilot.app.screen.deed.command[-2:] == ("--to", chosen)


async def test_refresh_reads_the_market_again_but_not_at_once_and_the_cursor_stays_on_its_offer(market):
    async with market.screen() as pilot:
        asked = market.fake.count("search")
        await pilot.press("r")
        assert "again in 5s" in trouble(pilot)
        assert market.fake.count("search") == asked
        table(pilot).move_cursor(row=1)
        chosen = ids(pilot)[1]
        market.fake.world.offers[7_000_009] = offer_row(7_000_009, dph_base=0.01, machine_id=41009)
        market.clock.now += 6
        await pilot.press("r")
        await settled(pilot)
        assert market.fake.count("search") == asked + 1
        assert ids(pilot)[0] == "7000009"
        assert ids(pilot)[table(pilot).cursor_row] == chosen
        assert trouble(pilot) == ""
        assert "live, 0.0s old" in head(pilot)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (faults.SERVER_ERROR, "answered 500"),
        (faults.HTML_OK, "not JSON"),
        (faults.RESET, "cannot be reached"),
        (faults.UNAUTHORISED, "refused the key"),
        (faults.RATE_LIMITED, "too often"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_a_fault_of_the_provider_is_a_sentence_and_the_last_list_stays(market, fault, said):
    async with market.screen() as pilot:
        market.fake.faults.add("search", fault)
        market.clock.now += 30
        await pilot.press("r")
        await settled(pilot)
        assert said in trouble(pilot)
        assert set(ids(pilot)) == SEED
        assert "live, 30s old" in head(pilot)
        market.clock.now += 30
        await pilot.press("r")
        await settled(pilot)
        assert trouble(pilot) == ""


async def test_a_market_that_never_answered_leaves_the_examples_and_says_so(market):
    market.fake.faults.add("search", faults.BAD_GATEWAY)
    async with market.screen() as pilot:
        assert "502" in trouble(pilot)
        assert "example prices" in head(pilot)
        assert len(ids(pilot)) == len(load_offers())


async def test_an_offer_that_vanished_before_enter_is_a_sentence(market):
    async with market.screen() as pilot:
        chosen = ids(pilot)[0]
        market.fake.world.offers[int(chosen)]["gone"] = True
        await pilot.press("enter")
        await settled(pilot)
        assert f"Offer {chosen} is no longer on the market" in trouble(pilot)
        assert isinstance(pilot.app.screen, OffersScreen)


async def test_an_offer_that_became_dearer_before_enter_is_a_sentence(market):
    async with market.screen() as pilot:
        chosen = ids(pilot)[0]
        market.fake.world.offers[int(chosen)]["dph_base"] = 3.0
        await pilot.press("enter")
        await settled(pilot)
        assert f"Offer {chosen} now costs $3." in trouble(pilot)
        assert isinstance(pilot.app.screen, OffersScreen)


async def test_a_machine_of_ones_own_stands_in_the_list_and_is_launched_on_without_a_rental(market, tmp_path):
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "hosts.toml").write_text(
        '[mine]\naddress = "root@10.0.0.5"\ngpu = "RTX 4090"\nvram_gb = 24\nusd_per_h = 0.01\ndisk_gb = 900\n'
    )
    async with market.screen() as pilot:
        (own,) = set(ids(pilot)) - SEED
        assert ids(pilot)[0] == own == "host:mine"
        await pilot.press("enter")
        await until(lambda: isinstance(pilot.app.screen, LaunchScreen), pilot)
        wizard = pilot.app.screen
        assert wizard.draft.command()[2:4] == ("--offer", "host:mine")
        assert wizard.draft.deed().verb == "Use"
        assert "will train" in wizard.draft.deed().says[0]


async def test_a_machine_on_which_a_launch_failed_is_not_offered(market, tmp_path, monkeypatch):
    from remote.journal import Journal

    monkeypatch.setattr(Journal, "excluded", lambda self: {41002})
    async with market.screen() as pilot:
        assert set(ids(pilot)) == SEED - {"7000002"}


async def test_a_budget_and_a_deadline_add_their_chances_and_dim_what_is_over(market):
    market.fake.world.offers[7_000_009] = offer_row(7_000_009, dph_base=90.0, machine_id=41009)
    async with market.screen(snapshot()) as pilot:
        await typed(pilot, "b", "$5")
        await typed(pilot, "d", "10h")
        labels = [str(column.label) for column in table(pilot).ordered_columns]
        assert labels[:4] == ["GPU", "$/h", "under $5", "in 10 h"]
        dear, cheap = table(pilot).get_row("7000009"), table(pilot).get_row("7000001")
        assert dear[2].plain in ("0%", "<1%")
        assert cheap[2].plain.strip("<>%").isdigit()
        assert int(cheap[2].plain.strip("<>%")) >= 50
        assert all("dim" in str(cell.spans or cell.style) for cell in dear if cell.plain)
        assert not any(str(span.style) == "dim" and span.end == len(cheap[0]) for span in cheap[0].spans)
        await typed(pilot, "b", "")
        assert [str(column.label) for column in table(pilot).ordered_columns][2:3] == ["in 10 h"]


@pytest.mark.parametrize(("key", "text"), [("b", "much"), ("b", "-3"), ("b", "nan"), ("d", "soon"), ("d", "0h")])
async def test_a_limit_that_makes_no_sense_is_a_sentence_and_the_line_stays_open(market, key, text):
    async with market.screen() as pilot:
        await typed(pilot, key, text)
        assert f"'{text}' is" in trouble(pilot)
        assert pilot.app.screen.query_one("#limit").has_class("-open")
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, OffersScreen)
        assert pilot.app.focused is table(pilot)


async def test_without_a_key_the_example_market_is_shown_and_takes_limits_too(market, monkeypatch, tmp_path):
    monkeypatch.delenv("VAST_API_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    async with market.screen(snapshot()) as pilot:
        assert "example prices, not today's" in head(pilot)
        await pilot.press("r")
        assert "VAST_API_KEY" in trouble(pilot)
        await typed(pilot, "b", "1")
        assert "under $1" in plain(pilot.app)
        assert market.fake.count("search") == 0


def test_a_key_is_found_in_the_environment_and_in_the_files_of_the_provider(monkeypatch, tmp_path):
    monkeypatch.delenv("VAST_API_KEY", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not key_configured()
    (tmp_path / ".vast_api_key").write_text("k")
    assert key_configured()
    (tmp_path / ".vast_api_key").unlink()
    (tmp_path / ".config" / "vastai").mkdir(parents=True)
    (tmp_path / ".config" / "vastai" / "vast_api_key").write_text("k")
    assert key_configured()


def test_the_sdk_can_be_imported_under_a_full_screen_display_which_has_no_encoding():
    code = (
        "import sys, types; sys.stdout = types.SimpleNamespace(write=lambda s: None, flush=lambda: None);"
        "from remote.vast import VastProvider; VastProvider(api_key='k')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_money_and_time_are_read_as_people_write_them():
    assert [parse_budget(text) for text in ("5", "$5", "5 USD", " 0.5 ", "")] == [5, 5, 5, 0.5, None]
    assert [parse_deadline(text) for text in ("90m", "10h", "")] == [1.5, 10, None]


def test_a_row_has_a_cell_for_every_title_with_and_without_limits():
    row = QuoteRow("1", "A100", 1.0, (1, 2, 3), (1, 2, 3), document={"p_under_budget": 0.995})
    for limits in ({}, {"p_under_budget": 5.0}, {"p_under_budget": 5.0, "p_before_deadline": 2.0}):
        assert len(cells(row, None, 3.0, {}, False, limits)) == len(titles(limits))
    assert cells(row, None, 3.0, {}, False, {"p_under_budget": 5.0})[2].plain == ">99%"


def test_what_nothing_beats_is_marked_by_more_than_a_colour_and_what_has_no_quote_or_is_too_small_never():
    nothing = (math.nan, math.nan, math.nan)
    rows = [
        QuoteRow("cheap", "RTX 3090", 0.2, (2, 3, 4), (1, 2, 3)),
        QuoteRow("dear", "A100", 1.0, (2, 4, 5), (2, 3, 4)),
        QuoteRow("new", "H100", 2.0, nothing, nothing),
        QuoteRow("small", "RTX 3060", 0.1, (1, 1, 1), (0.1, 0.1, 0.1), fits="no"),
    ]
    best = front(rows)
    assert best == {"cheap"}
    shown = [[cell.plain for cell in cells(row, None, 4.0, {}, row.offer_id in best)] for row in rows]
    assert ["◆" in "".join(row) for row in shown] == [True, False, False, False]
    assert "◆ no other offer is cheaper and sooner" in detail(rows[0], None, {}, {}, best=True).plain
    assert "◆" not in detail(rows[1], None, {}, {}).plain


def test_the_detail_says_how_sure_a_speed_is_and_where_it_comes_from():
    sources = ["memory, TFLOP/s and power (unverified for RTX A5000)", "the provider's score"]
    document = {"speed_sd": 0.188, "speed_sources": sources, "largest_batch": 8}
    row = QuoteRow("1", "RTX A5000", 0.2, (1, 2, 3), (1, 2, 3), speed=0.42, vram_gib=24, document=document)
    assert "batch up to 8" in detail(row, None, {}, {}).plain
    assert f"0.42x the speed ± 19% ({sources[0]})" in detail(row, None, {}, {}).plain
    bare = QuoteRow("1", "A100", 1.0, (1, 2, 3), (1, 2, 3), speed=1.0)
    assert "1.00x the speed" in detail(bare, None, {}, {}).plain
    assert "()" not in detail(bare, None, {}, {}).plain
