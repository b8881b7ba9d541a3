"""Reads the console log of any Hugging Face Trainer run into a RunHistory.

transformers 4.4x to 5.x, piped or on a terminal, buffered or not, distributed, resumed, appended to, crashed, or cut
anywhere. How, from the bytes up: `runner.log_tokens` cuts them, `runner.log_reader` knows which bar is the Trainer's
and where one process ends and the next begins, `runner.log_process` pairs lines with steps, `runner.log_words` reads
the words, `runner.log_history` puts it together.

- Never a wrong step. What cannot be proved has none, and an evaluation whose text is still on its way is pending.
- Any chunking of the same bytes gives the same history. No byte string raises.
"""

from __future__ import annotations

from runner.history import RunHistory
from runner.log_history import compose
from runner.log_reader import TokenReader
from runner.log_series import Series
from runner.log_tokens import Scanner
from runner.text import HEAD, is_binary, unprintable


class LogReader:
    """Turns the bytes of a log.txt, fed in any pieces, into a RunHistory.

    Memory grows with evaluations and kept points, not with the file; each fed byte costs the same however long the
    file is.
    """

    def __init__(self) -> None:
        self._reading = TokenReader()
        self._scanner = Scanner(self._reading)
        self._series = Series()
        self._bytes = 0
        self._unprintable = 0
        self._history: RunHistory | None = None

    def feed(self, data: bytes) -> None:
        """Take in the next bytes of the file. Never raises for content."""
        if data:
            if self._bytes < HEAD:
                self._unprintable += unprintable(data[: HEAD - self._bytes])
            self._bytes += len(data)
            self._history = None
            self._scanner.feed(data)

    def history(self) -> RunHistory:
        """Everything known so far; the same object again while nothing was fed."""
        if self._history is None:
            binary = is_binary(self._unprintable, self._bytes)
            self._history = compose(self._reading.now(), self._series, self._bytes, binary=binary)
        return self._history
