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
import contextlib
import fcntl
import json
import os
import signal
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
    read_bytes,
    read_limits,
    read_object_file,
)
from runner.box.meters import GpuMeter, Uploads, away_s, boot_id, container_age_s, finite, network_bytes, process_lives
from runner.box.own_key import Api, api_from_environment, end_container
from runner.rundir import STATUS, Status, read_status, write_stop_request

SILENT_S = 30.0
"""A supervisor whose heartbeat stood still for so long, and whose trainer is gone, is over."""
DESTROY_TRIES_S = (0.0, 2.0, 5.0, 8.0)
STOP_TRIES_S = (0.0, 3.0, 6.0)
PROOF_S = (3.0, 7.0, 15.0, 30.0)
"""When it is looked whether a yes of the provider was done: a container that was ended takes us along before."""
IDLE_GPU = 5.0
"""Per cent of GPU use up to which it counts as idle."""
LONGEST_PERIOD_S = 30.0
LEAST_GRACE_S = 30.0
"""So long a run may save even when its limit is reached already."""
LONGEST_GRACE_S = 1830.0
REPROVE_S = (1800.0, 60.0)
"""Seconds until the key is tried again: after it worked, and after it did not."""
STANDSTILL_S = 600.0
"""Of the time in which the container did not run, so much is metered like work; the rest like a stopped box."""
HUNG_S = 900
"""A guard that has not looked for so long is hung: the kernel ends it, and what started it starts another."""
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
        container_age: Callable[[], float | None] = container_age_s,
        alive: Callable[[], object] = lambda: None,
    ) -> None:
        self.run_dir = run_dir
        self._make_api = api or api_from_environment
        self._mono = mono
        self._sleep = sleep
        self._gpu_use = gpu_use or GpuMeter()
        self._power_off = power_off or end_container
        self._network = network
        self._container_age = container_age
        self._alive = alive
        self._uploads = Uploads(run_dir)
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
        self._standing = False
        self._status: Status | None = None
        self._earlier: tuple[object, ...] | None = None
        self._prove_at = mono() + REPROVE_S[0]
        self._refused = 0
        self._refusal = ""

    def load(self) -> None:
        """Read the limits; a file that cannot be read leaves the old ones in force."""
        limits = read_limits(self.run_dir)
        if limits is None:
            return
        anew = self._standing and limits.arming != self.limits.arming
        self.limits = limits
        if anew:
            self._begin()

    def _begin(self) -> None:
        """The laptop has armed: what it says was spent is true, and the times count from now."""
        now = self._mono()
        self._spent, self._spent_at = self.limits.spent_usd, now
        self._elapsed_before, self._armed_at = 0.0, now
        self._busy_at = self._lease_at = now
        self._over_at = None
        status = read_status(self.run_dir / STATUS)
        # an ending that was there before is that of an earlier run, which is about to be gone on with
        self._earlier = _which(status) if status is not None and status.ended else None

    def recover(self) -> None:
        """Take over from a guard that ended: its clock goes on. The time without one is metered at the full price as
        far as the container ran, and for some minutes more.
        """
        self._standing = True
        before = read_object_file(self.run_dir / REPORT) or {}
        if before.get("instance_id") != self.limits.instance_id:
            self._begin()
            return
        self._down_gb = max(0.0, finite(before.get("down_gb"), 0.0))
        self._up_gb = max(0.0, finite(before.get("up_gb"), 0.0))
        known = before.get("limits")
        if self.limits.arming and (known.get("arming") if isinstance(known, dict) else "") != self.limits.arming:
            self._begin()
            return
        gap = away_s(before, now=self._mono())
        self._elapsed_before = max(0.0, finite(before.get("elapsed_s"), 0.0)) + gap
        self._spent = max(self.limits.spent_usd, finite(before.get("spent_usd"), 0.0))
        age = self._container_age()
        stood = max(0.0, gap - age - STANDSTILL_S) if age is not None else 0.0
        self._spent += ((gap - stood) * self.limits.usd_per_h + stood * self.limits.disk_usd_per_h) / 3600

    def look(self) -> View:
        """Read the run directory and the meters."""
        self._alive()
        now = self._mono()
        # metered piece by piece, so that a price the laptop corrects counts from then on and not backwards
        self._spent += max(0.0, now - self._spent_at) / 3600 * self.limits.usd_per_h
        self._spent_at = now
        self._meter_traffic()
        # a run directory that was deleted says nothing any more: the process that was named last still lives or not
        status = self._status = read_status(self.run_dir / STATUS) or self._status
        if status is not None and status.seq != self._seq:
            self._seq, self._seq_at = status.seq, now
        alive = bool(status and not status.ended and (now - self._seq_at < SILENT_S or process_lives(status)))
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
            of_now = status.ended and status.rc is not None and _which(status) != self._earlier
            rc = status.rc if of_now else -1
        lease = read_bytes(self.run_dir / LEASE)
        if lease != self._lease:
            self._lease, self._lease_at = lease, now
        saves, uploading, _ = self._uploads.read()
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
            "wall": time.time(), "mono": self._mono(), "boot_id": boot_id(), "attempts": self._attempts[-12:],
            "limits": asdict(self.limits), "key_refused": self._refused, "key_said": self._refusal, **asdict(view),
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
            self._reprove()
            self.report(view, "watching")
            self._sleep(min(LONGEST_PERIOD_S, max(0.2, self.limits.period_s)))

    def _reprove(self) -> None:
        """Try the key again now and then: what was proved at the launch may have been taken back since."""
        if not self.limits.rental or self._mono() < self._prove_at:
            return
        api = self._make_api(self.limits)
        works, said = api.prove() if api is not None else (False, "this container has no key of its own")
        self._refused, self._refusal = (0, "") if works else (self._refused + 1, said)
        self._prove_at = self._mono() + REPROVE_S[0 if works else 1]

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
            _, _, uploaded = self._uploads.read()
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
            self._sleep(min(60.0, 5.0 * 2 ** min(rounds, 5)))

    def _end_here(self, reason: str) -> int:
        """Nothing is rented: only make sure that the run is over."""
        status = read_status(self.run_dir / STATUS)
        if status is not None and status.pid and process_lives(status):
            _signal_group(status.pid, signal.SIGKILL)
            self._attempts.append("the run was killed: it did not end within its grace")
        self._attempts.append("the run is over; this machine is its owner's and stays as it is")
        self.report(self.look(), "ended", reason)
        return 0

    def _ask(self, what: str, waits: tuple[float, ...], view: View, reason: str) -> bool:
        for wait in waits:
            self._sleep(wait)
            self._alive()
            api = self._make_api(self.limits)
            if api is None:
                done, said = False, "this container has no key of its own"
            else:
                done, said = api.destroy() if what == "destroy" else api.stop()
            self._attempts.append(f"{what}: {said}")
            say(f"{what}: {said}")
            self.report(view, "ending", reason)
            if done and api is not None and self._is_done(what, api):
                self.report(view, "ended", reason)
                return True
        return False

    def _is_done(self, what: str, api: Api) -> bool:
        """A yes is no proof: who still lives after a while looks at what the provider shows."""
        for wait in PROOF_S:
            self._sleep(wait)
            self._alive()
            if api.ended(what):
                return True
        self._attempts.append(f"{what}: was said to be done, and is not")
        return False

    def _stop_run(self, reason: str, view: View) -> None:
        grace = self._grace_s(reason, view)
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

    def _grace_s(self, reason: str, view: View) -> float:
        """How long the run may save: twice its longest save, but not beyond what the limit still leaves."""
        grace = min(LONGEST_GRACE_S, max(self.limits.grace_s, 2.0 * view.save_s + 30.0))
        left = grace
        if reason == "budget" and self.limits.budget_usd is not None and self.limits.usd_per_h > 0:
            left = (self.limits.budget_usd - view.spent_usd) / self.limits.usd_per_h * 3600
        elif reason == "deadline" and self.limits.deadline_s is not None:
            left = self.limits.deadline_s - view.elapsed_s + LEAST_GRACE_S
        if reason in ("budget", "deadline"):
            grace = min(grace, 2.0 * view.save_s + 40.0, max(LEAST_GRACE_S, left))
        return grace


def _which(status: Status) -> tuple[object, ...]:
    """Tells the last word of one run from that of another in the same directory."""
    return (status.supervisor_pid, status.pid, status.start_ticks, status.epoch, status.wall)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (OSError, OverflowError):
        _signal(pid, number)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (OSError, OverflowError) as error:
        say(f"process {pid} could not be signalled: {error}")


def say(text: str) -> None:
    """One line of the guard's own log; never a secret."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} {text}\n".encode("utf-8", "replace")
    # straight to the file: what waits in a buffer on a full disk would be an error again at every later word
    with contextlib.suppress(OSError):
        os.write(1, line)


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
        # the kernel ends us when nothing looks any more, and the loop that started us begins another
        return Guard(run_dir, alive=lambda: signal.alarm(HUNG_S)).watch()


if __name__ == "__main__":
    sys.exit(main())
