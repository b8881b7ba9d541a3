"""A checkpoint arrives as it was saved, however often the way is cut, or it does not count as arrived."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import runner
from remote.arming import PythonCommand
from remote.by_hub import fetcher, uploaded
from remote.carry import Line
from remote.checkpoint_transfer import Cargo, Carried, End, SourceSpoiledError, carry, newest_checkpoint
from remote.desk import Desk, Note
from remote.journal import Journal
from remote.local import LocalFeed, LocalTransport
from remote.migrate_rehearse import RehearsalError, check_rehearsal
from remote.transport import Completed, LinkError
from runner.errors import NotFoundError, RefusedError
from runner.manifest import newest_whole_checkpoint, verify_manifest, write_manifest
from runner.rundir import read_fence, read_status, write_fence
from runner.study.hub import upload
from tests.support.hub import hub_stand_in
from tests.support.proxy import FaultProxy
from tests.support.sshd import Sshd

ROOT = Path(runner.__file__).parent.parent


def python(words: str) -> str:
    return f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)} -m {words}"


class Cut(LocalTransport):
    """A host whose link breaks after so many bytes of a checkpoint were sent to it, once for each number."""

    def __init__(self, name: str, home: Path, *, breaks: tuple[int, ...] = ()) -> None:
        super().__init__(name, home=home)
        self.sent = 0
        """Bytes of checkpoints, the questions before them not counted."""
        self._breaks = list(breaks)

    def feed(self, command: str, *, timeout: float = 30.0) -> LocalFeed:
        return CutFeed(self, super().feed(command, timeout=timeout))  # type: ignore[return-value]

    def take(self, count: int) -> int:
        """How many of `count` bytes still pass."""
        passes = min(count, self._breaks[0] - self.sent) if self._breaks else count
        self.sent += passes
        return passes


class CutFeed:
    """A command on such a host."""

    def __init__(self, host: Cut, inner: LocalFeed) -> None:
        self._host, self._inner = host, inner
        self._asked = False

    def write(self, data: bytes) -> bool:
        passes = self._host.take(len(data)) if self._asked else len(data)
        self._asked = True
        taken = self._inner.write(data[:passes])
        if passes < len(data):
            self._host._breaks.pop(0)
            raise LinkError("cut")
        return taken

    def finish(self, timeout: float) -> Completed:
        return self._inner.finish(timeout)

    def close(self) -> None:
        self._inner.close()


@dataclass
class Boxes:
    """Two homes and a desk whose waiting takes no time."""

    desk: Desk
    old: Path
    new: Path

    def end(self, home: Path, **options: object) -> End:
        command: PythonCommand = python
        return End(Cut(home.name, home, **options), command)  # type: ignore[arg-type]

    def checkpoint(self, step: int, *, size: int = 40_000_000, kind: str = "checkpoints") -> Path:
        folder = self.old / "run" / kind / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(os.urandom(1 << 16) * (size >> 16))
        (folder / "tokenizer.json").write_bytes(b"always the same" * 1000)
        state = {"global_step": step, "log_history": [{"step": step, "eval_loss": 1.25}], "best_global_step": step}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        write_manifest(folder)
        return folder

    def dest(self, step: int) -> Path:
        return self.new / "run" / "checkpoints" / f"checkpoint-{step}"

    def carry(self, cargo: Cargo, old: End | None = None, new: End | None = None) -> Carried:
        note = Note(self.desk, "transfer", "")
        return carry(
            self.desk, cargo, old or self.end(self.old), new or self.end(self.new), str(self.dest(cargo.step)), note
        )

    def newest(self, **options: object) -> Cargo:
        cargo, _ = newest_checkpoint(self.end(self.old), str(self.old / "run/checkpoints"), **options)  # type: ignore[arg-type]
        assert cargo is not None
        return cargo


@pytest.fixture
def boxes(tmp_path: Path) -> Boxes:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    desk = Desk(None, Journal(tmp_path / "home"), sleep=lambda _: None)  # type: ignore[arg-type]
    return Boxes(desk, tmp_path / "old", tmp_path / "new")


def test_what_arrives_is_whole_and_has_the_same_hashes(boxes: Boxes) -> None:
    source = boxes.checkpoint(100)
    done = boxes.carry(boxes.newest())
    assert verify_manifest(boxes.dest(100)) == []
    assert done.bytes == sum(p.stat().st_size for p in source.iterdir() if p.name != "manifest.json")
    for path in source.iterdir():
        if path.name != "manifest.json":
            assert (boxes.dest(100) / path.name).read_bytes() == path.read_bytes()
    assert boxes.carry(boxes.newest()).bytes == 0, "doing it again moves nothing"


def test_a_cut_transfer_goes_on_with_the_missing_bytes(boxes: Boxes) -> None:
    boxes.checkpoint(100)
    new = boxes.end(boxes.new, breaks=(1, 5_000_000, 31_234_567))
    boxes.carry(boxes.newest(), new=new)
    assert verify_manifest(boxes.dest(100)) == []
    assert new.host.sent < 1.05 * boxes.newest().size, "what had arrived did not travel again"  # type: ignore[attr-defined]


def test_until_its_last_hash_was_compared_nothing_is_there_to_resume_from(boxes: Boxes) -> None:
    boxes.checkpoint(100)
    with pytest.raises(LinkError):
        boxes.carry(boxes.newest(), new=boxes.end(boxes.new, breaks=(1000,) * 10))
    assert newest_whole_checkpoint(boxes.dest(100).parent) is None
    boxes.carry(boxes.newest())
    assert newest_whole_checkpoint(boxes.dest(100).parent) == boxes.dest(100)


def test_files_that_are_there_already_do_not_travel_again(boxes: Boxes) -> None:
    boxes.checkpoint(100)
    boxes.carry(boxes.newest())
    boxes.checkpoint(120, size=1 << 17)
    new = boxes.end(boxes.new)
    boxes.carry(boxes.newest(), new=new)
    assert verify_manifest(boxes.dest(120)) == []
    size = boxes.newest().size - 15_000
    assert new.host.sent == size, "the tokenizer was copied there"  # type: ignore[attr-defined]


def test_a_byte_that_flips_on_the_way_is_found_and_the_file_fetched_again(boxes: Boxes) -> None:
    boxes.checkpoint(100)
    staged = boxes.dest(100).with_name("checkpoint-100.carry")
    staged.mkdir(parents=True)
    # left behind by an earlier try: the right size, the wrong bytes
    (staged / "model.safetensors").write_bytes(
        b"\0" * (boxes.old / "run/checkpoints/checkpoint-100/model.safetensors").stat().st_size
    )
    boxes.carry(boxes.newest())
    assert verify_manifest(boxes.dest(100)) == []


def test_a_source_that_is_not_what_its_manifest_says_is_refused(boxes: Boxes) -> None:
    source = boxes.checkpoint(100, size=1 << 17)
    body = bytearray((source / "model.safetensors").read_bytes())
    body[1000] ^= 1
    (source / "model.safetensors").write_bytes(body)
    with pytest.raises(SourceSpoiledError, match=r"model\.safetensors"):
        boxes.carry(boxes.newest())
    assert newest_whole_checkpoint(boxes.dest(100).parent) is None


def test_a_source_that_is_shorter_than_its_manifest_says_is_refused_at_once(boxes: Boxes) -> None:
    """The next file's bytes must not be taken for the missing ones."""
    source = boxes.checkpoint(100, size=1 << 17)
    cargo = boxes.newest()
    with (source / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(SourceSpoiledError, match=r"model\.safetensors"):
        boxes.carry(cargo)
    assert newest_whole_checkpoint(boxes.dest(100).parent) is None


def test_a_receiver_that_still_waits_behind_a_dead_link_is_ended_by_the_next_one(boxes: Boxes) -> None:
    """Only the laptop knows of the cut: the old receiver would append to the same files if bytes came after all."""
    boxes.checkpoint(100, size=1 << 20)
    cargo, end, dest = boxes.newest(), boxes.end(boxes.new), boxes.dest(100)
    laid = end.host.run(
        python(f"runner.box.checkpoint stage {dest}"), stdin=json.dumps({"files": dict(cargo.files)}).encode()
    )
    asked = json.dumps({"files": dict(cargo.files), "have": json.loads(laid.stdout)["have"]}).encode()
    waiting = LocalTransport(home=boxes.new).feed(python(f"runner.box.arrive {dest} --asked {len(asked)}"))
    waiting.write(asked + b"x" * 1000)
    carried = dest.with_name("checkpoint-100.carry")
    until(lambda: sum(p.stat().st_size for p in carried.iterdir()) == 1000, "its bytes arrived")
    boxes.carry(cargo)
    waiting.write(b"x" * 1000)
    assert waiting.finish(60).rc != 0
    assert verify_manifest(dest) == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (b"not json", "cannot be used"),
        (b'{"files": {}}', "cannot be used: 'have'"),
        (b'{"files": {"../../x": {"sha256": "0", "bytes": 1}}, "have": {"../../x": 0}}', "points outside"),
    ],
)
def test_a_receiver_that_is_asked_nonsense_says_so_in_a_sentence(boxes: Boxes, asked: bytes, words: str) -> None:
    boxes.dest(100).with_name("checkpoint-100.carry").mkdir(parents=True)
    (boxes.new / "run" / "x").write_bytes(b"")
    host = LocalTransport(home=boxes.new)
    answer = host.run(python(f"runner.box.arrive {boxes.dest(100)} --asked {len(asked)}"), stdin=asked + b"x")
    assert answer.rc == 1
    assert words in answer.complaint
    assert b"Traceback" not in answer.stderr
    assert (boxes.new / "run" / "x").read_bytes() == b""


