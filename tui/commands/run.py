"""`tunewatch run`: a stage of the study, or any recipe, here or on an SSH host."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tui.commands.common import emit_json, json_option, refuse_if_read_only, refuse_processes

if TYPE_CHECKING:
    from remote.remote_run import Order
    from runner.recipe import Recipe

RUNS = Path("runs")


@click.command(short_help="Run a stage or any recipe, here or on an SSH host.")
@click.argument("recipe")
@click.option("--config", "config_file", type=click.Path(), help="TOML with settings that lie over the recipe's.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting; wins over everything.")
@click.option("--hf-repo-id", metavar="REPO", help="Upload checkpoints to this Hub repository.")
@click.option("--nproc", type=click.IntRange(min=1), default=1, show_default=True, help="Processes, one per GPU.")
@click.option("--host", help="[user@]host[:port] to run on instead of this machine.")
@click.option("--detach", is_flag=True, help="Start it and leave; no screen.")
@click.option("--headless", is_flag=True, help="No screen: tell evals and the end.")
@json_option
def command(
    recipe: str,
    config_file: str | None,
    settings: tuple[str, ...],
    hf_repo_id: str | None,
    nproc: int,
    host: str | None,
    detach: bool,
    headless: bool,
    as_json: bool,
) -> int:
    """Run RECIPE: one of the stages (stage1 … stage5, demo), or a TOML file of your own. The run is kept by a
    supervisor, the screen only watches it: leaving the screen does not end it.

    Without a screen the exit code is the trainer's: 0 finished, 10 stopped by the auto-stop rule, 11 stopped with a
    checkpoint, 12 at a budget or deadline, 20 CUDA out of memory, 21 disk full, 75 already running.

    \b
    tunewatch run stage5 --set max_steps=2000
    AUTO_STOP_PATIENCE_EVALS=3 tunewatch run stage5 --host root@10.0.0.5 --detach
    """
    from runner.config import load_recipe

    refuse_if_read_only("starting a run")
    overrides = [*settings, *([f"hf_repo_id={hf_repo_id}"] if hf_repo_id else [])]
    resolved = load_recipe(recipe, overrides, config=config_file)
    refuse_processes(nproc, resolved)
    screen = not headless and not as_json and sys.stdin.isatty() and sys.stdout.isatty()
    if host is not None:
        from remote.remote_run import Order

        order = Order(recipe, config_file, tuple(settings), hf_repo_id or "", nproc)
        return _elsewhere(order, host, detach=detach, screen=screen, as_json=as_json)
    words = _arguments(recipe, config_file, overrides, nproc)
    return _here(resolved, words, detach=detach, screen=screen, as_json=as_json)


def _arguments(recipe: str, config_file: str | None, overrides: list[str], nproc: int) -> list[str]:
    out = [recipe, *(["--nproc", str(nproc)] if nproc > 1 else [])]
    if config_file is not None:
        out += ["--config", config_file]
    for one in overrides:
        out += ["--set", one]
    return out


def _here(recipe: Recipe, arguments: list[str], *, detach: bool, screen: bool, as_json: bool) -> int:
    from runner import needs
    from tui import local_run

    if recipe.kind != "command":
        needs.check(recipe)
    run = local_run.start(recipe.name, arguments, RUNS)
    click.echo(f"run directory: {run.path}", err=True)
    if detach:
        if as_json:
            emit_json({"ok": True, "state": "running", "run": str(run.path), "instance_id": None, "steps": []})
        return 0
    if screen:
        _show(str(run.path))
        return 0
    status = local_run.follow(run, lambda line: click.echo(line, err=True))
    if as_json:
        from tui.commands.watch import look_once
        from tui.session import Session, WatchPlan

        look_once(Session(), WatchPlan(str(run.path)), as_json=True)
    local_run.check_end(run, status)
    return status.rc or 0


def _elsewhere(order: Order, host: str, *, detach: bool, screen: bool, as_json: bool) -> int:
    from remote.remote_run import run_on_host
    from remote.ssh_auth import ask_on_terminal
    from tui.commands.common import say_step

    started = run_on_host(order, host, progress=say_step, ask=ask_on_terminal)
    if as_json:
        emit_json(started.to_json())
        return 0
    click.echo(f"{started.name} runs at {started.target}", err=True)
    if started.attach:
        click.echo(f"its terminal: {started.attach}", err=True)
    if screen and not detach:
        _show(started.target)
    return 0


def _show(target: str) -> None:
    from tui.opening import show
    from tui.session import WatchPlan

    show(WatchPlan(target))
