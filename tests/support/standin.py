"""A trainer for migrations: quick, of a single file, and with a state that only a true checkpoint carries on.

Each step's loss depends on every step before it, so a resume from the wrong place shows in the first loss. It writes
metrics.jsonl, seals its checkpoints with a manifest, honours SIGTERM, and keeps a witness: a lock and a list of steps
outside all boxes, by which two trainers at one moment cannot hide. It saves on request, and can be rehearsed.
"""

from __future__ import annotations

import json
from pathlib import Path

SCRIPT = r"""
import argparse, fcntl, hashlib, json, os, signal, sys, time
ask = argparse.ArgumentParser()
for name, kind, default in (("steps", int, 100000), ("save-every", int, 10), ("eval-every", int, 10**9),
                            ("step-s", float, 0.02), ("size", int, 200000), ("witness", str, ""), ("resume", str, ""),
                            ("spoil", str, ""), ("alone", int, 1)):
    ask.add_argument("--" + name, type=kind, default=default)
o = ask.parse_args()
run = os.environ["TUNEWATCH_RUN_DIR"]
metrics = open(os.path.join(run, "metrics.jsonl"), "a")
def write(event, **more):
    metrics.write(json.dumps({"event": event, "wall": time.time(), "mono": time.monotonic(), **more}) + "\n")
    metrics.flush()
witness = open(o.witness, "a")
try:
    # a rehearsal has no witness; a lock on the null device is one for the whole machine
    if o.alone and o.witness != os.devnull:
        fcntl.flock(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    witness.write("DOUBLE\n")
    sys.exit(99)
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
state, step = 88172645463325252, 0
history = []
if o.resume:
    with open(os.path.join(o.resume, "state.json")) as file:
        state = json.load(file)["state"]
    with open(os.path.join(o.resume, "trainer_state.json")) as file:
        saved = json.load(file)
    step, history = saved["global_step"], saved["log_history"]
write("start", run_id=None, max_steps=o.steps, pid=os.getpid(), world_size=1, resumed_from=step or None, rule=None,
      mask=None, recipe="standin", obeys=["save"])
if o.resume and o.spoil and os.path.exists(o.spoil):
    mode, _, where = open(o.spoil).read().partition(" ")
    if where not in os.getcwd():
        mode = ""
    if mode == "crash":
        raise RuntimeError("this box cannot train")
    while mode == "hang" and not asked:
        time.sleep(0.05)
    if mode:
        sys.exit(11)
def save():
    began = time.monotonic()
    folder = os.path.join("ckpt", "checkpoint-%d" % step)
    os.makedirs(folder, exist_ok=True)
    parts = {"state.json": json.dumps({"state": state}).encode(),
             "weights.bin": hashlib.sha256(str(state).encode()).digest() * (o.size // 32),
             "tokenizer.json": b"always the same " * 4000,
             "trainer_state.json": json.dumps({"global_step": step, "log_history": history}).encode()}
    files = {}
    for name, data in parts.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    with open(os.path.join(folder, "manifest.json.new"), "w") as file:
        json.dump({"version": 1, "step": step, "files": files}, file)
    os.rename(os.path.join(folder, "manifest.json.new"), os.path.join(folder, "manifest.json"))
    kept = sorted(int(name.split("-")[1]) for name in os.listdir("ckpt"))[:-3]
    for old in kept:
        os.unlink(os.path.join("ckpt", "checkpoint-%d" % old, "manifest.json"))
        for name in os.listdir(os.path.join("ckpt", "checkpoint-%d" % old)):
            os.unlink(os.path.join("ckpt", "checkpoint-%d" % old, name))
        os.rmdir(os.path.join("ckpt", "checkpoint-%d" % old))
    write("save", step=step, seconds=time.monotonic() - began, path="checkpoint-%d" % step, bytes=o.size)
while step < o.steps:
    time.sleep(o.step_s)
    step += 1
    state = (state * 6364136223846793005 + step) % 2**64
    loss = 1 + state / 2**64
    print({"loss": round(loss, 4), "grad_norm": 1.0, "learning_rate": 1e-4, "epoch": step / 100}, flush=True)
    write("train", step=step, loss=loss, grad_norm=1.0, learning_rate=1e-4, epoch=step / 100, step_s=o.step_s)
    write("progress", step=step, elapsed_s=step * o.step_s)
    witness.write("%d %r\n" % (step, loss))
    witness.flush()
    if step % o.eval_every == 0:
        history.append({"step": step, "eval_loss": loss})
        write("eval", step=step, eval_loss=loss, eval_runtime=0.01)
    request = os.path.join(run, "save.request")
    wanted = os.path.exists(request)
    if asked or wanted or step % o.save_every == 0:
        save()
    if wanted:
        with open(request) as file:
            write("ack", request="save", id=json.load(file)["id"], accepted=True, detail="saved", step=step)
        os.unlink(request)
    if asked:
        write("end", step=step, reason="asked", rc=11, runtime_s=1.0)
        sys.exit(11)
write("end", step=step, reason="the horizon", rc=0, runtime_s=1.0)
print({"train_runtime": 1.0, "train_loss": 1.0}, flush=True)
"""


def standin_recipe(folder: Path, **options: object) -> tuple[Path, Path]:
    """A recipe with this trainer and the path of its witness. `options` are its arguments (`step_s=0.05`)."""
    work = folder / "standin"
    work.mkdir(parents=True, exist_ok=True)
    (work / "train.py").write_text(SCRIPT)
    witness = folder / "witness"
    words = ["python3", "-u", "train.py", "--witness", str(witness)]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    recipe = folder / "standin.toml"
    recipe.write_text(
        f'kind = "command"\n[foreign]\ncommand = {json.dumps(words)}\nworkdir = "{work}"\ncheckpoints = "ckpt"\n'
        'resume = ["--resume", "{checkpoint}"]\n'
        'setup = ["sh", "-c", "echo $PWD >>../set-ups"]\n'
        # it is no second trainer of the run: nothing of it is kept
        'rehearse = ["--steps", "{until}", "--witness", "rehearsed"]\n'
    )
    return recipe, witness


def true_losses(steps: int) -> dict[int, float]:
    """What an unmigrated run has at each step."""
    state, losses = 88172645463325252, {}
    for step in range(1, steps + 1):
        state = (state * 6364136223846793005 + step) % 2**64
        losses[step] = 1 + state / 2**64
    return losses


def seen_by(witness: Path) -> list[tuple[int, float]]:
    """`(step, loss)` of every step any trainer did, in the order of time; fails when two trained at once."""
    lines = witness.read_text().splitlines()
    assert "DOUBLE" not in lines, "two trainers at one moment"
    return [(int(step), float(loss)) for step, loss in (line.split() for line in lines)]
