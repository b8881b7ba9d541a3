"""Ends a rental from the box itself, so that a closed laptop cannot bill for ever.

    python -m runner.box.guard --run-dir D --prove     a harmless call with the instance's own key; exit 0 when it works
    python -m runner.box.guard --run-dir D --watch     stand guard until the rental ends
    python -m runner.box.guard --run-dir D --show      what the guard last wrote

It reads its limits from D/guard.json, which the laptop writes and may rewrite (a new price, a longer deadline), and
reports in D/guard.status.json each period. Its key is the one the provider gave the container: scoped to this instance,
never the account's. It is in the environment of the container's first process and not in an SSH session, so the start
script keeps a copy in ~/tunewatch/container.env.

What ends the rental: the run finished, its budget, its deadline, no step and an idle GPU for too long, a crash that
nobody tended to, or a lease that the laptop stopped renewing. How it ends:

1. The run is asked to stop with a checkpoint and is given time for it.
2. When the newest checkpoint is known to be uploaded, or the laptop said that it has everything: destroy.
3. Otherwise stop: the disk stays (and costs a little; `reserve_usd` of the budget is kept back for that).
4. When the provider does not do it: end the container's first process. The guard goes on trying until it is ended.

Durations come from the monotonic clock. Standard library only, syntax of Python 3.9.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from runner.atomic import read_object, write_atomic
from runner.rundir import METRICS, STATUS, Status, read_status, write_stop_request

CONFIG = "guard.json"
REPORT = "guard.status.json"
LOCK = "guard.lock"
LEASE = "guard.lease"
"""Rewritten by the laptop while it watches; only its change counts, not its time."""
RELEASE = "guard.release"
"""Put there by the laptop when it has everything it wants from the disk."""
DEFAULT_URL = "https://console.vast.ai"
ENV_FILE = "tunewatch/container.env"
CRASH_GRACE_S = 900.0
"""A crashed run waits so long for somebody to resume it."""
SILENT_S = 30.0
"""A supervisor whose heartbeat stood still for so long, and whose trainer is gone, is over."""
DESTROY_TRIES_S = (0.0, 2.0, 5.0, 8.0)
STOP_TRIES_S = (0.0, 3.0, 6.0)
IDLE_GPU = 5.0
"""Per cent of GPU use up to which it counts as idle."""
ALREADY = 75


@dataclass
class Limits:
    """What guard.json holds. None for a limit means that there is none."""

    instance_id: int = 0
    url: str = DEFAULT_URL
    usd_per_h: float = 0.0
    disk_usd_per_h: float = 0.0
    spent_usd: float = 0.0
    """Spent before the guard was armed."""
    budget_usd: float | None = None
    reserve_usd: float = 0.0
    """Of the budget, kept for the disk after a stop."""
    deadline_s: float | None = None
    """Seconds from arming."""
    idle_s: float | None = None
    lease_s: float | None = None
    keep_when_finished: bool = False
    period_s: float = 5.0
    grace_s: float = 60.0
    """At least so long for saving when a limit is reached."""
    linger_s: float = 20.0
    """After the end of the run, so that the laptop reads the last lines."""
    upload_s: float = 1800.0
    """At most so long for an upload that is under way when the run ends."""


@dataclass
class View:
    """What is known at one moment; everything `decide` needs."""

    elapsed_s: float
    """Since arming."""
    spent_usd: float
    running: bool
    """A trainer is alive."""
    ended_rc: int | None = None
    """Exit code of the run when it is over; None before."""
    over_for_s: float = 0.0
    idle_for_s: float = 0.0
    lease_age_s: float = 0.0
    save_s: float = 0.0
    """The longest checkpoint so far."""
    uploading: bool = False


def decide(limits: Limits, view: View) -> str | None:
    """The reason to end the rental now, or None. Pure.

    Budget and deadline are acted on early enough for a checkpoint, but never more than a fifth before.
    """
    lead = 2.0 * view.save_s + limits.period_s if view.running else 0.0
    if limits.deadline_s is not None and view.elapsed_s >= limits.deadline_s - min(lead, 0.2 * limits.deadline_s):
        return "deadline"
    if limits.budget_usd is not None:
        usable = max(0.0, limits.budget_usd - limits.reserve_usd)
        left = usable - view.spent_usd
        if left <= min(lead / 3600 * limits.usd_per_h, 0.2 * usable):
            return "budget"
    if limits.lease_s is not None and view.lease_age_s >= limits.lease_s:
        return "lease"
    if limits.idle_s is not None and view.idle_for_s >= limits.idle_s:
        return "idle"
    if view.ended_rc is not None and not view.running:
        if view.ended_rc in (0, 10, 12) and not limits.keep_when_finished:
            waited = view.over_for_s >= limits.linger_s
            return "finished" if waited and not (view.uploading and view.over_for_s < limits.upload_s) else None
        # 11 is a stop that somebody asked for: the box is kept on purpose, its limits go on
        if view.ended_rc not in (0, 10, 11, 12) and view.over_for_s >= CRASH_GRACE_S:
            return "crashed"
    return None


def container_environment(home: Path | None = None, first: Path = Path("/proc/1/environ")) -> dict[str, str]:
    """CONTAINER_ID and CONTAINER_API_KEY from the start script's file, the first process, or our own environment."""
    found: dict[str, str] = {}
    places = [(home or Path.home()) / ENV_FILE, first]
    for place in places:
        try:
            raw = place.read_bytes()
        except OSError:
            continue
        for entry in raw.replace(b"\n", b"\0").split(b"\0"):
            name, _, value = entry.decode("utf-8", "replace").partition("=")
            if name in ("CONTAINER_ID", "CONTAINER_API_KEY") and value and name not in found:
                found[name] = value
    for name in ("CONTAINER_ID", "CONTAINER_API_KEY"):
        if name not in found and os.environ.get(name):
            found[name] = os.environ[name]
    return found


