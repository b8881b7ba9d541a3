"""`tunewatch runs`: what runs are known here, and how they were when last seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tui.commands.common import emit_json, json_option


@click.command(short_help="What runs are known here.")
@click.option(
    "--root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Run directories."
)
@json_option
def command(root: Path, as_json: bool) -> None:
    """List the runs under ./runs, and those that were started or watched elsewhere, the newest first. Only what is on
    this machine is read: a run on a host is shown as it was when last seen.

    \b
    tunewatch runs
    tunewatch runs --json
    """
    from remote.home import home
    from remote.known import list_runs

    rows = list_runs(home(), root)
    if as_json:
        emit_json(rows)
        return
    if not rows:
        click.echo("No run is known here. Try: tunewatch demo", err=True)
        return
    width = max(len(str(row["name"])) for row in rows)
    states = [_state(row) for row in rows]
    wide = max(map(len, states))
    for row, state in zip(rows, states, strict=True):
        steps = "" if row["step"] is None else f"{row['step']}/{row['max_steps'] or '?'}"
        click.echo(f"{row['name']:<{width}}  {state:<{wide}}  {steps:>11}  {row['target']}")


def _state(row: dict[str, Any]) -> str:
    """A run elsewhere as it was when last seen: nobody asks its host for this list."""
    from tui.words import age

    if row["seen_state"] is None:
        return str(row["state"] or "not seen")
    return f"{row['seen_state']} {age(row['seen_age_s'])} ago"
