"""The command `tunewatch`: a table of commands, each loaded only when it is called.

This file knows the names, the shared options and how an error becomes one sentence and an exit code. What a command
does stands in `tui/commands/<name>.py` as a click command called `command`.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from runner.errors import Exit, TunewatchError

COMMANDS: dict[str, str] = {
    "demo": "The miniature study on this machine, watched live.",
    "run": "Run a stage or any recipe, here or on an SSH host.",
    "watch": "Watch any Hugging Face Trainer run, local or over SSH.",
    "estimate": "Finish time and bill per offer.",
    "offers": "The live market with quotes.",
    "launch": "Rent, boot, ship, start, arm the guard.",
    "runs": "What runs are known here.",
    "instances": "What is rented, and what is still billing.",
    "rule": "The auto-stop rule of a run, and another one while it goes on.",
    "stop": "Stop training with a checkpoint, keep the box.",
    "kill": "Stop, destroy the box and prove it gone.",
    "migrate": "Move a live run to a better box.",
    "adopt": "Take an instance rented by hand under watch.",
    "reconcile": "Journal against the provider.",
    "report": "Stage table, deltas, stage 5 summary.",
    "audit": "Leakage and mask audit of a checkpoint.",
    "doctor": "What works here, and how to mend what does not.",
    "serve": "The same screens in a browser, loopback only.",
}
"""Every command with its line in `--help`; a test holds this table against the modules and the README."""


class LazyGroup(click.Group):
    """Lists commands from the table and imports one module: the one that was asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Keep the order of the table, which is the order of a first day."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import `tui.commands.<name>`."""
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"tui.commands.{name}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"tui.commands.{name}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the table without importing what it names."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest name for a command that does not exist."""
        import difflib

        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else " See tunewatch --help."
            raise click.UsageError(f"There is no command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--read-only", is_flag=True, help="Refuse every deed: nothing is started, stopped, rented or destroyed.")
@click.version_option(package_name="tunewatch", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, read_only: bool) -> None:
    """Launch, watch, move and stop a fine-tuning run on a rented GPU, and always know when it will end and what it
    will cost.

    Without a command the control room opens.

    \b
    tunewatch demo                          a real run on this machine
    tunewatch watch box:/root/x/log.txt     any Hugging Face Trainer log over SSH
    """
    if read_only:
        os.environ["TUNEWATCH_READ_ONLY"] = "1"
    if ctx.invoked_subcommand is None:
        from tui.opening import run_app

        run_app()


def main(argv: list[str] | None = None) -> None:
    """Entry point: run the command and turn errors into one sentence on stderr and an exit code."""
    try:
        result: Any = cli.main(args=argv, prog_name="tunewatch", standalone_mode=False)
    except TunewatchError as error:
        say_error(error)
        raise SystemExit(int(error.exit_code)) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(int(Exit.USAGE)) from None
    except (click.Abort, KeyboardInterrupt):
        click.echo("Aborted; nothing more was done.", err=True)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # the reader of a pipe went away: not an error of ours, and Python must not try to flush into it again
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
        raise SystemExit(0) from None
    except Exception as error:  # noqa: BLE001 - whatever it was: a sentence here, the traceback in a file
        from tui.leaving import FAULT, fault

        click.echo(f"tunewatch: {fault(error)}", err=True)
        raise SystemExit(FAULT) from None
    raise SystemExit(result if isinstance(result, int) else 0)


def say_error(error: TunewatchError) -> None:
    """Print the sentence, then after a blank-free second line what to do, and what exists all the same."""
    click.echo(f"tunewatch: {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
    if error.exists:
        click.echo(f"  What exists: {error.exists}", err=True)
