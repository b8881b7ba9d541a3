"""How to log in to a host: what was typed, completed by ~/.ssh/config as OpenSSH would.

Understood: Host (patterns, `!` negation), `Match all`, HostName, User, Port, IdentityFile, IdentitiesOnly, ProxyJump,
HostKeyAlias, Include. As in OpenSSH the first value obtained wins, IdentityFile adds up. Other Match blocks are passed
over: their conditions would have to be executed. ProxyCommand is refused with a sentence instead of being ignored.
"""

from __future__ import annotations

import fnmatch
import getpass
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from remote.target import Target, parse_host
from runner.errors import UsageError

_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_MAX_INCLUDE = 16
_MAX_JUMPS = 8


@dataclass(frozen=True, slots=True)
class Login:
    """Everything needed to open one SSH connection."""

    alias: str
    """The name its key is known by; stable for one host or instance."""
    host: str
    port: int = 22
    user: str = ""
    keys: tuple[Path, ...] = ()
    """Private key files in the order to try; missing ones are passed over."""
    use_agent: bool = True
    jumps: tuple[Login, ...] = ()
    """Hosts to go through, the first one first."""

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


def login_for(target: Target, *, folder: Path | None = None) -> Login:
    """Complete a target of kind "ssh" by the user's ssh_config. `folder` is ~/.ssh.

    Raises UsageError for what cannot be honoured.
    """
    return _login(target, folder or Path.home() / ".ssh", 0)


def _login(target: Target, folder: Path, depth: int) -> Login:
    if depth > _MAX_JUMPS:
        raise UsageError(f"ProxyJump in {folder / 'config'} goes round in circles.")
    name = target.host or ""
    options = read_config(folder / "config", name)
    if options.get("proxycommand", ["none"])[0].lower() != "none" and "proxyjump" not in options:
        raise UsageError(
            f"~/.ssh/config uses ProxyCommand for {name}, which tunewatch does not run.",
            hint="Write ProxyJump instead, which does the same for a jump host.",
        )

    def first(key: str) -> str | None:
        values = options.get(key)
        return values[0] if values else None

    host = (first("hostname") or name).replace("%h", name).replace("%%", "%")
    user = target.user or first("user") or getpass.getuser()
    port = target.port or _port(first("port"), folder)
    given = options.get("identityfile", [])
    wanted = [_expand(text, folder, host=host, user=user, port=port) for text in given if text.lower() != "none"]
    only = (first("identitiesonly") or "no").lower() == "yes"
    defaults = [] if given else [folder / key for key in _DEFAULT_KEYS]
    jumps: tuple[Login, ...] = ()
    jump = first("proxyjump")
    if jump and jump.lower() != "none":
        jumps = tuple(_login(parse_host(part), folder, depth + 1) for part in jump.split(","))
        # a jump host may itself be reached through another one
        jumps = tuple(inner for outer in jumps for inner in (*outer.jumps, replace(outer, jumps=())))
    alias = first("hostkeyalias") or f"{host}:{port}"
    return Login(alias, host, port, user, (*wanted, *defaults), not only, jumps)


def read_config(path: Path, name: str) -> dict[str, list[str]]:
    """Options of `name` in an ssh_config, keys in lower case. A missing file is an empty one."""
    options: dict[str, list[str]] = {}
    _read(path, name, options, True, 0)
    return options


def _read(path: Path, name: str, options: dict[str, list[str]], active: bool, depth: int) -> None:
    if depth > _MAX_INCLUDE:
        raise UsageError(f"{path} includes itself over and over.")
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    outer = active
    for number, line in enumerate(lines, 1):
        key, values = _split(line, path, number)
        if key == "host":
            active = outer and _matches(name, values)
        elif key == "match":
            active = outer and [v.lower() for v in values] == ["all"]
        elif key == "include" and active:
            for pattern in values:
                base = Path(pattern).expanduser()
                if not base.is_absolute():
                    base = path.parent / base
                for found in sorted(base.parent.glob(base.name)):
                    _read(found, name, options, active, depth + 1)
        elif key and active and values:
            if key == "identityfile":
                options.setdefault(key, []).append(values[0])
            else:
                options.setdefault(key, [" ".join(values) if key == "proxycommand" else values[0]])


def _split(line: str, path: Path, number: int) -> tuple[str, list[str]]:
    line = line.strip()
    if not line or line.startswith("#"):
        return "", []
    cut = next((i for i, c in enumerate(line) if c in " \t="), len(line))
    rest = line[cut:].lstrip(" \t").removeprefix("=").strip()
    try:
        return line[:cut].lower(), shlex.split(rest, comments=True)
    except ValueError as error:
        raise UsageError(f"{path}, line {number}: {error}.") from None


def _matches(name: str, patterns: list[str]) -> bool:
    hit = False
    for pattern in patterns:
        if pattern.startswith("!"):
            if fnmatch.fnmatchcase(name, pattern[1:]):
                return False
        elif fnmatch.fnmatchcase(name, pattern):
            hit = True
    return hit


def _port(text: str | None, folder: Path) -> int:
    if text is None:
        return 22
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise UsageError(f"Port '{text}' in {folder / 'config'} is not between 1 and 65535.")
    return int(text)


def _expand(text: str, folder: Path, *, host: str, user: str, port: int) -> Path:
    tokens = {"%%": "%", "%h": host, "%r": user, "%p": str(port), "%d": str(folder.parent), "%u": getpass.getuser()}
    for token, value in tokens.items():
        text = text.replace(token, value)
    if text.startswith("~/"):
        return folder.parent / text[2:]
    return Path(text) if Path(text).is_absolute() else folder.parent / text
