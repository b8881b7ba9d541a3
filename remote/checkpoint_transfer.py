"""Brings a checkpoint from box to box so that what arrives is, by every sha256, what was saved.

The new box keeps it under `checkpoint-N.carry` and asks for the bytes it lacks; it gets its name only after all hashes
were compared there (`runner.box.checkpoint`). So a transfer that was cut goes on with the missing bytes, by the same
way or another one, and a checkpoint that arrives torn is never taken for whole.

A file that arrives wrong is fetched once more. When it is wrong again, the source itself is not what its manifest says:
SourceSpoiledError, and the caller takes an older checkpoint.
"""

from __future__ import annotations

import json
import queue
import shlex
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from remote.arming import PythonCommand
from remote.by_hub import Fetch
from remote.carry import Line, Way, ways
from remote.desk import Desk, Note
from remote.direct import Door, Ready, admitted, aside, forget, prepare, pull
from remote.transport import Completed, LinkError, Transport, shell_path
from runner.box.arrive import ASK_AGAIN
from runner.errors import NotFoundError, RefusedError, UnreachableError

PIECE = 1 << 20
"""Bytes taken from the old box at once, at most."""
AHEAD = 64
"""Pieces read while one is being sent on."""
HASH_S = 1800.0
"""Seconds for a box to hash a checkpoint."""


class SourceSpoiledError(RefusedError):
    """The checkpoint on the old box is not what its manifest says."""


