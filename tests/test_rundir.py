"""The run directory: whole files or the old ones, checkpoints whole or torn, requests that cannot be missed."""

import ast
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.rundir import (
    BALLAST_BYTES,
    RunDir,
    Status,
    StopRequest,
    checkpoints,
    is_run_dir,
    make_ballast,
    newest_whole_checkpoint,
    parse_run_id,
    read_status,
    read_stop_request,
    release_ballast,
    verify_manifest,
    write_atomic,
    write_manifest,
    write_status,
    write_stop_request,
)

ROOT = Path(__file__).parent.parent
ON_THE_BOX = ["atomic", "errors", "manifest", "rundir", "box/ending", "box/proc", "box/supervise"]


def test_a_new_run_directory_has_its_name_its_id_and_its_ballast(tmp_path):
    moment = time.mktime((2026, 11, 22, 10, 15, 0, 0, 0, -1))
    first = RunDir.create("demo", tmp_path, now=moment)
    second = RunDir.create("demo", tmp_path, now=moment)
    assert first.path == tmp_path / "demo" / "20261122-101500"
    assert second.path.name == "20261122-101501"
    assert first.run_id() != second.run_id()
    assert first.log.read_text() == f"# tunewatch run {first.run_id()}\n"
    assert (first.path / "ballast").stat().st_size == BALLAST_BYTES
    assert is_run_dir(first.path)
    assert not is_run_dir(tmp_path)


def test_a_foreign_log_is_left_as_it_is(tmp_path):
    (tmp_path / "log.txt").write_bytes(b"\r  0%|")
    assert RunDir(tmp_path).open_log() == ""
    assert (tmp_path / "log.txt").read_bytes() == b"\r  0%|"


def test_the_run_id_is_that_of_line_one_alone():
    line = b"# tunewatch run 12345678-1234-1234-1234-123456789abc\n"
    assert parse_run_id(line) == "12345678-1234-1234-1234-123456789abc"
    assert parse_run_id(b"x" + line) is None


@given(
    st.builds(
        Status,
        state=st.sampled_from(["running", "finished"]),
        pid=st.none() | st.integers(1, 1 << 22),
        step=st.none() | st.integers(0, 1 << 40),
        seq=st.integers(0, 1 << 40),
        reason=st.text(max_size=20),
        mono=st.floats(0, 1e9),
    )
)
def test_a_status_that_is_written_is_read(status):

    assert read_status(json.dumps(dataclasses.asdict(status)).encode()) == status


@given(st.binary(max_size=200))
def test_no_bytes_make_reading_a_status_raise(data):
    read_status(data)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"state": 3}', b'{"state": "running"', b"\xff", b'{"pid": 1}', b"[" * 100000]
)
def test_what_is_no_status_is_none(raw):
    assert read_status(raw) is None


def test_a_status_of_a_later_version_or_with_odd_values_is_read():
    status = read_status(b'{"state": "running", "pid": "x", "seq": null, "invented": 1, "step": 4}')
    assert (status.pid, status.seq, status.step) == (None, 0, 4)


def test_a_reader_never_sees_half_a_file(tmp_path):
    """One process replaces the status as fast as it can, the other reads: every reading is whole."""
    path = tmp_path / "status.json"
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from runner.rundir import Status, write_status
for seq in range(3000):
    write_status({str(path)!r}, Status(state="running", seq=seq, reason="x" * (seq % 900)), last=False)
"""
    write_status(path, Status())
    writer = subprocess.Popen([sys.executable, "-c", code])
    seen = []
    while writer.poll() is None:
        status = read_status(path)
        assert status is not None
        seen.append(status.seq)
    assert writer.returncode == 0
    assert seen == sorted(seen)
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def full_disk(script, tmp_path, size):
    """Run a script on a disk of `size` bytes, a small file system mounted for it alone."""
    head = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); from runner.rundir import *; from pathlib import Path\n"
    mount = f'mount -t tmpfs -o size={size} none "$0" && exec "$1" -c "$2"'
    flags = "-m" if os.getuid() == 0 else "-rm"
    command = ["unshare", flags, "sh", "-c", mount, str(tmp_path), sys.executable, head + script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_full_disk_leaves_the_old_status_whole_and_the_ballast_pays_for_the_last_words(tmp_path):
    script = f"""
d = Path({str(tmp_path)!r})
write_status(d / "status.json", Status(state="running", seq=1))
print(make_ballast(d, 32768))
try:
    with open(d / "fill", "wb", buffering=0) as f:
        while True: f.write(b"x" * 4096)
