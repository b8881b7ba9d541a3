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
import errno
import logging
import secrets
import socket
import stat as stat_bits
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko

from remote.known_hosts import KnownHosts
from remote.ssh_auth import AskPassphrase, NeedsPassphraseError, Offer, offers, refused
from remote.ssh_config import Login
from remote.transport import (
    AuthError,
    Chunk,
    Closing,
    Completed,
    FileInfo,
    LinkError,
    NoPermissionError,
    Sent,
    shell_path,
)
from remote.wire import Unwrapped, connect_socket, wrap
from runner.errors import NotFoundError, RefusedError, TunewatchError, UnreachableError

logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False

STREAM_WINDOW = 32 << 20
"""Bytes in flight on a stream: 150 ms of round trip at 200 MB/s."""
STREAM_PACKET = 1 << 17
"""Bytes per packet that a server may send us on a stream: each costs the same work here, whatever its size."""
_SMALL = 256 << 10
"""Bytes up to which a read goes by SFTP."""
_PIECE = 1 << 20
_FIRST_CONNECT_S = 15.0
_QUICKEST_CONNECT_S = 2.0


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


class SshStream:
    """One remote file flowing in; see `transport.ByteStream`."""

    def __init__(self, owner: SshTransport, channel: paramiko.Channel, size: int, left: int, first: bytes) -> None:
        self.size = size
        self._owner = owner
        self._channel = channel
        self._first = first[:left]
        self._left = left - len(self._first)

    def read(self, limit: int, timeout: float) -> bytes:
        """Up to `limit` bytes as soon as some are there; empty at the end."""
        if self._first:
            data, self._first = self._first[:limit], self._first[limit:]
            return data
        if not self._left:
            return b""
        self._channel.settimeout(timeout)
        try:
            data = self._channel.recv(min(limit, self._left))
        except (OSError, EOFError, paramiko.SSHException) as error:
            self._owner.drop()
            raise LinkError(f"The link to {self._owner.name} broke in the middle of a file.") from error
        if not data and self._channel.get_transport() is not None and not self._channel.get_transport().is_active():
            self._owner.drop()
            raise LinkError(f"The link to {self._owner.name} broke in the middle of a file.")
        self._left = self._left - len(data) if data else 0
        return data

    def close(self) -> None:
        """End the command on the other side by closing its pipe."""
        self._channel.close()


