"""The laptop's crash-safe record of everything that costs money; the only importer of sqlite3.

Rules:

- A deed (launch, kill, migrate, adopt) is opened before its first outside effect and closed after its last. Around
  every outside effect stand two rows: `intent` before, `done` or `failed` after. Both are on the disk (WAL, full
  sync) before the call returns, so after a crash an intent without its answer says exactly what may have happened.
- Rows are never changed or deleted; the database itself refuses it.
- A deed is carried out by one process at a time: it holds an flock that dies with the process. An open deed whose lock
  is free was abandoned and may be continued by `resume`.
- One launch or migration of a run is open at a time: a second rental for the same run cannot begin.
- Nothing secret is written: every text goes through `remote.redact`.

Other deeds bring their own step names (a migration has M0 to M12) and their `epoch`, the fencing number of the run.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from remote.journal_rows import (
    BoxRecord,
    DeedRecord,
    MeterRow,
    Phase,
    Row,
    as_text,
    box_from,
    deed_from,
    row_from,
)
from remote.lock import FileLock
from remote.redact import redact
from runner.errors import NotFoundError, RefusedError

__all__ = ["BoxRecord", "Deed", "DeedRecord", "Journal", "MeterRow", "Phase", "Row"]

EXCLUSIVE = ("launch", "migrate", "resume")
"""Kinds of which a run has at most one open."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS deeds(
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, run TEXT NOT NULL, epoch INTEGER NOT NULL, opened REAL NOT NULL,
  closed REAL, outcome TEXT, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events(
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, deed TEXT, kind TEXT NOT NULL, run TEXT NOT NULL,
  epoch INTEGER NOT NULL, step TEXT NOT NULL, phase TEXT NOT NULL, instance INTEGER, data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_deed ON events(deed);
CREATE TABLE IF NOT EXISTS boxes(
  instance INTEGER PRIMARY KEY, run TEXT NOT NULL, label TEXT NOT NULL, state TEXT NOT NULL, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS meter(
  id INTEGER PRIMARY KEY AUTOINCREMENT, instance INTEGER NOT NULL, start REAL NOT NULL, stop REAL NOT NULL,
  status TEXT NOT NULL, gpu_usd_h REAL NOT NULL, disk_usd_h REAL NOT NULL);
CREATE INDEX IF NOT EXISTS meter_instance ON meter(instance);
CREATE TABLE IF NOT EXISTS charged(
  instance INTEGER PRIMARY KEY, at REAL NOT NULL, usd REAL NOT NULL, items TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS excluded(machine INTEGER PRIMARY KEY, at REAL NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS phases(
  at REAL NOT NULL, machine INTEGER, image TEXT NOT NULL, phase TEXT NOT NULL, seconds REAL NOT NULL);
CREATE TRIGGER IF NOT EXISTS events_stay BEFORE UPDATE ON events
  BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER IF NOT EXISTS events_remain BEFORE DELETE ON events
  BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
"""


class Journal:
    """One file `journal.db` in the home of tunewatch. Every method is its own transaction; threads take turns."""

    def __init__(
        self,
        home: Path,
        *,
        clock: Callable[[], float] = time.time,
        before_row: Callable[[Row], None] | None = None,
        after_row: Callable[[Row], None] | None = None,
    ) -> None:
        """Open or make the journal in `home`. The two hooks see every row before and after it is on the disk: tests
        end the process there.
        """
        self.home = home
        self.clock = clock
        self._before = before_row
        self._after = after_row
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = home / "journal.db"
        fresh = not path.exists()
        self._db = sqlite3.connect(path, timeout=20.0, isolation_level=None, check_same_thread=False)
        if fresh:
            path.chmod(0o600)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)
        self._mutex = threading.RLock()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._mutex:
            return self._db.execute(query, values).fetchall()

    # -- deeds --------------------------------------------------------------------------------------------------------

    def laptop(self) -> str:
        """A short name of this journal, part of every label: whose box is it when two people share an account?"""
        found = self._read("SELECT value FROM meta WHERE key='laptop'")
        if found:
            return str(found[0][0])
        with self._write() as db:
            db.execute("INSERT OR IGNORE INTO meta VALUES('laptop', ?)", (secrets.token_hex(3),))
        return self.laptop()

    def begin(self, kind: str, run: str, *, epoch: int = 0, **data: Any) -> Deed:
        """Open a deed and take its lock. Raises RefusedError when the run has an open launch or migration."""
        deed_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(self.clock()))}-{secrets.token_hex(3)}"
        lock = FileLock(self.home / "locks" / f"deed-{deed_id}.lock").acquire(f"The {kind} of {run}")
        try:
            with self._write() as db:
                if kind in EXCLUSIVE:
                    marks = ",".join("?" * len(EXCLUSIVE))
                    rival = db.execute(
                        f"SELECT id, kind FROM deeds WHERE run=? AND closed IS NULL AND kind IN ({marks})",  # noqa: S608
                        (run, *EXCLUSIVE),
                    ).fetchone()
                    if rival is not None:
                        raise RefusedError(
                            f"A {rival[1]} of {run} is not finished ({rival[0]}).", hint="Run: tunewatch reconcile."
                        )
                text = as_text(data)
                db.execute(
                    "INSERT INTO deeds VALUES(?,?,?,?,?,NULL,NULL,?)", (deed_id, kind, run, epoch, self.clock(), text)
                )
                self._row(db, deed_id, kind, run, epoch, "begin", "open", None, data)
        except BaseException:
            lock.release()
            raise
        return Deed(self, self.deed(deed_id), lock)

    def deed(self, deed_id: str) -> DeedRecord:
        """One deed; raises NotFoundError."""
        rows = self._read("SELECT * FROM deeds WHERE id=?", deed_id)
        if not rows:
            raise NotFoundError(f"The journal has no deed {deed_id}.")
        return deed_from(rows[0])

    def open_deeds(self, kind: str | None = None, run: str | None = None) -> list[DeedRecord]:
        """Deeds that were begun and not closed, oldest first."""
        found = [deed_from(row) for row in self._read("SELECT * FROM deeds WHERE closed IS NULL ORDER BY opened, id")]
        return [d for d in found if (kind is None or d.kind == kind) and (run is None or d.run == run)]

    def under_way(self, deed_id: str) -> bool:
        """Whether a living process carries the deed out at this moment."""
        return not FileLock(self.home / "locks" / f"deed-{deed_id}.lock").free()

    def resume(self, deed_id: str) -> Deed:
        """Continue an abandoned deed; raises HeldError while another process carries it out."""
        record = self.deed(deed_id)
        lock = FileLock(self.home / "locks" / f"deed-{deed_id}.lock").acquire(f"The {record.kind} of {record.run}")
        return Deed(self, self.deed(deed_id), lock)

    def session(self) -> FileLock:
        """The lock of a control room: one screen acts, a second one on the same home only looks (HeldError)."""
        return FileLock(self.home / "locks" / "session.lock").acquire("A control room for this home")

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, deed_id: str | None = None, instance: int | None = None) -> list[Row]:
        """The history, oldest first."""
        query, values = "SELECT * FROM events", []
        if deed_id is not None:
            query, values = query + " WHERE deed=?", [deed_id]
        elif instance is not None:
            query, values = query + " WHERE instance=?", [str(instance)]
        return [row_from(found) for found in self._read(query + " ORDER BY seq", *values)]

    def note(self, step: str, *, run: str = "", instance: int | None = None, **data: Any) -> None:
        """A line outside any deed: something was noticed."""
        with self._write() as db:
            self._row(db, None, "note", run, 0, step, "note", instance, data)

    def _row(
        self, db: sqlite3.Connection, deed: str | None, kind: str, run: str, epoch: int, step: str, phase: Phase,
        instance: int | None, data: Mapping[str, Any],
    ) -> Row:  # fmt: skip
        row = Row(0, self.clock(), deed, kind, run, epoch, step, phase, instance, data)
        db.execute(
            "INSERT INTO events(at, deed, kind, run, epoch, step, phase, instance, data) VALUES(?,?,?,?,?,?,?,?,?)",
            (row.at, deed, kind, run, epoch, step, phase, instance, as_text(data)),
        )
        return row

    def write(
        self, record: DeedRecord, step: str, phase: Phase, data: Mapping[str, Any], *, instance: int | None = None,
        outcome: str | None = None, box: Mapping[str, Any] | None = None,
    ) -> DeedRecord:  # fmt: skip
        """Add a row to a deed, merge `data` into what the deed remembers, and update its box, in one transaction."""
        row = Row(0, self.clock(), record.id, record.kind, record.run, record.epoch, step, phase, instance, data)
        if self._before is not None:
            self._before(row)
        with self._write() as db:
            self._row(db, record.id, record.kind, record.run, record.epoch, step, phase, instance, data)
            kept = {**record.data, **data, "step": step, "phase": phase}
            db.execute("UPDATE deeds SET data=? WHERE id=?", (as_text(kept), record.id))
            if outcome is not None:
                db.execute("UPDATE deeds SET closed=?, outcome=? WHERE id=?", (self.clock(), outcome, record.id))
            if box is not None and instance is not None:
                _merge_box(db, instance, {"run": record.run, **box})
        if self._after is not None:
            self._after(row)
        return self.deed(record.id)

    # -- boxes --------------------------------------------------------------------------------------------------------

    def put_box(self, instance: int, **fields: Any) -> BoxRecord:
        """Remember a box, or more about it. `run`, `label` and `state` have columns, the rest is kept beside them."""
        with self._write() as db:
            _merge_box(db, instance, fields)
        record = self.box(instance)
        if record is None:
            raise NotFoundError(f"The journal has no box {instance}.")
        return record

    def box(self, instance: int) -> BoxRecord | None:
        """What is remembered of a box."""
        rows = self._read("SELECT * FROM boxes WHERE instance=?", instance)
        return box_from(rows[0]) if rows else None

    def boxes(self, *, living: bool = False) -> list[BoxRecord]:
        """All boxes ever, or those not proved gone."""
        found = [box_from(row) for row in self._read("SELECT * FROM boxes ORDER BY instance")]
        return [box for box in found if not (living and box.gone)]

    def box_of_run(self, run: str) -> BoxRecord | None:
        """The living box of a run, the newest when there are two, else the last one it had."""
        mine = [box for box in self.boxes() if box.run == run]
        living = [box for box in mine if not box.gone]
        chosen = living or mine
        return chosen[-1] if chosen else None

    # -- money and memory ---------------------------------------------------------------------------------------------

    def meter(self, instance: int) -> list[MeterRow]:
        """The metered stretches of a box, oldest first."""
        rows = self._read(
            "SELECT instance, start, stop, status, gpu_usd_h, disk_usd_h FROM meter WHERE instance=? ORDER BY id",
            instance,
        )
        return [MeterRow(*row) for row in rows]

    def add_meter(self, row: MeterRow) -> None:
        """Lengthen the last stretch when nothing changed, else begin a new one."""
        with self._write() as db:
            last = db.execute(
                "SELECT id, stop, status, gpu_usd_h, disk_usd_h FROM meter WHERE instance=? ORDER BY id DESC LIMIT 1",
                (row.instance,),
            ).fetchone()
            if last is not None and row.start < last[1]:
                # another process metered the same box a moment ago: the time is counted once
                row = replace(row, start=last[1], stop=max(row.stop, last[1]))
            same = last is not None and last[1] == row.start and last[2:] == (row.status, row.gpu_usd_h, row.disk_usd_h)
            if same:
                db.execute("UPDATE meter SET stop=? WHERE id=?", (row.stop, last[0]))
            else:
                db.execute(
                    "INSERT INTO meter(instance, start, stop, status, gpu_usd_h, disk_usd_h) VALUES(?,?,?,?,?,?)",
                    (row.instance, row.start, row.stop, row.status, row.gpu_usd_h, row.disk_usd_h),
                )

    def put_charged(self, instance: int, at: float, usd: float, items: Mapping[str, float]) -> None:
        """Keep the provider's own bill of a box as it stood at a moment."""
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO charged VALUES(?,?,?,?)", (instance, at, usd, json.dumps(dict(items))))

    def charged(self, instance: int) -> tuple[float, float, dict[str, float]] | None:
        """`(at, usd, items)` of the provider's bill."""
        rows = self._read("SELECT at, usd, items FROM charged WHERE instance=?", instance)
        return (rows[0][0], rows[0][1], json.loads(rows[0][2])) if rows else None

    def exclude(self, machine: int, reason: str) -> None:
        """Do not offer this machine again: a box on it did not come up."""
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO excluded VALUES(?,?,?)", (machine, self.clock(), redact(reason)))

    def excluded(self, *, for_s: float = 7 * 86400.0) -> dict[int, str]:
        """Machines that failed within the last `for_s` seconds, with the reason."""
        since = self.clock() - for_s
        return dict(self._read("SELECT machine, reason FROM excluded WHERE at>=?", since))

    def add_phase(self, machine: int | None, image: str, phase: str, seconds: float) -> None:
        """Remember how long a phase of a launch took, for the setup time of later quotes."""
        with self._write() as db:
            db.execute("INSERT INTO phases VALUES(?,?,?,?,?)", (self.clock(), machine, image, phase, seconds))

    def phases(self) -> list[tuple[int | None, str, str, float]]:
        """`(machine, image, phase, seconds)` of past launches, oldest first."""
        return self._read("SELECT machine, image, phase, seconds FROM phases ORDER BY at")


class Deed:
    """An open deed in the hands of this process. Leaving the `with` block lets go of it, finished or not."""

    def __init__(self, journal: Journal, record: DeedRecord, lock: FileLock) -> None:
        self.journal = journal
        self.record = record
        self._lock = lock

    @property
    def id(self) -> str:
        """Its name in the journal."""
        return self.record.id

    @property
    def run(self) -> str:
        """The run it is about."""
        return self.record.run

    @property
    def data(self) -> Mapping[str, Any]:
        """Everything that its rows remembered, newest value of each key."""
        return self.record.data

    def intent(self, step: str, *, instance: int | None = None, **data: Any) -> None:
        """An outside effect is about to be asked for."""
        self.record = self.journal.write(self.record, step, "intent", data, instance=instance)

    def done(
        self, step: str, *, instance: int | None = None, box: Mapping[str, Any] | None = None, **data: Any
    ) -> None:
        """It took place. `box` is what is now known of the instance."""
        self.record = self.journal.write(self.record, step, "done", data, instance=instance, box=box)

    def failed(
        self, step: str, *, instance: int | None = None, box: Mapping[str, Any] | None = None, **data: Any
    ) -> None:
        """It did not, or nobody knows; `data` says which."""
        self.record = self.journal.write(self.record, step, "failed", data, instance=instance, box=box)

    def close(
        self, outcome: str, *, instance: int | None = None, box: Mapping[str, Any] | None = None, **data: Any
    ) -> None:
        """The last row: nothing is left to do."""
        self.record = self.journal.write(self.record, "end", "close", data, instance=instance, outcome=outcome, box=box)

    def __enter__(self) -> Deed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()


def _merge_box(db: sqlite3.Connection, instance: int, fields: Mapping[str, Any]) -> None:
    found = db.execute("SELECT run, label, state, data FROM boxes WHERE instance=?", (instance,)).fetchone()
    run, label, state, data = found or ("", "", "renting", "{}")
    rest = {k: v for k, v in fields.items() if k not in ("run", "label", "state")}
    merged = {**json.loads(data), **rest}
    db.execute(
        "INSERT OR REPLACE INTO boxes VALUES(?,?,?,?,?)",
        (instance, fields.get("run", run), fields.get("label", label), fields.get("state", state), as_text(merged)),
    )
