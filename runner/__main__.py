"""The trainer's command line: `python -m runner STAGE|RECIPE|demo [--set KEY=VALUE] [--run-dir D] [--resume [PATH]]`.

With `--run-dir` it is the trainer itself and writes to its standard output, which a supervisor appends to log.txt.
Without, it makes a run directory under runs/, starts the supervisor on it, and shows the log as it grows; so a run is
never started without its lock, its status and its log. Light until it trains: torch is imported by the study alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from runner import needs, rundir
from runner.config import load_recipe, recipe_names
from runner.errors import RunExit, TunewatchError, UsageError
from runner.recipe import Recipe
from runner.rundir import RunDir


def main(argv: list[str] | None = None) -> int:
    """Run one recipe and return its exit code (`runner.errors.RunExit`; 2 to 4 for what cannot be started)."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["audit"]:
        return _saying(lambda: _audit(arguments[1:]))
    chosen = _parser().parse_args(arguments)
    return _saying(lambda: _run(chosen, arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runner",
        description="Run a stage of the study, or any recipe.",
        epilog="python -m runner audit MODEL checks a checkpoint for leaks instead.",
    )
    parser.add_argument("recipe", help=f"{', '.join(recipe_names())}, or a TOML file")
    parser.add_argument("--config", metavar="FILE", help="settings that lie over the recipe's")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one setting; wins over all")
    parser.add_argument("--hf-repo-id", metavar="REPO", help="upload checkpoints to this Hub repository")
    parser.add_argument("--keep-local", metavar="N", type=int, help="whole checkpoints kept on disk")
    parser.add_argument("--run-dir", metavar="DIR", help="train here, without a supervisor of its own")
    parser.add_argument(
        "--resume",
        metavar="PATH",
        nargs="?",
        const="",
        help="a checkpoint, 'hub', or the newest",
    )
    parser.add_argument("--nproc", metavar="N", type=int, default=1, help="processes on this machine, one per GPU")
    return parser


def _saying(work: Callable[[], int]) -> int:
    try:
        return int(work())
    except TunewatchError as error:
        if os.environ.get("RANK", "0") != "0":
            return int(error.exit_code)  # rank 0 says it for all
        print(f"runner: {error.message}", file=sys.stderr)  # noqa: T201 - talk goes to stderr
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)  # noqa: T201
        return int(error.exit_code)


def _run(chosen: argparse.Namespace, arguments: list[str]) -> int:
    overrides = list(chosen.set)
    if chosen.hf_repo_id:
        overrides.append(f"hf_repo_id={chosen.hf_repo_id}")
    if chosen.keep_local is not None:
        overrides.append(f"keep_local={chosen.keep_local}")
    recipe = load_recipe(chosen.recipe, overrides, config=chosen.config)
    if recipe.kind != "command":
        needs.check(recipe)
    if not chosen.run_dir:
        return _supervised(recipe, arguments)
    run = RunDir(chosen.run_dir)
    if recipe.kind == "command":
        return _foreign(recipe, run, chosen.resume)
    resume = None
    if chosen.resume is not None and "RANK" in os.environ and chosen.resume == "hub":
        resume = rundir.newest_whole_checkpoint(run.checkpoints)  # fetched by the parent of the ranks
    elif chosen.resume is not None:
        from runner.study.resume import resume_point

        resume = resume_point(recipe, run, chosen.resume)
    if chosen.nproc < 1:
        raise UsageError(f"--nproc wants 1 or more, not {chosen.nproc}.")
    if chosen.nproc > 1 and "RANK" not in os.environ:
        from runner.study.launch import launch

        return launch(arguments, chosen.nproc)
    # log.txt is read by a person and a parser while it grows: a line must not wait in a buffer
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    from runner.study.stages import Study

    code = Study(recipe, run, resume=resume).main()
    # torchrun calls every code but 0 a failure and kills the other ranks; the real one is in metrics.jsonl
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ and code in _ORDERLY else int(code)


_ORDERLY = (RunExit.FINISHED, RunExit.AUTO_STOPPED, RunExit.STOPPED, RunExit.LIMIT)


def _supervised(recipe: Recipe, arguments: list[str]) -> int:
    """Make a run directory, start the supervisor on this very command, and show the log until it ends."""
    run = RunDir.create(recipe.name, Path("runs"))
    print(f"run directory: {run.path}", flush=True)  # noqa: T201
    command = [sys.executable, "-m", "runner.box.supervise", "--run-dir", str(run.path), "--"]
    command += [sys.executable, "-m", "runner", *arguments, "--run-dir", str(run.path)]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: child.terminate())
    with run.log.open("rb") as log:
        while child.poll() is None:
            _show(log)
            time.sleep(0.2)
        _show(log)
    return child.returncode


def _show(log: IO[bytes]) -> None:
    if data := log.read():
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def _foreign(recipe: Recipe, run: RunDir, resume: str | None) -> int:
    """Become the foreign trainer: the supervisor's child is then the trainer itself."""
    from runner.config import write_resolved

    command = list(recipe.command)
    if resume is not None:
        folder = recipe.workdir / recipe.checkpoints if recipe.checkpoints else run.checkpoints
        found = Path(resume) if resume else next(iter(rundir.checkpoints(folder)), None)
        if found is not None:
            command += [argument.replace("{checkpoint}", str(found)) for argument in recipe.resume]
    run.path.mkdir(parents=True, exist_ok=True)
    write_resolved(run.config, recipe)
    if not recipe.workdir.is_dir():
        raise UsageError(f"{recipe.path}: the workdir {recipe.workdir} does not exist.")
    os.chdir(recipe.workdir)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the recipe's own command, as an argument list
    except OSError as error:
        raise UsageError(f"The command '{command[0]}' cannot be started: {error.strerror}.") from error


def _audit(arguments: list[str]) -> int:
    needs.check()
    from runner.study.audit import main as audit

    return audit(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
