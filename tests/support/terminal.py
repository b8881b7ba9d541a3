"""A real terminal to drive a program in: tmux on a socket of its own, keys sent, the screen read back."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Self

PATIENCE_S = 240.0
ENDED = "THE END"
"""Stands on the screen when the program has ended."""


class Terminal:
    """One program in one window. Close it: the program ends with its window."""

    def __init__(self, words: list[str], *, env: Mapping[str, str], width: int = 120, height: int = 40) -> None:
        self.socket = f"tw-{uuid.uuid4().hex[:8]}"
        command = shlex.join(["env", *(f"{name}={value}" for name, value in env.items()), *words])
        # COLUMNS and LINES, which a test runner may set, would be believed in place of the window's size
        unwanted = ("TMUX", "NO_COLOR", "COLUMNS", "LINES")
        outer = {name: value for name, value in os.environ.items() if name not in unwanted}
        subprocess.run(
            ["tmux", "-L", self.socket, "-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height),
             "-s", "main", f"{command}; echo {ENDED}; cat"],
            env={**outer, "TERM": "xterm-256color", "LANG": "C.UTF-8"}, check=True, timeout=60,
        )  # fmt: skip

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self.socket, *words], check=True, capture_output=True, text=True, timeout=60
        )
        return done.stdout

    def screen(self) -> str:
        """What stands on the screen now."""
        return self._tmux("capture-pane", "-p", "-t", "main")

    def keys(self, *names: str) -> None:
        """Press keys, by the names of tmux (`Enter`, `Escape`, `Tab`, a letter)."""
        self._tmux("send-keys", "-t", "main", *names)

    def press_until(self, key: str, wanted: str, seconds: float = PATIENCE_S) -> str:
        """Press a key again and again, with some seconds between, until a text stands on the screen: as a person does
        who sees that nothing has happened yet."""
        end = time.monotonic() + seconds
        while True:
            self.keys(key)
            pressed = time.monotonic()
            while time.monotonic() < pressed + 5.0:
                seen = self.screen()
                if wanted in seen:
                    return seen
                time.sleep(0.1)
            assert time.monotonic() < end, f"{wanted!r} did not come within {seconds:g} s:\n{seen}"

    def type(self, text: str) -> None:
        """Type a text as it stands."""
        self._tmux("send-keys", "-t", "main", "-l", text)

    def resize(self, width: int, height: int) -> None:
        """Make the window another size."""
        self._tmux("resize-window", "-t", "main", "-x", str(width), "-y", str(height))

    def until(self, wanted: str | Callable[[str], object], seconds: float = PATIENCE_S) -> str:
        """Wait until a text stands on the screen, or the screen pleases; returns it. AssertionError with it if not."""
        end = time.monotonic() + seconds
        holds = wanted if callable(wanted) else lambda seen: wanted in seen
        while True:
            seen = self.screen()
            if holds(seen):
                return seen
            assert ENDED not in seen, f"the program ended before {wanted!r} came:\n{seen}"
            assert time.monotonic() < end, f"{wanted!r} did not come within {seconds:g} s:\n{seen}"
            time.sleep(0.1)

    def close(self) -> None:
        """End the window and its server."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._tmux("kill-server")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
