"""What bills right now, looked at by one thread while a screen is open, and ended when it passes its limit.

    nothing rented     the thread looks at the journal's time stamp every few seconds, and that is all
    something rented   one listing of the account every 15 s; one frozen `RentalSnapshot` after each
    past a limit       the box is ended as by `tunewatch kill`, in a process that outlives the screen
    lost               the run goes on elsewhere as by `tunewatch migrate --recover`, where its policy allows it
    read-only, or a second control room on the same home     only looks, and says so

A limit is enforced twice, by the guard on the box and here, each without the other: here budget and deadline by the
journal, idleness by the provider's rows. A fault of the provider is never an exception: the last that was known stays
on the screen with its age.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import ProviderError, TunewatchError
from tui.recoveries import Recoveries
from tui.rental_view import Act, Alarm, RentalSnapshot, alarms, box_name, gone_alarm

if TYPE_CHECKING:
    from remote.arming import Overdue
    from remote.desk import Desk
    from remote.journal import BoxRecord, Journal
    from remote.lock import FileLock
    from remote.notices import Notice
    from remote.provider import Instance, Provider
    from remote.recovery_policy import Loss
    from remote.rented import Absences, GuardSight, IdleWatch, RentedBox

INTERVAL_S = 15.0
QUIET_S = 3.0
"""Between two looks at the journal's time stamp while nothing is rented."""
SLOWEST_S = 120.0
"""Between two tries at a provider that does not answer, at most."""
GUARD_S = 60.0
ACCOUNT_S = 300.0
"""Between two questions for credit and price increases."""
AGAIN_S = 60.0
"""Between two tries to end the same box."""