class Api:
    """The provider, as far as a box may talk to it. Every method returns (worked, what was said)."""

    def __init__(self, url: str, instance_id: int, key: str, timeout_s: float = 15.0) -> None:
        self._base = f"{url.rstrip('/')}/api/v0/instances/{instance_id}/"
        self._id = instance_id
        self._key = key
        self._timeout = timeout_s
        local = urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
        # a proxy in the environment is honoured, but never for a server on this very machine
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))

    def _call(self, method: str, body: Mapping[str, Any] | None, query: str = "") -> tuple[int, Any, str]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": "Bearer " + self._key, "Content-Type": "application/json"}
        request = urllib.request.Request(self._base + query, data=data, headers=headers, method=method)  # noqa: S310
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                status, raw = answer.status, answer.read(1 << 20)
        except urllib.error.HTTPError as error:
            status, raw = error.code, error.read(1 << 16)
        except (OSError, ValueError) as error:
            return 0, None, f"no answer ({type(error).__name__})"
        try:
            return status, json.loads(raw), f"HTTP {status}"
        except ValueError:
            return status, None, f"HTTP {status}, not JSON"

    def prove(self) -> tuple[bool, str]:
        """A GET on our own instance: nothing changes, and it shows that key, address and id are right."""
        status, document, said = self._call("GET", None, "?owner=me")
        row = document.get("instances") if isinstance(document, dict) else None
        if status == 200 and isinstance(row, dict) and row.get("id") == self._id:
            return True, "the key of this instance works"
        if status in (401, 403, 404):
            return False, f"the provider refused the key of this instance ({said})"
        return False, f"the provider did not show this instance ({said})"

    def destroy(self) -> tuple[bool, str]:
        """End the rental and delete the disk."""
        return self._yes(*self._call("DELETE", {}))

    def stop(self) -> tuple[bool, str]:
        """Release the GPU, keep the disk."""
        return self._yes(*self._call("PUT", {"state": "stopped"}))

    @staticmethod
    def _yes(status: int, document: Any, said: str) -> tuple[bool, str]:
        if status == 200 and isinstance(document, dict) and document.get("success") is True:
            return True, "done"
        if isinstance(document, dict) and isinstance(document.get("error"), str):
            said = f"{said} {document['error'][:60]}"
        return False, said


