"""`tunewatch report`: stage table, deltas, how the long fine-tune ended; Markdown for people, JSON for programs."""

from __future__ import annotations

from pathlib import Path

import click

from runner.errors import NotFoundError, UsageError
from tui.commands.common import emit_json, json_option

RUNS = Path("runs")
MINIATURE = "demo"


@click.command(short_help="Stage table, deltas, stage 5 summary.")
@click.argument("runs", nargs=-1)
@click.option("--offers", "offers_file", type=click.Path(), help="Offers file for the quotes; else bundled examples.")
@click.option("--output", type=click.Path(dir_okay=False), help="Write the Markdown to this file.")
@json_option
def command(runs: tuple[str, ...], offers_file: str | None, output: str | None, as_json: bool) -> None:
    """Put the results of RUNS (run directories or names of known runs) into one table. Where two runs measured the
    same stage the later one counts. Without RUNS, all stages under runs/ are taken, or the newest demo.

    \b
    tunewatch report
    tunewatch report runs/stage1/20260210-120000 runs/stage4/20260215-093750 --json
    """
    from runner.report import read_report

    paths = [_local(run) for run in runs] or _found()
    report = read_report(paths)
    if as_json:
        emit_json(report.to_json(_quotes(paths[-1], offers_file)))
        return
    text = report.to_markdown()
    if output is not None:
        Path(output).write_text(text, encoding="utf-8")
        click.echo(f"written: {output}", err=True)
    else:
        click.echo(text, nl=not text.endswith("\n"))


def _local(run: str) -> Path:
    """The directory of a run here, by path or by name."""
    from remote.feed import resolve
    from remote.target import parse_target

    target = resolve(parse_target(run))
    if target.kind != "local":
        raise UsageError(
            f"'{run}' is not on this machine.", hint="Fetch its summary.json first: report reads run directories here."
        )
    path = Path(target.path)
    if not path.exists():
        raise NotFoundError(f"There is no run {run}.")
    return path if path.is_dir() else path.parent


def _found() -> list[Path]:
    """The stages under runs/, the oldest first; the miniature study only when there is nothing else."""
    folders = [p for p in RUNS.glob("*/*/") if any((p / n).exists() for n in ("summary.json", "metrics.json"))]
    real = sorted((p for p in folders if p.parent.name != MINIATURE), key=lambda p: p.name)
    small = sorted((p for p in folders if p.parent.name == MINIATURE), key=lambda p: p.name)
    if not real and not small:
        raise NotFoundError("There are no results under runs/.", hint="tunewatch demo makes some in three minutes.")
    return real or small[-1:]


def _quotes(path: Path, offers_file: str | None) -> list[dict[str, object]]:
    """What the newest run, as long as it was, would have taken on each offer."""
    from remote.feed import RunFeed
    from remote.market import load_offers
    from tui.snapshot import whole_run_quotes

    feed = RunFeed(str(path))
    try:
        history = feed.tick().history
    finally:
        feed.close()
    return [dict(q.document) for q in whole_run_quotes(history, load_offers(offers_file))]
