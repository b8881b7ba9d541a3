"""A full disk (F8) and a checkpoint that was cut while it was written (F9): the old state stays whole and is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.manifest import newest_whole_checkpoint, verify_manifest, write_manifest
from runner.rundir import read_status

FILL = """
import sys
print("{'loss': 1.5, 'epoch': 0.1}", flush=True)
with open("checkpoint.bin", "wb") as out:
    while True:
        out.write(b"0" * 65536)
        out.flush()
"""


def test_f8_a_disk_full_at_the_checkpoint_leaves_a_true_status_and_says_so(tmp_path: Path) -> None:
    """A real file system of 4 MB, in a mount namespace of its own, that the trainer fills to the last byte."""
    mount = tmp_path / "small"
    mount.mkdir()
    (tmp_path / "fill.py").write_text(FILL)
    script = (
        f"mount -t tmpfs -o size=4m tmpfs {mount} && cd {mount} && "
        f"{sys.executable} -m runner.box.supervise --run-dir {mount}/run -- {sys.executable} {tmp_path}/fill.py; "
        f"echo $? >{tmp_path}/rc; cp {mount}/run/status.json {mount}/run/log.txt {tmp_path}/"
    )
    flags = "-m" if os.geteuid() == 0 else "-rm"
    done = subprocess.run(
        ["unshare", flags, "sh", "-c", script], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert (tmp_path / "rc").exists(), done.stderr
    status = read_status(tmp_path / "status.json")
    assert status is not None
    assert (status.state, status.rc) == ("crashed", 21), status
    assert "disk" in status.reason
    assert (tmp_path / "rc").read_text().strip() == "21"
    assert (tmp_path / "log.txt").read_bytes().startswith(b"# tunewatch run ")


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
