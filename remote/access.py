"""The way into a rented box: our own SSH key, the right pair of host and port, and patience while it boots.

- Direct (public address, mapped port) is tried before the proxy, and the one that worked is remembered. Host and port
  of different pairs are never combined.
- "running" comes before the key works: a refused key is asked again for some minutes before it is called an error.
- Addresses are used again for other boxes, so a host key is known by the instance's number, not by its address.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from remote.connect import open_transport
from remote.desk import Desk, Note
from remote.journal import Journal
from remote.provider import Instance, SshPair, find, is_own, upper
from remote.ssh_config import Login
from remote.target import parse_host
from remote.transport import (
    AuthError,
    ByteStream,
    Chunk,
    Closing,
    Completed,
    Feed,
    FileInfo,
    LinkError,
    NoHostError,
    Sent,
    Transport,
)
from runner.box.limits import LEASE
from runner.errors import NotFoundError, RefusedError, UnreachableError

T = TypeVar("T")

KEY_PATIENCE_S = 180.0
"""How long a new box may refuse the key."""
PING_S = 6.0
RENEW_S = 60.0
"""Between two renewals of a lease."""

Opener = Callable[[Instance, SshPair], Transport]
"""Makes a transport for one pair; connects on first use."""


def own_key(home: Path) -> tuple[Path, str]:
    """The key pair for rented boxes, made on first use: the private file and the public line."""
    private = home / "keys" / "id_ed25519"
    public = private.with_suffix(".pub")
    if not private.exists():
        _make_key(private, public)
    return private, public.read_text(encoding="ascii").strip()


def _make_key(private: Path, public: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Ed25519PrivateKey.generate()
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public.write_bytes(line + b" tunewatch\n")
    # made readable by nobody else from its first byte, and put in place whole
    beside = private.with_name(f".{private.name}.{os.getpid()}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(handle)
    beside.replace(private)


def opener(home: Path) -> Opener:
    """Transports over SSH with our own key first, then the user's."""
    private, _ = own_key(home)
    users = tuple(Path.home() / ".ssh" / name for name in ("id_ed25519", "id_ecdsa", "id_rsa"))

    def open_pair(instance: Instance, pair: SshPair) -> Transport:
        from remote.ssh import SshTransport

        if instance.address:
            # a machine of one's own is reached as its owner's ssh_config says
            return open_transport(parse_host(instance.address), home=home)
        # the proxy may answer with a key of its own
        alias = f"vast-{instance.id}" + ("" if pair.kind == "direct" else "-proxy")
        login = Login(alias, pair.host, pair.port, pair.user, (private, *users), use_agent=True)
        return SshTransport(login, home=home, name=f"vast:{instance.id}")

    return open_pair


def reach(instance: Instance, open_pair: Opener, *, prefer: str = "") -> tuple[Transport, SshPair]:
    """A transport that answers, by the first pair that does; raises the last error when none does."""
    pairs = sorted(instance.ssh, key=lambda pair: pair.kind != prefer) if prefer else list(instance.ssh)
    if not pairs:
        raise UnreachableError(f"{upper(instance.called)} has no SSH address yet.")
    last: UnreachableError | RefusedError | None = None
    for pair in pairs:
        transport = open_pair(instance, pair)
        try:
            transport.ping(timeout=PING_S)
        except (UnreachableError, RefusedError) as error:
            last = error
            transport.close()
            continue
        return transport, pair
    if last is None:
        raise UnreachableError(f"{upper(instance.called)} cannot be reached.")
    raise last


def wait_for_ssh(
    desk: Desk, instance: Instance, open_pair: Opener, note: Note, *, for_s: float = KEY_PATIENCE_S
) -> tuple[Transport, SshPair]:
    """Ask until the box lets us in; addresses are read again, for they appear late and may change."""
    until = desk.mono() + for_s
    wait = 0.5
    while True:
        try:
            return reach(instance, open_pair)
        except (UnreachableError, AuthError) as error:
            note.say(error.message)
            if desk.mono() > until:
                raise
        desk.sleep(wait)
        wait = min(wait * 1.5, 5.0)
        instance = find(desk.listing(), instance.id) or instance


