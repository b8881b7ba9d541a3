"""A full disk (F8) and a checkpoint that was cut while it was written (F9): the old state stays whole and is found."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runner.manifest import newest_whole_checkpoint, verify_manifest, write_manifest
from runner.rundir import read_status
from tests.support.parts import missing

FILL = """
import pathlib, sys
from runner.rundir import write_manifest
what, run = sys.argv[1], pathlib.Path(sys.argv[2])
print("{'loss': 1.5, 'epoch': 0.1}", flush=True)
whole = run / "checkpoints" / "checkpoint-10"
whole.mkdir(parents=True)
(whole / "model.safetensors").write_bytes(b"1" * 4096)
write_manifest(whole)
torn = run / "checkpoints" / "checkpoint-20"
torn.mkdir()
if what == "log":
    while True:
        print("x" * 4095, flush=True)
with open(torn / "model.safetensors" if what == "checkpoint" else "scratch", "wb") as out:
    while True:
        out.write(b"0" * 4096)
        out.flush()
"""


@pytest.mark.parametrize("what", ["checkpoint", "log", "scratch"])
def test_f8_a_disk_full_leaves_a_true_status_and_the_last_whole_checkpoint(what: str, tmp_path: Path) -> None:
    """A real file system of 4 MB, in a mount namespace of its own, that the trainer fills to the last byte: with a
    checkpoint, with its log, or with anything else, so that the last status itself finds no room but the ballast's."""
    mount = tmp_path / "small"
    mount.mkdir()
    (tmp_path / "fill.py").write_text(FILL)
    script = (
        f"mount -t tmpfs -o size=4m tmpfs {mount} && cd {mount} && {sys.executable} -m runner.box.supervise "
        f"--run-dir {mount}/run -- {sys.executable} {tmp_path}/fill.py {what} {mount}/run; "
        f"echo $? >{tmp_path}/rc; ls {mount}/run >{tmp_path}/left; "
        f"cp -R {mount}/run/status.json {mount}/run/log.txt {mount}/run/checkpoints {tmp_path}/"
    )
    flags = "-m" if os.geteuid() == 0 else "-rm"
    done = subprocess.run(
        ["unshare", flags, "sh", "-c", script], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert (tmp_path / "rc").exists(), done.stderr
    status = read_status(tmp_path / "status.json")
    assert status is not None
    assert (status.state, status.rc) == ("crashed", 21), status
    assert "disk" in status.reason
    assert (tmp_path / "rc").read_text().strip() == "21"
    assert (tmp_path / "log.txt").read_bytes().startswith(b"# tunewatch run ")
    assert "ballast" not in (tmp_path / "left").read_text().split(), "the last words were written without it"
    found = newest_whole_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found.name == "checkpoint-10"


def save(folder: Path, step: int) -> None:
    """A checkpoint of three files, the manifest last."""
    target = folder / f"checkpoint-{step}"
    target.mkdir()
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
        (target / name).write_bytes(json.dumps({"step": step, "file": name}).encode() * 50)
    write_manifest(target)


def cut_save(folder: Path, step: int, at: int) -> bool:
    """Save in a child that is killed before its `at`-th file operation; whether it came to its end."""
    child = os.fork()
    if child == 0:
        left = at

        def hook(event: str, _: object) -> None:
            nonlocal left
            if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.chmod"):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), 9)

        sys.addaudithook(hook)
        save(folder, step)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def test_f9_a_save_killed_at_any_operation_never_hides_the_last_whole_checkpoint(tmp_path: Path) -> None:
    cuts = 0
    while True:
        folder = tmp_path / f"cut{cuts}"
        folder.mkdir()
        save(folder, 10)
        ended = cut_save(folder, 20, cuts)
        found = newest_whole_checkpoint(folder)
        assert found is not None
        assert verify_manifest(found) == []
        if ended:
            assert found.name == "checkpoint-20"
            break
        if found.name == "checkpoint-20":
            assert json.loads((found / "manifest.json").read_text())
        cuts += 1
    assert cuts >= 6


PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24
AFTERWARDS = 200
"""Calls made once the checkpoint is whole: a save's own vary by some tens, and a cut has to fall behind its end too."""

SETTLED = 20
"""Cuts in a row that found the newer checkpoint, until the save is known to be over."""


def save_cut_at_system_call(folder: Path, step: int, at: int) -> bool | None:
    """Save in a traced child that is killed as it enters its `at`-th system call; whether it came to its end first.
    None where nobody may trace."""
    libc = ctypes.CDLL(None, use_errno=True)
    child = os.fork()
    if child == 0:
        if libc.ptrace(PTRACE_TRACEME, 0, None, None) != 0:
            os._exit(99)
        os.kill(os.getpid(), signal.SIGSTOP)
        save(folder, step)
        for _ in range(AFTERWARDS):
            os.getppid()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        return None
    for _ in range(2 * at + 1):  # each call stops twice, on its way in and on its way out
        libc.ptrace(PTRACE_SYSCALL, child, None, None)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return True
    os.kill(child, signal.SIGKILL)
    while os.WIFSTOPPED(os.waitpid(child, 0)[1]):
        pass  # a stop that was due before the kill is not its end
    return False


def test_f9_a_save_killed_at_each_system_call_leaves_a_whole_checkpoint_to_find(tmp_path: Path) -> None:
    """Every point at which the kernel sees the save: the older checkpoint is found, or the newer, and it is whole."""
    seen: list[str] = []
    at = 0
    while not seen or seen[-1] != "ended":
        folder = tmp_path / f"call{at}"
        folder.mkdir()
        save(folder, 10)
        ended = save_cut_at_system_call(folder, 20, at)
        if ended is None:
            missing("no process may be traced here")
        found = newest_whole_checkpoint(folder)
        assert found is not None
        assert verify_manifest(found) == []
        # the marker alone decides; no order of the calls is asked for, threads hash and a save's calls vary in number
        assert (found.name == "checkpoint-20") == (folder / "checkpoint-20" / "manifest.json").exists()
        seen.append("ended" if ended else found.name)
        # once whole it only has to stay whole: the calls after its end are looked at here and there
        at += 1 if seen[-SETTLED:] != ["checkpoint-20"] * SETTLED else 20
    assert len(seen) > 40
    assert found.name == "checkpoint-20"
    assert seen[0] == "checkpoint-10"
    assert set(seen) == {"checkpoint-10", "checkpoint-20", "ended"}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_f9_a_file_whose_bytes_changed_sends_the_loader_to_the_older_checkpoint(name: str, tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    path = tmp_path / "checkpoint-20" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    found = newest_whole_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-10"