class SshTransport(Closing):
    """One host; connects on first use and again after every loss. Safe to share between threads."""

    def __init__(self, login: Login, *, home: Path, name: str | None = None, ask: AskPassphrase | None = None) -> None:
        """`home` keeps known_hosts. `ask` is called at most once per encrypted key file for its passphrase."""
        self.login = login
        self.name = name or login.alias
        self.skew_s: float | None = None
        """Seconds by which the host's clock is ahead of ours; known after `home()`."""
        self.connections = 0
        """How many were built."""
        self._known = KnownHosts(home)
        self._ask = ask
        self._lock = threading.RLock()
        self._sftp_lock = threading.Lock()
        self._chain: list[paramiko.Transport] = []
        self._opening: paramiko.Transport | None = None
        self._sftp: paramiko.SFTPClient | None = None
        self._no_sftp = False
        self._handles: dict[str, paramiko.SFTPFile] = {}
        self._sizes: dict[str, int] = {}
        """By path, from a `stat` that no read has used yet."""
        self._last_sizes: dict[str, int] = {}
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
            self._known.check(hop.alias, key.get_name(), key.asbytes())
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
            self._handles.clear()
            self._sizes.clear()
            self._last_sizes.clear()
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
            yield
        except (paramiko.SSHException, paramiko.SFTPError, OSError, EOFError) as error:
            known = None if expired.is_set() else _file_error(error, path, self.name)
            if known is not None:
                raise known from error
            client.close()
            if expired.is_set() or isinstance(error, TimeoutError):
                raise LinkError(f"{what} took longer than {seconds:.0f} s.") from error
            raise LinkError(f"The link to {self.name} was lost.") from error
        finally:
            timer.cancel()

    # commands ---------------------------------------------------------------------------------------------------

    def run(self, command: str, *, stdin: bytes = b"", timeout: float = 30.0) -> Completed:
        """Run by /bin/sh in the home directory; the exit status is the command's own."""
        until = time.monotonic() + timeout
        client = self._client()
        nonce = secrets.token_hex(6)
        streams = Unwrapped.new(nonce)
        with self._deadline(client, until - time.monotonic(), f"A command on {self.name}"):
            channel = client.open_session(timeout=max(0.1, until - time.monotonic()))
            try:
                channel.exec_command(wrap(command, nonce))
                done = self._converse(channel, streams, stdin, until)
            finally:
                channel.close()
        if done is not None:
            return done
        if not client.is_active():
            raise LinkError(f"The link to {self.name} was lost before the command ended.")
        if not streams.started:
            shown = bytes(streams.out + streams.err).decode("utf-8", "replace").strip().splitlines()
            says = f" It says: {shown[-1][:120]}" if shown else ""
            raise UnreachableError(
                f"The login shell of {self.name} did not run our command.{says}",
                hint="If it starts tmux by itself: touch ~/.no_auto_tmux there, or start it only when [ -t 0 ].",
            )
        raise LinkError(f"A command on {self.name} was ended from outside.")

    def _converse(self, channel: paramiko.Channel, streams: Unwrapped, stdin: bytes, until: float) -> Completed | None:
        """Feed stdin and collect both streams until the last markers, or until the other side hangs up (None)."""
        arrived = threading.Event()
        channel.in_buffer.set_event(arrived)
        channel.in_stderr_buffer.set_event(arrived)
        sent, closed = 0, False
        while True:
            arrived.clear()
            moved = False
            while channel.recv_ready():
                streams.out += channel.recv(_PIECE)
                moved = True
            while channel.recv_stderr_ready():
                streams.err += channel.recv_stderr(_PIECE)
                moved = True
            if moved and (done := streams.finished()) is not None:
                return done
            if sent < len(stdin) and channel.send_ready():
                sent += channel.send(stdin[sent : sent + (1 << 15)])
                moved = True
            elif sent >= len(stdin) and not closed:
                channel.shutdown_write()
                closed = True
            if moved:
                continue
            if channel.closed or (channel.eof_received and channel.exit_status_ready()):
                return streams.finished()
            if time.monotonic() >= until:
                raise TimeoutError
            arrived.wait(0.05 if channel.eof_received or sent < len(stdin) else 0.2)

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

    def stat(self, path: str, *, timeout: float = 10.0) -> FileInfo:
        """Look at a path."""
        client = self._client()
        sftp = self._files(client, timeout)
        if sftp is None:
            return self._stat_by_shell(path, timeout)
        with self._sftp_lock, self._deadline(client, timeout, f"Looking at a file on {self.name}", path):
            sftp.get_channel().settimeout(timeout)  # type: ignore[union-attr]
            info = sftp.stat(_sftp_path(path))
            if (info.st_size or 0) <= self._last_sizes.get(path, -1) and (stale := self._handles.pop(path, None)):
                # it did not grow: the name may belong to another file by now, which an open handle would not notice
                stale.close()
        self._sizes[path] = self._last_sizes[path] = info.st_size or 0
        return FileInfo(info.st_size or 0, float(info.st_mtime or 0), stat_bits.S_ISDIR(info.st_mode or 0))

    def listdir(self, path: str, *, timeout: float = 10.0) -> list[str]:
        """Names in a directory, sorted."""
        client = self._client()
        sftp = self._files(client, timeout)
        if sftp is None:
            answer = self.run(f"{_open_check(path, folder=True)} ls -A -- {shell_path(path)}", timeout=timeout)
            self._checked(answer, path)
            return sorted(answer.stdout.decode("utf-8", "surrogateescape").splitlines())
        with self._sftp_lock, self._deadline(client, timeout, f"Listing a folder on {self.name}", path):
            sftp.get_channel().settimeout(timeout)  # type: ignore[union-attr]
            return sorted(sftp.listdir(_sftp_path(path)))

    def read_from(self, path: str, offset: int, *, limit: int = 1 << 20, timeout: float = 10.0) -> Chunk:
        """Read a piece: small ones by SFTP on a handle that is kept open, large ones by a stream."""
        client = self._client()
        sftp = self._files(client, timeout)
        if sftp is None or limit > _SMALL:
            return self._read_by_stream(path, offset, limit, timeout)
        with self._sftp_lock, self._deadline(client, timeout, f"Reading a file on {self.name}", path):
            sftp.get_channel().settimeout(timeout)  # type: ignore[union-attr]
            told = self._sizes.pop(path, None)
            for fresh in (False, True):
                # from the start means whole: status.json is another file under the same name each second
                handle = None if fresh or offset == 0 else self._handles.get(path)
                if handle is None:
                    stale = self._handles.pop(path, None)
                    if stale is not None:
                        stale.close()
                    handle = sftp.open(_sftp_path(path), "rb")
                    fresh = True
                    if len(self._handles) >= 8:
                        self._handles.pop(next(iter(self._handles))).close()
                    self._handles[path] = handle
                size = told if told is not None else int(handle.stat().st_size or 0)
                handle.seek(offset)
                want = min(limit, max(0, size - offset))
                data = handle.read(want) if want else b""
                # shorter than the path was said to be: the name now belongs to another file than our handle
                if fresh or len(data) == want:
                    break
        return Chunk(data, max(size, offset + len(data)) if data else size, None)

    def _read_by_stream(self, path: str, offset: int, limit: int, timeout: float) -> Chunk:
        until = time.monotonic() + timeout
        stream = self.open_read(path, offset, timeout=timeout)
        try:
            pieces: list[bytes] = []
            got = 0
            while got < limit and (data := stream.read(limit - got, max(0.1, until - time.monotonic()))):
                pieces.append(data)
                got += len(data)
        finally:
            stream.close()
        return Chunk(b"".join(pieces), stream.size, None)

    def open_read(self, path: str, offset: int = 0, *, timeout: float = 10.0) -> SshStream:
        """Stream a file through a channel with a large window."""
        client = self._client()
        nonce = secrets.token_hex(6)
        quoted = shell_path(path)
        reader = f"tail -c +{offset + 1} -- {quoted}" if offset else f"cat -- {quoted}"
        script = f"{_open_check(path)} printf '\\036{nonce}<%s\\036' $(wc -c < {quoted}); exec {reader}"
        head = bytearray()
        with self._deadline(client, timeout, f"Opening a file on {self.name}"):
            channel = client.open_session(window_size=STREAM_WINDOW, max_packet_size=STREAM_PACKET, timeout=timeout)
            channel.settimeout(timeout)
            channel.exec_command(wrap_plain(script))
            mark = f"\036{nonce}<".encode()
            while mark not in head or b"\036" not in head.partition(mark)[2]:
                data = channel.recv(_PIECE)
                if not data:
                    rc = channel.recv_exit_status() if channel.status_event.wait(2) else -1
                    channel.close()
                    if not client.is_active():
                        raise EOFError
                    self._checked(Completed(rc, b"", b""), path)
                    raise UnreachableError(f"The login shell of {self.name} did not run our command.")
                head += data
        digits, _, first = bytes(head).partition(mark)[2].partition(b"\036")
        size = int(digits)
        return SshStream(self, channel, size, max(0, size - offset), first)

    def put(self, data: bytes | Path, remote: str, *, mode: int = 0o644, timeout: float = 600.0,
            sent: Sent | None = None) -> None:  # fmt: skip
        """Write beside, check the size, rename."""
        total = len(data) if isinstance(data, bytes) else data.stat().st_size
        part = shell_path(f"{remote}.{secrets.token_hex(4)}.part")
        final = shell_path(remote)
        parent = remote.rpartition("/")[0]
        folder = f"mkdir -p -- {shell_path(parent)} && " if parent.strip("~") else ""
        script = (
            f"umask 077; {folder}cat > {part} && [ $(wc -c < {part}) -eq {total} ] && chmod {mode:o} {part} && "
            f"mv -f -- {part} {final}; rc=$?; [ $rc -eq 0 ] || rm -f -- {part}; exit $rc"
        )
        client = self._client()
        until = time.monotonic() + timeout
        nonce = secrets.token_hex(6)
        streams = Unwrapped.new(nonce)
        with self._deadline(client, timeout, f"Sending a file to {self.name}"):
            channel = client.open_session(timeout=min(30.0, timeout))
            channel.settimeout(30.0)
            try:
                channel.exec_command(wrap(script, nonce))
                with contextlib.suppress(BrokenPipeError):
                    for done, piece in _pieces(data):
                        if channel.closed or channel.exit_status_ready():
                            break
                        channel.sendall(piece)
                        if sent is not None:
                            sent(done, total)
                channel.shutdown_write()
                answer = self._converse(channel, streams, b"", until)
            finally:
                channel.close()
        if answer is None:
            raise LinkError(f"The link to {self.name} was lost while a file was being sent.")
        if answer.rc != 0:
            raise _write_error(answer, remote, self.name)

    def get(self, remote: str, local: Path, *, timeout: float = 600.0, sent: Sent | None = None) -> None:
        """Fetch into `local`.part and rename; a cut fetch of the same file (size and time) goes on where it was."""
        from remote.transfer import fetch

        fetch(self, remote, local, timeout=timeout, sent=sent)

    def _stat_by_shell(self, path: str, timeout: float) -> FileInfo:
        quoted = shell_path(path)
        answer = self.run(
            f"{_open_check(path, folder=None)} stat -L -c '%s %Y %F' -- {quoted} 2>/dev/null || "
            f"stat -L -f '%z %m %HT' -- {quoted}", timeout=timeout,
        )  # fmt: skip
        self._checked(answer, path)
        size, mtime, kind = answer.text.split(None, 2)
        return FileInfo(int(size), float(mtime), "irectory" in kind)

    def _checked(self, answer: Completed, path: str) -> None:
        """Raise what `_open_check` found."""
        if answer.rc == _MISSING:
            raise NotFoundError(f"{path} does not exist on {self.name}.")
        if answer.rc == _DENIED:
            raise NoPermissionError(f"{path} may not be read by {self.login.user} on {self.name}.")
        if answer.rc == _FOLDER:
            raise RefusedError(f"{path} is a folder on {self.name}, not a file.")
        if answer.rc not in (0, -1):
            raise RefusedError(f"{path} on {self.name}: {answer.complaint or f'exit status {answer.rc}'}.")


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


