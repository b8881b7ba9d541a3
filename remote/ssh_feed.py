"""A command on an SSH host that is given its input piece by piece, for as long as there is more of it."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from remote.ssh_files import PIECE, SshFiles
from remote.transport import Completed
from remote.wire import Unwrapped

STALL_S = 120.0
"""Seconds in which a command that takes nothing is left alone while its host answers: its disk may be busy."""
QUIET_S, ANSWER_S = 5.0, 10.0
"""Seconds without a byte taken after which the host itself is asked for a sign of life, and what it is given for it."""


class SshFeed:
    """See `transport.Feed`. Not to be shared between threads."""

    def __init__(self, owner: SshFiles, channel: Any, streams: Unwrapped) -> None:
        self._owner = owner
        self._channel = channel
        self._streams = streams

    def write(self, data: bytes) -> bool:
        """Give it more; False when it has ended."""
        owner, channel = self._owner, self._channel
        until = time.monotonic() + STALL_S
        rest = memoryview(data)
        with owner._deadline(
            channel.get_transport(), STALL_S + QUIET_S + ANSWER_S, f"Sending to a command on {owner.name}"
        ):
            channel.settimeout(QUIET_S)
            while rest and not self._over():
                try:
                    rest = rest[channel.send(rest[:PIECE]) :]
                except TimeoutError:
                    if time.monotonic() > until:
                        raise
                    owner._sign_of_life(channel.get_transport(), ANSWER_S)
                except OSError:
                    if not self._over():
                        raise
        return not rest

    def _over(self) -> bool:
        """Whether the command has ended, or its input was closed on the other side of a link that lives."""
        channel = self._channel
        if not channel.get_transport().is_active():
            raise EOFError
        return bool(channel.closed or channel.exit_status_ready())

    def finish(self, timeout: float) -> Completed:
        """End its input and wait for its end."""
        owner, channel = self._owner, self._channel
        client = channel.get_transport()
        until = time.monotonic() + timeout
        with owner._deadline(client, timeout, f"A command on {owner.name}"):
            try:
                if not self._over():
                    channel.shutdown_write()
                done = owner._converse(channel, self._streams, b"", until)
            finally:
                channel.close()
        if done is None:
            raise owner._no_end(client, self._streams)
        return done

    def close(self) -> None:
        """End its input."""
        with contextlib.suppress(OSError, EOFError):
            self._channel.close()
