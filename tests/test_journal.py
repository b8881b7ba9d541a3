"""The journal: nothing that costs money is asked for before it is on the disk, and nothing written is ever changed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from remote.journal import Journal, MeterRow
from remote.lock import FileLock, HeldError
from runner.errors import NotFoundError, RefusedError


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


def test_a_deed_remembers_what_its_rows_said(journal: Journal) -> None:
    with journal.begin("launch", "stage5/1", offer=7) as deed:
        deed.intent("create", label="tunewatch:a:b:c")
        deed.done("create", instance=31, instance_id=31, box={"label": "tunewatch:a:b:c", "state": "booting"})
        assert deed.data["label"] == "tunewatch:a:b:c"
        deed.close("running", instance=31, box={"state": "running"})
    assert [(r.step, r.phase, r.instance) for r in journal.rows(deed.id)] == [
        ("begin", "open", None),
        ("create", "intent", None),
        ("create", "done", 31),
        ("end", "close", 31),
    ]
    assert journal.open_deeds() == []
    box = journal.box(31)
    assert box is not None
    assert (box.run, box.state) == ("stage5/1", "running")


def test_rows_cannot_be_changed_or_deleted_even_by_another_program(journal: Journal) -> None:
    journal.note("something")
    other = sqlite3.connect(journal.home / "journal.db")
    for statement in ("UPDATE events SET step='x'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            other.execute(statement)


def test_a_second_launch_of_a_run_is_refused_while_one_is_open(journal: Journal) -> None:
    first = journal.begin("launch", "stage5/1")
    with pytest.raises(RefusedError, match="not finished"):
        journal.begin("launch", "stage5/1")
    with pytest.raises(RefusedError, match="not finished"):
        journal.begin("migrate", "stage5/1", epoch=1)
    first.close("failed")
    journal.begin("migrate", "stage5/1", epoch=1).close("done")


def test_a_migration_brings_its_own_steps_and_epoch(journal: Journal) -> None:
    with journal.begin("migrate", "stage5/1", epoch=3) as deed:
        for number in range(13):
            deed.intent(f"M{number}")
            deed.done(f"M{number}")
    assert {row.epoch for row in journal.rows(deed.id)} == {3}
    assert journal.deed(deed.id).data["step"] == "M12"


def test_a_deed_is_in_one_pair_of_hands(journal: Journal) -> None:
    deed = journal.begin("launch", "a/1")
    assert journal.under_way(deed.id)
    with pytest.raises(HeldError, match=str(os.getpid())):
        journal.resume(deed.id)
    with deed:
        pass
    assert not journal.under_way(deed.id)
    with journal.resume(deed.id) as again:
        assert again.run == "a/1"


def test_a_killed_process_leaves_its_deed_open_whole_and_free(tmp_path: Path) -> None:
    code = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from remote.journal import Journal
        deed = Journal(Path({str(tmp_path)!r})).begin("launch", "a/1")
        deed.intent("create", label="tunewatch:x:y:z")
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    journal = Journal(tmp_path)
    (record,) = journal.open_deeds()
    assert (record.data["label"], record.data["step"], record.data["phase"]) == ("tunewatch:x:y:z", "create", "intent")
    assert not journal.under_way(record.id)


def test_f21_of_two_control_rooms_on_one_home_the_second_only_looks(tmp_path: Path) -> None:
    """Two processes; the lock ends with its holder, however it ended."""
    code = "import sys, time; from pathlib import Path; from remote.journal import Journal\n"
    code += f"lock = Journal(Path({str(tmp_path)!r})).session(); print('held', flush=True); sys.stdin.read()"
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline().strip() == "held"
        second = Journal(tmp_path)
        with pytest.raises(HeldError, match=str(first.pid)):
            second.session()
        assert second.boxes() == []
    finally:
        first.kill()
        first.wait()
    with Journal(tmp_path).session() as lock:
        assert lock.held


def test_two_processes_write_one_journal_without_losing_a_row(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    code = (
        f"from pathlib import Path; from remote.journal import Journal; j = Journal(Path({str(tmp_path)!r}))\n"
        "[j.note('n', instance=i) for i in range(50)]"
    )
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert len(Journal(tmp_path).rows()) == 150


def test_no_secret_is_ever_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAST_API_KEY", "account-key-1234567890")
    journal = Journal(tmp_path)
    secrets = ["account-key-1234567890", "hf_AbCdEfGhIjKlMn", "Bearer abcdefghijkl"]
    with journal.begin("launch", "a/1", env={"HF_TOKEN": secrets[1]}) as deed:
        deed.failed("create", why=f"refused {secrets[0]} {secrets[2]}", nested=[{"x": secrets[1]}])
    journal.exclude(1, f"log said {secrets[0]}")
    journal.put_box(5, label="x", note=secrets[1])
    journal.close()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            for secret in ("account-key-1234567890", "hf_AbCdEfGhIjKlMn", "abcdefghijkl"):
                assert secret.encode() not in raw, path
    assert (tmp_path / "journal.db").stat().st_mode & 0o077 == 0


def test_excluded_machines_come_back_after_a_week(tmp_path: Path) -> None:
    now = 1_000_000.0
    journal = Journal(tmp_path, clock=lambda: now)
    journal.exclude(42, "no boot")
    assert journal.excluded() == {42: "no boot"}
    now += 8 * 86400
    assert journal.excluded() == {}


def test_meter_stretches_that_change_nothing_are_one(journal: Journal) -> None:
    journal.add_meter(MeterRow(1, 0.0, 10.0, "running", 0.7, 0.01))
    journal.add_meter(MeterRow(1, 10.0, 20.0, "running", 0.7, 0.01))
    journal.add_meter(MeterRow(1, 20.0, 30.0, "exited", 0.7, 0.01))
    assert journal.meter(1) == [
        MeterRow(1, 0.0, 20.0, "running", 0.7, 0.01),
        MeterRow(1, 20.0, 30.0, "exited", 0.7, 0.01),
    ]


def test_the_newest_living_box_of_a_run_is_its_box(journal: Journal) -> None:
    journal.put_box(1, run="a/1", state="destroyed")
    journal.put_box(2, run="a/1", state="running")
    journal.put_box(3, run="b/1", state="running")
    box = journal.box_of_run("a/1")
    assert box is not None
    assert box.instance == 2
    assert journal.box_of_run("c/1") is None
    with pytest.raises(NotFoundError):
        journal.deed("nothing")


def test_the_laptop_keeps_its_name(tmp_path: Path) -> None:
    name = Journal(tmp_path).laptop()
    assert len(name) == 6
    assert Journal(tmp_path).laptop() == name


def test_a_lock_file_left_behind_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    path.write_text("99999\n")
    assert FileLock(path).free()
    with FileLock(path).acquire("it"):
        assert not FileLock(path).free()
