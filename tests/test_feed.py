"""What a feed says of a target on this machine: any file, any folder, any moment of a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from remote.feed import FeedState, RunFeed
from remote.known import KnownRun, find_run, known_runs, list_runs, note_run
from remote.local import LocalTransport
from remote.stop import stop_run
from remote.tail import FileTail
from remote.transport import FileInfo, NoHostError
from runner.errors import NotFoundError, RefusedError
from runner.metrics import MetricsWriter
from runner.rundir import RunDir, read_status
from tests.support.sshd import Sshd
from tests.support.trainers import SCRIPT

TRAIN = b"{'loss': 1.5, 'grad_norm': 0.5, 'learning_rate': 2e-05, 'epoch': 0.1}\n"


def settled(path: Path, home: Path) -> FeedState:
    feed = RunFeed(str(path), home=home)
    try:
        return feed.settle()
    finally:
        feed.close()


class Counter:
    """A reader that keeps everything it was fed."""

    def __init__(self) -> None:
        self.data = b""

    def feed(self, data: bytes) -> None:
        self.data += data


def test_a_tail_gives_each_byte_once_and_begins_anew_for_another_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = FileTail(path, Counter)
    assert tail.advance()
    path.write_bytes(b"a" * 1000)
    assert tail.advance()
    with path.open("ab") as out:
        out.write(b"b" * 1000)
    tail.advance()
    assert (tail.reader.data, tail.generation) == (b"a" * 1000 + b"b" * 1000, 0)
    path.write_bytes(b"new run")
    tail.advance()
    assert (tail.reader.data, tail.generation) == (b"new run", 1)
    (tmp_path / "other").write_bytes(b"rotated " * 500)
    (tmp_path / "other").replace(path)
    tail.advance()
    assert (tail.reader.data, tail.generation) == (b"rotated " * 500, 2)


def test_f19_a_large_log_is_read_in_slices_and_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote.feed._READ_S", 0.01)
    log = tmp_path / "log.txt"
    frame = b"\r 10%|#         | 100/1000 [00:10<01:30, 10.00it/s]"
    ugly = b"\n" + b"x" * 1_000_000 + b"\n\xff\xfe\x00\n"
    log.write_bytes(TRAIN + frame * 600_000 + ugly + frame.replace(b"100/", b"110/"))
    feed = RunFeed(str(log), home=tmp_path)
    first = feed.tick()
    assert not first.caught_up
    assert first.link.detail.startswith("catching up: ")
    assert 0 < first.behind < log.stat().st_size
    last = feed.settle(60)
    assert last.caught_up
    assert last.history.bytes_read == log.stat().st_size
    assert (last.history.step, last.history.max_steps, len(last.history.train)) == (110, 1000, 1)


def test_a_run_directory_prefers_its_metrics_and_keeps_what_only_the_log_knows(tmp_path: Path) -> None:
    run = RunDir.create("stage5", tmp_path)
    with run.log.open("ab") as out:
        out.write(TRAIN + b'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\nValueError: boom\n')
    with MetricsWriter(run.metrics) as writer:
        writer.write("train", step=10, loss=1.25, grad_norm=1.0, learning_rate=1e-4, epoch=0.1)
        writer.write("eval", step=20, eval_loss=1.125, eval_runtime=2.0, epoch=0.2)
    state = settled(run.path, tmp_path)
    assert state.run_dir
    assert state.history.source == "metrics"
    assert [(p.step, p.loss) for p in state.history.train] == [(10, 1.25)]
    assert state.history.eval_pairs() == [(20, 1.125)]
    assert "boom" in state.history.traceback
    assert state.log_path == run.log


def test_a_tick_without_news_gives_the_very_same_history(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(TRAIN)
    feed = RunFeed(str(log), home=tmp_path)
    assert feed.tick().history is feed.tick().history


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, ["does not exist"]),
        (lambda p: p.mkdir(), ["folder without a log"]),
        (lambda p: (p.mkdir(), (p / "a.log").touch(), (p / "b.log").touch()), ["2 files", "a.log, b.log"]),
    ],
    ids=["missing", "folder without a log", "two candidates"],
)
def test_a_path_without_a_log_is_one_sentence_with_what_to_name(make: object, words: list[str], tmp_path: Path) -> None:
    target = tmp_path / "x"
    make(target)  # type: ignore[operator]
    with pytest.raises(NotFoundError) as told:
        settled(target, tmp_path)
    for word in words:
        assert word in str(told.value)
    assert RunFeed(str(target), home=tmp_path).tick().problem is not None


def test_the_same_sentences_are_said_over_ssh(tmp_path: Path) -> None:
    with Sshd(tmp_path / "box") as box:
        (box.home / "empty").mkdir()
        for path, words in (("empty", "folder without a log"), ("nowhere/log.txt", "does not exist")):
            feed = RunFeed(f"box:{path}", home=tmp_path, connect=lambda _: box.connect(tmp_path))
            with pytest.raises(NotFoundError, match=words):
                feed.settle(5)
            assert feed.tick().link.word == "live"
            (box.home / path).parent.mkdir(exist_ok=True)
            feed.close()
        # what was there, and is not any more, is said as such; what was read of it stays, and it may come back
        (box.home / "gone").mkdir()
        for name, watched in (("gone", "gone"), ("file.log", "file.log")):
            log = box.home / name / "log.txt" if name == "gone" else box.home / name
            log.write_bytes(TRAIN)
            feed = RunFeed(f"box:{watched}", home=tmp_path, connect=lambda _: box.connect(tmp_path))
            feed.settle(60)
            (box.home / name).rename(box.home / "elsewhere")
            state = ticked(feed, lambda s: s.problem is not None)
            assert "It is gone, deleted or moved while it was watched" in state.reason
            assert (state.state, state.link.word, len(state.history.train)) == ("unreachable", "live", 1)
            (box.home / "elsewhere").rename(box.home / name)
            assert len(ticked(feed, lambda s: s.problem is None).history.train) == 1
            feed.close()


def ticked(feed: RunFeed, wanted: Callable[[FeedState], bool]) -> FeedState:
    """Tick until the state is as wanted."""
    until = time.monotonic() + 90
    while not wanted(state := feed.tick()):
        assert time.monotonic() < until, state
        time.sleep(0.05)
    return state


def test_a_path_that_is_not_there_names_what_is_nearest_over_ssh(tmp_path: Path) -> None:
    with Sshd(tmp_path / "box") as box:
        (box.home / "proj" / "runs" / "stage5").mkdir(parents=True)
        (box.home / "proj" / "notes").touch()
        for path, words in (
            ("proj/runs/stage6/log.txt", "proj/runs is there, and holds stage5."),
            (f"{box.home}/proj/rnus", f"{box.home}/proj is there, and holds runs and 1 more."),
            ("elsewhere/log.txt", "~ is there, and holds proj."),
            ("proj/runs/stage5/log.txt", "proj/runs/stage5 is there, and empty."),
        ):
            feed = RunFeed(f"box:{path}", home=tmp_path, connect=lambda _: box.connect(tmp_path))
            with pytest.raises(NotFoundError) as told:
                feed.settle(60)
            assert told.value.hint == words
            feed.close()


def test_a_log_that_appears_later_is_picked_up(tmp_path: Path) -> None:
    feed = RunFeed(str(tmp_path / "later.txt"), home=tmp_path)
    assert feed.tick().problem is not None
    (tmp_path / "later.txt").write_bytes(TRAIN)
    state = feed.tick()
    assert state.problem is None
    assert len(state.history.train) == 1


def test_a_binary_file_is_read_without_a_sound(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(os.urandom(200_000))
    state = settled(tmp_path / "model.bin", tmp_path)
    assert state.history.train == ()
    assert state.problem is None


def test_a_local_run_is_stopped_with_its_checkpoint_and_its_status_is_known(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    run = RunDir.create("mine", tmp_path / "runs")
    command = [sys.executable, "-m", "runner.box.supervise", "--run-dir", str(run.path), "--grace", "5", "--"]
    child = subprocess.Popen(
        [*command, sys.executable, "train.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    feed = RunFeed(str(run.path), home=tmp_path)
    until = time.monotonic() + 120
    while len(feed.tick().history.train) < 3:
        assert time.monotonic() < until
        time.sleep(0.02)
    result = stop_run(LocalTransport(), str(run.path), name="mine")
    assert (result.ok, result.state) == (True, "stopped")
    assert result.steps[-1].detail.endswith("exit status 11")
    assert child.wait(240) == 11
    state = feed.tick()
    assert state.state == "stopped"
    again = stop_run(LocalTransport(), str(run.path), name="mine")
    assert again.state == "stopped"


def test_what_was_not_started_here_is_not_stopped_here(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(TRAIN)
    with pytest.raises(RefusedError, match=r"status\.json"):
        stop_run(LocalTransport(), str(tmp_path), name="x")
    with pytest.raises(NotFoundError):
        stop_run(LocalTransport(), str(tmp_path / "nowhere"), name="x")


def test_stop_command_needs_the_name_typed_back_or_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.errors import UsageError
    from tui.commands.stop import command

    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="typed back"):
        CliRunner().invoke(command, [str(tmp_path)], standalone_mode=False, catch_exceptions=False)
    monkeypatch.setenv("TUNEWATCH_READ_ONLY", "1")
    with pytest.raises(RefusedError, match="read-only"):
        CliRunner().invoke(command, [str(tmp_path), "--yes"], standalone_mode=False, catch_exceptions=False)


def test_known_runs_are_named_found_and_suggested(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    run = RunDir.create("stage5", tmp_path / "runs", now=1_700_000_000)
    note_run(KnownRun("stage3/20260101-000000", "box:/root/tunewatch/runs/stage3/20260101-000000", "stage3"), home)
    names = {r.name for r in known_runs(home, tmp_path / "runs")}
    local = f"stage5/{run.path.name}"
    assert names == {"stage3/20260101-000000", local}
    assert find_run(local, home, tmp_path / "runs").path == str(run.path)
    assert find_run("20260101-000000", home, tmp_path / "runs").host == "box"
    with pytest.raises(NotFoundError, match="neither") as told:
        find_run("stage3/20260101-000001", home, tmp_path / "runs")
    assert "Did you mean stage3/20260101-000000" in told.value.hint


def test_runs_json_has_the_promised_fields_and_the_state_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tui.commands.runs import command

    home = tmp_path / "home"
    monkeypatch.setenv("TUNEWATCH_HOME", str(home))
    run = RunDir.create("stage5", tmp_path / "runs")
    with MetricsWriter(run.metrics) as writer:
        writer.write("train", step=10, loss=1.25)
        writer.write("end", step=10, reason="finished", rc=0, runtime_s=3.0)
    with Sshd(tmp_path / "box") as box:
        (box.home / "log.txt").write_bytes(TRAIN)
        feed = RunFeed("box:log.txt", home=home, connect=lambda _: box.connect(home))
        feed.settle()
        feed.close()
    result = CliRunner().invoke(command, ["--json", "--root", str(tmp_path / "runs")], standalone_mode=False)
    rows = {row["target"]: row for row in json.loads(result.stdout)}
    fields = {"name", "target", "recipe", "state", "step", "max_steps", "instance_id", "mirror"}
    assert all(fields <= set(row) for row in rows.values())
    assert rows[str(run.path)]["state"] == "finished"
    assert rows[str(run.path)]["step"] == 10
    watched = rows["box:log.txt"]
    assert (watched["state"], watched["seen_state"]) == ("unreachable", "running")
    assert rows[str(run.path)]["seen_state"] is None
    said = CliRunner().invoke(command, ["--root", str(tmp_path / "runs")], standalone_mode=False).output
    assert re.search(r"box:log\.txt +running \S+ ago ", said)
    assert Path(watched["mirror"]).read_bytes() == TRAIN
    assert list_runs(home, tmp_path / "none")[0]["target"] == "box:log.txt"


def test_a_damaged_registry_is_not_the_end_of_the_world(tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text('{"not": "a list"')
    assert known_runs(tmp_path, tmp_path / "none") == []
    note_run(KnownRun("a/b", "box:/x"), tmp_path)
    assert [r.name for r in known_runs(tmp_path, tmp_path / "none")] == ["a/b"]


def test_many_hosts_at_once_a_dead_one_slows_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread per host: while one feed waits for a host that says nothing, the others go on."""
    import threading

    from remote.ssh import SshTransport
    from remote.ssh_config import Login
    from tests.support.proxy import FaultProxy

    # the dead one is waited for until the end of the test, however long a busy machine takes for the others
    monkeypatch.setattr("remote.ssh._FIRST_CONNECT_S", 280.0)
    with Sshd(tmp_path / "box") as box, FaultProxy((box.host, box.port)) as dead:
        dead.mode = "blackhole"
        (box.home / "log.txt").write_bytes(TRAIN)
        silent = SshTransport(Login("dead", "127.0.0.1", dead.port, "me", (box.key,)), home=tmp_path)
        blocked = RunFeed("dead:log.txt", home=tmp_path, connect=lambda _: silent)
        waiting = threading.Thread(target=blocked.tick, daemon=True)
        waiting.start()
        ticks = 0
        feed = RunFeed("box:log.txt", home=tmp_path, connect=lambda _: box.connect(tmp_path))
        while waiting.is_alive() and ticks < 20:
            state = feed.tick()
            ticks += state.link.word == "live"
        assert ticks == 20
        assert waiting.is_alive()
        blocked.close()
        feed.close()
        waiting.join(120)
        assert not waiting.is_alive()