class Guard:
    """Looks, decides, ends. The clock, the sleep and the API are given, so that a test can be quick."""

    def __init__(
        self,
        run_dir: Path,
        *,
        api: Callable[[Limits], Api | None] | None = None,
        mono: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        gpu_use: Callable[[], float | None] | None = None,
        power_off: Callable[[int], str] | None = None,
    ) -> None:
        self.run_dir = run_dir
        self._make_api = api or api_from_environment
        self._mono = mono
        self._sleep = sleep
        self._gpu_use = gpu_use or gpu_use_percent
        self._power_off = power_off or end_container
        self.limits = Limits()
        self._armed_at = mono()
        self._elapsed_before = 0.0
        self._seq: int | None = None
        self._seq_at = mono()
        self._step: int | None = None
        self._busy_at = mono()
        self._over_at: float | None = None
        self._lease: bytes | None = None
        self._lease_at = mono()
        self._attempts: list[str] = []
        self._spent = 0.0
        self._spent_at = mono()

    def load(self) -> None:
        """Read the limits; a file that cannot be read leaves the old ones in force."""
        limits = read_limits(self.run_dir)
        if limits is not None:
            self.limits = limits

    def recover(self) -> None:
        """Take over from a guard that ended with its container: its clock goes on, the gap at the full price."""
        before = read_object_file(self.run_dir / REPORT)
        if not before or before.get("instance_id") != self.limits.instance_id:
            self._spent = self.limits.spent_usd
            return
        gap = max(0.0, time.time() - float(before.get("wall") or time.time()))
        self._elapsed_before = float(before.get("elapsed_s") or 0.0) + gap
        self._spent = float(before.get("spent_usd") or self.limits.spent_usd)
        self._spent += gap / 3600 * self.limits.usd_per_h

    def look(self) -> View:
        """Read the run directory and the meters."""
        now = self._mono()
        # metered piece by piece, so that a price the laptop corrects counts from then on and not backwards
        self._spent += max(0.0, now - self._spent_at) / 3600 * self.limits.usd_per_h
        self._spent_at = now
        status = read_status(self.run_dir / STATUS)
        if status is not None and status.seq != self._seq:
            self._seq, self._seq_at = status.seq, now
        alive = bool(status and not status.ended and (now - self._seq_at < SILENT_S or _process_lives(status)))
        if status is not None and status.step is not None and status.step != self._step:
            self._step, self._busy_at = status.step, now
        if now - self._busy_at > 10.0:
            use = self._gpu_use()
            if alive and use is not None and use > IDLE_GPU:
                self._busy_at = now
        over = status is not None and not alive
        self._over_at = (self._over_at if self._over_at is not None else now) if over else None
        rc = None
        if over and status is not None:
            rc = status.rc if status.ended and status.rc is not None else -1
        lease = _bytes(self.run_dir / LEASE)
        if lease != self._lease:
            self._lease, self._lease_at = lease, now
        saves, uploading, _ = read_uploads(self.run_dir)
        return View(
            elapsed_s=self._elapsed_before + now - self._armed_at,
            spent_usd=self._spent,
            running=alive,
            ended_rc=rc,
            over_for_s=0.0 if self._over_at is None else now - self._over_at,
            idle_for_s=now - self._busy_at,
            lease_age_s=now - self._lease_at,
            save_s=saves,
            uploading=uploading,
        )

    def report(self, view: View, word: str, reason: str = "") -> None:
        """Write guard.status.json; a full disk does not stop the guard."""
        document = {
            "armed": True, "word": word, "reason": reason, "instance_id": self.limits.instance_id, "pid": os.getpid(),
            "wall": time.time(), "mono": self._mono(), "attempts": self._attempts[-12:], "limits": _shown(self.limits),
            **asdict(view),
        }  # fmt: skip
        try:
            write_atomic(self.run_dir / REPORT, json.dumps(document).encode())
        except OSError as error:
            say(f"the report could not be written: {error.strerror}")

    def watch(self) -> int:
        """Stand guard; returns when the rental was ended (the container usually takes us along)."""
        self.load()
        self.recover()
        while True:
            self.load()
            view = self.look()
            reason = decide(self.limits, view)
            if reason is not None:
                return self.end(reason, view)
            self.report(view, "watching")
            self._sleep(max(0.2, self.limits.period_s))

    def end(self, reason: str, view: View) -> int:
        """Checkpoint, then destroy or stop or power off; repeats until nothing is left to repeat it."""
        say(f"ending the rental: {reason}")
        self.report(view, "ending", reason)
        if view.running:
            self._stop_run(reason, view)
        rounds = 0
        while True:
            _, _, uploaded = read_uploads(self.run_dir)
            safe = uploaded or (self.run_dir / RELEASE).exists()
            if self._ask("destroy", DESTROY_TRIES_S, view, reason) if safe else False:
                return 0
            if not safe:
                self._attempts.append("not destroyed: the newest checkpoint is not known to be uploaded")
            if self._ask("stop", STOP_TRIES_S, view, reason):
                return 0
            said = self._power_off(self.limits.instance_id)
            self._attempts.append(f"power off: {said}")
            say(f"power off: {said}")
            self.report(view, "failing", reason)
            rounds += 1
            self._sleep(min(60.0, 5.0 * 2**rounds))

    def _ask(self, what: str, waits: tuple[float, ...], view: View, reason: str) -> bool:
        for wait in waits:
            self._sleep(wait)
            api = self._make_api(self.limits)
            if api is None:
                done, said = False, "this container has no key of its own"
            else:
                done, said = api.destroy() if what == "destroy" else api.stop()
            self._attempts.append(f"{what}: {said}")
            say(f"{what}: {said}")
            self.report(view, "ended" if done else "ending", reason)
            if done:
                return True
        return False

    def _stop_run(self, reason: str, view: View) -> None:
        grace = max(self.limits.grace_s, 2.0 * view.save_s + 30.0)
        if reason in ("budget", "deadline"):
            grace = min(grace, 2.0 * view.save_s + 40.0)
        try:
            write_stop_request(self.run_dir, reason, time.time() + grace)
        except OSError as error:
            say(f"the stop request could not be written: {error.strerror}")
        status = read_status(self.run_dir / STATUS)
        if status is not None and status.supervisor_pid:
            _signal(status.supervisor_pid, signal.SIGTERM)
        begun = self._mono()
        while self._mono() - begun < grace:
            view = self.look()
            if not view.running:
                return
            self.report(view, "saving", reason)
            self._sleep(0.5)
        say("the run did not end in time")


