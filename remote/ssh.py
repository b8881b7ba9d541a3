"""A host over SSH: the only importer of paramiko.

What was measured of paramiko, and what follows here:

- A half-open link blocks `exec_command`, `recv_exit_status` and SFTP calls for ever. So every operation has a channel
  and a deadline of its own; when the deadline passes the whole client is dropped, and the next call builds a new one.
- The exit status can come before the last output, and the end of output hours after the exit status. So commands are
  wrapped in markers (`remote.wire`) and nobody waits for an end of file.
- An SFTP client is not thread-safe: it is used under a lock. Channels of one client may be used from many threads.
- SFTP reads 32 KiB per round trip; a stream through `tail -c +N` with a 32 MiB window is as fast as scp or faster. So
  small reads go by SFTP, large ones by a stream. Where there is no SFTP (no subsystem, or a login shell that prints
  into it) the shell does everything.
- Its threads log tracebacks; here they are silenced, because what they know reaches us as an exception as well.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko

from remote.known_hosts import KnownHosts
from remote.ssh_auth import AskPassphrase, NeedsPassphraseError, Offer, offers, refused
from remote.ssh_config import Login
from remote.ssh_feed import SshFeed
from remote.ssh_files import PIECE, SshFiles, SshStream, file_error
from remote.transport import (
    AuthError,
    Completed,
    LinkError,
)
from remote.wire import Unwrapped, connect_socket, wrap
from runner.errors import TunewatchError, UnreachableError

logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False

_FIRST_CONNECT_S = 15.0
_QUICKEST_CONNECT_S = 2.0
_OPEN_S = 30.0
"""For a channel and the start of a command on a link that is up: a command may take half an hour, this may not."""
_EOF_S = 0.15
"""A command that is sent nothing gets the end of its input so late: sent while the server closes the channel of a quick
one, it names a channel that is no more, and sshd ends the whole connection for that."""
_QUIET_S = (2.5, 15.0)
"""Seconds without a byte of a command after which the host itself is asked for a sign of life, and given as long: a
sixth of the command's own time within these bounds. A link that swallows everything is noticed; a box that is short of
breath in the middle of an installation is left alone."""


class _Keys:
    """Keys from files and from the running agent, for `ssh_auth`."""

    def load(self, path: Path, passphrase: str | None) -> paramiko.PKey:
        """Read a private key of any type this library knows."""
        try:
            # the stubs say text, the crypto library below wants bytes
            secret: Any = None if passphrase is None else passphrase.encode()
            return paramiko.PKey.from_path(path, secret)
        except paramiko.PasswordRequiredException as error:
            raise NeedsPassphraseError from error
        except TypeError as error:
            # the crypto library's way to say that a passphrase is missing
            raise NeedsPassphraseError from error
        except (paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
            raise ValueError(f"{path} is no key that can be used") from error

    def agent(self) -> list[tuple[str, bytes, paramiko.PKey]]:
        """Keys of the agent, none where there is no agent."""
        try:
            keys = paramiko.Agent().get_keys()
        except (paramiko.SSHException, OSError, EOFError):
            return []
        return [(key.comment or key.get_fingerprint().hex()[:16], key.asbytes(), key) for key in keys]


class SshTransport(SshFiles):
    """One host; connects on first use and again after every loss. Safe to share between threads."""

    def __init__(self, login: Login, *, home: Path, name: str | None = None, ask: AskPassphrase | None = None) -> None:
        """`home` keeps known_hosts. `ask` is called at most once per encrypted key file for its passphrase."""
        super().__init__(login, name)
        self.skew_s: float | None = None
        """Seconds by which the host's clock is ahead of ours; known after `home()`."""
        self.connections = 0
        """How many were built."""
        self.key_used = ""
        """The key that the host took, by its file or its name in the agent; empty before the first login."""
        self._known = KnownHosts(home)
        self._ask = ask
        self._lock = threading.RLock()
        self._chain: list[paramiko.Transport] = []
        self._opening: paramiko.Transport | None = None
        self._sftp: paramiko.SFTPClient | None = None
        self._no_sftp = False
        self._home: str | None = None
        self._usual_connect_s: float | None = None
        self._failed_connects = 0
        self._closed = False

    # connection -------------------------------------------------------------------------------------------------

    def _client(self) -> paramiko.Transport:
        """The live connection, built if there is none."""
        with self._lock:
            if self._chain and self._chain[-1].is_active():
                return self._chain[-1]
            self.drop()
            patience = _FIRST_CONNECT_S
            if self._usual_connect_s is not None:
                # a link that came up in 50 ms is not waited for 15 s: the try after this one may meet it awake
                quick = max(_QUICKEST_CONNECT_S, 6 * self._usual_connect_s)
                patience = min(_FIRST_CONNECT_S, quick * 1.3 ** max(0, self._failed_connects - 20))
            began = time.monotonic()
            try:
                self._chain = self._open_chain(patience)
            except TunewatchError:
                self._failed_connects += 1
                raise
            self._usual_connect_s = time.monotonic() - began
            self._failed_connects = 0
            self.connections += 1
            return self._chain[-1]

    def _open_chain(self, patience: float) -> list[paramiko.Transport]:
        """Connect through the jump hosts, if any, to the host; authenticated at each."""
        chain: list[paramiko.Transport] = []
        until = time.monotonic() + patience
        try:
            for hop in (*self.login.jumps, self.login):
                before = chain[-1] if chain else None
                keys = offers(hop, _Keys(), self._ask)
                tried = 0
                while True:
                    client = self._handshake(hop, before, until)
                    chain.append(client)
                    used = self._authenticate(client, hop, keys[tried:], until)
                    if used is None:
                        break
                    # the server hung up after too many keys: go on with the next one on a new connection
                    tried += used
                    chain.pop().close()
        except BaseException:
            for client in reversed(chain):
                client.close()
            raise
        return chain

    def _handshake(self, hop: Login, before: paramiko.Transport | None, until: float) -> paramiko.Transport:
        left = max(0.5, until - time.monotonic())
        if before is None:
            sock: socket.socket | paramiko.Channel = connect_socket(hop.host, hop.port, left)
        else:
            try:
                sock = before.open_channel("direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), timeout=left)
            except (paramiko.SSHException, OSError, EOFError) as error:
                said = f"The jump host before {hop.host} cannot reach its port {hop.port}."
                raise LinkError(said, hint="Try the same from a shell on the jump host.") from error
        client = self._opening = paramiko.Transport(sock)
        client.daemon = True
        left = max(0.5, until - time.monotonic())
        client.banner_timeout = client.handshake_timeout = client.auth_timeout = client.channel_timeout = left
        options = client.get_security_options()
        # one pass over the bytes instead of two (cipher, then hash): half as fast again on a busy machine
        options.ciphers = (*(c for c in options.ciphers if "gcm" in c), *(c for c in options.ciphers if "gcm" not in c))
        kind = self._known.known_kind(hop.alias)
        if kind is not None:
            wanted = ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,)
            with contextlib.suppress(ValueError):
                options.key_types = (*wanted, *(k for k in options.key_types if k not in wanted))
        try:
            with self._deadline(client, left, f"The SSH greeting of {hop.host}"):
                client.start_client(timeout=left)
                if not client.initial_kex_done:
                    raise LinkError(f"{hop.host} port {hop.port} accepts connections and says nothing.")
                key = client.get_remote_server_key()
            typed = self.name if hop is self.login else f"{hop.host}:{hop.port}"
            self._known.check(hop.alias, key.get_name(), key.asbytes(), typed=typed)
        except BaseException as error:
            client.close()
            if isinstance(error, LinkError) and "version" in str(error.__cause__).lower():
                said = f"What answers on port {hop.port} of {hop.host} is not an SSH server."
                raise LinkError(said, hint="Check the port.") from error
            raise
        return client

    def _authenticate(self, client: paramiko.Transport, hop: Login, keys: list[Offer], until: float) -> int | None:
        """Offer keys until one is taken (None), or until the server hangs up: then how many it refused."""
        left = max(0.5, until - time.monotonic())
        for count, offer in enumerate(keys, 1):
            key = offer.load()
            if key is None:
                continue
            try:
                with self._deadline(client, left, f"Logging in to {hop.host}"):
                    try:
                        if not client.auth_publickey(hop.user, key):
                            self.key_used = offer.name
                            return None
                    except paramiko.BadAuthenticationType as error:
                        raise refused(hop, keys, str(", ".join(error.allowed_types))) from error
                    except paramiko.AuthenticationException:
                        pass
            except LinkError:
                if client.is_active() or count == len(keys) or count == 1:
                    raise
                return count
            if client.is_authenticated():
                self.key_used = offer.name
                return None
            if not client.is_active():
                if count == len(keys):
                    break
                return count
        raise refused(hop, keys)

    def drop(self) -> None:
        """Close the connection; the next call builds a new one."""
        with self._lock:
            chain, self._chain = self._chain, []
            self._sftp = None
            self._forget_files()
        for client in reversed(chain):
            client.close()

    def close(self) -> None:
        """Give the connection back."""
        # not under the lock: whoever waits in a call must be woken by this
        opening = self._opening
        for client in (*reversed(self._chain), *([opening] if opening is not None else [])):
            client.close()
        self.drop()

    @contextlib.contextmanager
    def _deadline(self, client: paramiko.Transport, seconds: float, what: str, path: str = "") -> Iterator[None]:
        """Close `client` when the block takes longer, and put what paramiko raises into our words."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            client.close()

        timer = threading.Timer(max(0.05, seconds), expire)
        timer.daemon = True
        timer.start()
        try:
            with self._in_our_words(client, seconds, what, path, expired):
                yield
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def _in_our_words(
        self, client: paramiko.Transport, seconds: float, what: str, path: str = "",
        expired: threading.Event | None = None,
    ) -> Iterator[None]:  # fmt: skip
        """The same for what keeps to `seconds` by itself: no thread has to watch it."""
        try:
            yield
        except (paramiko.SSHException, paramiko.SFTPError, OSError, EOFError) as error:
            late = expired is not None and expired.is_set()
            known = None if late else file_error(error, path, self.login.user, self.name)
            if known is not None:
                raise known from error
            client.close()
            if late or isinstance(error, TimeoutError):
                raise LinkError(f"{what} took longer than {seconds:.0f} s.") from error
            raise LinkError(f"The link to {self.name} was lost.") from error

    # commands ---------------------------------------------------------------------------------------------------

    def run(self, command: str, *, stdin: bytes = b"", timeout: float = 30.0) -> Completed:
        """Run by /bin/sh in the home directory; the exit status is the command's own."""
        until = time.monotonic() + timeout
        client = self._client()
        nonce = secrets.token_hex(6)
        streams = Unwrapped.new(nonce)
        opening = min(_OPEN_S, until - time.monotonic())
        with self._deadline(client, opening, f"A command on {self.name}"):
            channel = client.open_session(timeout=max(0.1, opening))
            channel.exec_command(wrap(command, nonce))
        with self._deadline(client, until - time.monotonic(), f"A command on {self.name}"):
            try:
                done = self._converse(channel, streams, stdin, until)
            finally:
                channel.close()
        if done is None:
            raise self._no_end(client, streams)
        return done

    def _no_end(self, client: paramiko.Transport, streams: Unwrapped) -> TunewatchError:
        """Why a command ended without its last marker."""
        if not client.is_active():
            return LinkError(f"The link to {self.name} was lost before the command ended.")
        if not streams.started:
            shown = bytes(streams.out + streams.err).decode("utf-8", "replace").strip().splitlines()
            says = f" It says: {shown[-1][:120]}" if shown else ""
            return UnreachableError(
                f"The login shell of {self.name} did not run our command.{says}",
                hint="If it starts tmux by itself: touch ~/.no_auto_tmux there, or start it only when [ -t 0 ].",
            )
        return LinkError(f"A command on {self.name} was ended from outside.")

    def feed(self, command: str, *, timeout: float = 30.0) -> SshFeed:
        """Start a command whose input follows."""
        client = self._client()
        nonce = secrets.token_hex(6)
        with self._deadline(client, timeout, f"A command on {self.name}"):
            channel = client.open_session(timeout=timeout)
            channel.exec_command(wrap(command, nonce))
        return SshFeed(self, channel, Unwrapped.new(nonce))

    def _converse(self, channel: paramiko.Channel, streams: Unwrapped, stdin: bytes, until: float) -> Completed | None:
        """Feed stdin and collect both streams until the last markers, or until the other side hangs up (None)."""
        arrived = threading.Event()
        channel.in_buffer.set_event(arrived)
        channel.in_stderr_buffer.set_event(arrived)
        sent, closed = 0, False
        began = heard = time.monotonic()
        quiet = min(_QUIET_S[1], max(_QUIET_S[0], (until - heard) / 6))
        while True:
            arrived.clear()
            moved = False
            while channel.recv_ready():
                streams.out += channel.recv(PIECE)
                moved = True
            while channel.recv_stderr_ready():
                streams.err += channel.recv_stderr(PIECE)
                moved = True
            if moved and (done := streams.finished()) is not None:
                return done
            if sent < len(stdin) and channel.send_ready():
                sent += channel.send(stdin[sent : sent + (1 << 15)])
                moved = True
            elif sent >= len(stdin) and not closed and (stdin or time.monotonic() - began > _EOF_S):
                channel.shutdown_write()
                closed = True
            if moved:
                heard = time.monotonic()
                continue
            if channel.closed or (channel.eof_received and channel.exit_status_ready()):
                # the last bytes may have come between the reads above and this look at the channel
                if channel.recv_ready() or channel.recv_stderr_ready():
                    continue
                return streams.finished()
            if time.monotonic() >= until:
                raise TimeoutError
            if time.monotonic() - heard > quiet:
                self._sign_of_life(channel.get_transport(), quiet)
                heard = time.monotonic()
            # nobody tells us that the window has opened again: a long look away would cap the rate at 2 MB for each
            arrived.wait(0.002 if sent < len(stdin) else 0.05 if channel.eof_received else 0.2)

    def _sign_of_life(self, client: paramiko.Transport, seconds: float) -> None:
        """Ask the host itself, not a proxy before it, for any answer. Raises SSHException when none comes in `seconds`.

        A keepalive of this library wants no reply; a channel that is opened has to be granted or refused.
        """
        try:
            client.open_session(timeout=seconds).close()
        except paramiko.ChannelException:
            return  # refused, for too many sessions: that is an answer

    def ping(self, *, timeout: float = 5.0) -> float:
        """Seconds for one question to the host itself."""
        client = self._client()
        began = time.monotonic()
        sftp = self._files(client, timeout)
        if sftp is None:
            self.run(":", timeout=timeout)
            return time.monotonic() - began
        began = time.monotonic()
        with self._sftp_lock, self._deadline(client, timeout, f"A question to {self.name}"):
            sftp.get_channel().settimeout(timeout)  # type: ignore[union-attr]
            sftp.stat(".")
        return time.monotonic() - began

    def home(self, *, timeout: float = 10.0) -> str:
        """The home directory; asked once, together with the clock."""
        if self._home is None:
            before = time.time()
            answer = self.run('printf "%s\\n" "$HOME"; date +%s.%N', timeout=timeout)
            after = time.time()
            lines = answer.text.splitlines()
            self._home = lines[0] if lines else "/"
            if len(lines) > 1:
                with contextlib.suppress(ValueError):
                    self.skew_s = float(lines[1].removesuffix(".%N").removesuffix("N")) - (before + after) / 2
        return self._home

    # files ------------------------------------------------------------------------------------------------------

    def _files(self, client: paramiko.Transport, timeout: float) -> paramiko.SFTPClient | None:
        """The SFTP session of this connection, or None where the host has none."""
        with self._lock:
            if self._sftp is not None or self._no_sftp:
                return self._sftp
            try:
                with self._deadline(client, timeout, f"Opening SFTP on {self.name}"):
                    channel = client.open_session(timeout=timeout)
                    channel.settimeout(timeout)
                    try:
                        channel.invoke_subsystem("sftp")
                        self._sftp = paramiko.SFTPClient(channel)
                    except (paramiko.SSHException, paramiko.SFTPError, EOFError, OSError):
                        if not client.is_active():
                            raise
                        # no subsystem, or a login shell that prints a banner into the protocol
                        channel.close()
                        self._no_sftp = True
            except LinkError:
                self.drop()
                raise
            return self._sftp


def locked_keys(login: Login) -> list[Path]:
    """Key files of a login that need a passphrase, whether or not an agent holds them unlocked."""
    found = []
    for path in login.keys:
        try:
            _Keys().load(path, None)
        except NeedsPassphraseError:
            found.append(path)
        except (ValueError, OSError):
            continue
    return found


__all__ = ["AskPassphrase", "AuthError", "Login", "SshStream", "SshTransport"]
