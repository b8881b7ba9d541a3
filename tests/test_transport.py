"""One suite for everything that calls itself a transport: this machine, SSH with SFTP, SSH with a shell alone, and SSH
with a login shell that prints banners."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.local import LocalTransport
from remote.transport import LinkError, Transport
from runner.errors import NotFoundError, RefusedError
from tests.support.sshd import SESSION, Sshd

CHATTY = SESSION.replace('cd "$HOME"', 'echo "Welcome to the machine; rc=0"; echo "last login: never" >&2; cd "$HOME"')


@pytest.fixture(scope="module", params=["local", "ssh", "ssh without sftp", "ssh with a chatty shell"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Transport, Path]]:
    folder = tmp_path_factory.mktemp("box")
    if request.param == "local":
        (folder / "home").mkdir()
        yield LocalTransport(home=folder / "home"), folder / "home"
        return
    box = Sshd(
        folder,
        sftp=request.param != "ssh without sftp",
        session=CHATTY if "chatty" in request.param else SESSION,
    )
    with box, box.connect(folder / "state") as transport:
        yield transport, box.home


def test_a_command_gives_back_both_streams_and_its_own_status(pair: tuple[Transport, Path]) -> None:
    host, home = pair
    done = host.run("echo out; echo err >&2; pwd; exit 3")
    assert (done.rc, done.stdout, done.stderr) == (3, f"out\n{home}\n".encode(), b"err\n")
    assert host.run("no-such-program-xyz").rc == 127
    assert host.run("sh -c 'kill -9 $$'").rc == 137


def test_bytes_are_bytes_both_ways(pair: tuple[Transport, Path]) -> None:
    host, _ = pair
    data = bytes(range(256)) * 4096
    assert host.run("cat", stdin=data).stdout == data


def test_megabytes_on_both_streams_do_not_lock_up(pair: tuple[Transport, Path]) -> None:
    host, _ = pair
    done = host.run("head -c 6000000 /dev/zero; head -c 6000000 /dev/zero >&2; exit 5", timeout=240)
    assert (done.rc, len(done.stdout), len(done.stderr)) == (5, 6_000_000, 6_000_000)


def test_a_command_is_fed_piece_by_piece(pair: tuple[Transport, Path]) -> None:
    host, home = pair
    data = os.urandom(5_000_000)
    feed = host.feed("cat > fed; wc -c < fed; echo done >&2; exit 4")
    try:
        assert all(feed.write(data[at : at + 700_001]) for at in range(0, len(data), 700_001))
        done = feed.finish(60)
    finally:
        feed.close()
    assert (done.rc, done.text, done.complaint) == (4, "5000000", "done")
    assert (home / "fed").read_bytes() == data
    feed.close()


def test_a_command_that_takes_no_more_says_so_and_how_it_ended(pair: tuple[Transport, Path]) -> None:
    host, _ = pair
    feed = host.feed("head -c 10; echo full >&2; exit 3")
    try:
        for _ in range(200):
            if not feed.write(b"x" * (1 << 20)):
                break
        else:
            raise AssertionError("it took 200 MB")
        done = feed.finish(60)
    finally:
        feed.close()
    assert (done.rc, done.text, done.complaint) == (3, "x" * 10, "full")


def test_a_feed_that_is_left_ends_the_commands_input(pair: tuple[Transport, Path]) -> None:
    host, home = pair

    def wait_for(name: str, size: int) -> None:
        until = time.monotonic() + 60
        while not (home / name).exists() or (home / name).stat().st_size < size:
            assert time.monotonic() < until, f"it still waits before {name}"
            time.sleep(0.02)

    feed = host.feed("cat > left; echo over > over")
    assert feed.write(b"half")
    wait_for("left", 4)
    feed.close()
    wait_for("over", 5)
    assert (home / "left").read_bytes() == b"half"


def test_a_background_child_does_not_keep_the_call_waiting(pair: tuple[Transport, Path]) -> None:
    host, _ = pair
    began = time.monotonic()
    assert host.run("sleep 30 & echo hi").text == "hi"
    assert time.monotonic() - began < 20  # not a measurement: 30 would mean that it waited for the child


def test_a_command_that_never_ends_is_given_up_at_its_deadline(pair: tuple[Transport, Path]) -> None:
    host, _ = pair
    with pytest.raises(LinkError):
        host.run("sleep 30", timeout=0.5)
    assert host.run("echo again").text == "again"


def test_a_file_is_read_from_any_offset_to_its_end(pair: tuple[Transport, Path]) -> None:
    host, home = pair
    (home / "some log.txt").write_bytes(b"0123456789")
    for path in ("some log.txt", "~/some log.txt", f"{home}/some log.txt"):
        assert host.read_from(path, 4).data == b"456789"
        assert host.read_from(path, 0, limit=3).data == b"012"
    past = host.read_from("some log.txt", 50)
    assert (past.data, past.size) == (b"", 10)
    assert host.read_from("some log.txt", 10).size == 10


def test_a_file_that_was_replaced_is_read_as_it_is_now(pair: tuple[Transport, Path]) -> None:
    """status.json is another file under the same name each second; an open handle would show the first one for ever."""
    host, home = pair
    for number in range(5):
        (home / "beside").write_text(f"heartbeat {number}")
        (home / "beside").replace(home / "status.json")
        assert host.read_from("status.json", 0, limit=1 << 16).data == f"heartbeat {number}".encode()


def test_appended_bytes_are_seen_by_a_reader_that_was_at_the_end(pair: tuple[Transport, Path]) -> None:
    host, home = pair
    (home / "grow").write_bytes(b"a" * 100)
    for size in range(100, 1000, 100):
        assert host.stat("grow").size == size
        assert host.read_from("grow", size, limit=1 << 16).data == b""
        with (home / "grow").open("ab") as file:
            file.write(b"b" * 100)
        assert host.stat("grow").size == size + 100
        assert host.read_from("grow", size, limit=1 << 16).data == b"b" * 100


def test_a_stream_carries_a_large_file_from_an_offset(pair: tuple[Transport, Path]) -> None:
    host, home = pair
    data = os.urandom(3 << 20)
    (home / "big").write_bytes(data)
    stream = host.open_read("big", 1000)
    got = b""
    while piece := stream.read(1 << 18, 10):
        got += piece
    stream.close()
    assert stream.size == len(data)
    assert got == data[1000:]


def test_a_file_arrives_whole_with_its_mode_and_comes_back_the_same(
    pair: tuple[Transport, Path], tmp_path: Path
) -> None:
    host, home = pair
    data = os.urandom(2_500_000)
    host.put(data, "deep/er/file name.bin", mode=0o600)
    assert (home / "deep/er/file name.bin").read_bytes() == data
    assert (home / "deep/er/file name.bin").stat().st_mode & 0o777 == 0o600
    host.get("deep/er/file name.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert sorted(p.name for p in (home / "deep/er").iterdir()) == ["file name.bin"]
    assert [p.name for p in tmp_path.iterdir()] == ["back"]


def test_a_folder_is_listed_and_looked_at(pair: tuple[Transport, Path]) -> None:
    host, home = pair
    (home / "folder").mkdir(exist_ok=True)
    (home / "folder" / ".hidden").touch()
    (home / "folder" / "b c").write_bytes(b"xyz")
    assert host.listdir("folder") == [".hidden", "b c"]
    assert host.stat("folder").is_dir
    info = host.stat("folder/b c")
    assert (info.size, info.is_dir) == (3, False)
    assert abs(info.mtime - (home / "folder/b c").stat().st_mtime) < 1.01


def test_what_is_not_there_is_not_found_by_name(pair: tuple[Transport, Path]) -> None:
    host, _ = pair
    calls = (
        host.stat,
        host.listdir,
        host.open_read,
        lambda p: host.read_from(p, 0),
        lambda p: host.read_from(p, 9, limit=9),
    )
    for call in calls:
        with pytest.raises(NotFoundError, match="nowhere/x"):
            call("nowhere/x")


def test_a_folder_is_not_read_as_a_file(pair: tuple[Transport, Path]) -> None:
    host, home = pair
    (home / "folder").mkdir(exist_ok=True)
    for limit in (100, 1 << 20):
        with pytest.raises(RefusedError, match="folder"):
            host.read_from("folder", 0, limit=limit)


def test_a_place_that_may_not_be_written_says_so_and_leaves_nothing(pair: tuple[Transport, Path]) -> None:
    """/proc refuses even root."""
    host, _ = pair
    with pytest.raises((RefusedError, NotFoundError), match="/proc/tunewatch"):
        host.put(b"x", "/proc/tunewatch")


def test_many_threads_share_one_transport(pair: tuple[Transport, Path]) -> None:
    """SFTP clients are not thread-safe: without a lock most of these reads end with garbage packets."""
    host, home = pair
    (home / "shared").write_bytes(b"x" * 5000)
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for _ in range(6):
                if host.run(f"echo {number}").text != str(number):
                    wrong.append("mixed up")
                if len(host.read_from("shared", 10).data) != 4990:
                    wrong.append("short")
        except Exception as error:  # noqa: BLE001 - reported by the assertion below
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_one_file_alone_imports_the_ssh_library() -> None:
    """Swapping it, or finding out what it does, means reading that file."""
    root = Path(__file__).parent.parent
    users = [
        path.relative_to(root).as_posix()
        for folder in ("tui", "remote", "runner", "estimator")
        for path in (root / folder).rglob("*.py")
        if re.search(r"^\s*(import|from) paramiko", path.read_text(), re.MULTILINE)
    ]
    assert users == ["remote/ssh.py"]
