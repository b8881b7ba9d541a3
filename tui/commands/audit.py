"""`tunewatch audit MODEL`: the checks of `runner.study.audit`, in a process of their own because they need torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import click

from runner.errors import Exit, NotFoundError, UsageError
from tui.commands.common import emit_json, json_option


@click.command(name="audit")
@click.argument("model")
@click.option("--data", help="'demo', a .jsonl file or a Hub data set: also look for eval prompts in the training set.")
@json_option
def command(model: str, data: str | None, as_json: bool) -> int:
    """Leakage and mask audit of a checkpoint.

    Perturbs the loaded model in its recorded mask mode and looks at what changes. Exit code 1 when a check fails.

    \b
    tunewatch audit runs/demo/20260215-104518/checkpoints/checkpoint-600 --data demo
    """
    arguments = [sys.executable, "-m", "runner", "audit", model, "--json", *(["--data", data] if data else [])]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    document = _document(done.stdout)
    if document is None:
        said = [line for line in done.stderr.splitlines() if line.startswith(("runner: ", "  "))]
        lines = [line.removeprefix("runner: ").strip() for line in said[-2:]] or done.stderr.splitlines()[-1:]
        kind = NotFoundError if done.returncode == Exit.NOT_FOUND else UsageError
        raise kind(lines[0] if lines else "The audit ended without a result.", hint=" ".join(lines[1:]))
    if as_json:
        emit_json(document)
    else:
        click.echo(f"{model}: recorded mask '{document['mask']}'")
        for check in document["checks"]:
            click.echo(f"  {'ok  ' if check['ok'] else 'FAIL'}  {check['name']:<17} {check['detail']}")
    return 0 if document["ok"] else 1


def _document(text: str) -> dict[str, Any] | None:
    """The last line of the output if it is the audit's JSON."""
    lines = text.splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and "checks" in found else None