except OSError as e: print(e.errno)
try: write_status(d / "status.json", Status(state="running", seq=2), last=False)
except OSError as e: print("heartbeat", e.errno)
print(read_status(d / "status.json").seq, (d / "ballast").exists(), sorted(p.name for p in d.iterdir()))
write_status(d / "status.json", Status(state="crashed", seq=3))
print(read_status(d / "status.json").state, (d / "ballast").exists())
"""
    done = full_disk(script, tmp_path, 131072)
    assert done.stdout.splitlines() == [
        "True", "28", "heartbeat 28", "1 True ['ballast', 'fill', 'status.json']", "crashed False",
    ], done.stderr  # fmt: skip


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from runner.rundir import write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
write_atomic({str(tmp_path / "a")!r}, b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try: write_atomic({str(tmp_path / "a")!r}, b"new" * 10)
except OSError as e: print(e.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "File too large"
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_ballast_is_made_once_and_given_back_once(tmp_path):
    assert make_ballast(tmp_path, 1000)
    assert make_ballast(tmp_path, 1000)
    assert release_ballast(tmp_path)
    assert not release_ballast(tmp_path)


def test_a_stop_request_is_read_as_it_was_written(tmp_path):
    assert read_stop_request(tmp_path) is None
    write_stop_request(tmp_path, "over budget", 1234.5)
    assert read_stop_request(tmp_path) == StopRequest("over budget", 1234.5)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"reason": 3, "deadline": "soon"}', b"\xff"])
def test_a_stop_request_that_cannot_be_understood_is_one_all_the_same(tmp_path, content):
    (tmp_path / "stop.request").write_bytes(content)
    assert read_stop_request(tmp_path) == StopRequest()


def make_checkpoint(folder, step, *, whole=True):
    path = folder / f"checkpoint-{step}"
    (path / "deep").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(os.urandom(5000))
    (path / "deep" / "state.json").write_text(str(step))
    if whole:
        write_manifest(path)
    return path


def test_resume_takes_the_newest_whole_checkpoint(tmp_path):
    for step in (100, 200, 1000):
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path, 1100, whole=False)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-9999").write_text("a file")
    assert newest_whole_checkpoint(tmp_path).name == "checkpoint-1000"
    assert [p.name for p in checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (1100, 1000, 200, 100)]
    assert newest_whole_checkpoint(tmp_path / "nowhere") is None


def damage_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: damage_byte(p / "model.safetensors"), "not the bytes that were written"),
        (lambda p: (p / "model.safetensors").write_bytes(b"short"), "5 bytes, should be 5000"),
        (lambda p: (p / "deep" / "state.json").unlink(), "missing"),
        (lambda p: (p / "manifest.json").write_text("{"), "was not finished"),
        (lambda p: (p / "manifest.json").write_text('{"files": {"../../etc/passwd": {"bytes": 1}}}'), "points outside"),
    ],
    ids=["a flipped bit", "a short file", "a missing file", "a torn manifest", "a name that points outside"],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, damage, words):
    make_checkpoint(tmp_path, 100)
    newest = make_checkpoint(tmp_path, 200)
    assert verify_manifest(newest) == []
    damage(newest)
    assert any(words in problem for problem in verify_manifest(newest))
    assert newest_whole_checkpoint(tmp_path).name == "checkpoint-100"


def test_writing_a_manifest_again_gives_the_same_one(tmp_path):
    path = make_checkpoint(tmp_path, 5)
    before = json.loads((path / "manifest.json").read_text())
    write_manifest(path)
    after = json.loads((path / "manifest.json").read_text())
    assert before["files"] == after["files"]
    assert set(after["files"]) == {"model.safetensors", "deep/state.json"}


def test_atomic_writes_replace_and_leave_nothing_else(tmp_path):
    for content in (b"one", b"", b"three" * 100000):
        write_atomic(tmp_path / "f", content)
        assert (tmp_path / "f").read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("name", ON_THE_BOX)
def test_what_runs_on_the_box_is_python_39_and_the_standard_library_alone(name):
    source = (ROOT / "runner" / f"{name}.py").read_text()
    tree = ast.parse(source, feature_version=(3, 9))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
        assert not isinstance(node, ast.Match)
    ours = {f"runner.{other.replace('/', '.')}" for other in ON_THE_BOX} | {"runner.box"}
    assert {m for m in imported if m not in ours and m.split(".")[0] not in sys.stdlib_module_names} == set()
