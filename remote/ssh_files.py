"""Files over an SSH connection: the half of `remote.ssh` that knows paths and shell lines, and no SSH library.

Small reads go by SFTP on handles that stay open, large ones by a stream through `cat` or `tail -c +N`; where there is
no SFTP the shell does everything.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import shlex
import stat as stat_bits
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from remote.ssh_config import Login
from remote.transport import Chunk, Closing, Completed, Feed, FileInfo, LinkError, NoPermissionError, Sent, shell_path
from remote.wire import Unwrapped, wrap
from runner.errors import NotFoundError, RefusedError, TunewatchError, UnreachableError

STREAM_WINDOW = 32 << 20
"""Bytes in flight on a stream: 150 ms of round trip at 200 MB/s."""
STREAM_PACKET = 1 << 17
"""Bytes per packet that a server may send us on a stream: each costs the same work here, whatever its size."""
_SMALL = 256 << 10
"""Bytes up to which a read goes by SFTP."""
PIECE = 1 << 20
"""Bytes taken from a channel, or sent, at once."""


class SshStream:
    """One remote file flowing in; see `transport.ByteStream`."""

    def __init__(self, owner: SshFiles, channel: Any, size: int, left: int, first: bytes) -> None:
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
        client = self._channel.get_transport()
        # waiting for a piece keeps to its timeout; a thread to watch each of thousands would cost more than they do
        with self._owner._in_our_words(client, timeout, f"A piece of a file on {self._owner.name}"):
            self._channel.settimeout(timeout)
            piece: bytes = self._channel.recv(min(limit, self._left))
            if not piece and not client.is_active():
                raise EOFError
        self._left = self._left - len(piece) if piece else 0
        return piece

    def close(self) -> None:
        """End the command on the other side by closing its pipe."""
        self._channel.close()


class SshFiles(Closing):
    """The file operations of an SSH transport, on top of what `SshTransport` knows of connections and channels."""

    def __init__(self, login: Login, name: str | None) -> None:
        self.login = login
        self.name = name or login.alias
        self._sftp_lock = threading.Lock()
        self._handles: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        """By path, from a `stat` that no read has used yet."""
        self._last_sizes: dict[str, int] = {}

    @abstractmethod
    def _client(self) -> Any:
        """The live connection, built if there is none."""

    @abstractmethod
    def _files(self, client: Any, timeout: float) -> Any | None:
        """The SFTP session of this connection, or None where the host has none."""

    @abstractmethod
    def _deadline(
        self, client: Any, seconds: float, what: str, path: str = ""
    ) -> contextlib.AbstractContextManager[None]:
        """Close `client` when the block takes longer; foreign errors become ours."""

    @abstractmethod
    def _in_our_words(self, client: Any, seconds: float, what: str) -> contextlib.AbstractContextManager[None]:
        """The same for what keeps to its time by itself."""

    @abstractmethod
    def _no_end(self, client: Any, streams: Unwrapped) -> TunewatchError:
        """Why a command ended without its last marker."""

    @abstractmethod
    def _sign_of_life(self, client: Any, seconds: float) -> None:
        """Ask the host for any answer; what the library raises when none comes."""

    @abstractmethod
    def _converse(self, channel: Any, streams: Unwrapped, stdin: bytes, until: float) -> Completed | None:
        """Feed stdin and collect both streams until the command is over; None when the other side hung up."""

    @abstractmethod
    def ping(self, *, timeout: float = 5.0) -> float:
        """Seconds for one question to the host itself."""

    @abstractmethod
    def home(self, *, timeout: float = 10.0) -> str:
        """The home directory."""

    @abstractmethod
    def run(self, command: str, *, stdin: bytes = b"", timeout: float = 30.0) -> Completed:
        """Run by /bin/sh in the home directory."""

    @abstractmethod
    def feed(self, command: str, *, timeout: float = 30.0) -> Feed:
        """Start a command whose input follows."""

    def _forget_files(self) -> None:
        """Drop what belonged to a connection that is gone."""
        self._handles.clear()
        self._sizes.clear()
        self._last_sizes.clear()

    def stat(self, path: str, *, timeout: float = 10.0) -> FileInfo:
        """Look at a path."""
        client = self._client()
        sftp = self._files(client, timeout)
        if sftp is None:
            return self._stat_by_shell(path, timeout)
        with self._sftp_lock, self._deadline(client, timeout, f"Looking at a file on {self.name}", path):
            sftp.get_channel().settimeout(timeout)
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
            sftp.get_channel().settimeout(timeout)
            return sorted(sftp.listdir(_sftp_path(path)))

    def read_from(self, path: str, offset: int, *, limit: int = 1 << 20, timeout: float = 10.0) -> Chunk:
        """Read a piece: small ones by SFTP on a handle that is kept open, large ones by a stream."""
        client = self._client()
        sftp = self._files(client, timeout)
        if sftp is None or limit > _SMALL:
            return self._read_by_stream(path, offset, limit, timeout)
        with self._sftp_lock, self._deadline(client, timeout, f"Reading a file on {self.name}", path):
            sftp.get_channel().settimeout(timeout)
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
                data = channel.recv(PIECE)
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
            raise _not_readable(path, self.login.user, self.name)
        if answer.rc == _FOLDER:
            raise RefusedError(f"{path} is a folder on {self.name}, not a file.")
        if answer.rc not in (0, -1):
            raise RefusedError(f"{path} on {self.name}: {answer.complaint or f'exit status {answer.rc}'}.")


_MISSING, _DENIED, _FOLDER = 141, 142, 143
"""Exit statuses of our own scripts."""


def wrap_plain(script: str) -> str:
    """A script for /bin/sh whose stdout is bytes to be taken as they are."""
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
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            yield start + len(piece), piece
        return
    done = 0
    with data.open("rb") as file:
        while piece := file.read(PIECE):
            done += len(piece)
            yield done, piece


def _not_readable(path: str, user: str, host: str) -> NoPermissionError:
    return NoPermissionError(
        f"{path} may not be read by {user} on {host}.",
        hint=f"Log in as the user whose run it is (USER@{host}:{path}), or allow it there: chmod -R a+rX {path}",
    )


def file_error(error: BaseException, path: str, user: str, host: str) -> TunewatchError | None:
    """What an SFTP server said about a path; None for everything that is the link's fault."""
    if not path or not isinstance(error, OSError) or isinstance(error, (TimeoutError, ConnectionError)):
        return None
    if error.errno == errno.ENOENT:
        return NotFoundError(f"{path} does not exist on {host}.")
    if error.errno == errno.EACCES:
        return _not_readable(path, user, host)
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