@dataclass(frozen=True, slots=True)
class Cargo:
    """A whole checkpoint, as the box that has it describes it."""

    step: int
    path: str
    """Absolute, on its box."""
    files: Mapping[str, Mapping[str, Any]]
    """Name to {"sha256", "bytes"}."""
    eval_loss: float | None = None
    """What the trainer had at this step; None when it did not evaluate there."""
    global_step: int | None = None
    """The step that the trainer wrote into it; None where it wrote none."""
    best_step: int | None = None
    """The checkpoint that the trainer holds for the best so far."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(int(entry["bytes"]) for entry in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values for the journal."""
        return {
            "step": self.step, "path": self.path, "files": dict(self.files), "eval_loss": self.eval_loss,
            "global_step": self.global_step, "best_step": self.best_step,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cargo:
        """Read what `to_json` wrote."""
        return cls(
            int(data["step"]), str(data["path"]), data["files"], data.get("eval_loss"), data.get("global_step"),
            data.get("best_step"),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class End:
    """A box in a transfer."""

    host: Transport
    python: PythonCommand
    line: Line = field(default_factory=Line)
    door: Door | None = None
    """Its address for other boxes; None when nobody can reach it directly."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A transfer that is done."""

    bytes: int
    """That travelled; what was there already is not in it."""
    seconds: float
    way: str
    """Of the last try; "there already" when nothing travelled."""


def newest_checkpoint(
    end: End, folder: str, *, at_most: int | None = None, pin: str | None = None
) -> tuple[Cargo | None, list[str]]:
    """The newest whole checkpoint of a folder on a box, and what was passed over. Raises link errors.

    With `pin`, a folder there, it cannot be pruned while it is brought over.
    """
    limit = "" if at_most is None else f" --at-most {at_most}"
    limit += "" if pin is None else f" --pin {shell_path(pin)}"
    # a run keeps its checkpoints in one of a few places: the others cost no start of a program
    nothing = json.dumps({"step": None, "torn": []})
    first = f"ls -d {shell_path(folder)}/checkpoint-* >/dev/null 2>&1 || {{ echo {shlex.quote(nothing)}; exit; }}; "
    said = _ask(end, f"newest {shell_path(folder)}{limit}", {}, timeout=HASH_S, first=first)
    if said.get("step") is None:
        return None, list(said.get("torn") or [])
    return Cargo.from_json(said), list(said.get("torn") or [])


def carry(
    desk: Desk,
    cargo: Cargo,
    old: End | None,
    new: End,
    dest: str,
    note: Note,
    *,
    usd_per_h: float = 0.0,
    hub: Fetch | None = None,
    tries: int = 6,
) -> Carried:
    """Bring `cargo` to `dest` (absolute, ends in checkpoint-N) on the new box; harmless to repeat.

    `hub` downloads the checkpoint into a folder of the new box, where it was uploaded; without an `old` box it is the
    only way. Raises SourceSpoiledError, NotFoundError when the source was pruned meanwhile, and the link's error when
    it stays broken for `tries` tries.
    """
    begun = desk.mono()
    moved, used, spoiled = 0, "there already", False
    broken: list[str] = []
    closing: list[threading.Thread] = []
    try:
        for attempt in range(1, tries + 1):
            try:
                laid = _lay_out(cargo, old, new, dest, broken, usd_per_h)
                if laid.folder and not laid.reachable:
                    closing.append(aside(new.host, partial(forget, new.host, laid.folder)))
                if laid.whole:
                    return Carried(moved, desk.mono() - begun, used)
                missing = {n: int(laid.have.get(n, 0)) for n in cargo.files}
                left = sum(int(cargo.files[n]["bytes"]) - have for n, have in missing.items())
                told: Mapping[str, Any] | None = None
                if left:
                    way = _choose(cargo, old, new, left, usd_per_h, hub is not None and "hub" not in broken, laid)
                    used = way.name
                    if laid.reachable and way.name != "direct":
                        closing.append(aside(new.host, partial(forget, new.host, laid.folder)))
                    meter = _Meter(note, way, cargo.size, cargo.size - left)
                    try:
                        if hub is not None and (way.name == "hub" or old is None):
                            lacking = [n for n, have in missing.items() if have < int(cargo.files[n]["bytes"])]
                            hub(new.host, f"{dest}.carry", lacking)
                        elif old is None:
                            raise NotFoundError(f"{cargo.path} is neither on a box nor on the Hub.")
                        elif way.name == "direct" and old.door is not None:
                            with admitted(old.host, new.host, laid, closing):
                                told = pull(new.host, old.door, laid, cargo, dest, meter.add)
                        else:
                            told = _through_here(old.host, new, cargo, missing, dest, meter.add)
                    except (UnreachableError, RefusedError) as error:
                        if way.name != "laptop" and old is not None:
                            broken.append(way.name)
                            note.say(f"{way.name} does not work ({error.message}), another way")
                            continue
                        raise
                    moved += left
                if told is None:
                    told = _ask(new, f"finish {shell_path(dest)}", cargo.files, timeout=HASH_S)
                if told["ok"]:
                    return Carried(moved, desk.mono() - begun, used)
                if spoiled:
                    raise _spoiled(", ".join(f"{cargo.path}/{name}" for name in told["wrong"][:3]))
                spoiled = True
                note.say(f"{', '.join(told['wrong'][:3])} arrived wrong, once more")
            except LinkError as error:
                if attempt == tries:
                    raise
                note.say(f"{error.message} Going on with what is missing.")
                desk.sleep(min(15.0, 0.5 * 2**attempt))
        raise LinkError(f"checkpoint-{cargo.step} did not arrive within {tries} tries.")
    finally:
        for thread in closing:
            thread.join(20.0)


def _lay_out(cargo: Cargo, old: End | None, new: End, dest: str, broken: list[str], usd_per_h: float) -> Ready:
    """What of the checkpoint is on the new box; where it should pull for itself, a key is made in the same breath."""
    if old is not None and old.door is not None and "direct" not in broken and _worth_a_key(cargo, old, new, usd_per_h):
        try:
            return prepare(new.host, new.python, old.door, cargo, dest)
        except RefusedError as error:
            if "disk" in error.message:
                raise
            broken.append("direct")
    laid = _ask(new, f"stage {shell_path(dest)}", cargo.files, timeout=HASH_S)
    return Ready(bool(laid["whole"]), laid["have"], "", "", False)


def _worth_a_key(cargo: Cargo, old: End, new: End, usd_per_h: float) -> bool:
    """Whether the whole of it would be pulled directly rather than go through the laptop."""
    best = ways(cargo.size, old.line, new.line, usd_per_h=usd_per_h, reachable=True, on_hub=False)[0]
    return best.name == "direct"


def carry_file(old: Transport, new: Transport, source: str, dest: str) -> int:
    """One of the run's own small files, whole or not at all; returns its bytes, 0 when the old box has none."""
    try:
        stream = old.open_read(source)
    except NotFoundError:
        return 0
    pieces = []
    try:
        while data := stream.read(1 << 20, 30.0):
            pieces.append(data)
    finally:
        stream.close()
    body = b"".join(pieces)
    new.put(body, dest)
    return len(body)


def _choose(
    cargo: Cargo, old: End | None, new: End, left: int, usd_per_h: float, on_hub: bool, laid: Ready
) -> Way:  # fmt: skip
    """The best way that has not failed."""
    if old is None:
        found = ways(left, Line(), new.line, usd_per_h=usd_per_h, reachable=False, on_hub=True)
        return next(way for way in found if way.name == "hub")
    return ways(left, old.line, new.line, usd_per_h=usd_per_h, reachable=laid.reachable, on_hub=on_hub)[0]


class _Meter:
    """Progress in words, at most twenty times a transfer."""

    def __init__(self, note: Note, way: Way, total: int, done: int) -> None:
        self._note, self._way, self._total, self._done = note, way, max(1, total), done
        self._said = -1
        self.add(0)

    def add(self, count: int) -> None:
        """`count` more bytes are there."""
        self._done += count
        part = 20 * self._done // self._total
        if part != self._said:
            self._said = part
            self._note.say(f"{self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB by {self._way.name}")


def _through_here(
    old: Transport, new: End, cargo: Cargo, have: Mapping[str, int], dest: str, add: Callable[[int], None]
) -> dict[str, Any]:
    """Read from the old box in a thread of its own while what came before is sent on; the answer of the new box."""
    pieces: queue.Queue[bytes | BaseException | None] = queue.Queue(AHEAD)
    enough = threading.Event()

    def offer(item: bytes | BaseException | None) -> bool:
        while not enough.is_set():
            try:
                pieces.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for name, done in have.items():
                size = int(cargo.files[name]["bytes"])
                if done < size and not _read_file(old, f"{cargo.path}/{name}", done, size, offer):
                    return
            offer(None)
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
            offer(error)

    asked = json.dumps({"files": dict(cargo.files), "have": dict(have)}).encode()
    reader = threading.Thread(target=read, name="carry", daemon=True)
    reader.start()
    feed = None
    try:
        feed = new.host.feed(new.python(f"runner.box.arrive {shell_path(dest)} --asked {len(asked)}"))
        feed.write(asked)
        while (item := pieces.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if not feed.write(item):
                break
            add(len(item))
        answer = feed.finish(HASH_S)
    finally:
        enough.set()
        if feed is not None:
            feed.close()
        reader.join(timeout=60.0)
    if answer.rc == ASK_AGAIN:
        raise LinkError(f"{new.host.name} has other bytes of checkpoint-{cargo.step} than were sent.")
    return _document(new.host.name, answer, dest)


def _read_file(old: Transport, path: str, done: int, size: int, offer: Callable[[bytes], bool]) -> bool:
    """Offer the bytes from `done` to `size`: not one less, or those of the next file would be taken for them."""
    stream = old.open_read(path, done)
    try:
        if stream.size < size:
            raise _spoiled(path)
        left = size - done
        held = bytearray()
        while left and (data := stream.read(PIECE, 30.0)[:left]):
            held += data
            left -= len(data)
            # what a link brings at once is little: each piece that is handed on costs the same work
            if len(held) >= PIECE or not left:
                if not offer(bytes(held)):
                    return False
                held.clear()
        if left:
            raise LinkError(f"{path} on {old.name} ended {left} bytes too early.")
        return True
    finally:
        stream.close()


def _spoiled(what: str) -> SourceSpoiledError:
    return SourceSpoiledError(
        f"{what} is not what its manifest says.", hint="An older checkpoint is used if there is one."
    )


def _ask(end: End, words: str, files: Mapping[str, Any], *, timeout: float, first: str = "") -> dict[str, Any]:
    """One question to `runner.box.checkpoint` on a box; `first` is said to its shell before."""
    command, asked = end.python(f"runner.box.checkpoint {words}"), json.dumps({"files": dict(files)}).encode()
    answer = end.host.run(first + command, stdin=asked, timeout=timeout)
    return _document(end.host.name, answer, shlex.split(words)[1])


def _document(name: str, answer: Completed, path: str) -> dict[str, Any]:
    """What a box said in JSON. Raises RefusedError for what it complained of, LinkError when it said nothing."""
    if answer.rc != 0:
        if "No space left" in answer.complaint:
            raise RefusedError(f"The disk of {name} is full.", hint="Rent more disk.")
        raise RefusedError(f"{name} cannot use {path}: {answer.complaint or answer.rc}.")
    try:
        document = json.loads(answer.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise LinkError(f"{name} did not answer about its checkpoints.") from None
    return dict(document)
