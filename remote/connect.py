"""From what a person named to a transport: this machine, an SSH host by the user's ssh_config, or a rented instance."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from remote.home import home as default_home
from remote.local import LocalTransport
from remote.ssh_auth import AskPassphrase, ask_on_terminal
from remote.target import Target
from remote.transport import Transport
from runner.errors import RefusedError, UnreachableError


def open_transport(target: Target, *, home: Path | None = None, ask: AskPassphrase | None = None) -> Transport:
    """A transport for the host of `target`. Connects on first use.

    Raises UsageError for an ssh_config that cannot be honoured, and what the provider says for an instance.
    """
    state = home or default_home()
    if target.kind == "local":
        return LocalTransport()
    if target.kind == "vast":
        from remote.access import transport_for_instance

        return transport_for_instance(target.instance_id or 0, home=state)
    from remote.ssh import SshTransport
    from remote.ssh_config import login_for

    login = login_for(target)
    return SshTransport(login, home=state, name=target.host, ask=ask)


def unlock(target: Target, *, home: Path | None = None) -> None:
    """Ask at the terminal for the passphrases that the host of `target` will need, before a screen takes it over.

    Does nothing where no key is encrypted or nobody is there to answer. What keeps the host from answering is not said
    here: whoever goes on will meet it.
    """
    if target.kind != "ssh" or not sys.stdin.isatty():
        return
    from remote.ssh import SshTransport, locked_keys
    from remote.ssh_config import login_for

    login = login_for(target)
    if not any(locked_keys(hop) for hop in (*login.jumps, login)):
        return
    host = SshTransport(login, home=home or default_home(), ask=ask_on_terminal)
    with host, contextlib.suppress(UnreachableError, RefusedError):
        host.ping(timeout=15.0)
