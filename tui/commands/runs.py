"""`tunewatch runs`: what runs are known here, and how they were when last seen."""

from __future__ import annotations

from pathlib import Path

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
    for row in rows:
        steps = "" if row["step"] is None else f"{row['step']}/{row['max_steps'] or '?'}"
        click.echo(f"{row['name']:<{width}}  {row['state'] or 'not seen':<11}  {steps:>11}  {row['target']}")
