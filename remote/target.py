"""What can be watched, from the words a person types.

    runs/stage5/20261123-101500         a run directory here            local
    train.log                           any Trainer log here            local
    box:/root/proj/log.txt              over SSH, `box` may stand in ~/.ssh/config
    me@box:2222:runs/x                  user, port, path under the home directory there
    [fe80::1]:22:/x                     an IPv6 address in brackets
    vast:31457957:/root/x               an instance of the provider
    stage5/20261123-101500              the name of a known run         run

A path that exists here wins over every other reading. Pure but for that one look, which can be replaced.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from runner.errors import UsageError

TargetKind = Literal["local", "ssh", "vast", "run"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a run's files are."""

    kind: TargetKind
    path: str
    """Local path, path on the host, or the name of a known run."""
    host: str | None = None
    """Host name or alias of ssh_config; None unless `kind` is "ssh"."""
    user: str | None = None
    port: int | None = None
    instance_id: int | None = None
    """Set when `kind` is "vast"."""

    def __str__(self) -> str:
        if self.kind == "vast":
            return f"vast:{self.instance_id}:{self.path}"
        if self.kind == "ssh":
            return f"{self.login}:{self.path}"
        return self.path

    @property
    def login(self) -> str:
        """`[user@]host[:port]`, as `parse_host` reads it back."""
        host = f"[{self.host}]" if ":" in (self.host or "") else self.host or ""
        user = f"{self.user}@" if self.user else ""
        return f"{user}{host}" + (f":{self.port}" if self.port else "")


_HOST = re.compile(
    r"(?:(?P<user>[^@:/\s]+)@)?(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^@:/\s\[\]]+))(?::(?P<port>\d+))?"
)


def parse_host(text: str) -> Target:
    """Read `[user@]host[:port]` or `vast:ID`; the path is empty. Raises UsageError."""
    text = text.strip()
    if text.startswith("vast:"):
        return _vast(text, text[5:], "")
    found = _HOST.fullmatch(text)
    if found is None:
        raise UsageError(f"'{text}' is not a host.", hint="Write [user@]host[:port], for example root@10.0.0.5:2222.")
    return Target("ssh", "", found["v6"] or found["host"], found["user"], _port(text, found["port"]))


def parse_target(text: str, *, exists: Callable[[str], bool] = os.path.exists) -> Target:
    """Read what was typed after `watch`. Raises UsageError with the forms that are understood."""
    text = text.strip()
    if not text:
        raise UsageError("No target was named.", hint="Name a run directory, a log file or host:/path.")
    here = os.path.expanduser(text)  # noqa: PTH111 - the text is not known to be a path yet
    if exists(here):
        return Target("local", here)
    if text.startswith("vast:"):
        number, colon, path = text[5:].partition(":")
        if not colon:
            path = ""
        return _vast(text, number, path)
    found = _HOST.match(text)
    rest = text[found.end() :] if found else ""
    if found and rest.startswith(":"):
        if len(rest) == 1:
            raise UsageError(f"'{text}' names a host and no path.", hint="Add the log or run directory: host:/path.")
        return Target("ssh", rest[1:], found["v6"] or found["host"], found["user"], _port(text, found["port"]))
    if found and not rest and found["port"]:
        raise UsageError(f"'{text}' names a host and no path.", hint="Add the log or run directory: host:/path.")
    if text.startswith(("/", "./", "../", "~")):
        return Target("local", here)
    if re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", text):
        return Target("run", text)
    return Target("local", here)


def _vast(text: str, number: str, path: str) -> Target:
    if not number.isdigit():
        raise UsageError(f"'{text}' names no instance.", hint="Write vast:ID:/path with the number of the instance.")
    return Target("vast", path, instance_id=int(number))


def _port(text: str, digits: str | None) -> int | None:
    if digits is None:
        return None
    port = int(digits)
    if not 0 < port < 65536:
        raise UsageError(f"Port {port} in '{text}' is not between 1 and 65535.")
    return port
