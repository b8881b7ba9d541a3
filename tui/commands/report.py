"""`tunewatch report`: stage table, deltas, how the long fine-tune ended; Markdown for people, JSON for programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.errors import NotFoundError, UsageError
from runner.rundir import METRICS
from tui.commands.common import emit_json, json_option

if TYPE_CHECKING:
    from runner.results import Cost

RUNS = Path("runs")
MINIATURE = "demo"


@click.command(short_help="Stage table, deltas, stage 5 summary.")
@click.argument("runs", nargs=-1)
@click.option("--offers", "offers_file", type=click.Path(), help="Offers file for the quotes; else bundled examples.")
@click.option("--output", type=click.Path(dir_okay=False), help="Write the Markdown to this file.")
@click.option(
    "--write",
    "folder",
    type=click.Path(file_okay=False),
    help="Write the results of stages 1 to 4 and of stage 5, with their pictures, to this directory.",
)
@click.option("--dph", type=click.FloatRange(min=0), help="USD per hour of the box; else the bill in the journal.")
@json_option
def command(
    runs: tuple[str, ...],
    offers_file: str | None,
    output: str | None,
    folder: str | None,
    dph: float | None,
    as_json: bool,
) -> None:
    """Put the results of RUNS (run directories or names of known runs) into one table. Where two runs measured the
    same stage the later one counts. Without RUNS, all stages under runs/ are taken, or the newest demo.

    \b
    tunewatch report
    tunewatch report runs/stage1/20260210-120000 runs/stage4/20260215-093750 --json
    tunewatch report --write docs --dph 0.7411
    """
    from runner.report import read_report

    paths = [_local(run) for run in runs] or _found()
    report = read_report(paths)
    cost: Cost | None = None
    if report.stage5 is not None:
        cost = _cost(paths, report.stage5.runtime_s, dph)
        if cost is not None:
            report = replace(report, stage5=replace(report.stage5, usd=cost.usd))
    if folder is not None:
        _write(paths, Path(folder), cost)
    if as_json:
        emit_json(report.to_json(_quotes(paths[-1], offers_file)))
        return
    text = report.to_markdown()
    if folder is not None:
        return
    if output is not None:
        Path(output).write_text(text, encoding="utf-8")
        click.echo(f"written: {output}", err=True)
    else:
        click.echo(text, nl=not text.endswith("\n"))


def _local(run: str) -> Path:
    """The directory of a run here, by path or by name."""
    from remote.feed import resolve
    from remote.home import home
    from remote.mirror import mirror_folder
    from remote.target import parse_target

    target = resolve(parse_target(run))
    if target.kind != "local":
        mirror = mirror_folder(target, home())
        if not (mirror / METRICS).is_file():
            raise UsageError(
                f"'{run}' is not on this machine, and no mirror of it is.",
                hint="tunewatch watch fetches what it wrote.",
            )
        return mirror
    path = Path(target.path)
    if not path.exists():
        raise NotFoundError(f"There is no run {run}.")
    return path if path.is_dir() else path.parent


def _cost(paths: list[Path], runtime_s: float | None, dph: float | None) -> Cost | None:
    """What the newest of the runs cost: at `dph` for its runtime, else as the journal has the box it ran on."""
    from remote.home import home
    from remote.journal import Journal
    from remote.money import bill
    from runner.report import span
    from runner.results import Cost

    if dph is not None:
        return (
            None if runtime_s is None else Cost(dph * runtime_s / 3600, f"${dph:g}/h for {span(runtime_s)} of training")
        )
    if not (home() / "journal.db").is_file():
        return None
    journal = Journal(home())
    try:
        for path in reversed(paths):
            boxes = [box for box in journal.boxes() if box.run == f"{path.parent.name}/{path.name}"]
            if boxes:
                usd = sum(bill(journal, box.instance).total for box in boxes)
                return Cost(usd, "the bill of " + " and ".join(box.called for box in boxes))
    finally:
        journal.close()
    return None


def _write(paths: list[Path], folder: Path, cost: Cost | None) -> None:
    from runner.results import results

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in results(paths, cost).items():
        (folder / name).write_text(content, encoding="utf-8")
        click.echo(f"written: {folder / name}", err=True)


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
