"""A real OpenSSH server for tests: its own port on loopback, config, host key, authorized_keys and home directory.

    with Sshd(tmp_path / "box") as box:
        transport = box.connect(tmp_path / "home")          # remote.ssh.SshTransport with the box's client key
        box.home / "runs"                                    # what "~/runs" is in a session

Never the machine's own server, keys or configuration. Sessions run as the user of the tests with HOME, PATH (where
`python3` is `python`, this interpreter by default) and TMUX_TMPDIR pointing into the box's folder: boxes do not meet.
`close` ends every process that a session of this box started, tmux servers and detached trainers included, by a marker
in its environment.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.fake_vast import boxes

if TYPE_CHECKING:
    from remote.ssh import SshTransport

MARKER = "TUNEWATCH_TEST_BOX"
SESSION = """#!/bin/sh
cd "$HOME" || exit 1
if [ -n "$SSH_ORIGINAL_COMMAND" ]; then exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"; fi
exec /bin/sh -l
"""
SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server")


def find_sshd() -> str:
    """The server's program, which Debian keeps off the path of ordinary users."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin"
    found = shutil.which("sshd", path=path)
    if found is None:
        raise RuntimeError("sshd is not installed: apt-get install openssh-server (the tests start their own)")
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on at this moment, and no outgoing connection takes before the server does."""
    return boxes.free_port(host)


def make_key(path: Path, *, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A key pair at `path` and `path`.pub."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in (path, path.with_name(path.name + ".pub")):
        old.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path)], check=True)
    return path


class Sshd:
    """One box. Every argument but `folder` has a sensible value."""

    def __init__(
        self,
        folder: Path,
        *,
        session: str = SESSION,
        python: str = sys.executable,
        options: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        sftp: bool = True,
    ) -> None:
        """`session` is the script that every session runs (a login shell with manners of its own); `options` are more
        lines for sshd_config, before ours, so that they win; `python` is what `python3` is on the box, "" for none.
        """
        self.folder = folder
        self.port = free_port()
        self.host = "127.0.0.1"
        self.user = getpass.getuser()
        self.home = folder / "home"
        self.process: subprocess.Popen[bytes] | None = None
        (self.home / ".ssh").mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "bin").mkdir(exist_ok=True)
        self.key = make_key(folder / "client_key")
        self.host_key = make_key(folder / "host_key")
        self.allow(self.key)
        if python:
            self.script("bin/python3", f'#!/bin/sh\nexec "{python}" "$@"\n')
        self.script("session", session)
        system_path = "/usr/local/bin:/usr/bin:/bin" if python else ""
        variables = {
            "HOME": str(self.home),
            "PATH": f"{folder / 'bin'}:{system_path}".rstrip(":"),
            "TMUX_TMPDIR": str(folder),
            MARKER: str(folder),
            **(environment or {}),
        }
        server = next((s for s in SFTP_SERVERS if Path(s).exists()), "internal-sftp")
        lines = [
            *options,
            f"ListenAddress {self.host}:{self.port}",
            f"HostKey {self.host_key}",
            f"PidFile {folder / 'sshd.pid'}",
            f"AuthorizedKeysFile {self.home / '.ssh' / 'authorized_keys'}",
            "UsePAM no",
            "StrictModes no",
            "PermitRootLogin yes",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PrintMotd no",
            "MaxSessions 64",
            "MaxStartups 100",
            f"ForceCommand {folder / 'session'}",
            "SetEnv " + " ".join(f"{name}={value}" for name, value in variables.items()),
        ]
        if sftp:
            lines.append(f"Subsystem sftp {server}")
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")

    def script(self, name: str, text: str) -> Path:
        """An executable file in the box's folder; `bin/...` is on the PATH of its sessions."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def allow(self, key: Path) -> None:
        """Let the owner of a key in."""
        with (self.home / ".ssh" / "authorized_keys").open("a") as file:
            file.write(key.with_name(key.name + ".pub").read_text())

    def forbid_all(self) -> None:
        """Let nobody in."""
        (self.home / ".ssh" / "authorized_keys").write_text("")

    def start(self) -> Self:
        """Start the server and wait until it listens."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        log = (self.folder / "sshd.log").open("ab")
        self.process = subprocess.Popen(
            [find_sshd(), "-D", "-e", "-f", str(self.folder / "sshd_config")],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()
        until = time.monotonic() + boxes.PATIENCE_S
        while time.monotonic() < until and self.process.poll() is None:
            if boxes.greets(self.host, self.port):
                return self
            time.sleep(0.01)
        raise RuntimeError(f"sshd did not start:\n{self.log()}")

    def stop(self) -> None:
        """Stop listening and end all sessions; what sessions started in the background lives on."""
        if self.process is not None:
            for pid in self.session_pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        """A server that comes back on the same port, as after a reboot that spared the disk."""
        self.stop()
        self.start()

    def new_host_key(self) -> None:
        """Another machine behind the same address."""
        make_key(self.host_key)
        self.restart()

    def session_pids(self) -> list[int]:
        """The sshd processes that serve connections."""
        if self.process is None:
            return []
        found, fresh = [], [self.process.pid]
        while fresh:
            parent = fresh.pop()
            for child in _children(parent):
                if b"sshd" in _command(child):
                    found.append(child)
                    fresh.append(child)
        return found

    def log(self) -> str:
        """What the server said."""
        return (self.folder / "sshd.log").read_text(errors="replace")

    def processes(self, containing: str = "") -> list[int]:
        """Processes that sessions of this box started and that are still alive, whose command line has that text."""
        wanted = f"{MARKER}={self.folder}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    mine = wanted in (entry / "environ").read_bytes().split(b"\0")
                    if mine and containing.encode() in _command(int(entry.name)):
                        found.append(int(entry.name))
        return found

    def connect(self, home: Path, *, port: int | None = None, name: str = "box", **more: object) -> SshTransport:
        """A transport to this box; `port` is a proxy's port before it, `home` keeps known_hosts."""
        from remote.ssh import SshTransport
        from remote.ssh_config import Login

        home.mkdir(parents=True, exist_ok=True)
        login = Login(
            alias=name, host=self.host, port=port or self.port, user=self.user, keys=(self.key,), use_agent=False
        )
        return SshTransport(login, home=home, **more)  # type: ignore[arg-type]

    def close(self) -> None:
        """Stop the server and everything it ever started."""
        self.stop()
        for _ in range(20):
            left = self.processes()
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
