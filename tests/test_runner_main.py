"""`python -m runner` before anything is trained: what it refuses, what it says, and foreign commands."""

import os
import subprocess
import sys
from pathlib import Path

import tomli

ROOT = Path(__file__).parent.parent


def run(*arguments, env=None, python=(sys.executable,), cwd=ROOT):
    return subprocess.run(
        [*python, "-m", "runner", *arguments], cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True,
        text=True, check=False, timeout=240,
    )  # fmt: skip


def test_without_torch_it_names_the_extra_and_exits_2(tmp_path):
    """A Python that has the base dependencies of the laptop and nothing more."""
    for package in Path(tomli.__file__).parent.parent.iterdir():
        if not package.name.startswith(("torch", "transformers", "accelerate")):
            (tmp_path / package.name).symlink_to(package)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = run("demo", "--run-dir", str(tmp_path / "run"), env={"PYTHONPATH": path}, python=(sys.executable, "-S"))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "runner: Training needs torch and transformers and accelerate, which this Python does not have.",
        "  pip install 'tunewatch[runner]'",
    ]
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_started_is_one_sentence_and_a_code():
    wrong = run("stage55")
    assert (wrong.returncode, wrong.stderr.splitlines()[0]) == (3, "runner: There is no recipe 'stage55'.")
    wrong = run("demo", "--set", "max_step=3", "--run-dir", "/nonexistent")
    assert wrong.returncode == 2
    assert wrong.stderr.strip().endswith("Did you mean 'max_steps'?")
    assert "Traceback" not in wrong.stderr


def test_a_foreign_command_becomes_the_trainer_itself_with_its_resume_arguments(tmp_path):
    """The supervisor's child must be the trainer, not a shell around it."""
    work = tmp_path / "code"
    (work / "out" / "checkpoint-40").mkdir(parents=True)
    (work / "train.py").write_text("import os, sys; print(os.getcwd(), *sys.argv[1:])")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'kind = "command"\n[foreign]\ncommand = ["{sys.executable}", "train.py", "--a"]\nworkdir = "code"\n'
        'checkpoints = "out"\nresume = ["--resume_from_checkpoint", "{checkpoint}"]\n'
    )
    plain = run(str(recipe), "--run-dir", str(tmp_path / "run"))
    assert plain.stdout.split() == [str(work), "--a"]
    resumed = run(str(recipe), "--run-dir", str(tmp_path / "run"), "--resume")
    assert resumed.stdout.split()[1:] == ["--a", "--resume_from_checkpoint", str(work / "out" / "checkpoint-40")]
    recipe.write_text('kind = "command"\n[foreign]\ncommand = ["no-such-program"]\n')
    missing = run(str(recipe), "--run-dir", str(tmp_path / "run"))
    assert missing.returncode == 2
    assert "The command 'no-such-program' cannot be started" in missing.stderr
