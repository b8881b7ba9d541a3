"""Options, output and confirmation that the commands share, so that each says and asks the same way."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from remote.deeds import DeedStep
from runner.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from runner.recipe import Recipe

Command = Callable[..., Any]
STEPS = "TUNEWATCH_STEPS"
"""Set to `json` by a screen that runs a command: each phase is told as JSON, when it begins and when it ends."""


def json_option(function: Command) -> Command:
    """Add `--json`: one JSON document on stdout and nothing else there."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else there.")(
        function
    )


def yes_option(function: Command) -> Command:
    """Add `--yes`, the answer to the question that a deed asks."""
    return click.option("--yes", is_flag=True, help="Answer the confirmation (for scripts).")(function)


def emit_json(document: Any) -> None:
    """Write one strict JSON document: a number that is not finite becomes null."""
    click.echo(json.dumps(_finite(document), ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def read_only() -> bool:
    """Whether deeds are refused (`--read-only` or TUNEWATCH_READ_ONLY=1)."""
    return os.environ.get("TUNEWATCH_READ_ONLY", "") not in ("", "0")


def refuse_processes(nproc: int, recipe: Recipe) -> None:
    """Raise UsageError for several processes of a trainer that is not ours."""
    if nproc > 1 and recipe.kind == "command":
        raise UsageError(
            "--nproc is for the stages of the study; a command of your own starts its processes itself.",
            hint=f"Write `torchrun --nproc_per_node {nproc} ...` as its command.",
        )


def refuse_if_read_only(deed: str) -> None:
    """Raise RefusedError when this session may only look."""
    if read_only():
        raise RefusedError(f"{deed} is refused: tunewatch is read-only here.", hint="Unset TUNEWATCH_READ_ONLY.")


def confirm_by_name(name: str, what: str, *, yes: bool, as_json: bool = False) -> None:
    """Ask for `name` typed back before something that costs or destroys. `what` says what will happen and what is lost.

    Raises UsageError when nobody is there to answer (no terminal, or JSON output) and `--yes` was not given, and
    RefusedError when what was typed is not the name.
    """
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        needs = f"This needs the name '{name}' typed back."
        raise UsageError(f"{what} {needs}", hint="Give --yes to answer it from a script.")
    click.echo(what, err=True)
    typed = click.prompt(f"Type {name} to go on", default="", show_default=False, err=True)
    if typed.strip() != name:
        raise RefusedError("That is not the name; nothing was done.")


def say_step(step: DeedStep) -> None:
    """Tell one phase of a deed on stderr when it ends: `✓ ship  2.1s  14 files`. What begins is not told twice."""
    if os.environ.get(STEPS) == "json":
        click.echo(json.dumps({"name": step.name, "ok": step.ok, "detail": step.detail, "s": step.seconds}), err=True)
        return
    if step.ok is None:
        return
    took = "" if step.seconds is None else f"  {step.seconds:.1f}s"
    detail = f"  {step.detail}" if step.detail else ""
    click.echo(f"{'✓' if step.ok else '✗'} {step.name}{took}{detail}", err=True)
