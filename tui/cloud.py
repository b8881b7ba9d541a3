"""What the commands of renting share: the desk with the account and the journal, and how money is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from remote.deeds import Progress, silent

if TYPE_CHECKING:
    from remote.desk import Desk


@contextmanager
def open_desk(progress: Progress = silent) -> Iterator[Desk]:
    """The account and the journal, closed afterwards. Raises AuthError when there is no key."""
    from remote.desk import Desk
    from remote.home import home
    from remote.journal import Journal
    from remote.places import open_places

    journal = Journal(home())
    try:
        yield Desk(open_places(journal.home, journal), journal, progress)
    finally:
        journal.close()


def dollars(value: float) -> str:
    """Money for people: cents, or more digits where cents would say nothing."""
    return f"${value:.2f}" if value >= 0.1 or value == 0 else f"${value:.4f}"


def seconds_from_now(text: str | None) -> float | None:
    """`90s`, `45m`, `10h` or an ISO time as seconds from now; None stays None."""
    if text is None:
        return None
    from tui.commands.estimate import hours_from_now

    return hours_from_now(text) * 3600