@pytest.mark.parametrize("over_ssh", [False, True], ids=["here", "over ssh"])
def test_a_supervisor_that_died_before_it_had_a_trainer_is_not_starting_for_ever(
    over_ssh: bool, tmp_path: Path
) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with Sshd(tmp_path / "box") as box:
        run = box.home / "run"
        run.mkdir()
        (run / "log.txt").write_bytes(b"# tunewatch run 11111111-1111-1111-1111-111111111111\n")
        for supervisor, wanted in ((os.getpid(), "starting"), (2**22 - 1, "crashed")):
            status = {"state": "starting", "pid": None, "supervisor_pid": supervisor, "boot_id": boot, "seq": 1}
            (run / "status.json").write_text(json.dumps(status))
            target = "box:run" if over_ssh else str(run)
            feed = RunFeed(target, home=tmp_path, connect=lambda _: box.connect(tmp_path))
            until = time.monotonic() + 120
            while (state := feed.tick()).state != wanted:
                assert time.monotonic() < until, state.state
            assert wanted == "starting" or "supervisor" in state.reason
            feed.close()


def test_status_of_a_run_whose_processes_are_gone_is_lost_not_running(tmp_path: Path) -> None:
    run = RunDir.create("stage5", tmp_path)
    run.status.write_text(
        json.dumps({"state": "running", "pid": 2**22 - 1, "start_ticks": 1, "boot_id": "x", "seq": 9})
    )
    with run.log.open("ab") as out:
        out.write(TRAIN)
    state = settled(run.path, tmp_path)
    assert read_status(run.status) is not None
    assert state.state == "crashed"
    assert "gone" in state.reason


