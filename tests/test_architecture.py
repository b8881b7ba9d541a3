"""The four floors hold, and the laptop starts light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_import_contracts_of_the_four_floors_hold():
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


HEAVY = ("torch", "transformers", "vastai", "plotext", "datasets", "accelerate", "lm_eval", "huggingface_hub")


@pytest.mark.parametrize("entry", ["tui.cli", "runner.autostop", "runner.history", "remote.deeds"])
def test_nothing_heavy_is_imported_at_start(entry):
    code = f"import {entry}, sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