def read_limits(run_dir: Path) -> Limits | None:
    """guard.json, or None when it is missing or is not one; unknown keys and wrong types are passed over."""
    data = read_object_file(run_dir / CONFIG)
    if not data or not isinstance(data.get("instance_id"), int):
        return None
    limits = Limits()
    for spec in fields(Limits):
        value = data.get(spec.name, getattr(limits, spec.name))
        default = getattr(limits, spec.name)
        wanted = (int, float, type(None)) if default is None else (type(default),)
        if isinstance(default, float):
            wanted = (int, float)
        if isinstance(value, wanted) and (isinstance(default, bool) or not isinstance(value, bool)):
            setattr(limits, spec.name, value)
    return limits


def read_uploads(run_dir: Path) -> tuple[float, bool, bool]:
    """`(longest save in s, an upload is under way, the newest checkpoint is uploaded)` from metrics.jsonl."""
    longest, saved_step = 0.0, None
    uploads: dict[int, str] = {}
    for event in _events(run_dir / METRICS):
        kind, step = event.get("event"), event.get("step")
        if kind == "save" and isinstance(step, int):
            saved_step = step if saved_step is None else max(saved_step, step)
            seconds = event.get("seconds")
            if isinstance(seconds, (int, float)):
                longest = max(longest, float(seconds))
        elif kind == "upload" and isinstance(step, int):
            done = event.get("status") == "done" and bool(event.get("revision"))
            uploads[step] = "done" if done else str(event.get("status"))
    uploading = any(word == "queued" for word in uploads.values())
    newest = max(uploads) if uploads else None
    uploaded = saved_step is not None and newest is not None and newest >= saved_step and uploads[newest] == "done"
    return longest, uploading, uploaded


