"""The renting of a move, with boxes that let nobody in: whatever the provider answers, no second box is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from remote.access import own_key
from remote.migrate import abort_migration, migrate, open_migration, resume_migration
from remote.migrate_plan import plan_move, refuse_fewer_gpus
from remote.move import Request
from remote.provider import Order as Rental
from runner.errors import ProviderError, RefusedError, TunewatchError, UnconfirmedError
from tests.fake_vast import faults
from tests.fake_vast.market import offer_row
from tests.support.migration import RUN
from tests.support.rented import Laptop, unreachable
from tests.support.vast import rented_world


@pytest.fixture
def paper(tmp_path: Path) -> Iterator[tuple[Laptop, Request]]:
    """A run on a box without processes, and the request to move it: as far as the new box's SSH all is real."""
    offers = [offer_row(number, machine_id=number) for number in range(1, 40)]
    with rented_world(offers=offers) as (fake, provider, clock):
        laptop = Laptop(fake, tmp_path, provider=provider, real=False)
        old = provider.create(Rental(39, "tunewatch:elsewhere:mine:1", "image:1", 60.0, ""))
        clock.sleep(60)
        desk = laptop.desk()
        label = f"tunewatch:{desk.journal.laptop()}:{RUN}:1"
        provider.label(old, label)
        desk.journal.put_box(old, run=RUN, label=label, state="running", run_dir="/root/tunewatch/runs/" + RUN)
        own_key(laptop.home)
        plan = laptop.request(1, name=RUN)
        yield laptop, Request(RUN, old, "/root/tunewatch/runs/" + RUN, label, plan, 1)


def fails(laptop: Laptop, request: Request) -> TunewatchError:
    with pytest.raises(TunewatchError) as caught:
        migrate(laptop.desk(), request, laptop.open_pair, {})
    return caught.value


@pytest.mark.parametrize("fault", faults.WITH_EFFECT, ids=lambda fault: fault.name)
def test_f12_a_rental_whose_answer_was_lost_is_found_and_never_sent_again(
    paper: tuple[Laptop, Request], fault: faults.Fault
) -> None:
    laptop, request = paper
    laptop.fake.faults.add("create", fault)
    laptop.fake.world.hide_new = 3
    error = fails(laptop, request)
    assert "does not answer" in error.message, "it went on with the box that was found, up to the SSH that is missing"
    assert laptop.fake.count("create") == 2
    assert [box.id for box in laptop.fake.world.living()] == [request.old_id]
    laptop.check_agreement()


@pytest.mark.parametrize("fault", [f for f in faults.WITHOUT_EFFECT if f.name != "429"], ids=lambda fault: fault.name)
def test_f12_a_rental_that_never_happened_leaves_the_old_box_alone(
    paper: tuple[Laptop, Request], fault: faults.Fault
) -> None:
    laptop, request = paper
    laptop.fake.faults.add("create", fault)
    error = fails(laptop, request)
    if isinstance(error, UnconfirmedError):
        laptop.fake.world.clock.sleep(700)  # type: ignore[attr-defined]
        desk = laptop.desk()
        record = open_migration(desk.journal, RUN)
        assert record is not None
        with pytest.raises(ProviderError, match="left nothing behind"):
            resume_migration(desk, record.id, laptop.open_pair, {})
    assert [box.id for box in laptop.fake.world.living()] == [request.old_id]
    laptop.check_agreement()


@pytest.mark.parametrize("operation", ["search", "list", "attach", "destroy", "user"])
def test_f11_no_odd_answer_leaves_a_second_box(paper: tuple[Laptop, Request], operation: str) -> None:
    laptop, request = paper
    for fault in (*faults.WITHOUT_EFFECT, *faults.WITH_EFFECT):
        laptop.fake.faults.add(operation, fault, times=2)
        fails(laptop, request)
        laptop.fake.faults.clear()
        desk = laptop.desk()
        record = open_migration(desk.journal, RUN)
        if record is not None:
            assert abort_migration(desk, record.id, laptop.open_pair, {}).ok
        assert [box.id for box in laptop.fake.world.living()] == [request.old_id], fault.name
        laptop.check_agreement()
        for row in laptop.fake.world.offers.values():
            row["rentable"] = True


def test_a_plan_older_than_ten_minutes_is_dropped(paper: tuple[Laptop, Request]) -> None:
    laptop, request = paper
    desk = laptop.desk()
    with desk.journal.begin("migrate", RUN, epoch=1, request=request.to_json(), old_instance_id=request.old_id) as deed:
        deed_id = deed.id
    laptop.fake.world.clock.sleep(601)  # type: ignore[attr-defined]
    with pytest.raises(RefusedError, match="older than ten minutes"):
        resume_migration(desk, deed_id, laptop.open_pair, {})
    assert laptop.fake.count("create") == 1
    laptop.check_agreement()


def test_ctrl_c_while_the_new_box_boots_undoes_the_rental_and_nothing_else(paper: tuple[Laptop, Request]) -> None:
    laptop, request = paper
    desk = laptop.desk()
    sleep = desk.sleep

    def interrupted(seconds: float) -> None:
        desk.sleep = sleep
        raise KeyboardInterrupt

    desk.sleep = interrupted
    with pytest.raises(KeyboardInterrupt):
        migrate(desk, request, laptop.open_pair, {})
    assert [box.id for box in laptop.fake.world.living()] == [request.old_id]
    laptop.check_agreement()


def test_a_second_migration_of_the_same_run_is_refused(paper: tuple[Laptop, Request]) -> None:
    laptop, request = paper
    with laptop.desk().journal.begin("migrate", RUN, request=request.to_json()):
        assert "not finished" in fails(laptop, request).message
        with pytest.raises(RefusedError, match=f"A migration of {RUN} is unfinished"):
            plan_move(laptop.desk(), RUN, request.launch.plan.offer_id, unreachable)
    assert laptop.fake.count("create") == 1


def test_a_run_of_several_processes_is_not_moved_to_fewer_gpus(paper: tuple[Laptop, Request]) -> None:
    laptop, request = paper
    offer = laptop.desk().provider.offer(request.launch.plan.offer_id, disk_gb=60.0)
    refuse_fewer_gpus(request.launch, offer)
    several = replace(request.launch, order=replace(request.launch.order, nproc=offer.num_gpus + 1))
    with pytest.raises(RefusedError, match=rf"{offer.num_gpus + 1} processes, one per GPU"):
        refuse_fewer_gpus(several, offer)
