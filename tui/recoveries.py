"""Lost boxes that are replaced while a screen is open: begun in a process that outlives it, and told as they go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from runner.errors import ProviderError, TunewatchError
from tui.rental_view import Alarm, Severity

if TYPE_CHECKING:
    from remote.journal import Journal
    from remote.provider import Instance
    from remote.recovery_policy import Loss

BRIEF: Mapping[str, str] = {
    "outbid": "outbid",
    "offline": "its host is offline",
    "ended": "its contract ended",
    "ending": "its contract ends",
    "gone": "its box is gone",
}
"""By the cause of a loss, for the line above a run."""
AGAIN_S = 300.0
"""Between two tries to recover the same run: the market may have an offer by then."""


class Recoveries:
    """At most one at a time; each is `tunewatch migrate RUN --recover`."""

    def __init__(self, do: Callable[[Loss], None] | None = None, wake: Callable[[], None] = lambda: None) -> None:
        """`do` recovers one run or raises a TunewatchError; `wake` is called when one has ended."""
        self._do = do or recover_by_command
        self._wake = wake
        self._thread: threading.Thread | None = None
        self._again: dict[str, float] = {}
        self._told: dict[str, Alarm] = {}

    @property
    def under_way(self) -> bool:
        """Whether one is being done."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """How each recovery of this session stands."""
        return tuple(self._told.values())

    def take(self, journal: Journal, rows: Sequence[Instance], gone: Collection[int], now: float, mono: float) -> None:
        """Begin what is due by one complete listing at `now` (seconds since the epoch), `mono` on the other clock."""
        from remote.recovery_policy import losses, policy_of, used
        from remote.settings import load_settings

        found = losses(journal, rows, now, gone=gone)
        if self.under_way or not (found or journal.open_deeds("migrate")):
            return
        from remote.recover import due

        settings = load_settings(journal.home)
        for loss in due(journal, found, now):
            if mono < self._again.get(loss.run, float("-inf")):
                continue
            self._again[loss.run] = mono + AGAIN_S
            number = f"{used(journal, loss.run) + 1} of {policy_of(journal, loss.run, settings).most}"
            goes_on = f"goes on elsewhere by itself (recovery {number})"
            brief = f"{BRIEF[loss.cause]}: {goes_on}, the box of before is only read"
            self._tell("begun", loss, f"{loss.text} {loss.run} {goes_on}.", brief)
            self._thread = threading.Thread(target=self._one, args=(loss,), name="recover", daemon=True)
            self._thread.start()
            return

    def wait(self, timeout: float) -> None:
        """Wait until what was begun is over."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _one(self, loss: Loss) -> None:
        try:
            self._do(loss)
        except TunewatchError as error:
            self._tell("failed", loss, f"{loss.run} trains nowhere: {loss.text} {error.message}")
        else:
            self._tell("done", loss, f"{loss.run} goes on elsewhere: {loss.text}")
        self._wake()

    def _tell(self, state: str, loss: Loss, text: str, brief: str = "") -> None:
        severity: Severity = {"begun": "warning", "failed": "error", "done": "information"}[state]  # type: ignore[assignment]
        key = f"recovery {state} {loss.run}"
        self._told[loss.run] = Alarm(key, "recovery", text, severity, True, loss.run, brief)


def recover_by_command(loss: Loss) -> None:
    """Recover a run in a process that goes on when the screen is left; raises ProviderError with its last words."""
    from tui.deeds import Deed, run_deed

    ended = run_deed(Deed("recovery", ("migrate", loss.run, "--recover"), (loss.text,), "Move"), lambda _: None)
    if not ended.ok:
        raise ProviderError(ended.text, hint=f"Run: tunewatch migrate {loss.run} --recover --dry-run.")
