"""A fault of tunewatch itself ends with a sentence: no traceback on the screen, none of its values anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.terminal import Terminal
from tests.support.tui import app_with, frozen, snapshot
from tui.leaving import KEPT, fault, goodbye

SECRET = "hf_abcdefghijklmnopqrstuvwxyz"
FAULTY = """
import sys
from tui import app, cli

def broken(self, *_):
    token = "hf_abcdefghijklmnopqrstuvwxyz"
    raise RuntimeError(f"no luck with {token}")

if sys.argv[1] == "screen":
    app.TunewatchApp.action_next_theme = broken
    cli.main([])
else:
    from remote import known
    known.list_runs = broken
    cli.main(["runs"])
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path))
    return tmp_path


def test_the_screen_goes_with_a_sentence_and_the_report_lies_in_a_file(tmp_path: Path) -> None:
    program = tmp_path / "faulty.py"
    program.write_text(FAULTY)
    home = tmp_path / "home"
    words = ["sh", "-c", f"{sys.executable} {program} screen; echo left with $?"]
    with Terminal(words, env={"TUNEWATCH_HOME": str(home), "PYTHONPATH": str(Path(__file__).parent.parent)}) as term:
        term.until("Launch")
        term.keys("T")
        seen = term.until("left with")
    assert "left with 70" in seen
    assert "A fault in tunewatch ended it" in seen
    assert "Traceback" not in seen
    assert "go on as they were" in seen
    [report] = (home / "faults").iterdir()
    assert "in broken" in report.read_text()
    assert SECRET not in seen + report.read_text()


def test_a_command_does_the_same(tmp_path: Path) -> None:
    program = tmp_path / "faulty.py"
    program.write_text(FAULTY)
    done = subprocess.run(
        [sys.executable, str(program), "command"], capture_output=True, text=True, timeout=120, check=False,
        env={"TUNEWATCH_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin",
             "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (70, "")
    assert done.stderr.startswith("tunewatch: A fault in tunewatch ended it (RuntimeError: no luck with [redacted]).")
    assert len(done.stderr.splitlines()) == 2


def test_reports_are_few_and_a_disk_that_refuses_is_said(home: Path) -> None:
    for number in range(KEPT + 5):
        fault(ValueError(str(number)))
    kept = sorted(path.read_text() for path in (home / "faults").iterdir())
    assert len(kept) == KEPT
    assert any("ValueError: 24" in text for text in kept)
    for path in (home / "faults").iterdir():
        path.unlink()
    (home / "faults").rmdir()
    (home / "faults").write_text("")
    assert "could not be written" in fault(ValueError("x"))


async def test_a_fault_is_still_seen_by_who_drives_the_screen() -> None:
    app = app_with(frozen(snapshot()))
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - it is raised as the block is left
        async with app.run_test() as pilot:
            app.call_later(lambda: 1 // 0)
            await pilot.pause()


def test_who_leaves_is_told_of_the_runs_that_go_on() -> None:
    assert goodbye([]) is None
    assert "tunewatch watch" in str(goodbye([snapshot()]))