@pytest.mark.parametrize("target", ["vast:7:log.txt", "vast:7:."])
def test_an_instance_that_the_provider_does_not_know_is_told_as_such_and_not_as_a_crash(
    tmp_path: Path, target: str
) -> None:
    class Gone(LocalTransport):
        gone = False

        def stat(self, path: str, *, timeout: float = 10.0) -> FileInfo:
            if self.gone:
                raise NoHostError("There is no instance 7 on this account.")
            return super().stat(path, timeout=timeout)

    (tmp_path / "log.txt").write_bytes(TRAIN)
    host = Gone("vast:7", home=tmp_path)
    feed = RunFeed(target, home=tmp_path / "state", connect=lambda _: host)
    assert len(feed.settle().history.train) == 1
    host.gone = True
    state = feed.tick()
    assert state.state == "unreachable"
    assert "no instance 7" in state.reason
    assert len(state.history.train) == 1
    host.gone = False
    deadline = time.monotonic() + 120
    while feed.tick().problem is not None:
        assert time.monotonic() < deadline


def test_the_run_in_front_is_glanced_at_and_those_behind_it_are_read_now_and_then(tmp_path: Path) -> None:
    """A new number is on the screen soon after it was written; a run nobody looks at costs a tenth."""
    from tui.poller import Watch

    log = tmp_path / "log.txt"
    log.write_bytes(TRAIN)
    feed = RunFeed(str(log), home=tmp_path)
    feed.tick()
    assert not feed.stirred()
    with log.open("ab") as out:
        out.write(TRAIN)
    assert feed.stirred()
    feed.tick()
    assert not feed.stirred()
    watch = Watch(lambda: feed, None, looked=100.0, _feed=feed)  # type: ignore[arg-type]
    assert watch.due(101.0, background=10.0)
    watch.front = False
    assert not watch.due(101.0, background=10.0)
    assert watch.due(110.0, background=10.0)
    watch.front = True
    assert watch.due(101.0, background=10.0)


def test_what_stirs_on_a_host_is_noticed_and_a_dead_link_is_left_to_the_tick(tmp_path: Path) -> None:
    with Sshd(tmp_path / "box") as box:
        log = box.home / "log.txt"
        log.write_bytes(TRAIN)
        feed = RunFeed("box:log.txt", home=tmp_path, connect=lambda _: box.connect(tmp_path))
        assert not feed.stirred()
        feed.settle()
        assert not feed.stirred()
        with log.open("ab") as out:
            out.write(TRAIN)
        assert feed.stirred()
        feed.tick()
        assert not feed.stirred()
        box.stop()
        assert feed.stirred()
        assert feed.tick().link.word != "live"
        assert not feed.stirred()
        feed.close()
