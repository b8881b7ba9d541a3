"""The wall to the provider: whatever it answers, out comes a value or one of our errors, and never a secret."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.provider import (
    AmbiguousError,
    AuthError,
    CreditError,
    NoSuchInstanceError,
    OfferGoneError,
    Order,
    RateLimitedError,
    RejectedError,
    UnavailableError,
    Wanted,
)
from remote.redact import redact
from remote.vast import VastProvider
from remote.vast_rows import instance_from, offer_from
from runner.errors import TunewatchError
from tests.fake_vast import FakeVast, ManualClock, faults
from tests.fake_vast.market import offer_row, random_offers, seed_offers
from tests.support.vast import provider_for, rented_world

Stand = tuple[FakeVast, VastProvider, ManualClock]
SEED = 7_000_001


@pytest.fixture
def stand() -> Iterator[Stand]:
    with rented_world() as made:
        yield made


def order(offer_id: int = SEED, label: str = "tunewatch-x", bid: float | None = None) -> Order:
    return Order(offer_id, label, "vastai/pytorch", 60.0, "true", bid_usd_per_h=bid)


def test_prices_are_those_of_the_disk_that_will_be_created(stand: Stand) -> None:
    _, provider, _ = stand
    small = provider.offer(SEED, disk_gb=10)
    large = provider.offer(SEED, disk_gb=200)
    assert small.dph_total == pytest.approx(0.7411 + 0.15 * 10 / 720)
    assert large.dph_total == pytest.approx(0.7411 + 0.15 * 200 / 720)


def test_filters_are_applied_here_as_well_as_there() -> None:
    with rented_world(offers=random_offers(300)) as (_, provider, _):
        wanted = Wanted(max_price=1.0, min_vram_gb=40, min_reliability=0.95, region="se", disk_gb=60)
        offers = provider.search(wanted)
    assert offers
    for offer in offers:
        assert offer.dph_total <= 1.0
        assert offer.gpu_ram_mb >= 40_000
        assert offer.verified
        assert offer.place.endswith("SE")
    assert [offer.dph_total for offer in offers] == sorted(offer.dph_total for offer in offers)


def test_all_pages_are_read_with_one_call_for_each_25_boxes() -> None:
    with rented_world(offers=[offer_row(i) for i in range(1, 61)]) as (fake, provider, _):
        ids = [provider.create(order(i)) for i in range(1, 61)]
        before = fake.count("list")
        assert [row.id for row in provider.instances()] == ids
        assert fake.count("list") - before == 3


def test_direct_and_proxy_pairs_are_never_mixed(stand: Stand) -> None:
    _, provider, clock = stand
    provider.create(order())
    clock.advance(1)
    assert [pair.kind for pair in provider.instances()[0].ssh] == ["proxy"]
    clock.advance(60)
    direct, proxy = provider.instances()[0].ssh
    assert (direct.host, direct.port) == ("127.0.0.1", 40022)
    assert (proxy.host, proxy.port) == ("127.0.0.2", 17956)


def test_the_rental_is_one_put_with_label_disk_and_cancel_unavail(stand: Stand) -> None:
    fake, provider, _ = stand
    provider.create(order())
    bodies = [body for name, body in fake.bodies if name == "create"]
    assert len(bodies) == 1
    assert bodies[0]["label"] == "tunewatch-x"
    assert bodies[0]["disk"] == 60.0
    assert bodies[0]["cancel_unavail"] is True
    assert bodies[0]["price"] is None


def test_an_offer_sold_in_the_meantime_is_gone_and_not_a_failure_of_the_provider(stand: Stand) -> None:
    _, provider, _ = stand
    provider.create(order())
    with pytest.raises(OfferGoneError):
        provider.create(order())
    with pytest.raises(OfferGoneError):
        provider.offer(SEED, disk_gb=60)


def test_a_refused_bid_tells_of_the_box_that_exists_all_the_same(stand: Stand) -> None:
    fake, provider, _ = stand
    with pytest.raises(RejectedError) as caught:
        provider.create(order(bid=0.01))
    assert caught.value.new_contract in fake.world.boxes
    assert str(caught.value.new_contract) in caught.value.exists


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_is_named_as_such_whatever_code_it_comes_with(stand: Stand, status: int) -> None:
    fake, _, clock = stand
    fake.bad_key_status = status
    wrong = VastProvider(api_key="wrong-key-000", url=fake.url, clock=clock, sleep=clock.sleep)
    with pytest.raises(AuthError) as caught:
        wrong.instances()
    assert "wrong-key-000" not in str(caught.value)


def test_no_key_at_all_is_an_auth_error(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.delenv("VAST_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(AuthError, match="No key"):
        VastProvider()


def test_start_that_only_queues_is_a_refusal(stand: Stand) -> None:
    fake, provider, clock = stand
    box = provider.create(order())
    clock.advance(60)
    provider.stop(box)
    fake.world.refuse_start = True
    with pytest.raises(RejectedError, match="resources_unavailable"):
        provider.start(box)


def test_low_credit_is_said_as_such(stand: Stand) -> None:
    fake, provider, _ = stand
    fake.faults.add("create", faults.NO_CREDIT)
    with pytest.raises(CreditError):
        provider.create(order())


def test_one_endpoint_is_never_called_faster_than_its_threshold() -> None:
    times: list[float] = []
    with rented_world() as (fake, provider, clock):
        fake.rate_limits = False
        for _ in range(4):
            provider.instances()
            times.append(clock())
    assert all(later - sooner >= 1.0 for sooner, later in itertools.pairwise(times))


def test_f11_every_odd_answer_becomes_one_of_our_errors(stand: Stand) -> None:
    """429 as text, 500, 502, HTML, empty, cut and half JSON, null instances, success false, reset: on every call."""
    fake, provider, clock = stand
    box = provider.create(order(7_000_002))
    calls = {
        "search": lambda: provider.search(Wanted()),
        "list": provider.instances,
        "user": provider.account,
        "charges": lambda: provider.charges(clock() - 10, clock()),
        "destroy": lambda: provider.destroy(box),
        "stop": lambda: provider.stop(box),
        "attach": lambda: provider.attach_key(box, "ssh-ed25519 AAAA"),
        "label": lambda: provider.label(box, "x"),
        "logs": lambda: provider.logs(box),
    }
    for operation, call in calls.items():
        for fault in (*faults.WITHOUT_EFFECT, faults.UNAUTHORISED):
            fake.faults.add(operation, fault)
            with contextlib.suppress(TunewatchError):
                call()
            assert box in [b.id for b in fake.world.living()], f"{operation} {fault.name}"
    assert {name for name, _ in fake.faults.used} == set(calls)
    provider.destroy(box)
    with pytest.raises(NoSuchInstanceError):
        provider.destroy(box)


@pytest.mark.parametrize("fault", faults.WITHOUT_EFFECT, ids=lambda fault: fault.name)
def test_f11_a_destroy_without_a_clear_yes_always_raises(stand: Stand, fault: faults.Fault) -> None:
    fake, provider, _ = stand
    box = provider.create(order())
    fake.faults.add("destroy", fault)
    with pytest.raises(TunewatchError):
        provider.destroy(box)


@pytest.mark.parametrize("fault", faults.WITHOUT_EFFECT, ids=lambda fault: fault.name)
def test_f11_a_list_that_is_not_a_list_is_never_an_empty_one(stand: Stand, fault: faults.Fault) -> None:
    fake, provider, _ = stand
    provider.create(order())
    fake.faults.add("list", fault)
    with pytest.raises((UnavailableError, RateLimitedError)):
        provider.instances()


@pytest.mark.parametrize("fault", faults.WITH_EFFECT, ids=lambda fault: fault.name)
def test_f12_a_rental_whose_answer_is_lost_is_ambiguous_and_sent_once(stand: Stand, fault: faults.Fault) -> None:
    fake, provider, _ = stand
    fake.faults.add("create", fault)
    with pytest.raises(AmbiguousError):
        provider.create(order())
    assert fake.count("create") == 1
    assert len(fake.world.boxes) == 1


def test_f11_a_server_that_never_answers_ends_in_time() -> None:
    with rented_world(timeout_s=0.3) as (fake, provider, _):
        fake.faults.add("list", faults.HANG)
        with pytest.raises(UnavailableError, match="in time"):
            provider.instances()
        fake.faults.add("create", faults.HANG_AFTER)
        with pytest.raises(AmbiguousError):
            provider.create(order())
        assert len(fake.world.boxes) == 1


def test_f11_a_429_holds_the_endpoint_back_for_the_next_caller(stand: Stand) -> None:
    fake, provider, clock = stand
    fake.faults.add("list", faults.RATE_LIMITED)
    with pytest.raises(RateLimitedError):
        provider.instances()
    before = clock()
    provider.instances()
    assert clock() - before >= 4.9


ODD_ROWS = [
    {"actual_status": "half-woken", "extra_env": None},
    {"actual_status": None, "start_date": None},
    {"ports": [1, 2, 3], "public_ipaddr": " 10.0.0.1 \n"},
    {"ports": {"22/tcp": [{"HostPort": "no"}]}, "ssh_port": None},
    {"dph_total": None, "dph_base": "0.5", "storage_total_cost": None},
    {"gpu_util": "NaN", "label": None, "status_msg": 7},
]


@pytest.mark.parametrize("odd", ODD_ROWS)
def test_f11_an_odd_row_spoils_neither_itself_nor_the_list(stand: Stand, odd: dict[str, object]) -> None:
    fake, provider, _ = stand
    box = provider.create(order())
    other = provider.create(order(7_000_002))
    fake.world.boxes[box].overrides.update(odd)
    assert [row.id for row in provider.instances()] == [box, other]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(10**12), 10**12) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(
    ["id", "label", "actual_status", "ports", "dph_total", "dph_base", "ssh_host", "ssh_port", "start_date",
     "status_msg", "public_ipaddr", "machine_id", "gpu_name", "num_gpus", "disk_space", "is_bid", "storage_cost"]
)  # fmt: skip


@given(st.dictionaries(fields, json_values) | json_values)
@settings(max_examples=300)
def test_no_json_whatever_makes_a_row_reader_raise(row: object) -> None:
    instance_from(row, "root", str)
    offer_from(row, 60.0, spot=False)


def test_no_secret_leaves_the_wall(stand: Stand) -> None:
    fake, provider, _ = stand
    box = provider.create(Order(SEED, "tunewatch-x", "img", 60, "true", env={"HF_TOKEN": "hf_abcdefghijklmnop"}))
    key = fake.world.boxes[box].api_key
    fake.world.boxes[box].overrides["status_msg"] = f"CONTAINER_API_KEY={key} Bearer {fake.world.account_key}"
    fake.world.logs[box] = f"login with {fake.world.account_key}\nHF_TOKEN=hf_abcdefghijklmnop\n"
    shown = repr(provider.instances()) + provider.logs(box) + repr(provider.search(Wanted())) + repr(provider.account())
    for secret in (key, fake.world.account_key, "hf_abcdefghijklmnop", "jup-"):
        assert secret not in shown


def test_redaction_leaves_ordinary_words_alone() -> None:
    text = "step 300 eval_loss 1.372, tokens_per_s 812, label tunewatch-demo"
    assert redact(text) == text


def test_every_offer_of_the_search_can_be_read_by_the_estimator(stand: Stand) -> None:
    from estimator.offer import Offer

    _, provider, _ = stand
    offers = [Offer.from_row(offer.row) for offer in provider.search(Wanted(disk_gb=60))]
    assert len(offers) == len(seed_offers())
    assert offers[0].dph == pytest.approx(0.6676 + 0.15 * 60 / 720)


def test_charges_and_price_increases_are_read(stand: Stand) -> None:
    fake, provider, clock = stand
    box = provider.create(order())
    start = clock()
    clock.advance(3600)
    fake.world.boxes[box].down_gb = 10
    (charge,) = provider.charges(start, clock())
    assert charge.instance_id == box
    assert charge.usd == pytest.approx(fake.world.boxes[box].usd)
    assert charge.items["bwd"] == pytest.approx(0.01)
    fake.world.price_increases.append(
        {"pending_price_increase_id": 5, "contract_id": box, "old_gpu_costpersec": 0.0002, "new_gpu_costpersec": 0.0003}
    )
    assert provider.price_increases()[0].new_usd_per_h == pytest.approx(1.08)


def test_trailing_slash_of_the_server_does_not_reach_the_wire(stand: Stand) -> None:
    fake, _, clock = stand
    provider = VastProvider(api_key=fake.world.account_key, url=fake.url + "/", clock=clock, sleep=clock.sleep)
    assert provider.url == fake.url
    assert provider.instances() == []


def test_nothing_is_written_to_stderr(stand: Stand, capfd: pytest.CaptureFixture[str]) -> None:
    fake, _, clock = stand
    provider = provider_for(fake, clock)
    provider.search(Wanted(gpu="A100_SXM4"))
    fake.faults.add("list", faults.SERVER_ERROR)
    with pytest.raises(UnavailableError):
        provider.instances()
    assert capfd.readouterr() == ("", "")


def test_the_sdk_and_the_database_have_one_importer_each() -> None:
    root = Path(__file__).parent.parent
    importers: dict[str, list[str]] = {"vastai": [], "sqlite3": []}
    for package in ("tui", "remote", "estimator", "runner"):
        for path in (root / package).rglob("*.py"):
            for name, found in importers.items():
                if re.search(rf"^\s*(import|from) {name}\b", path.read_text(), re.MULTILINE):
                    found.append(path.relative_to(root).as_posix())
    assert importers == {"vastai": ["remote/vast.py"], "sqlite3": ["remote/journal.py"]}


# -- whatever the provider says -------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8)
    | st.sampled_from([10**400, -(10**400), 2**63, "1e999", "\ud800", "\x1b]0;title\x07", "NaN", "12.5", "-1", "0x1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def documents(key: str, names: list[str]) -> st.SearchStrategy[object]:
    """Answers that are nearly right: the key that is read, with rows of the fields that are read, and anything else."""
    row = st.dictionaries(st.sampled_from(names), ANYTHING, max_size=10)
    return ANYTHING | st.fixed_dictionaries(
        {key: st.lists(row | ANYTHING, max_size=3) | ANYTHING},
        optional={name: ANYTHING for name in ("success", "next_token", "error", "msg", "detail") if name != key},
    )


ROW = [
    "id", "label", "actual_status", "intended_status", "cur_state", "next_state", "status_msg", "is_bid", "machine_id",
    "host_id", "num_gpus", "gpu_name", "gpu_ram", "gpu_util", "disk_space", "inet_up_cost", "ssh_host", "ssh_port",
    "public_ipaddr", "ports", "start_date", "end_date", "dph_base", "dph_total", "storage_total_cost", "min_bid",
]  # fmt: skip
OFFER = [
    "id", "machine_id", "gpu_name", "num_gpus", "gpu_ram", "dph_base", "dph_total", "storage_cost", "disk_space",
    "reliability2", "duration", "cuda_max_good", "verification", "verified", "geolocation", "rentable", "min_bid",
]  # fmt: skip
CHARGE = ["start", "end", "source", "amount", "items", "metadata", "type"]
INCREASE = ["pending_price_increase_id", "contract_id", "old_gpu_costpersec", "new_gpu_costpersec", "contract_end_date"]
ASKED = {
    "list": ("instances", ROW, lambda p: p.instances()),
    "search": ("offers", OFFER, lambda p: [p.search(Wanted()), p.offer(SEED, disk_gb=60)]),
    "charges": ("results", CHARGE, lambda p: p.charges(0, 1)),
    "increases": ("pending_price_increases", INCREASE, lambda p: p.price_increases()),
    "user": ("credit", ["credit"], lambda p: p.account()),
    "create": ("new_contract", ["id"], lambda p: p.create(order())),
    "destroy": ("success", ["id"], lambda p: p.destroy(1)),
    "start": ("success", ["id"], lambda p: p.start(1)),
    "bid": ("success", ["id"], lambda p: p.bid(1, 0.5)),
    "attach": ("success", ["id"], lambda p: p.attach_key(1, "ssh-ed25519 A")),
    "logs": ("result_url", ["id"], lambda p: p.logs(1)),
}


@pytest.fixture(scope="module")
def wall() -> Iterator[tuple[FakeVast, VastProvider]]:
    with rented_world() as (fake, provider, _):
        yield fake, provider


@pytest.mark.parametrize("operation", ASKED)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_f11_whatever_the_provider_says_is_a_value_or_an_error_of_ours_that_can_be_printed(
    wall: tuple[FakeVast, VastProvider], operation: str, data: st.DataObject
) -> None:
    fake, provider = wall
    key, names, ask = ASKED[operation]
    document = data.draw(documents(key, names))
    status = data.draw(st.sampled_from([200, 200, 200, 201, 400, 401, 403, 404, 409, 410, 418, 429, 500]))
    fake.faults.clear()
    fake.faults.add(operation, faults.json_fault("anything", status, document), times=9)
    try:
        said = repr(ask(provider))
    except TunewatchError as error:
        said = f"{error.message} {error.hint}"
    said.encode("utf-8")
    assert "\x1b" not in said


def test_f11_pages_that_go_round_in_a_ring_end(stand: Stand) -> None:
    fake, provider, _ = stand
    ring = [faults.json_fault(token, 200, {"success": True, "instances": [], "next_token": token}) for token in "abab"]
    fake.faults.add("list", *ring)
    with pytest.raises(UnavailableError, match="repeats a page"):
        provider.instances()
    bill = [faults.json_fault(token, 200, {"success": True, "results": [], "next_token": token}) for token in "abab"]
    fake.faults.add("charges", *bill)
    assert provider.charges(0, 1) == []


def test_f11_a_page_of_a_gate_before_the_provider_is_no_word_about_the_key(stand: Stand) -> None:
    fake, provider, _ = stand
    fake.faults.add("list", faults.Fault("403 page", 403, faults.HTML, "text/html"))
    with pytest.raises(UnavailableError):
        provider.instances()
    fake.faults.add("list", faults.json_fault("403", 403, {"msg": "Missing authentication"}))
    with pytest.raises(AuthError):
        provider.instances()
