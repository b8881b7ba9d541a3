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

On a machine of its owner's (`rental` false) nothing is rented and nothing is switched off: the run is ended, by force
when it does not listen, and the guard says so and leaves.

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
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from runner.atomic import write_atomic
from runner.box.limits import (
    CONFIG,
    LEASE,
    LOCK,
    RELEASE,
    REPORT,
    Limits,
    View,
    decide,
    network_bytes,
    read_bytes,
    read_limits,
    read_object_file,
    read_uploads,
)
from runner.box.own_key import Api, api_from_environment, end_container
from runner.rundir import STATUS, Status, read_status, write_stop_request

SILENT_S = 30.0
"""A supervisor whose heartbeat stood still for so long, and whose trainer is gone, is over."""
DESTROY_TRIES_S = (0.0, 2.0, 5.0, 8.0)
STOP_TRIES_S = (0.0, 3.0, 6.0)
IDLE_GPU = 5.0
"""Per cent of GPU use up to which it counts as idle."""
ALREADY = 75


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
        network: Callable[[], tuple[int, int]] = network_bytes,
    ) -> None:
        self.run_dir = run_dir
        self._make_api = api or api_from_environment
        self._mono = mono
        self._sleep = sleep
        self._gpu_use = gpu_use or gpu_use_percent
        self._power_off = power_off or end_container
        self._network = network
        self._net_bytes = network()
        self._down_gb = self._up_gb = 0.0
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
        self._down_gb, self._up_gb = float(before.get("down_gb") or 0.0), float(before.get("up_gb") or 0.0)

    def look(self) -> View:
        """Read the run directory and the meters."""
        now = self._mono()
        # metered piece by piece, so that a price the laptop corrects counts from then on and not backwards
        self._spent += max(0.0, now - self._spent_at) / 3600 * self.limits.usd_per_h
        self._spent_at = now
        self._meter_traffic()
        status = read_status(self.run_dir / STATUS)
        if status is not None and status.seq != self._seq:
            self._seq, self._seq_at = status.seq, now
        alive = bool(status and not status.ended and (now - self._seq_at < SILENT_S or _process_lives(status)))
        if status is not None and status.step is not None and status.step != self._step:
            self._step, self._busy_at = status.step, now
        # the GPU is asked before idleness could be decided without it, however short the limit
        if now - self._busy_at > min(10.0, (self.limits.idle_s or 20.0) / 2):
            use = self._gpu_use()
            if alive and use is not None and use > IDLE_GPU:
                self._busy_at = now
        over = status is not None and not alive
        self._over_at = (self._over_at if self._over_at is not None else now) if over else None
        rc = None
        if over and status is not None:
            rc = status.rc if status.ended and status.rc is not None else -1
        lease = read_bytes(self.run_dir / LEASE)
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
            down_gb=self._down_gb,
            up_gb=self._up_gb,
            uploading=uploading,
        )

    def _meter_traffic(self) -> None:
        counters = self._network()
        # counters that fell began anew with the container
        down, up = (c - b if c >= b else c for c, b in zip(counters, self._net_bytes))  # noqa: B905 - 3.9 has no strict
        self._net_bytes = counters
        self._down_gb += down / 1e9
        self._up_gb += up / 1e9
        self._spent += down / 1e9 * self.limits.down_usd_per_gb + up / 1e9 * self.limits.up_usd_per_gb

    def report(self, view: View, word: str, reason: str = "") -> None:
        """Write guard.status.json; a full disk does not stop the guard."""
        document = {
            "armed": True, "word": word, "reason": reason, "instance_id": self.limits.instance_id, "pid": os.getpid(),
            "wall": time.time(), "mono": self._mono(), "attempts": self._attempts[-12:], "limits": asdict(self.limits),
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
        if not self.limits.rental:
            return self._end_here(reason)
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
            # written before it is tried: this process goes with the container
            self._attempts.append("power off: the provider did not end the rental")
            self.report(view, "failing", reason)
            said = self._power_off(self.limits.instance_id)
            self._attempts.append(f"power off: {said}")
            say(f"power off: {said}")
            self.report(view, "failing", reason)
            rounds += 1
            self._sleep(min(60.0, 5.0 * 2**rounds))

    def _end_here(self, reason: str) -> int:
        """Nothing is rented: only make sure that the run is over."""
        status = read_status(self.run_dir / STATUS)
        if status is not None and status.pid and _process_lives(status):
            _signal_group(status.pid, signal.SIGKILL)
            self._attempts.append("the run was killed: it did not end within its grace")
        self._attempts.append("the run is over; this machine is its owner's and stays as it is")
        self.report(self.look(), "ended", reason)
        return 0

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


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except OSError:
        _signal(pid, number)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError as error:
        say(f"process {pid} could not be signalled: {error.strerror}")


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
    if options.prove and not limits.rental:
        sys.stdout.write(json.dumps({"ok": True, "detail": "nothing is rented here: it ends the run"}) + "\n")
        return 0
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
