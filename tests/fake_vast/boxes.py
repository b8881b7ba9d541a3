"""The rented boxes: each is a real sshd with its own home, host key, processes and container environment.

Where the machine allows it, a box is a PID namespace of its own: its first process carries the container's variables
(`CONTAINER_ID`, `CONTAINER_API_KEY`), an SSH session does not, and when the first process ends so does everything in
the box. Elsewhere the processes of a box are found by a marker in their environment.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

MARKER = "TUNEWATCH_FAKE_BOX"
DIRECT_HOST = "127.0.0.1"
PROXY_HOST = "127.0.0.2"
"""A second loopback address, so that a host of one pair with the port of the other does not answer."""

INIT = """#!/bin/bash
trap 'exit 0' TERM
[ "$$" = 1 ] && mount -t proc proc /proc
cd "$HOME" || exit 1
/usr/sbin/sshd -D -e -f "$BOX_DIR/sshd_config" 2>>"$BOX_DIR/sshd.log" </dev/null &
[ -s onstart.sh ] && bash onstart.sh >>"$BOX_DIR/onstart.log" 2>&1 </dev/null &
# its other end is held by the stand-in: when that is gone, however it went, so is the box
while read -r _; do :; done
exit 0
"""
SESSION = """#!/bin/bash
cd "$HOME" || exit 1
if [ -n "$SSH_ORIGINAL_COMMAND" ]; then exec /bin/bash -c "$SSH_ORIGINAL_COMMAND"; fi
exec /bin/bash -l
"""


EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
PATIENCE_S = 120.0
"""How long a box may take until its sshd answers: a loaded machine is slow, a box that never comes is an error."""


def free_port(host: str) -> int:
    """A port to listen on later: below those that the system hands to outgoing connections in the meantime."""
    try:
        end = int(EPHEMERAL.read_text().split()[0])
    except OSError:
        end = 32_768
    for _ in range(1000):
        # not the common generator: a property test seeds it, and every worker would go through the same ports
        port = random.SystemRandom().randrange(10_000, max(end, 12_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise RuntimeError(f"no free port on {host}")


def greets(host: str, port: int, timeout_s: float = 5.0) -> bool:
    """Whether an SSH server answers there with its greeting, so that the next connection is served."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout_s) as line:
        return line.recv(4) == b"SSH-"
    return False


def namespaces_work() -> bool:
    """Whether this machine lets us make a PID namespace with its own /proc."""
    tool = shutil.which("unshare")
    if tool is None or os.geteuid() != 0:
        return False
    command = [tool, "--pid", "--mount", "--fork", "--kill-child", "sh", "-c", "mount -t proc proc /proc"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@dataclass
class Container:
    """The processes behind one instance."""

    directory: Path
    direct_port: int
    proxy_port: int
    process: subprocess.Popen[bytes] | None = None
    keys: list[str] = field(default_factory=list)
    life: int | None = None
    """Our end of the pipe the first process reads; closed with us."""
    open: threading.Event = field(default_factory=threading.Event)
    """Set once sshd greets on both addresses."""

    @property
    def home(self) -> Path:
        return self.directory / "home"

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class BoxHost:
    """Makes, starts, stops and removes boxes below one folder."""

    def __init__(self, folder: Path, *, python: str | None = None) -> None:
        self.folder = folder
        self.python = python or sys.executable
        """What `python3` is on a box; its image would bring torch along."""
        self.isolated = namespaces_work()
        self.containers: dict[int, Container] = {}

    def create(self, box_id: int, onstart: str | None) -> Container:
        """Lay out the disk of a new box."""
        directory = self.folder / str(box_id)
        (directory / "home" / ".ssh").mkdir(parents=True, mode=0o700)
        (directory / "bin").mkdir()
        container = Container(directory, free_port(DIRECT_HOST), free_port(PROXY_HOST))
        key = directory / "host_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        if onstart:
            (container.home / "onstart.sh").write_text(onstart)
        self._script(directory / "init", INIT)
        self._script(directory / "session", SESSION)
        self._script(directory / "bin" / "python3", f'#!/bin/bash\nexec "{self.python}" "$@"\n')
        path = f"{directory / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        session = {"HOME": str(container.home), "PATH": path, MARKER: str(box_id), "TMUX_TMPDIR": str(directory)}
        (directory / "sshd_config").write_text(
            f"ListenAddress {DIRECT_HOST}:{container.direct_port}\n"
            f"ListenAddress {PROXY_HOST}:{container.proxy_port}\n"
            f"HostKey {key}\nPidFile {directory / 'sshd.pid'}\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {container.home / '.ssh' / 'authorized_keys'}\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\n"
            f"MaxSessions 64\nMaxStartups 100\nForceCommand {directory / 'session'}\n"
            "Subsystem sftp /usr/lib/openssh/sftp-server\n"
            "SetEnv " + " ".join(f"{name}={value}" for name, value in session.items()) + "\n"
        )
        self.containers[box_id] = container
        return container

    def add_key(self, box_id: int, public_key: str) -> None:
        """Let a key in."""
        container = self.containers[box_id]
        if public_key not in container.keys:
            container.keys.append(public_key)
            with (container.home / ".ssh" / "authorized_keys").open("a") as file:
                file.write(public_key.strip() + "\n")

    def start(self, box_id: int, environment: dict[str, str]) -> None:
        """Start the container; `Container.open` is set when its sshd serves connections."""
        container = self.containers[box_id]
        if container.alive():
            return
        container.open.clear()
        Path("/run/sshd").mkdir(exist_ok=True)
        directory = container.directory
        path = f"{directory / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        env = {
            **environment,
            "HOME": str(container.home),
            "PATH": path,
            "BOX_DIR": str(directory),
            "TMUX_TMPDIR": str(directory),
            MARKER: str(box_id),
        }
        command = ["/bin/bash", str(directory / "init")]
        if self.isolated:
            command = ["unshare", "--pid", "--mount", "--fork", "--kill-child", *command]
        if container.life is not None:
            os.close(container.life)
        reading, container.life = os.pipe()
        container.process = subprocess.Popen(
            command, env=env, start_new_session=True, stdin=reading,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(reading)
        threading.Thread(target=self._await, args=(container, container.process), daemon=True).start()

    @staticmethod
    def _await(container: Container, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and container.process is process and process.poll() is None:
            if greets(DIRECT_HOST, container.direct_port) and greets(PROXY_HOST, container.proxy_port):
                container.open.set()
                return
            time.sleep(0.02)

    def stop(self, box_id: int) -> None:
        """End every process of the box; its disk stays."""
        container = self.containers.get(box_id)
        if container is None or container.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(container.process.pid, signal.SIGKILL)
        container.process.wait()
        if container.life is not None:
            os.close(container.life)
            container.life = None
        if not self.isolated:
            self._sweep(box_id)

    def remove(self, box_id: int) -> None:
        """End it and delete its disk."""
        self.stop(box_id)
        container = self.containers.pop(box_id, None)
        if container is not None:
            shutil.rmtree(container.directory, ignore_errors=True)

    def close(self) -> None:
        for box_id in list(self.containers):
            self.stop(box_id)

    def _sweep(self, box_id: int) -> None:
        wanted = f"{MARKER}={box_id}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)

    @staticmethod
    def _script(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)
