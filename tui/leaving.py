"""What is said when the screen ends: by choice, and by a fault of tunewatch."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tui.snapshot import RunSnapshot

FAULT = 70
"""The exit code of a fault in tunewatch itself (EX_SOFTWARE of sysexits.h): none of those with a meaning for a run."""
KEPT = 20
"""Reports of faults; the oldest go."""


def goodbye(going: Iterable[RunSnapshot]) -> str | None:
    """The runs that go on, and how to see them again; None without one."""
    lines = [f"{s.name or s.target} goes on.  See it again:  tunewatch watch {s.target}" for s in going]
    return "\n".join(lines) or None


def fault(error: BaseException) -> str:
    """A fault of tunewatch in words, where its report lies, and what goes on all the same. Writes the report.

    The report has the calls and what the error says, secrets taken out, and no local values: a token may be among them.
    """
    from remote.redact import redact

    kind = redact(f"{type(error).__name__}: {error}".partition("\n")[0][:200])
    path = _report("".join(traceback.format_exception(error)))
    where = f"The report is in {path}." if path is not None else "Its report could not be written."
    return f"A fault in tunewatch ended it ({kind}). {where}\nRuns, boxes and their guards go on as they were."


def _report(text: str) -> Path | None:
    from remote.home import home
    from remote.redact import redact

    try:
        folder = home() / "faults"
        folder.mkdir(mode=0o700, exist_ok=True)
        for old in sorted(folder.glob("*.txt"))[: -KEPT + 1]:
            old.unlink(missing_ok=True)
        path = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.txt"
        path.write_text(redact(text), encoding="utf-8")
    except OSError:
        return None
    return path
