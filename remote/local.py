"""This machine as a host: the twin of `remote.ssh` for runs that train here, and for tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat as stat_bits
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from remote.transport import Chunk, Closing, Completed, FileInfo, LinkError, NoPermissionError, Sent
from runner.errors import NotFoundError, RefusedError


class LocalStream:
    """A local file from an offset to the end it had when it was opened."""

    def __init__(self, path: Path, offset: int) -> None:
        self._file = path.open("rb")
        self.size = os.fstat(self._file.fileno()).st_size
        self._left = max(0, self.size - offset)
        self._file.seek(offset)

    def read(self, limit: int, timeout: float) -> bytes:
        """Up to `limit` bytes; empty at the end."""
        data = self._file.read(min(limit, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LocalFeed:
    """A local command that is given its input piece by piece."""

    def __init__(self, command: str, home: Path, name: str) -> None:
        self._name = name
        # files, not pipes, as in `run`
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._child = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=self._out,
            stderr=self._err,
            cwd=home,
            env={**os.environ, "HOME": str(home)},
            start_new_session=True,
            bufsize=0,
        )

    def write(self, data: bytes) -> bool:
        """Give it more; False when it has ended."""
        view = memoryview(data)
        try:
            while view and self._child.stdin is not None:
                view = view[self._child.stdin.write(view) or 0 :]
        except BrokenPipeError:
            return False
        return True

    def finish(self, timeout: float) -> Completed:
        """End its input and wait."""
        if self._child.stdin is not None:
            self._child.stdin.close()
        try:
            rc = self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, 9)
            self._child.wait()
            raise LinkError(f"A command on {self._name} did not end within {timeout:g} s.") from None
        self._out.seek(0)
        self._err.seek(0)
        return Completed(rc if rc >= 0 else 128 - rc, self._out.read(), self._err.read())

    def close(self) -> None:
        """End its input; it is reaped when it ends."""
        if self._child.stdin is not None:
            self._child.stdin.close()
        self._out.close()
        self._err.close()


class LocalTransport(Closing):
    """Runs commands and touches files on this machine, with the promises of `remote.transport`."""

    def __init__(self, name: str = "this machine", *, home: Path | None = None) -> None:
        self.name = name
        self._home = home or Path.home()

    def _path(self, path: str) -> Path:
        if path == "~" or path.startswith("~/"):
            path = path[1:].lstrip("/")
        return self._home / path

    def run(self, command: str, *, stdin: bytes = b"", timeout: float = 30.0) -> Completed:
        """Run by `/bin/sh` in the home directory; children that keep our pipes open do not keep us waiting."""
        environment = {**os.environ, "HOME": str(self._home)}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as given:
            given.write(stdin)
            given.seek(0)
            # files, not pipes: a background child may hold them open for hours, the end of the shell is the end
            child = subprocess.Popen(
                ["/bin/sh", "-c", command],
                stdin=given,
                stdout=out,
                stderr=err,
                cwd=self._home,
                env=environment,
                start_new_session=True,
            )
            try:
                rc = child.wait(timeout)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, 9)
                child.wait()
                raise LinkError(f"A command on {self.name} did not end within {timeout:g} s.") from None
            out.seek(0)
            err.seek(0)
            return Completed(rc if rc >= 0 else 128 - rc, out.read(), err.read())

    def feed(self, command: str, *, timeout: float = 30.0) -> LocalFeed:
        """Start a command whose input follows."""
        return LocalFeed(command, self._home, self.name)

    def read_from(self, path: str, offset: int, *, limit: int = 1 << 20, timeout: float = 10.0) -> Chunk:
        """Read a piece of a file by byte offset."""
        with _said(path, self.name), self._path(path).open("rb") as file:
            info = os.fstat(file.fileno())
            file.seek(offset)
            data = file.read(limit) if offset < info.st_size else b""
            return Chunk(
                data,
                max(info.st_size, offset + len(data)) if data else info.st_size,
                max(0.0, time.time() - info.st_mtime),
            )

    def open_read(self, path: str, offset: int = 0, *, timeout: float = 10.0) -> LocalStream:
        """Stream a file."""
        with _said(path, self.name):
            return LocalStream(self._path(path), offset)

    def stat(self, path: str, *, timeout: float = 10.0) -> FileInfo:
        """Look at a path."""
        with _said(path, self.name):
            info = self._path(path).stat()
        return FileInfo(info.st_size, info.st_mtime, stat_bits.S_ISDIR(info.st_mode))

    def listdir(self, path: str, *, timeout: float = 10.0) -> list[str]:
        """Names in a directory, sorted."""
        with _said(path, self.name):
            return sorted(entry.name for entry in self._path(path).iterdir())

    def put(
        self,
        data: bytes | Path,
        remote: str,
        *,
        mode: int = 0o644,
        timeout: float = 600.0,
        sent: Sent | None = None,
    ) -> None:
        """Write beside, then rename."""
        target = self._path(remote)
        with _said(remote, self.name):
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.{os.getpid()}.part")
            try:
                handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
                with os.fdopen(handle, "wb") as out:
                    os.fchmod(handle, mode)
                    if isinstance(data, bytes):
                        out.write(data)
                    else:
                        with data.open("rb") as source:
                            shutil.copyfileobj(source, out, 1 << 20)
                    total = out.tell()
                    out.flush()
                    os.fsync(handle)
                beside.replace(target)
            finally:
                beside.unlink(missing_ok=True)
        if sent is not None:
            sent(total, total)

    def get(self, remote: str, local: Path, *, timeout: float = 600.0, sent: Sent | None = None) -> None:
        """Copy beside, then rename."""
        with _said(remote, self.name):
            source = self._path(remote)
            beside = local.with_name(f"{local.name}.part")
            shutil.copyfile(source, beside)
            beside.replace(local)
            if sent is not None:
                size = local.stat().st_size
                sent(size, size)

    def ping(self, *, timeout: float = 5.0) -> float:
        """This machine is always there."""
        return 0.0

    def home(self, *, timeout: float = 10.0) -> str:
        """The home directory."""
        return str(self._home)


@contextlib.contextmanager
def _said(path: str, host: str) -> Iterator[None]:
    """Turn what the operating system says about `path` into our errors."""
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist on {host}.") from None
    except NotADirectoryError:
        raise NotFoundError(f"{path} is not a folder on {host}.") from None
    except IsADirectoryError:
        raise RefusedError(f"{path} is a folder on {host}, not a file.") from None
    except PermissionError:
        raise NoPermissionError(f"{path} may not be read or written by this user on {host}.") from None
