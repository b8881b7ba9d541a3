"""No secret leaves its place, from the launch of a run to the end of its box."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.kill import kill, name_victim
from remote.launch import launch
from remote.reconcile import reconcile
from tests.fake_vast import FakeVast
from tests.fake_vast.boxes import MARKER as BOX_MARKER
from tests.support.rented import Laptop, real_world


@pytest.fixture
def real(tmp_path: Path) -> Iterator[FakeVast]:
    with real_world(tmp_path / "boxes") as fake:
        yield fake


def every_process() -> Iterator[Path]:
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())


def raw_of(path: Path) -> bytes:
    """What is in a file of /proc; the process may end while it is read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_secrets_are_in_no_file_no_argument_no_log_and_no_request(
    real: FakeVast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF token, account key and the box's own key, looked for everywhere from a launch to the end of its box.

    Arguments of every process of the machine, every file of the laptop and of the box, its logs and those of its sshd
    and start script, the environments of everything on the box, what was said on the screen, what was sent.
    """
    token = "hf_" + "Zq7" * 10
    account = real.world.account_key
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("VAST_API_KEY", account)
    laptop = Laptop(real, tmp_path)
    seen: set[bytes] = set()
    environments: set[bytes] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for entry in every_process():
                seen.add(raw_of(entry / "cmdline"))
                environment = raw_of(entry / "environ")
                if BOX_MARKER.encode() in environment:
                    environments.add(environment)

    def search(*roots: Path) -> None:
        for root in roots:
            for path in root.rglob("*"):
                if path.is_file() and not path.is_symlink() and path not in allowed:
                    raw = path.read_bytes()
                    assert not any(secret in raw for secret in secrets), path
                    looked.add(path.name)

    watcher = threading.Thread(target=watch)
    watcher.start()
    looked: set[str] = set()
    try:
        result = launch(laptop.desk(), laptop.request(151), laptop.open_pair, dict(os.environ))
        assert result.instance_id is not None
        box = real.world.boxes[result.instance_id]
        assert box.container is not None
        disk = box.container.directory
        secrets = [token.encode(), account.encode(), box.api_key.encode()]
        run_dir = disk / "home/tunewatch/runs/mine/20260215-104518"
        allowed = {disk / "home/tunewatch/container.env", run_dir / "secrets"}
        search(laptop.home, disk)
        for path in allowed:
            assert path.stat().st_mode & 0o077 == 0
            assert account not in path.read_text(), "the account's key never comes to a box"
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", box.container.direct_port)) == 0, "the box lives while it is searched"

        def before(host: object, victim: object) -> None:
            search(laptop.home, disk)  # the run was stopped: what it and its guard wrote last is on the disk now

        ended = kill(
            laptop.desk(), name_victim(laptop.desk().journal, str(box.id)), open_pair=laptop.open_pair, grace_s=20.0,
            before=before,  # type: ignore[arg-type]
        )  # fmt: skip
        reconcile(laptop.desk(), lambda found: "leave", laptop.open_pair, dict(os.environ))
    finally:
        done.set()
        watcher.join()
    search(laptop.home)
    assert {"log.txt", "supervise.out", "guard.log", "sshd.log", "onstart.log", "start.sh", "journal.db"} <= looked
    shown = b"\n".join(seen) + repr((laptop.said, result, ended, real.bodies)).encode()
    for secret in secrets:
        assert secret not in shown
    assert environments, "processes of the box were seen"
    assert not any(account.encode() in one for one in environments), "not in the environment of anything on the box"