def _events(path: Path) -> list[dict[str, Any]]:
    found = []
    try:
        with path.open("rb") as file:
            for line in file:
                # only two kinds matter here; a long file is mostly others
                if b'"save"' in line or b'"upload"' in line:
                    event = read_object(line)
                    if event is not None:
                        found.append(event)
    except OSError:
        return []
    return found


def api_from_environment(limits: Limits) -> Api | None:
    """The provider with this container's own key; None when the container has none, or belongs to another instance."""
    found = container_environment()
    key, container = found.get("CONTAINER_API_KEY"), found.get("CONTAINER_ID", "")
    if not key or (container.isdigit() and int(container) != limits.instance_id):
        return None
    return Api(limits.url, limits.instance_id, key)


def gpu_use_percent() -> float | None:
    """The busiest GPU in per cent; None where there is no nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    uses = [float(line) for line in done.stdout.split() if line.replace(".", "", 1).isdigit()]
    return max(uses) if uses else None


def end_container(instance_id: int, first: Path = Path("/proc/1/environ")) -> str:
    """End the container's first process, after making sure that it is the container's and not the machine's."""
    try:
        environment = first.read_bytes().split(b"\0")
    except OSError:
        return "the first process cannot be looked at"
    if f"CONTAINER_ID={instance_id}".encode() not in environment:
        return "the first process is not this container's, it is left alone"
    _signal(1, signal.SIGTERM)
    return "the container's first process was told to end"


def _process_lives(status: Status) -> bool:
    if not status.pid:
        return False
    try:
        text = Path(f"/proc/{status.pid}/stat").read_text()
    except OSError:
        return False
    rest = text.rpartition(")")[2].split()
    # a zombie is over; a pid that began at another tick is another process
    return bool(rest) and rest[0] not in "ZX" and (status.start_ticks is None or rest[19] == str(status.start_ticks))


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError as error:
        say(f"process {pid} could not be signalled: {error.strerror}")


def _shown(limits: Limits) -> dict[str, Any]:
    return asdict(limits)


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def read_object_file(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, or None."""
    raw = _bytes(path)
    return None if raw is None else read_object(raw)


def say(text: str) -> None:
    """One line of the guard's own log; never a secret."""
    sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} {text}\n")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """Command line; see the head of this file."""
    parser = argparse.ArgumentParser(prog="python -m runner.box.guard", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--prove", action="store_true", help="a harmless call with the instance's own key")
    mode.add_argument("--watch", action="store_true", help="stand guard until the rental ends")
    mode.add_argument("--show", action="store_true", help="what the guard last wrote")
    options = parser.parse_args(argv)
    run_dir = options.run_dir.expanduser()
    if options.show:
        document = read_object_file(run_dir / REPORT)
        sys.stdout.write(json.dumps(document or {"armed": False}) + "\n")
        return 0 if document else 1
    limits = read_limits(run_dir)
    if limits is None:
        sys.stdout.write(json.dumps({"ok": False, "detail": f"{run_dir / CONFIG} is missing or is not one"}) + "\n")
        return 2
    if options.prove:
        api = api_from_environment(limits)
        ok, detail = api.prove() if api is not None else (False, "this container has no key of its own")
        sys.stdout.write(json.dumps({"ok": ok, "detail": detail}) + "\n")
        return 0 if ok else 1
    with (run_dir / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another guard stands here already")
            return ALREADY
        return Guard(run_dir).watch()


if __name__ == "__main__":
    sys.exit(main())