class InstanceTransport(Closing):
    """A transport to an instance by its number: asks the provider for the addresses on first use, and again after the
    link broke, because a box that was started again has new ones.
    """

    def __init__(self, instance_id: int, home: Path, find_instance: Callable[[int], Instance]) -> None:
        self.name = f"vast:{instance_id}"
        self._id = instance_id
        self._state = home
        self._find = find_instance
        self._inner: Transport | None = None
        self._lease = ""
        self._renewed = float("-inf")

    def _host(self) -> Transport:
        if self._inner is None:
            instance = self._find(self._id)
            journal = Journal(self._state)
            try:
                box = journal.box(self._id)
                known = box.data if box is not None else {}
                prefer = str(known.get("ssh_kind") or "")
                if known.get("lease_s"):
                    self._lease = f"{known.get('guard_dir') or known.get('run_dir')}/{LEASE}"
                self._inner, pair = reach(instance, opener(self._state), prefer=prefer)
                if box is not None and prefer != pair.kind:
                    journal.put_box(self._id, ssh_kind=pair.kind)
            finally:
                journal.close()
        return self._inner

    def _ask(self, call: Callable[[Transport], T]) -> T:
        try:
            answer = call(self._host())
            self._renew()
        except LinkError:
            self.close()
            raise
        return answer

    def _renew(self) -> None:
        """Whoever looks at the box from this laptop keeps its lease alive."""
        now = time.monotonic()
        if self._lease and self._inner is not None and now - self._renewed >= RENEW_S:
            self._renewed = now
            # a lease that cannot be written ends the rental in time; it does not end the look at it
            with contextlib.suppress(RefusedError, NotFoundError):
                self._inner.put(f"{time.time():.0f}\n".encode(), self._lease)

    def run(self, command: str, *, stdin: bytes = b"", timeout: float = 30.0) -> Completed:
        """Run a command."""
        return self._ask(lambda host: host.run(command, stdin=stdin, timeout=timeout))

    def feed(self, command: str, *, timeout: float = 30.0) -> Feed:
        """Start a command whose input follows."""
        return self._ask(lambda host: host.feed(command, timeout=timeout))

    def read_from(self, path: str, offset: int, *, limit: int = 1 << 20, timeout: float = 10.0) -> Chunk:
        """Read a piece of a file."""
        return self._ask(lambda host: host.read_from(path, offset, limit=limit, timeout=timeout))

    def open_read(self, path: str, offset: int = 0, *, timeout: float = 10.0) -> ByteStream:
        """Stream a file."""
        return self._ask(lambda host: host.open_read(path, offset, timeout=timeout))

    def stat(self, path: str, *, timeout: float = 10.0) -> FileInfo:
        """Look at a path."""
        return self._ask(lambda host: host.stat(path, timeout=timeout))

    def listdir(self, path: str, *, timeout: float = 10.0) -> list[str]:
        """Names in a directory."""
        return self._ask(lambda host: host.listdir(path, timeout=timeout))

    def put(
        self, data: bytes | Path, remote: str, *, mode: int = 0o644, timeout: float = 600.0, sent: Sent | None = None
    ) -> None:
        """Write a file."""
        self._ask(lambda host: host.put(data, remote, mode=mode, timeout=timeout, sent=sent))

    def get(self, remote: str, local: Path, *, timeout: float = 600.0, sent: Sent | None = None) -> None:
        """Fetch a file."""
        self._ask(lambda host: host.get(remote, local, timeout=timeout, sent=sent))

    def ping(self, *, timeout: float = 5.0) -> float:
        """One round trip."""
        return self._ask(lambda host: host.ping(timeout=timeout))

    def home(self, *, timeout: float = 10.0) -> str:
        """The home directory there."""
        return self._ask(lambda host: host.home(timeout=timeout))

    def close(self) -> None:
        """Close the connection; the next call makes a new one."""
        if self._inner is not None:
            self._inner.close()
            self._inner = None


def transport_for_instance(instance_id: int, *, home: Path) -> Transport:
    """Reach an instance by its number. Asks nobody before its first call, which raises NoHostError when the account
    has no such instance.
    """

    def look_up(wanted: int) -> Instance:
        if is_own(wanted):
            from remote.hosts import HostsProvider

            rows = HostsProvider(home).instances()
        else:
            from remote.vast import VastProvider

            rows = VastProvider().instances()
        instance = find(rows, wanted)
        if instance is None:
            raise NoHostError(f"There is no instance {wanted} on this account.", hint="See: tunewatch instances.")
        if not instance.ssh or instance.status != "running":
            raise UnreachableError(f"Instance {wanted} is {instance.status}.", hint="See: tunewatch instances.")
        return instance

    return InstanceTransport(instance_id, home, look_up)
