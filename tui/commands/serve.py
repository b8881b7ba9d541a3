"""`tunewatch serve`: the same screens in a browser, on this machine's loopback only."""

from __future__ import annotations

import importlib.util
import shlex
import sys

import click

from runner.errors import RefusedError, UsageError
from tui.commands.common import read_only

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command(short_help="The same screens in a browser, loopback only.")
@click.argument("target", required=False)
@click.option("--port", type=click.IntRange(1, 65535), default=8765, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback only: there is no password.")
def command(target: str | None, port: int, host: str) -> None:
    """Open the control room, or the run TARGET, in a browser. Each tab has a process of its own; closing a tab ends
    that process and no run.

    \b
    tunewatch serve
    tunewatch serve runs/stage5/20260215-104518 --port 9000
    """
    if host not in LOOPBACK:
        raise RefusedError(
            f"serve listens on this machine alone, not on {host}: whoever reaches it could stop and rent.",
            hint=f"Reach it from elsewhere through SSH: ssh -L {port}:127.0.0.1:{port} this-machine.",
        )
    if importlib.util.find_spec("textual_serve") is None:
        raise UsageError("serve needs textual-serve, which is not installed.", hint="pip install 'tunewatch[serve]'")
    from textual_serve.server import Server

    words = [sys.executable, "-m", "tui", *(["--read-only"] if read_only() else [])]
    if target is not None:
        from remote.target import parse_target

        parse_target(target)
        words += ["watch", target]
    click.echo(f"http://{host}:{port}  (Ctrl+C ends it; runs go on)", err=True)
    Server(shlex.join(words), host=host, port=port, title="tunewatch").serve()
