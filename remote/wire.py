"""Below SSH: a socket that notices a dead peer. Above it: a command line that comes through any login shell unharmed.

A shell may print a banner before our command and leave children behind after it. So every command is wrapped in
markers that carry a number made for this one call: what comes before the first marker is the shell's own talk, the
last marker carries the exit status, and nobody has to wait for an end of file that a child may hold back for hours.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
import time
from dataclasses import dataclass

from remote.transport import Completed, LinkError

USER_TIMEOUT_MS = 6000
"""Unacknowledged data kills the connection after this long, where the system can do it (Linux)."""


def connect_socket(host: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection with TCP_NODELAY and keepalive set. Every address of the name gets its share of `timeout` (s).

    paramiko sets none of these: without TCP_NODELAY small requests wait 40 ms for a delayed acknowledgement.
    Raises LinkError that says which of name, route or port it was.
    """
    until = time.monotonic() + timeout
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise LinkError(
            f"The name {host} is not known here.", hint="Check its spelling, ~/.ssh/config, or the network."
        ) from error
    last: OSError | None = None
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        share = (until - time.monotonic()) / (len(addresses) - index)
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(max(0.2, share))
            tune(sock)
            sock.connect(address)
        except OSError as error:
            sock.close()
            last = error
        else:
            return sock
    if isinstance(last, ConnectionRefusedError):
        said = f"Nothing listens on port {port} of {host}."
        raise LinkError(said, hint="Is sshd running there, and is it the right port?") from last
    raise LinkError(f"{host} port {port} does not answer.", hint="Is the host up, and this network online?") from last


def tune(sock: socket.socket) -> None:
    """Set the options of a connection that must not hang; what the system lacks is left out."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": USER_TIMEOUT_MS}
    for name, value in wanted.items():
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def wrap(command: str, nonce: str) -> str:
    """The command line to send for `command`, run by /bin/sh in the home directory.

    The command runs in a subshell: whatever it does to its shell, `exit` included, the last marker is printed.
    """
    script = (
        f"printf '\\036{nonce}<'; printf '\\036{nonce}<' >&2; cd \"$HOME\" 2>/dev/null; (\n{command}\n)\n"
        f"tw_rc=$?; printf '\\036{nonce}>%d\\036' $tw_rc; printf '\\036{nonce}>\\036' >&2; exit $tw_rc"
    )
    return f"/bin/sh -c {shlex.quote(script)}"


@dataclass(slots=True)
class Unwrapped:
    """Collects the two streams of a wrapped command until both last markers are in."""

    nonce: str
    out: bytearray
    err: bytearray

    @classmethod
    def new(cls, nonce: str) -> Unwrapped:
        """Nothing has come yet."""
        return cls(nonce, bytearray(), bytearray())

    @property
    def started(self) -> bool:
        """Whether the login shell ran our line at all."""
        return self._begin in self.out

    @property
    def _begin(self) -> bytes:
        return f"\036{self.nonce}<".encode()

    def finished(self) -> Completed | None:
        """The result once everything the command itself wrote is here."""
        tail = re.search(rf"\036{self.nonce}>(\d+)\036".encode(), self.out[-200:]) or (
            re.search(rf"\036{self.nonce}>(\d+)\036".encode(), self.out) if len(self.out) < 1 << 16 else None
        )
        ended = f"\036{self.nonce}>\036".encode()
        if tail is None or ended not in self.err:
            return None
        out = bytes(self.out).partition(self._begin)[2].rpartition(tail[0])[0]
        err = bytes(self.err).partition(self._begin)[2].rpartition(ended)[0]
        return Completed(int(tail[1]), out, err)
