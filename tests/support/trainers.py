"""A trainer for tests that is quick and honest: writes Trainer lines, saves on SIGTERM, resumes where it is told."""

from __future__ import annotations

from pathlib import Path

SCRIPT = """
import json, os, signal, sys, time
start = 0
if "--resume" in sys.argv:
    start = int(sys.argv[sys.argv.index("--resume") + 1].rpartition("-")[2])
stopping = False
def on_term(*_):
    global stopping
    stopping = True
signal.signal(signal.SIGTERM, on_term)
pause = float(os.environ.get("STEP_SECONDS", "0.02"))
def save(step):
    folder = os.path.join("checkpoints", f"checkpoint-{step}")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "trainer_state.json"), "w") as out:
        json.dump({"global_step": step}, out)
steps = int(os.environ.get("STEPS", "100000"))
for step in range(start + 1, steps + 1):
    time.sleep(pause)
    bar = f"{100 * step // steps:3d}%|          | {step}/{steps} [00:{step % 60:02d}<01:00, 50.0it/s]"
    print(f"\\r{bar}\\r{' ' * len(bar)}\\r", end="")
    row = {"loss": round(2 / step, 4), "grad_norm": 1.0, "learning_rate": 1e-4, "epoch": round(step / 100, 2)}
    print(f"{row}\\n\\r{bar}", end="", flush=True)
    if stopping:
        save(step)
        print("\\nsaved and stopped", flush=True)
        sys.exit(11)
save(steps)
print("\\n" + str({"train_runtime": 1.0, "train_samples_per_second": 1.0, "train_loss": 1.0, "epoch": 1.0}))
"""

RECIPE = """
kind = "command"
[foreign]
command = ["python", "train.py"]
workdir = "."
checkpoints = "checkpoints"
resume = ["--resume", "{checkpoint}"]
"""


def foreign_project(folder: Path, *, recipe: str = RECIPE, script: str = SCRIPT) -> Path:
    """A work tree with a trainer of its own; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(script)
    # a package that happens to be called like ours: it must be the trainer's own that its imports find
    (folder / "runner.py").write_text("raise SystemExit('somebody imported the wrong runner')\n")
    (folder / "recipe.toml").write_text(recipe)
    return folder / "recipe.toml"
