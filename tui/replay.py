"""The recorded sample played again: a tour that needs no torch, and the scene of the pictures.

`ReplayFeed` is a feed like any other, read from a finished run directory as if its bytes came now, faster. It copies
nothing into the record: the log that grows is a copy in a temporary folder.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import NotFoundError

if TYPE_CHECKING:
    from remote.feed import FeedState

SAMPLE = Path(__file__).resolve().parent.parent / "runs" / "sample"


class ReplayFeed:
    """A finished run directory, played from its first event on at `speed` times its own pace."""

    def __init__(self, run: Path, *, speed: float = 8.0, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is monotonic seconds. Raises NotFoundError when there is no recording."""
        from runner.metrics import MetricsReader

        try:
            lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
            self._log = (run / "log.txt").read_bytes()
        except OSError as error:
            raise NotFoundError(
                f"There is no recorded run in {run}.", hint="It lies in the repository, not in the installed package."
            ) from error
        moments = [float(json.loads(line).get("mono", 0.0)) for line in lines]
        self._lines = [(at - moments[0], line) for at, line in zip(moments, lines, strict=True)]
        self.length_s = self._lines[-1][0] if self._lines else 0.0
        """Seconds of the recorded run."""
        self._speed = speed
        self._clock = clock
        self._begun = clock()
        self._reader = MetricsReader()
        self._told = 0
        self._folder = tempfile.TemporaryDirectory(prefix="tunewatch-replay-")
        self._copy = Path(self._folder.name) / "log.txt"
        self._written = 0

    def tick(self) -> FeedState:
        """What the run had told by now."""
        from remote.feed import FeedState
        from remote.link import LOCAL
        from runner.state import judge_state

        now = (self._clock() - self._begun) * self._speed
        while self._told < len(self._lines) and self._lines[self._told][0] <= now:
            self._reader.feed(self._lines[self._told][1])
            self._told += 1
        share = self._told / len(self._lines) if self._lines else 1.0
        self._grow(int(share * len(self._log)))
        history = self._reader.history()
        over = self._told == len(self._lines)
        state, reason = judge_state(history, None, log_age_s=0.0, alive=None if over else True)
        return FeedState(
            history=history,
            state=state,
            reason=reason,
            status=None,
            link=LOCAL,
            log_path=self._copy,
            health=None,
            warnings=(),
            run_dir=True,
        )

    def _grow(self, size: int) -> None:
        # whole lines only: a piece of a bar would be a line of its own on the screen
        end = self._log.rfind(b"\n", 0, size) + 1
        if end > self._written or not self._copy.exists():
            with self._copy.open("ab") as out:
                out.write(self._log[self._written : end])
            self._written = max(end, self._written)

    def close(self) -> None:
        """Throw the copy away."""
        self._folder.cleanup()


def open_replay(*, speed: float = 8.0) -> None:
    """The live screen on the recorded sample."""
    from tui.opening import new_session, show
    from tui.session import WatchPlan

    feed = ReplayFeed(SAMPLE, speed=speed)
    session = new_session()
    session.make_feed = lambda target: feed
    session.recorded = True
    session.notice = f"A recorded run, {speed:g} times as fast as it was. Nothing trains."
    show(WatchPlan(str(SAMPLE), "recorded sample"), session)
