"""The keys of hosts met before: trusted on first use, strict ever after, in a private file under `home()`.

The user's own ~/.ssh/known_hosts is neither read nor written: a provider reuses addresses and ports, so keys are kept
under a name of ours that is stable for one host or one instance (`box.example:22`, `vast-31457957`).
One line per host: `name type base64`.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
from pathlib import Path

from remote.transport import HostKeyChangedError


def fingerprint(key: bytes) -> str:
    """The key as OpenSSH shows it, from its wire form."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


class KnownHosts:
    """The private file; safe to use from several processes."""

    def __init__(self, home: Path) -> None:
        self.path = home / "known_hosts"

    def check(self, name: str, kind: str, key: bytes, *, typed: str = "") -> bool:
        """Compare with what is known; remember it when nothing is. Returns whether the host was met for the first time.

        `typed` is what a person calls the host. Raises HostKeyChangedError with both fingerprints and the way to
        accept the new key on purpose.
        """
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "r+", encoding="ascii", errors="replace") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            for line in file:
                known = line.split()
                if len(known) >= 3 and known[0] == name:
                    if known[2] == base64.b64encode(key).decode():
                        return False
                    raise self._changed(name, known[1], known[2], kind, key, typed)
            file.write(f"{name} {kind} {base64.b64encode(key).decode()}\n")
            file.flush()
            os.fsync(file.fileno())
            return True

    def known_kind(self, name: str) -> str | None:
        """The type of key to ask the host for, so that a host with several keys shows the one we know."""
        if not self.path.exists():
            return None
        for line in self.path.read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()
            if len(words) >= 3 and words[0] == name:
                return words[1]
        return None

    def known_key(self, name: str) -> str | None:
        """`type base64` of the key a host was met with."""
        if not self.path.exists():
            return None
        for line in self.path.read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()
            if len(words) >= 3 and words[0] == name:
                return f"{words[1]} {words[2]}"
        return None

    def forget(self, name: str) -> bool:
        """Drop what is known of a host; returns whether anything was."""
        if not self.path.exists():
            return False
        lines = self.path.read_text(encoding="ascii", errors="replace").splitlines()
        kept = [line for line in lines if line.split()[:1] != [name]]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="ascii")
        return len(kept) != len(lines)

    def _changed(self, name: str, old_kind: str, old: str, kind: str, key: bytes, typed: str) -> HostKeyChangedError:
        try:
            was = fingerprint(base64.b64decode(old, validate=True))
        except ValueError:
            was = "unreadable"
        return HostKeyChangedError(
            f"{name} shows another host key than before: {kind} {fingerprint(key)}, known is {old_kind} {was}. "
            "Nothing was sent to it.",
            hint="If the machine was reinstalled, forget the old key with: "
            f"tunewatch doctor {typed or 'HOST'} --forget-host-key. If not, somebody may be in between. ({self.path})",
        )