@pytest.mark.slow
def test_through_the_laptop_over_links_that_are_reset_and_fall_silent_it_arrives_whole(
    boxes: Boxes, tmp_path: Path
) -> None:
    """Real SSH servers behind proxies: the cut may come while either side reads, writes, compares or answers."""
    rng = random.Random(11)
    with (
        Sshd(tmp_path / "a") as a,
        Sshd(tmp_path / "b") as b,
        FaultProxy((a.host, a.port)) as one,
        FaultProxy((b.host, b.port)) as two,
        a.connect(tmp_path / "a-state", port=one.port) as old,
        b.connect(tmp_path / "b-state", port=two.port) as new,
    ):
        source, cargo = boxes.checkpoint(100), boxes.newest()
        one.rate = two.rate = 60e6
        over = threading.Event()

        def break_links() -> None:
            while not over.wait(rng.uniform(0.05, 0.6)):
                rng.choice((one, two)).reset()

        breaker = threading.Thread(target=break_links)
        breaker.start()
        note = Note(boxes.desk, "transfer", "")
        try:
            carry(boxes.desk, cargo, End(old, python), End(new, python), str(boxes.dest(100)), note, tries=200)
        finally:
            over.set()
            breaker.join()
        assert one.resets + two.resets > 2
    assert verify_manifest(boxes.dest(100)) == []
    assert (boxes.dest(100) / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert not boxes.dest(100).with_name("checkpoint-100.carry").exists()


def test_a_pinned_checkpoint_survives_the_trainers_pruning(boxes: Boxes) -> None:
    source = boxes.checkpoint(100, size=1 << 17)
    cargo = boxes.newest(pin=str(boxes.old / "run/pinned"))
    (source / "manifest.json").unlink()
    for path in source.iterdir():
        path.unlink()
    boxes.carry(cargo)
    assert verify_manifest(boxes.dest(100)) == []


def test_a_checkpoint_that_was_pruned_meanwhile_is_named(boxes: Boxes) -> None:
    source = boxes.checkpoint(100, size=1 << 17)
    cargo = boxes.newest()
    (source / "model.safetensors").unlink()
    with pytest.raises(NotFoundError):
        boxes.carry(cargo)


def test_the_newest_whole_one_is_taken_and_the_torn_one_named(boxes: Boxes) -> None:
    boxes.checkpoint(100, size=1 << 17)
    torn = boxes.checkpoint(120, size=1 << 17)
    (torn / "manifest.json").unlink()
    (torn / "trainer_state.json").unlink()
    cargo, passed = newest_checkpoint(boxes.end(boxes.old), str(boxes.old / "run/checkpoints"))
    assert cargo is not None
    assert (cargo.step, cargo.eval_loss, cargo.best_step, cargo.global_step) == (100, 1.25, 100, 100)
    assert passed == ["checkpoint-120: not finished"]


def test_a_foreign_trainers_checkpoint_counts_when_its_last_file_names_its_step(boxes: Boxes) -> None:
    source = boxes.checkpoint(100, size=1 << 17)
    (source / "manifest.json").unlink()
    cargo = boxes.newest()
    assert (
        cargo.files["model.safetensors"]["sha256"]
        == hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    )
    boxes.carry(cargo)
    assert verify_manifest(boxes.dest(100)) == [], "it is sealed where it arrives"


def test_a_name_that_points_out_of_the_checkpoint_is_refused(boxes: Boxes) -> None:
    evil = Cargo(100, str(boxes.old), {"../../x": {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(RefusedError, match="points outside"):
        boxes.carry(evil)
    assert not list(boxes.new.rglob("x"))


@pytest.mark.slow
def test_a_checkpoint_that_was_uploaded_comes_from_the_hub_by_its_revision(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later commit under the same name does not matter, and the token stays in no file."""
    from huggingface_hub import HfApi

    source = boxes.checkpoint(100, size=1 << 20)
    with hub_stand_in() as (hub, address):
        for name, value in (("HF_ENDPOINT", address), ("HF_HUB_DISABLE_XET", "1"), ("HF_HUB_OFFLINE", "0")):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        revision = upload(HfApi(endpoint=address, token="hf_x"), "me/repo", "mini-1", source)
        events = [{"event": "upload", "step": 100, "status": "done", "revision": revision}]
        where = uploaded(events, "me/repo", "mini/1", "mini", 100)
        assert where is not None
        assert where.prefix == "mini-1/checkpoint-100"
        assert uploaded(events, "me/repo", "mini/1", "mini", 120) is None, "another step was not uploaded"
        environment = {"HF_TOKEN": "hf_averysecrettoken", "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
        fetch = fetcher(where, sys.executable, environment)
        new, old = boxes.end(boxes.new), boxes.end(boxes.old)
        cargo = boxes.newest()
        note = Note(boxes.desk, "transfer", "")
        # a box with a slow line up, as most have
        slow = End(old.host, python, Line(up_mbit=0.01))
        done = carry(boxes.desk, cargo, slow, new, str(boxes.dest(100)), note, hub=fetch)
        assert done.way == "hub"
        assert new.host.sent == 0, "not a byte came through here"  # type: ignore[attr-defined]
        assert verify_manifest(boxes.dest(100)) == []
        assert all(b"averysecret" not in p.read_bytes() for p in boxes.new.rglob("*") if p.is_file())
        hub.always = ("resolve", 500)
        (boxes.new / "other").mkdir()
        again = carry(boxes.desk, cargo, slow, new, str(boxes.new / "other/checkpoint-100"), note, hub=fetch)
        assert again.way == "laptop", "a Hub that fails is no reason to stay"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"global_step": 99, "eval_loss": 1.25}, "loads step 99"),
        ({"global_step": 100, "eval_loss": 1.27}, "is 1.27 on the new box and was 1.25"),
        ({"global_step": 100, "eval_loss": float("nan")}, "is nan on the new box"),
    ],
)
def test_a_rehearsal_that_differs_is_a_no(said: dict[str, object], words: str) -> None:
    with pytest.raises(RehearsalError, match=words):
        check_rehearsal(said, Cargo(100, "", {}, 1.25, 100))


def test_a_rehearsal_within_rounding_is_a_yes() -> None:
    check_rehearsal({"global_step": 100, "eval_loss": 1.2507}, Cargo(100, "", {}, 1.25, 100))
    check_rehearsal({"global_step": 100, "eval_loss": None}, Cargo(100, "", {}, 1.25, 100))


# -- the fence --------------------------------------------------------------------------------------------------------

TRAINER = "import time\nfor n in range(10**6):\n    open('steps', 'a').write(f'{n}\\n'); time.sleep(0.01)\n"


def supervised(run: Path, epoch: int) -> subprocess.Popen[bytes]:
    run.mkdir(exist_ok=True)
    (run / "train.py").write_text(TRAINER)
    words = [sys.executable, "-m", "runner.box.supervise", "--run-dir", str(run), "--grace", "5", "--epoch", str(epoch)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*words, "--", sys.executable, str(run / "train.py")], cwd=run, env=environment, stderr=subprocess.DEVNULL
    )


def until(holds: object, what: str) -> None:
    end = time.monotonic() + 120
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_f20_a_runner_that_wakes_up_after_the_move_ends_with_12_and_trains_no_more(tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = supervised(run, epoch=0)
    until(lambda: (run / "steps").exists() and (run / "steps").stat().st_size > 20, "it trains")
    status = read_status(run / "status.json")
    assert status is not None
    assert status.pid
    for pid in (child.pid, status.pid):
        os.kill(pid, signal.SIGSTOP)
    write_fence(run, 1)
    frozen = (run / "steps").stat().st_size
    os.kill(child.pid, signal.SIGCONT)
    os.kill(status.pid, signal.SIGCONT)
    assert child.wait(240) == 12
    after = (run / "steps").stat().st_size
    assert after - frozen < 3000, "stopped within the supervisor's next look"
    last = read_status(run / "status.json")
    assert last is not None
    assert last.ended
    assert "goes on elsewhere" in last.reason


def test_f20_an_older_epoch_is_not_even_started_and_the_newer_one_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_fence(run, 2)
    assert supervised(run, epoch=1).wait(240) == 12
    assert not (run / "steps").exists()
    write_fence(run, 1)
    assert read_fence(run) == 2, "a fence never opens again"
    child = supervised(run, epoch=2)
    until(lambda: (run / "steps").exists(), "the epoch of the fence itself may train")
    child.send_signal(signal.SIGTERM)
    child.wait(240)