class Rentals(threading.Thread):
    """The thread. `look` is one round of it, for tests that move the clocks themselves."""

    def __init__(
        self,
        post: Callable[[RentalSnapshot], None],
        *,
        home: Path | None = None,
        read_only: bool = False,
        make_provider: Callable[[], Provider] | None = None,
        end: Callable[[Overdue], None] | None = None,
        recover: Callable[[Loss], None] | None = None,
        sight: Callable[[BoxRecord, Instance], GuardSight] | None = None,
        interval: float = INTERVAL_S,
        clock: Callable[[], float] = time.time,
        mono: Callable[[], float] = time.monotonic,
    ) -> None:
        """`end` ends a box or raises (default: `tunewatch kill` in its own process), `recover` moves a run whose box
        was lost (`tunewatch migrate --recover`); `sight` reads a guard (over SSH).

        `clock` is seconds since the epoch. `post` is called from this thread and from that of a deed.
        """
        super().__init__(name="rentals", daemon=True)
        self._post = post
        self._home = home
        self._read_only = read_only
        self._make_provider = make_provider
        self._end = end or end_by_command
        self._recoveries = Recoveries(recover, self.look_now)
        self._sight = sight
        self._interval = interval
        self._clock, self._mono = clock, mono
        self._wake, self._ending = threading.Event(), threading.Event()
        self._journal: Journal | None = None
        self._stamp: tuple[int, ...] = ()
        self._lock: FileLock | None = None
        self._desk: Desk | None = None
        self._rows: list[Instance] | None = None
        self._answered: float | None = None
        self._failures = 0
        self._hold = 0.0
        self._absences: Absences | None = None
        self._idle: IdleWatch | None = None
        self._gone: set[int] = set()
        self._acts: dict[int, Act] = {}
        self._again: dict[int, float] = {}
        self._deed: threading.Thread | None = None
        self._guards: threading.Thread | None = None
        self._guards_at = float("-inf")
        self._sights: dict[int, GuardSight] = {}
        self._account_at = float("-inf")
        self._said: list[Notice] = []
        self._ends: list[Alarm] = []
        self._shown = False
        self._boxes: tuple[RentedBox, ...] = ()
        self._slow: list[Notice] = []

    # the thread ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Look until told to stop."""
        while not self._ending.is_set():
            pause = QUIET_S
            try:
                if self.something_rented():
                    self._publish(self.look())
                    pause = self.pause_s
                elif self._shown:
                    self._shown = self._deed is not None and self._deed.is_alive()
                    last = RentalSnapshot(age_s=0.0)
                    told = alarms(last, tuple(self._acts.items()), ())
                    self._boxes = ()
                    self._post(replace(last, alarms=(*self._ends, *told)))
            except Exception as error:  # noqa: BLE001 - told on the screen, and the money is looked after again
                said = f"a fault in tunewatch, {type(error).__name__}: {error}"
                self._publish(RentalSnapshot(self._boxes, None, said))
                pause = self._interval
            self._wake.wait(pause)
            self._wake.clear()
        self.close()

    def stop(self) -> None:
        """Ask the thread to end. Does not wait: a provider that hangs must not hold the screen."""
        self._ending.set()
        self._wake.set()

    def look_now(self) -> None:
        """Do not wait for the next round."""
        self._wake.set()

    def close(self) -> None:
        """Let go of the lock and of the journal, unless a deed still needs it."""
        if self._lock is not None:
            self._lock.release()
        busy = [t for t in (self._deed, self._guards) if t is not None and t.is_alive()]
        if self._journal is not None and not busy and not self._recoveries.under_way:
            self._journal.close()
            self._journal = self._desk = self._rows = self._answered = None

    @property
    def pause_s(self) -> float:
        """Seconds to the next round: longer after each failure, and as long as the provider asked for."""
        return max(min(self._interval * 2.0**self._failures, max(SLOWEST_S, self._interval)), self._hold)

    def something_rented(self) -> bool:
        """Whether the journal has a box that is not proved gone. Opens nothing while its file stays as it was."""
        if self._home is None:
            from remote.home import home

            self._home = home()
        path = self._home / "journal.db"
        stamp = _stamp(path)
        if not stamp:
            return False
        if self._journal is None:
            if stamp == self._stamp:
                return False
            from remote.journal import Journal

            self._journal = Journal(self._home, clock=self._clock)
        rented = bool(self._journal.boxes(living=True))
        if not rented and (self._deed is None or not self._deed.is_alive()):
            self.close()
            self._stamp = _stamp(path)
        return rented

    # one round ----------------------------------------------------------------------------------------------------

    def look(self) -> RentalSnapshot:
        """Ask once, decide, begin what has to be done. Never raises for a fault of the provider."""
        from remote.arming import overdue
        from remote.rented import SLACK_S, Absences, IdleWatch, of_open_deeds, survey, unfinished_kills

        journal = self._open_journal()
        self._absences = self._absences or Absences()
        self._idle = self._idle or IdleWatch()
        why_not = self._why_not(journal)
        acting = not why_not
        if not self._shown and self._rows is None:
            # the journal knows what it knew: seconds before the provider's answer
            self._publish(RentalSnapshot(survey(journal, None, self._clock()), acting=acting, why_not=why_not))
        trouble = self._ask(journal, acting)
        now = self._clock()
        rows = self._rows
        late = overdue(journal, now, slack_s=SLACK_S)
        idle: list[Overdue] = []
        if rows is not None and not trouble:
            gone = self._absences.take(journal, rows, now)
            self._gone = gone
            for instance in gone & self._acts.keys():
                if self._acts[instance].state == "failed":
                    del self._acts[instance]  # somebody else ended it
            if acting:
                for box in self._absences.settle(journal, gone, now):
                    self._ends.append(gone_alarm(box))
            steps = {instance: sight.step for instance, sight in self._sights.items()}
            idle = self._idle.late(journal, rows, self._mono(), steps)
            running = {row.id for row in rows if row.status == "running"}
            busy = of_open_deeds(journal, under_way=True)
            # a stopped box keeps what could not be uploaded; its owner decides about that
            wanted = [*idle, *late, *unfinished_kills(journal)]
            due = [b for b in wanted if b.instance not in busy and (b.instance in running or b not in (*idle, *late))]
            if acting and due:
                self._enforce(due)
            if acting:
                self._recoveries.take(journal, rows, gone, now, self._mono())
            self._read_guards(journal, rows, acting)
            self._ask_account(journal, rows, now)
        guards = {instance: sight.alarm for instance, sight in self._sights.items()}
        boxes = survey(journal, rows, now, late=(*idle, *late), guards=guards, absent=self._gone)
        age = None if self._answered is None else max(0.0, self._mono() - self._answered)
        snapshot = RentalSnapshot(boxes, age, trouble, (), acting, why_not)
        told = alarms(snapshot, tuple(self._acts.items()), self._said, failures=self._failures)
        return replace(snapshot, alarms=(*self._ends, *self._recoveries.alarms, *told))

    def _publish(self, snapshot: RentalSnapshot) -> None:
        self._shown = True
        self._boxes = snapshot.boxes
        self._post(snapshot)

    def _open_journal(self) -> Journal:
        if self._journal is None:
            self.something_rented()
        if self._journal is None:
            raise ProviderError("There is no journal: nothing was rented from here.")
        return self._journal

    def _why_not(self, journal: Journal) -> str:
        """Why limits are not enforced from here; empty when they are. One screen acts, the others look."""
        if self._read_only:
            return "this screen is read-only"
        from remote.lock import HeldError

        try:
            self._lock = (self._lock or journal.session()).acquire("A control room for this home")
        except HeldError as error:
            return error.message
        return ""

    def _ask(self, journal: Journal, acting: bool) -> str:
        """One listing; what is wrong with the provider, or an empty text."""
        from remote.provider import RateLimitedError

        self._hold = 0.0
        try:
            desk = self._open_desk(journal)
            # who only looks writes nothing, the meter included
            self._rows = desk.listing(for_s=0.0) if acting else desk.provider.instances()
        except TunewatchError as error:
            self._failures += 1
            if isinstance(error, RateLimitedError):
                self._hold = error.retry_after_s
            return error.message
        self._failures = 0
        self._answered = self._mono()
        return ""

    def _open_desk(self, journal: Journal) -> Desk:
        if self._desk is None:
            from remote.desk import Desk

            if self._make_provider is not None:
                provider = self._make_provider()
            else:
                from remote.places import open_places

                provider = open_places(journal.home, journal)
            self._desk = Desk(provider, journal, clock=self._clock, mono=self._mono)
        return self._desk

    # what follows -------------------------------------------------------------------------------------------------

    def _enforce(self, due: list[Overdue]) -> None:
        """End what is due, in a thread of its own: the rest goes on being looked at."""
        if self._deed is not None and self._deed.is_alive():
            return
        now = self._mono()
        first = {box.instance: box for box in reversed(due) if now >= self._again.get(box.instance, float("-inf"))}
        if not first:
            return
        for box in first.values():
            self._again[box.instance] = now + AGAIN_S
            self._acts[box.instance] = Act("ending", box.reason, box_name(box), box.run)
        self._deed = threading.Thread(target=self._end_all, args=(first,), name="enforce limits", daemon=True)
        self._deed.start()

    def _end_all(self, due: dict[int, Overdue]) -> None:
        from remote.arming import enforce

        desk = self._desk
        if desk is None:
            return

        def end(box: Overdue) -> None:
            if box.instance not in due:
                return
            desk.journal.note("past its limit", run=box.run, instance=box.instance, why=box.reason)
            try:
                self._end(box)
            except TunewatchError as error:
                self._acts[box.instance] = Act("failed", f"{box.reason}. {error.message}", box_name(box), box.run)
                raise
            self._acts[box.instance] = Act("ended", box.reason, box_name(box), box.run)

        enforce(desk, end, also=due.values())
        self._wake.set()

    def wait_for_deeds(self, timeout: float = 60.0) -> None:
        """Wait until what was begun is over."""
        for thread in (self._deed, self._guards):
            if thread is not None:
                thread.join(timeout)
        self._recoveries.wait(timeout)

    def _read_guards(self, journal: Journal, rows: list[Instance], acting: bool) -> None:
        """Look at the guards now and then, beside this thread: a link that hangs must not hold up the list."""
        if self._mono() - self._guards_at < GUARD_S or (self._guards is not None and self._guards.is_alive()):
            return
        records = {box.instance: box for box in journal.boxes(living=True) if box.data.get("guard")}
        pairs = [(records[row.id], row) for row in rows if row.id in records and row.status == "running"]
        if not pairs:
            return
        self._guards_at = self._mono()
        self._guards = threading.Thread(
            target=self._guard_round, args=(journal, pairs, acting), name="read guards", daemon=True
        )
        self._guards.start()

    def _guard_round(self, journal: Journal, pairs: list[tuple[BoxRecord, Instance]], acting: bool) -> None:
        from remote.arming import keep_report

        if self._sight is None:
            from remote.rented import GuardRounds

            self._sight = GuardRounds(journal.home, tell=not self._read_only).read
        before = {instance: sight.alarm for instance, sight in self._sights.items()}
        for box, row in pairs:
            try:
                sight = self._sight(box, row)
            except TunewatchError:
                continue  # a box that cannot be reached says nothing about its guard; the link has its own alarm
            self._sights[box.instance] = sight
            if acting:
                keep_report(journal, box.instance, sight.report)
        if before != {instance: sight.alarm for instance, sight in self._sights.items()}:
            self._wake.set()

    def _ask_account(self, journal: Journal, rows: list[Instance], now: float) -> None:
        from remote.notices import notices

        account, increases = None, []
        if self._desk is not None and self._mono() - self._account_at >= ACCOUNT_S:
            self._account_at = self._mono()
            try:
                account = self._desk.provider.account()
                increases = self._desk.provider.price_increases()
            except TunewatchError:
                account = None  # the list stands without what is only said beside it
            self._slow = [n for n in notices(rows, (), account=account, increases=increases, now=now) if _slow(n)]
        quick = [n for n in notices(rows, journal.boxes(), now=now) if not _slow(n)]
        self._said = [*quick, *self._slow]


def end_by_command(box: Overdue) -> None:
    """End a box as `tunewatch kill` does, in a process that goes on when the screen is left; raises ProviderError."""
    from tui.deeds import Deed, run_deed

    deed = Deed("past its limit", ("kill", str(box.instance)), (box.reason,), "Destroy")
    ended = run_deed(deed, lambda _: None)
    if not ended.ok:
        raise ProviderError(f"It could not be ended: {ended.text}", hint=f"Run: tunewatch kill {box.instance}.")


def _slow(notice: Notice) -> bool:
    return notice.kind in ("credit", "price")


def _stamp(path: Path) -> tuple[int, ...]:
    """When and how long the journal was last written; empty when there is none."""
    found: list[int] = []
    for name in (path, path.with_name(path.name + "-wal")):
        try:
            state = name.stat()
        except OSError:
            continue
        found += [state.st_mtime_ns, state.st_size]
    return tuple(found)
