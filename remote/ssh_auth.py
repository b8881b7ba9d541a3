"""Which keys to offer a host, and in which order, without tripping its MaxAuthTries. Knows no SSH library.

A server counts every refused key and hangs up after a few (6 by default), so an agent with eight keys in it locks out
the one that would have fitted. The order is: key files that the user named and that need no passphrase, agent keys that
are the same as a named file, the other agent keys, and at last the encrypted files, whose passphrase is asked for only
when nothing else was taken, and once per file and process. When the server hangs up in the middle of the list, the
caller connects again and goes on behind the last refused key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from remote.ssh_config import Login
from remote.transport import AuthError

AskPassphrase = Callable[[Path], str | None]
"""Asks a person for the passphrase of a key file; None when they decline or nobody is there."""


class NeedsPassphraseError(Exception):
    """A key file is encrypted; caught in this module's callers, never shown."""


class Keyring(Protocol):
    """Where keys come from: the one SSH library, or a test."""

    def load(self, path: Path, passphrase: str | None) -> Any:
        """Read a private key. Raises NeedsPassphraseError, or ValueError for what is no usable key."""

    def agent(self) -> list[tuple[str, bytes, Any]]:
        """Keys of the running agent: comment, public blob, key."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One key to try."""

    name: str
    """For the sentence that lists what was tried; a path or an agent's comment."""
    load: Callable[[], Any | None]
    """The key, or None when it cannot be had (missing, or no passphrase given)."""


_asked: dict[Path, str | None] = {}
_asking = threading.Lock()


def offers(login: Login, keyring: Keyring, ask: AskPassphrase | None) -> list[Offer]:
    """The keys for a login, in the order to offer them."""
    plain: list[Offer] = []
    locked: list[Offer] = []
    named: set[bytes] = set()
    for path in login.keys:
        named |= _public_blob(path)
        try:
            key = keyring.load(path, None)
        except NeedsPassphraseError:
            locked.append(Offer(str(path), lambda path=path: _unlock(keyring, path, ask)))  # type: ignore[misc]
        except (ValueError, OSError):
            continue
        else:
            plain.append(Offer(str(path), lambda key=key: key))  # type: ignore[misc]
    held = keyring.agent() if login.use_agent or locked else []
    same = [Offer(f"agent: {comment}", lambda key=key: key) for comment, blob, key in held if blob in named]  # type: ignore[misc]
    others = [
        Offer(f"agent: {comment}", lambda key=key: key)  # type: ignore[misc]
        for comment, blob, key in held
        if blob not in named and login.use_agent
    ]
    return [*plain, *same, *others, *locked]


def refused(login: Login, tried: list[Offer], accepts: str = "") -> AuthError:
    """The sentence for a host that took no key."""
    said = f"{login.host} does not let {login.user} in"
    if accepts and "publickey" not in accepts:
        return AuthError(f"{said}: it takes no keys, only {accepts}.", hint="Allow public keys in its sshd_config.")
    if not tried:
        return AuthError(
            f"{said}: there is no key to offer.",
            hint="Make one with ssh-keygen -t ed25519, and put the .pub into ~/.ssh/authorized_keys there.",
        )
    names = ", ".join(offer.name for offer in tried[:4]) + (f" and {len(tried) - 4} more" if len(tried) > 4 else "")
    return AuthError(
        f"{said}: refused {'this key' if len(tried) == 1 else f'these {len(tried)} keys'}: {names}.",
        hint="Is it the right user, and is the .pub file in ~/.ssh/authorized_keys there? A key with a passphrase "
        "can be unlocked for all programs with ssh-add.",
    )


def ask_on_terminal(path: Path) -> str | None:
    """Ask the person at the terminal; None where there is none. Never for a full-screen display."""
    import getpass
    import sys

    if not sys.stdin.isatty():
        return None
    try:
        return getpass.getpass(f"Passphrase of {path}: ") or None
    except (EOFError, KeyboardInterrupt):
        return None


def _unlock(keyring: Keyring, path: Path, ask: AskPassphrase | None) -> Any | None:
    """Ask once per file and process; a wrong answer counts as an answer."""
    with _asking:
        if path not in _asked:
            if ask is None:
                return None
            _asked[path] = ask(path)
        passphrase = _asked[path]
    if passphrase is None:
        return None
    try:
        return keyring.load(path, passphrase)
    except (ValueError, NeedsPassphraseError):
        return None


def _public_blob(path: Path) -> set[bytes]:
    """The wire form of the public half that lies beside a private key, if it does."""
    import base64

    try:
        words = path.with_name(path.name + ".pub").read_text(encoding="utf-8").split()
        return {base64.b64decode(words[1])}
    except (OSError, ValueError, IndexError):
        return set()
