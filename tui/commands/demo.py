"""`tunewatch demo`: the miniature study on this machine, watched live. No account, no network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from runner.errors import UsageError
from runner.rundir import RunDir
from tui.commands.common import emit_json, json_option, refuse_if_read_only
from tui.commands.watch import need_terminal

RUNS = Path("runs")
KIND = "demo"


@click.command(short_help="The miniature study on this machine, watched live.")
@click.option("--headless", is_flag=True, help="No screen: tell the stages, then print the table.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the fine-tune at most; the recipe says 1500.")
@click.option("--replay", is_flag=True, help="Play the recorded sample instead, fast: nothing trains.")
@json_option
def command(headless: bool, steps: int | None, replay: bool, as_json: bool) -> None:
    """Run the whole study in miniature on this machine's processor, in about three minutes: a model of a million
    parameters is measured, its prompt mask is taken away, it is fine-tuned until its eval_loss no longer falls, and
    measured again.

    The run has a supervisor of its own: leaving the screen does not end it, and `tunewatch demo` again goes back to it.

    \b
    tunewatch demo
    tunewatch demo --headless --json
    """
    from tui import local_run

    if replay:
        if headless or as_json or steps is not None:
            raise UsageError("--replay is a tour of the screen; it goes with no other option.")
        need_terminal("A replay is a screen and nothing else.")
        from tui.replay import open_replay

        open_replay()
        return
    if not headless and not as_json:
        need_terminal("Give --headless for a demo without a screen.")
    run = local_run.running_here(KIND, RUNS)
    if run is None:
        from runner import needs

        refuse_if_read_only("starting a run")
        needs.check()
        run = local_run.start(KIND, _arguments(steps), RUNS)
        click.echo(f"run directory: {run.path}", err=True)
    else:
        run = RunDir(run.path.resolve())
        note = " --steps is that of the running one." if steps is not None else ""
        click.echo(f"a demo is running already; attached to {run.path}.{note}", err=True)
    if headless or as_json:
        status = local_run.follow(run, lambda line: click.echo(line, err=True))
        local_run.check_end(run, status)
    else:
        _watch(run)
        if local_run.alive(run):
            return
    if as_json:
        emit_json(report_of(run))
    else:
        from runner.report import read_report
        from tui.study_lines import study_lines

        report = read_report([run.path])
        if sys.stdout.isatty():
            click.echo("\n".join([*study_lines(report), "", f"the whole report: {run.summary_md}"]))
        else:
            click.echo(report.to_markdown())


def _arguments(steps: int | None) -> list[str]:
    return [KIND, *(["--set", f"max_steps={steps}"] if steps is not None else [])]


def _watch(run: RunDir) -> None:
    from tui.opening import show
    from tui.session import WatchPlan

    show(WatchPlan(str(run.path)))


def report_of(run: RunDir) -> dict[str, Any]:
    """The report of the study, with what its fine-tune would have taken on every offer of the bundled market."""
    from remote.feed import RunFeed
    from remote.market import load_offers
    from runner.report import read_report
    from tui.snapshot import whole_run_quotes

    feed = RunFeed(str(run.path))
    try:
        history = feed.settle().history
    finally:
        feed.close()
    quotes = [dict(q.document) for q in whole_run_quotes(history, load_offers())]
    return {**read_report([run.path]).to_json(quotes), "run": str(run.path)}
