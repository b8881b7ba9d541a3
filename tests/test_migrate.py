"""A live run moves: never two trainers, never an unknown box, the old one destroyed only after the new has trained."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from remote import migrate_end
from remote.destroy import RETRIES_S
from remote.journal import Journal
from remote.known import find_run
from remote.migrate import abort_migration, account, last_migration, migrate, open_migration, resume_migration
from remote.migrate_plan import plan_move, refuse_if_it_does_not_pay
from remote.migrate_switch import RunOverError
from runner.errors import NotFoundError, RefusedError, UnconfirmedError
from tests.fake_vast import FakeVast, faults
from tests.support.migration import RUN, At, Moving, a_run, move_with, offer_of
from tests.support.rented import Laptop
from tui.cli import main

pytestmark = pytest.mark.usefixtures("quiet")


def deed_data(moving: Moving) -> dict[str, object]:
    journal = Journal(moving.laptop.home)
    try:
        return account(last_migration(journal, RUN))
    finally:
        journal.close()


@pytest.mark.slow
def test_a_run_moves_and_its_curve_goes_on_as_if_nothing_had_happened(world: FakeVast, tmp_path: Path) -> None:
    """Log, metrics and run id are carried along; the old supervisor, started again, is fenced."""
    with a_run(world, tmp_path) as moving:
        container = moving.old.container
        assert container is not None
        old_dir = container.home / "tunewatch/runs" / RUN
        run_id = (old_dir / "log.txt").read_text().splitlines()[0]
        codes: list[int] = []

        def zombie() -> None:
            desk = moving.laptop.desk()
            (row,) = [r for r in desk.listing() if r.id == moving.old.id]
            host = moving.laptop.open_pair(row, row.ssh[0])
            codes.append(host.run(f"sh {shlex.quote(str(old_dir))}/start.sh >/dev/null 2>&1", timeout=120).rc)
            host.close()

        asked = moving.request().launch
        asked = replace(asked, wishes=replace(asked.wishes, idle_s=1800.0))
        result = move_with(moving, At("M10 done", zombie), launch=asked)
        assert result.state == "running"  # type: ignore[attr-defined]
        assert codes == [12]
        (new,) = moving.made()
        assert moving.old.destroyed is not None
        moving.wait_for_step(1, beyond=10)
        moving.check_curve()
        moving.check_journal()
        steps = [step for step, _ in moving.steps()]
        assert steps == sorted(steps), "no step was lost and none was done twice"
        assert new.container is not None
        new_dir = new.container.home / "tunewatch/runs" / RUN
        assert (new_dir / "log.txt").read_text().splitlines()[0] == run_id
        events = [json.loads(line) for line in (new_dir / "metrics.jsonl").read_text().splitlines()]
        trained = [event["step"] for event in events if event["event"] == "train"]
        assert trained == list(range(1, len(trained) + 1)), "one unbroken curve in one file"
        assert find_run(RUN, moving.laptop.home).instance_id == new.id
        said = deed_data(moving)
        assert said["lost_steps"] == 0
        assert set(said["pause_parts"]) == {"save", "delta", "load"}  # type: ignore[call-overload]
        assert said["pause_s"] == pytest.approx(sum(said["pause_parts"].values()), abs=0.5)  # type: ignore[attr-defined]
        guard = json.loads((new_dir / "guard.json").read_text())
        assert (guard["budget_usd"], guard["idle_s"]) == (2.0, 1800.0)
        assert 0 < guard["deadline_s"] < 3700, "the run's own deadline, and not a new one"
        assert len((new_dir / "set-ups").read_text().splitlines()) == 1, "set up once, while the old one trained"
        assert not (new_dir / "guard.release").exists()


@pytest.mark.slow
def test_a_move_that_pays_is_carried_out_and_saves_what_was_forecast(world: FakeVast, tmp_path: Path) -> None:
    world.world.offers[offer_of(world)]["dph_base"] = 1.20
    # steps that take long beside what a busy machine adds to one
    with a_run(world, tmp_path, steps=1_000_000, step_s=0.3, save_every=5) as moving:
        world.world.offers[moving.offer]["dph_base"] = 0.40
        proposal = plan_move(moving.laptop.desk(), RUN, moving.offer, moving.laptop.open_pair)
        decision = proposal.decision
        assert decision is not None
        assert decision.pays
        assert decision.saves_usd is not None
        refuse_if_it_does_not_pay(proposal)
        request = replace(proposal.request, confirm_steps=5)
        assert migrate(moving.laptop.desk(), request, moving.laptop.open_pair, {}).ok
        low, _, high = decision.saves_usd
        assert low < deed_data(moving)["saves_to_horizon_usd"] < high  # type: ignore[operator]
        assert high > decision.stay_usd / 2, "most of two thirds of the price is saved"


@pytest.mark.slow
def test_f13_the_old_box_stays_in_the_books_until_two_listings_are_without_it(
    world: FakeVast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as quick as its listings are here, against a market across the world
    monkeypatch.setattr("remote.destroy.RETRIES_S", tuple(wait / 10 for wait in RETRIES_S))
    with a_run(world, tmp_path) as moving:
        moving.old.lingering_lists = 3
        world.faults.add("destroy", faults.RATE_LIMITED, faults.SERVER_ERROR, faults.NOT_SUCCESS)
        assert moving.migrate().state == "running"
        assert moving.old.destroyed is not None
        moving.check_journal()


@pytest.mark.slow
def test_f13_what_cannot_be_proved_stays_open_and_resume_finishes_it(
    world: FakeVast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import remote.destroy

    with a_run(world, tmp_path) as moving:
        world.faults.add("destroy", faults.SERVER_ERROR, times=1000)
        monkeypatch.setattr(migrate_end, "destroy", _impatient(remote.destroy.destroy))
        with pytest.raises(UnconfirmedError, match="may still bill"):
            moving.migrate()
        assert moving.old.destroyed is None
        desk = moving.laptop.desk()
        record = open_migration(desk.journal, RUN)
        assert record is not None
        with pytest.raises(RefusedError, match="trains on the new box already"):
            abort_migration(desk, record.id, moving.laptop.open_pair, {})
        world.faults.clear()
        assert resume_migration(desk, record.id, moving.laptop.open_pair, {}).state == "running"
        moving.check_journal()
        moving.check_curve()


def _impatient(destroy: Callable[..., str]) -> Callable[..., str]:
    def at_once(*given: object, **more: object) -> str:
        return destroy(*given, **{**more, "for_s": 1.0})

    return at_once


@pytest.mark.slow
def test_a_run_that_ends_by_itself_before_it_is_drained_is_left_where_it_is(world: FakeVast, tmp_path: Path) -> None:
    with a_run(world, tmp_path, steps=400) as moving:
        with pytest.raises(RunOverError, match="ended by itself"):
            move_with(moving, At("M6 done", lambda: moving.wait_for_step(400)))
        assert [box.id for box in moving.made()] in ([moving.old.id], [])
        assert moving.steps()[-1][0] == 400
        moving.check_curve()


def told(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(str(ended.value.code or 0))


@pytest.mark.slow
def test_the_command_refuses_what_does_not_pay_with_its_figures_and_moves_when_forced(
    world: FakeVast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with a_run(world, tmp_path) as moving:
        monkeypatch.setenv("TUNEWATCH_HOME", str(moving.laptop.home))
        monkeypatch.setenv("TUNEWATCH_VAST_URL", world.url)
        monkeypatch.setenv("VAST_API_KEY", world.world.account_key)
        rented = world.count("create")
        words = ["migrate", "20260215-104518", "--to", str(moving.offer), "--json"]
        assert told(words) == 4
        said = capsys.readouterr()
        document = json.loads(said.out)
        assert (document["ok"], document["state"], document["instance_id"]) == (False, "refused", moving.old.id)
        decision = document["migration"]["decision"]
        assert decision["pays"] is False
        assert decision["stay_usd"] < decision["move_usd"]
        assert "Moving does not pay" in said.err
        assert "To the horizon: staying $" in said.err
        assert world.count("create") == rented
        assert told([*words, "--force"]) == 2, "without --yes nobody has agreed"
        monkeypatch.setenv("TUNEWATCH_READ_ONLY", "1")
        assert told([*words, "--force", "--yes"]) == 4
        monkeypatch.delenv("TUNEWATCH_READ_ONLY")
        capsys.readouterr()
        assert told([*words, "--force", "--yes"]) == 0
        document = json.loads(capsys.readouterr().out)
        (new,) = moving.made()
        assert (document["ok"], document["state"], document["run"]) == (True, "running", RUN)
        assert document["instance_id"] == new.id
        assert [step["name"].split()[0] for step in document["steps"]][:2] == ["M1", "M2"]
        assert document["migration"]["decision"]["pays"] is False
        assert document["migration"]["overlap_usd"] > 0
        moving.check_curve()
        moving.check_journal()


def test_resume_and_abort_of_nothing_are_said_in_words(
    world: FakeVast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path))
    monkeypatch.setenv("TUNEWATCH_VAST_URL", world.url)
    monkeypatch.setenv("VAST_API_KEY", world.world.account_key)
    assert told(["migrate", "stage5/x", "--resume"]) == 3
    assert told(["migrate", "stage5/x", "--abort", "--yes"]) == 3
    assert "No migration of 'stage5/x' is unfinished" in capsys.readouterr().err
    assert told(["migrate", "stage5/x"]) == 2
    assert told(["migrate", "stage5/x", "--to", "5", "--resume"]) == 2
    assert told(["migrate", "stage5/x", "--to", "5", "--yes"]) == 3


def test_a_run_that_was_not_launched_by_us_is_not_moved(world: FakeVast, tmp_path: Path) -> None:
    laptop = Laptop(world, tmp_path)
    desk = laptop.desk()
    desk.journal.put_box(77, run="adopted/77", label="", state="running", run_dir="/root/log.txt")
    with pytest.raises(RefusedError, match="not launched by tunewatch"):
        plan_move(desk, "adopted/77", 1, laptop.open_pair)
    with pytest.raises(NotFoundError):
        plan_move(desk, "nobody/knows", 1, laptop.open_pair)