_MISSING, _DENIED, _FOLDER = 141, 142, 143
"""Exit statuses of our own scripts."""


def wrap_plain(script: str) -> str:
    """A script for /bin/sh whose stdout is bytes to be taken as they are."""
    import shlex

    return f"/bin/sh -c {shlex.quote(script)}"


def _open_check(path: str, *, folder: bool | None = False) -> str:
    """Shell lines that leave with a telling status when the path cannot be used."""
    quoted = shell_path(path)
    check = f"[ -e {quoted} ] || exit {_MISSING}; "
    if folder is False:
        check += f"[ ! -d {quoted} ] || exit {_FOLDER}; "
    return check if folder is None else f"{check}[ -r {quoted} ] || exit {_DENIED}; "


def _sftp_path(path: str) -> str:
    """SFTP starts in the home directory."""
    return (path.removeprefix("~").lstrip("/") or ".") if path.startswith("~") else path


def _pieces(data: bytes | Path) -> Iterator[tuple[int, bytes]]:
    """The bytes to send, each with how many are done after it."""
    if isinstance(data, bytes):
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            yield start + len(piece), piece
        return
    done = 0
    with data.open("rb") as file:
        while piece := file.read(_PIECE):
            done += len(piece)
            yield done, piece


def _file_error(error: BaseException, path: str, host: str) -> TunewatchError | None:
    """What an SFTP server said about a path; None for everything that is the link's fault."""
    if not path or not isinstance(error, OSError) or isinstance(error, (TimeoutError, ConnectionError)):
        return None
    if error.errno == errno.ENOENT:
        return NotFoundError(f"{path} does not exist on {host}.")
    if error.errno == errno.EACCES:
        return NoPermissionError(f"{path} may not be read by this user on {host}.")
    if str(error) in ("Failure", "Is a directory"):
        return RefusedError(f"{path} cannot be read on {host}; is it a folder?")
    return None


def _write_error(answer: Completed, path: str, host: str) -> TunewatchError:
    said = answer.complaint
    if "No space left" in said:
        return RefusedError(f"The disk of {host} is full; {path} was not written.", hint="Free some space there.")
    if "ermission denied" in said or "Read-only" in said:
        return NoPermissionError(f"{path} may not be written on {host}: {said}.")
    return RefusedError(f"{path} was not written on {host}: {said or f'exit status {answer.rc}'}.")


__all__ = ["AskPassphrase", "AuthError", "Login", "SshStream", "SshTransport"]
