"""From what a person named to a transport: this machine, an SSH host by the user's ssh_config, or a rented instance."""

from __future__ import annotations

import importlib
from pathlib import Path

from remote.home import home as default_home
from remote.local import LocalTransport
from remote.ssh_auth import AskPassphrase
from remote.target import Target
from remote.transport import Transport


def open_transport(target: Target, *, home: Path | None = None, ask: AskPassphrase | None = None) -> Transport:
    """A transport for the host of `target`. Connects on first use.

    Raises UsageError for an ssh_config that cannot be honoured, and what the provider says for an instance.
    """
    state = home or default_home()
    if target.kind == "local":
        return LocalTransport()
    if target.kind == "vast":
        # by name: the provider's half of this floor is only loaded when something rented is asked for
        boxes = importlib.import_module("remote.adopt")
        transport: Transport = boxes.transport_for_instance(target.instance_id or 0, home=state)
        return transport
    from remote.ssh import SshTransport
    from remote.ssh_config import login_for

    login = login_for(target)
    return SshTransport(login, home=state, name=target.host, ask=ask)
