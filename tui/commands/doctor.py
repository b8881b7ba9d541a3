"""`tunewatch doctor`: what works, here or on a host, and how to mend what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tui.commands.common import emit_json, json_option

if TYPE_CHECKING:
    from remote.doctor import Check

_MARKS = {"good": "✓", "note": "·", "bad": "✗"}


@click.command(short_help="What works here, and how to mend what does not.")
@click.argument("host", required=False)
@click.option("--forget-host-key", is_flag=True, help="Accept a new key of HOST on purpose, after a reinstallation.")
@json_option
def command(host: str | None, forget_host_key: bool, as_json: bool) -> int:
    """Look at everything a run needs: here, or on HOST ([user@]host[:port]) what would stop a launch there: login,
    key, tmux, Python, CUDA, disk, time, way out. Exit code 4 when something would stop it, 5 when HOST does not answer.

    \b
    tunewatch doctor
    tunewatch doctor root@10.0.0.5:2222
    """
    from remote.home import home
    from runner.errors import Exit, UsageError

    state = home()
    if host is None:
        from remote.doctor import check_here

        if forget_host_key:
            raise UsageError("--forget-host-key needs the host.", hint="tunewatch doctor HOST --forget-host-key")
        checks = _tell(list(check_here(state)), as_json)
    else:
        from remote.connect import open_transport
        from remote.doctor import check_host
        from remote.doctor import forget_host_key as forget
        from remote.settings import load_settings
        from remote.ssh_auth import ask_on_terminal
        from remote.target import parse_host

        if forget_host_key:
            click.echo("forgotten" if forget(host, state) else "no key of it was known", err=True)
        python = load_settings(state).text("launch.python")
        with open_transport(parse_host(host), home=state, ask=ask_on_terminal) as transport:
            checks = _tell(list(check_host(transport, python=python)), as_json)
    bad = [check for check in checks if check.finding == "bad"]
    if not bad:
        return 0
    return int(Exit.UNREACHABLE if bad[0].name == "SSH" else Exit.REFUSED)


def _tell(checks: list[Check], as_json: bool) -> list[Check]:
    if as_json:
        emit_json({"ok": all(c.finding != "bad" for c in checks), "checks": [c.to_json() for c in checks]})
        return checks
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        click.echo(f"{_MARKS[check.finding]} {check.name:<{width}}  {check.found}")
        if check.mend:
            click.echo(f"  {'':<{width}}  {check.mend}")
    return checks
