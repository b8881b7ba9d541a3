"""`tunewatch reconcile`: what the journal says against what the provider says."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from tui.commands.common import emit_json, json_option, refuse_if_read_only, say_step, yes_option

if TYPE_CHECKING:
    from remote.reconcile import Choice, Found


@click.command(short_help="Journal against the provider.")
@click.option("--adopt", "choice", flag_value="adopt", help="Take unknown boxes of ours, carry on cut launches.")
@click.option("--destroy", "choice", flag_value="destroy", help="Destroy unknown boxes of ours, undo cut launches.")
@click.option("--leave", "choice", flag_value="leave", help="Only say what there is (the default without a terminal).")
@yes_option
@json_option
def command(choice: Choice | None, yes: bool, as_json: bool) -> int:
    """Bring the journal and the account together after a crash, a lost connection, or another laptop: finish what was
    cut, close what is gone, and decide about boxes with our label that nobody watches. Boxes without it are never
    touched. Exit code 7 while something of ours bills that nobody decided about.

    \b
    tunewatch reconcile
    tunewatch reconcile --destroy --yes --json
    """
    from remote.access import opener
    from remote.reconcile import reconcile
    from runner.errors import Exit, UsageError
    from tui.cloud import open_desk

    refuse_if_read_only("reconciling")
    asks = choice is None and sys.stdin.isatty() and not as_json
    if choice == "destroy" and not yes and not sys.stdin.isatty():
        raise UsageError("Destroying needs --yes from a script.")

    def decide(found: Found) -> Choice:
        if asks:
            click.echo(found.text, err=True)
            answer = click.prompt("adopt, destroy or leave", default="leave", err=True).strip().lower()
            return "adopt" if answer == "adopt" else ("destroy" if answer == "destroy" else "leave")
        return choice or "leave"

    with open_desk(say_step) as desk:
        result, report = reconcile(desk, decide, opener(desk.journal.home))
    if as_json:
        emit_json({**result.to_json(), **report.to_json()})
    else:
        for found in report.left:
            click.echo(f"! {found.text}", err=True)
        if report.ok:
            click.echo("The journal and the account agree.", err=True)
    return 0 if report.ok else int(Exit.UNCONFIRMED)
