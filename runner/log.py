"""Reads the console log of any Hugging Face Trainer run into a RunHistory."""

from __future__ import annotations

from runner.history import RunHistory


class LogReader:
    """Turns the bytes of a log.txt, fed in any pieces, into a RunHistory."""

    def __init__(self) -> None:
        self._bytes = 0
        self._history: RunHistory | None = None

    def feed(self, data: bytes) -> None:
        """Take in the next bytes of the file. Never raises for content."""
        if data:
            self._bytes += len(data)
            self._history = None

    def history(self) -> RunHistory:
        """Everything known so far; the same object again while nothing was fed."""
        if self._history is None:
            self._history = RunHistory(source="log", bytes_read=self._bytes)
        return self._history
