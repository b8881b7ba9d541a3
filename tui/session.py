"""Which runs are under watch: one polling thread per host, and what each run is judged and quoted with.

Made before the screens and handed to them; it knows nothing of Textual but the function that posts a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tui.layout import Layout

if TYPE_CHECKING:
    from estimator.offer import Offer
    from tui.calibrating import Calibrating
    from tui.last_seen import LastSeen, Memory
    from tui.poller import HostPoller, Watch
    from tui.run_rows import RunRow
    from tui.snapshot import Feed, RuleChoice, RunSnapshot

# what reads and judges a run is imported when the first one is watched: the first frame must not wait for it

THIS_MACHINE = "this machine"


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """One run to watch."""

    target: str
    name: str = ""
    choice: RuleChoice | None = None
    """What the person said of the auto-stop rule; None: nothing."""
    dph: float | None = None
    """USD per hour of its box; None: 0 for this machine, unknown elsewhere."""
    offer_id: str | None = None
    """The offer of the list that is this box."""


@dataclass(slots=True)
class Session:
    """The pollers of all hosts."""

    offers: Sequence[Offer] = ()
    interval: float = 1.0
    make_feed: Callable[[str], Feed] | None = None
    """How a target is opened; None opens it as the command line does."""
    instances: dict[str, int | None] = field(default_factory=dict)
    """Instance ids of known runs, by target."""
    budget: float | None = None
    """USD for a run; spending more is told."""
    theme: str = ""
    """Name of the theme; empty for the default."""
    offers_from: str = ""
    """The file that the offers were read from; it stands above the live market. Empty for the bundled examples."""
    recorded: bool = False
    """Whether what is shown is a recording: it does not go on when the screen is left."""
    notice: str = ""
    """A sentence for the first screen."""
    between: Callable[[], None] | None = None
    """Called by the threads that read, between small pieces of work: it waits while the screen has something to do."""
    layout: Layout = field(default_factory=Layout)
    """How the screens were left."""
    _pollers: dict[str, HostPoller] = field(default_factory=dict)
    _watched: dict[str, Watch] = field(default_factory=dict)
    _front: str | None = None
    _post: Callable[[RunSnapshot], None] | None = None
    _waiting: list[WatchPlan] = field(default_factory=list)
    _bets: Calibrating | None = None
    _memory: Memory | None = None
    _live: Sequence[Offer] = ()
    """The live market's, once it was read."""

    def use_offers(self, offers: Sequence[Offer]) -> None:
        """Quote every run from these from now on: today's prices in place of those it began with."""
        self._live = tuple(offers)
        for watch in list(self._watched.values()):
            watch.maker.use(self._live)

    def start(self, post: Callable[[RunSnapshot], None]) -> None:
        """Begin to poll what was asked for so far; `post` is called from the polling threads."""
        self._post = post
        waiting, self._waiting = self._waiting, []
        for plan in waiting:
            self.watch(plan)

    def watch(self, plan: WatchPlan) -> None:
        """Watch one run more; watching it twice changes nothing. Raises UsageError for a text that is no target."""
        if plan.target in self._watched:
            return
        if self._post is None:
            self._waiting.append(plan)
            return
        from tui.poller import HostPoller

        host, watch = self.open(plan)
        self._watched[plan.target] = watch
        self.bring_to_front(self._front)
        poller = self._pollers.get(host)
        if poller is None:
            poller = self._pollers[host] = HostPoller(host, self._told, [watch], interval=self.interval)
            poller.start()
        else:
            poller.add(watch)

    def _told(self, snapshot: RunSnapshot) -> None:
        """Hand on what a thread read of a run, and remember it."""
        if self._post is not None:
            self._post(snapshot)
        if self.make_feed is None and not self.recorded:
            if self._memory is None:
                from tui.last_seen import Memory

                self._memory = Memory()
            self._memory.note(snapshot)

    def recall(self, target: str) -> LastSeen | None:
        """What the screen of a run said when it was last looked at; None for a run that was not, or is replayed."""
        if self.make_feed is not None or self.recorded:
            return None
        from tui.last_seen import recall

        return recall(target)

    def forget(self, target: str) -> None:
        """Watch a run no longer, so that watching it again opens it anew: it may be on another box by now."""
        watch = self._watched.pop(target, None)
        self.instances.pop(target, None)
        if watch is not None:
            for poller in self._pollers.values():
                poller.drop(watch)

    def bring_to_front(self, target: str | None) -> None:
        """Read the run that a person looks at as it writes, the others now and then. None: all alike, each second."""
        self._front = target
        for name, watch in self._watched.items():
            watch.front = None if target is None else name == target

    def open(self, plan: WatchPlan) -> tuple[str, Watch]:
        """The host and the watch of a run, not polled yet. Raises UsageError or NotFoundError for the target."""
        from remote.target import parse_target
        from tui.poller import Watch
        from tui.snapshot import RuleChoice, SnapshotMaker

        target = parse_target(plan.target)
        if target.kind == "run" and self.make_feed is None:
            from remote.home import home
            from remote.known import find_run

            target = find_run(target.path, home())
        make_feed = self.make_feed

        def open_feed() -> Feed:
            # the readers of a run are imported by the thread that polls: the first frame must not wait for them
            if make_feed is not None:
                return make_feed(plan.target)
            from remote.feed import RunFeed

            return RunFeed(target, between=self.between)

        local = target.kind == "local"
        dph = plan.dph if plan.dph is not None else (0.0 if local else _price_of(target.instance_id))
        here = next((o for o in self.offers if o.id == plan.offer_id), None) if plan.offer_id else None
        maker = SnapshotMaker(
            plan.target,
            plan.name or run_name(target.path),
            plan.choice or RuleChoice(),
            self._live or self.offers,
            here,
            here.dph if here is not None and plan.dph is None else dph,
            # what is replayed, or read by a test's own feed, is nothing that came true
            self._book() if self.make_feed is None and not self.recorded else None,
        )
        host = THIS_MACHINE if local else f"{target.kind} {target.host or target.instance_id or ''}"
        return host, Watch(open_feed, maker, between=self.between)

    def _book(self) -> Calibrating:
        """The bets of all runs, one book for the session."""
        if self._bets is None:
            from tui.calibrating import Calibrating

            self._bets = Calibrating()
        return self._bets

    def known(self) -> list[RunRow]:
        """Every run known here, the newest first. Reads files: not for the screen's thread."""
        from remote.home import home
        from remote.known import known_runs
        from tui.run_rows import RunRow

        runs = known_runs(home())
        self.instances.update({run.target: run.instance_id for run in runs})
        return [RunRow(run.target, run.name, run.recipe or "", run.instance_id, run.noted) for run in runs]

    def rented(self, target: str) -> bool:
        """Whether a run is on a box of the provider, by its target or by what is known of it."""
        if target not in self.instances:
            self.instances[target] = _instance_of(target)
        return target.startswith("vast:") or self.instances[target] is not None

    def shell_of(self, target: str) -> list[str]:
        """The command that opens a shell where the run is: its tmux session, ssh, or a shell in its directory."""
        import os
        import shlex

        from remote.feed import resolve
        from remote.home import home
        from remote.known import known_runs
        from remote.target import parse_target

        attach = next((r.attach for r in known_runs(home()) if target in (r.target, r.name) and r.attach), None)
        if attach is not None:
            return shlex.split(attach)
        where = resolve(parse_target(target))
        if where.kind == "ssh":
            port = ["-p", str(where.port)] if where.port else []
            return ["ssh", *port, f"{where.user}@{where.host}" if where.user else str(where.host)]
        folder = Path(where.path) if Path(where.path).is_dir() else Path(where.path).parent
        return ["sh", "-c", f"cd {shlex.quote(str(folder))} && exec {shlex.quote(os.environ.get('SHELL', '/bin/sh'))}"]

    def look_now(self) -> None:
        """Read everything again without waiting for the next tick."""
        for poller in self._pollers.values():
            poller.look_now()

    def stop(self) -> None:
        """End all polling; the runs go on."""
        for poller in self._pollers.values():
            poller.stop()


def run_name(path: str) -> str:
    """What a run is called on the screen: the last two parts of its path, without the name of the log.

    >>> run_name("/root/x/runs/stage5/20260215-104518/log.txt")
    'stage5/20260215-104518'
    """
    parts = [p for p in Path(path).parts if p not in ("/", "\\")]
    if len(parts) > 1 and "." in parts[-1]:
        if parts[-1] not in ("log.txt", "metrics.jsonl"):
            return parts[-1]
        parts = parts[:-1]
    return "/".join(parts[-2:]) or path


def _instance_of(target: str) -> int | None:
    """The instance that a known run is on."""
    from remote.home import home
    from remote.known import known_runs

    return next((r.instance_id for r in known_runs(home()) if target in (r.target, r.name)), None)


def _price_of(instance_id: int | None) -> float | None:
    """USD per hour that the journal knows of a rented box; None for what is not rented, or not by this journal."""
    if instance_id is None:
        return None
    from remote.home import home
    from remote.journal import Journal

    journal = Journal(home())
    try:
        box = journal.box(instance_id)
    finally:
        journal.close()
    price = box.data.get("dph_total") if box is not None else None
    return float(price) if isinstance(price, int | float) else None
