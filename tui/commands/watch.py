"""`tunewatch watch`: any Hugging Face Trainer run, ours or foreign, here or over SSH."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.errors import NotFoundError, UsageError
from tui.commands.common import Command, emit_json, json_option

if TYPE_CHECKING:
    from tui.session import Session, WatchPlan
    from tui.snapshot import RuleChoice


def rule_options(function: Command) -> Command:
    """Add the four fields of the auto-stop rule; what is not given comes from the run, or is the default."""
    for option in (
        click.option("--count-from", type=click.Choice(["min_steps", "start"]), help="Judge evals from where on."),
        click.option("--min-steps", type=int, help="No stop before this step (600)."),
        click.option("--min-delta", type=float, help="Loss that a gain has to exceed (0.003)."),
        click.option("--patience", type=int, help="Evals in a row without gain that stop the run (4)."),
    ):
        function = option(function)
    return function


@click.command(short_help="Watch any Hugging Face Trainer run, local or over SSH.")
@click.argument("target")
@click.option("--once", is_flag=True, help="Say how it is now and leave; no screen.")
@rule_options
@click.option("--offers", "offers_file", type=click.Path(), help="Offers file for the quotes; else bundled examples.")
@click.option("--here", help="Id of the offer that the run is on.")
@click.option("--dph", type=click.FloatRange(min=0), help="USD per hour of the box the run is on.")
@json_option
def command(
    target: str,
    once: bool,
    patience: int | None,
    min_delta: float | None,
    min_steps: int | None,
    count_from: Any,
    offers_file: str | None,
    here: str | None,
    dph: float | None,
    as_json: bool,
) -> None:
    """Watch a run directory or a log file: TARGET is a path, [user@]host[:port]:/path, vast:ID:/path, or the name of
    a known run. Nothing has to be installed where the run is.

    A run of ours declares its auto-stop rule. For a foreign log the rule below is assumed, and both readings of the
    evals before --min-steps are shown.

    \b
    tunewatch watch runs/stage5/20260215-104518
    tunewatch watch root@ssh6.vast.ai:17956:/root/x/log.txt --patience 3
    tunewatch watch train.log --once --json
    """
    from remote.target import parse_target
    from tui.opening import new_session
    from tui.session import WatchPlan

    choice = rule_choice(patience, min_delta, min_steps, count_from)
    session = new_session(offers_file)
    if here is not None:
        from remote.market import running_offer

        running_offer(list(session.offers), here)
    where = parse_target(target)
    if where.kind != "local":
        from remote.connect import unlock
        from remote.feed import resolve

        unlock(resolve(where))
    plan = WatchPlan(target, choice=choice, dph=dph, offer_id=here)
    if once or as_json:
        look_once(session, plan, as_json=as_json)
    else:
        open_screen(session, plan)


def rule_choice(
    patience: int | None, min_delta: float | None, min_steps: int | None, count_from: Any
) -> RuleChoice | None:
    """What the person said of the rule; None for nothing at all. Raises UsageError for what makes no sense."""
    if all(said is None for said in (patience, min_delta, min_steps, count_from)):
        return None
    from tui.snapshot import RuleChoice

    choice = RuleChoice(patience, min_delta, min_steps, count_from)
    try:
        choice.over(None)
    except ValueError as error:
        raise UsageError(f"This rule makes no sense: {error}.") from error
    return choice


def look_once(session: Session, plan: WatchPlan, *, as_json: bool) -> None:
    """Read everything there is, print it, leave. Raises NotFoundError or UnreachableError when there is nothing."""
    from runner.log_history import NOT_TEXT
    from tui.document import watch_document, watch_lines

    watch = session.open(plan)[1]
    try:
        state = watch.feed.settle()  # type: ignore[attr-defined]  # a real feed, not the narrow protocol of the poller
    finally:
        watch.close()
    snapshot = watch.maker.make(state, at=time.monotonic())
    if NOT_TEXT in snapshot.warnings:
        raise UsageError(f"{plan.target}: {NOT_TEXT}.")
    if as_json:
        emit_json(watch_document(snapshot))
        return
    for line in watch_lines(snapshot):
        click.echo(line)


def need_terminal(hint: str) -> None:
    """Raise UsageError when there is nobody to see a screen. Textual reads stdin and draws on stderr.

    In a browser (`tunewatch serve`) another driver speaks over pipes.
    """
    if os.environ.get("TEXTUAL_DRIVER"):
        return
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise UsageError("The screen needs a terminal for its input, output and errors.", hint=hint)


def open_screen(session: Session, plan: WatchPlan) -> None:
    """Open the live screen on one run. Raises UsageError without a terminal, NotFoundError without the run."""
    from tui.opening import show

    need_terminal("Give --once for a text, --json for a document.")
    if not holds_text(Path(plan.target)):
        look_closer(session, plan)
    show(plan, session)


def holds_text(path: Path) -> bool:
    """Whether a path is plainly a log or a run directory with something to show; cheap, and no is no verdict."""
    from runner.text import HEAD, is_binary, unprintable

    for file in (path, path / "metrics.jsonl", path / "log.txt"):
        try:
            with file.open("rb") as opened:
                head = opened.read(HEAD)
        except OSError:
            continue
        if head and not is_binary(unprintable(head), len(head)):
            return True
    return False


def look_closer(session: Session, plan: WatchPlan) -> None:
    """Tell what a screen would only wait for. Raises NotFoundError without the run, UsageError for what is no text."""
    from remote.feed import RunFeed
    from runner.log_history import NOT_TEXT

    feed = RunFeed(plan.target)
    if feed.target.kind == "local":
        # a wrong name should be told on the command line, not on a screen that waits for it
        try:
            state = feed.tick()
        finally:
            feed.close()
        if NOT_TEXT in state.warnings:
            raise UsageError(f"{plan.target}: {NOT_TEXT}.")
        if state.problem is not None and not state.history.bytes_read:
            if isinstance(state.problem, NotFoundError):
                raise state.problem
            session.notice = str(state.problem)
