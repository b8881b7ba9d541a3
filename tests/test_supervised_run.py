"""A run on an SSH host: started, watched, orphaned, killed at random and stopped; never two trainers or a false word.

The hosts are real sshd processes with a home of their own, tmux is real, the trainer is a small script that logs like
the Trainer and saves on SIGTERM.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from remote.bootstrap import Phases, prepare
from remote.deeds import DeedStep
from remote.feed import RunFeed
from remote.known import known_runs
from remote.remote_run import Order, resolve_order, run_on_host, start_run
from remote.settings import Settings
from remote.ship import our_code
from remote.stop import stop_run, stop_target
from remote.target import parse_host
from runner.errors import RefusedError, UnreachableError
from tests.support.kills import VICTIMS, rounds
from tests.support.lab import SECRET, Lab, cmdline, tick_until, wait_for
from tests.support.proxy import FaultProxy
from tests.support.sshd import Sshd
from tests.support.trainers import foreign_project


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    yield made
    made.close()


def test_a_foreign_recipe_runs_watched_and_stops_with_its_checkpoint(lab: Lab) -> None:
    run = lab.start()
    feed = lab.feed(run)
    state = tick_until(feed, lambda s: len(s.history.train) > 3 and s.status is not None)
    assert state.run_dir
    assert state.state in ("running", "starting")
    assert run.attach == f"ssh -t box tmux attach -t tw-{run.name.replace('/', '-')}"
    result = stop_run(lab.host, run.run_dir, name=run.name)
    assert (result.ok, result.state) == (True, "stopped")
    assert result.steps[-1].detail.endswith("exit status 11")
    ended = tick_until(feed, lambda s: s.state == "stopped")
    assert ended.status is not None
    assert ended.status.rc == 11
    saved = list((Path(run.run_dir) / "work/checkpoints").iterdir())
    assert len(saved) == 1
    feed.close()
    assert lab.trainers() == []


def test_nothing_in_the_work_tree_is_changed_and_its_own_names_win(lab: Lab) -> None:
    """The tree has a module called `runner` that must not stand in the supervisor's way, nor ours in the trainer's."""
    before = {p.name: p.read_bytes() for p in lab.recipe.parent.iterdir()}
    run = lab.start()
    wait_for(lambda: b"loss" in (Path(run.run_dir) / "log.txt").read_bytes())
    work = Path(run.run_dir) / "work"
    assert {p.name: p.read_bytes() for p in work.iterdir() if p.is_file()} == before
    stop_run(lab.host, run.run_dir, name=run.name)
    assert {p.name: p.read_bytes() for p in lab.recipe.parent.iterdir()} == before


def test_everything_of_ours_lies_under_one_folder_and_is_shipped_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lab.start()
    stop_run(lab.host, run.run_dir, name=run.name)
    assert sorted(p.name for p in lab.box.home.iterdir()) == [".ssh", "tunewatch"]
    assert sorted(p.name for p in (lab.box.home / "tunewatch").iterdir()) == ["code", "runs", "venv"]
    parcel = our_code()
    monkeypatch.setattr("remote.bootstrap.our_code", lambda: parcel)
    told: list[str] = []
    for _ in range(2):
        phases = Phases(lambda step: told.append(step.detail) if step.name == "ship our code" and step.ok else None)
        ready = prepare(lab.host, needs="command", phases=phases)
        assert ready.code == f"{lab.box.home}/tunewatch/code/{parcel.name}"
        assert set(ready.seconds) == {"look at the box", "ship our code", "environment"}
    assert told[1] == f"{parcel.name} was there"


def test_the_environment_sees_the_torch_of_the_box_and_installs_none(lab: Lab) -> None:
    import importlib.metadata

    ready = prepare(lab.host)
    assert ready.torch == importlib.metadata.version("torch")
    asked = lab.host.run(f"{ready.python} -c 'import transformers, torch; print(torch.__file__)'", timeout=120)
    assert asked.rc == 0, asked.complaint
    assert "tunewatch/venv" not in asked.text


def test_a_secret_is_in_the_environment_and_nowhere_else(lab: Lab) -> None:
    run = lab.start()
    trainer = lab.status(run).pid
    assert SECRET.encode() in Path(f"/proc/{trainer}/environ").read_bytes()
    for pid in lab.box.processes():
        assert SECRET.encode() not in cmdline(pid)
    for path in Path(run.run_dir).rglob("*"):
        if path.is_file() and SECRET.encode() in path.read_bytes():
            assert path.name == "secrets"
            assert path.stat().st_mode & 0o777 == 0o600
    assert SECRET not in (lab.state / "runs.json").read_text()
    stop_run(lab.host, run.run_dir, name=run.name)


def test_a_second_start_on_the_same_run_is_refused(lab: Lab) -> None:
    run = lab.start()
    with pytest.raises(RefusedError, match=r"supervisor|trainer"):
        lab.start(name=run.name)
    assert len(lab.trainers()) == 1
    stop_run(lab.host, run.run_dir, name=run.name)


def test_a_stopped_run_resumes_from_the_checkpoint_that_is_named(lab: Lab) -> None:
    run = lab.start()
    wait_for(lambda: b"'loss'" in (Path(run.run_dir) / "log.txt").read_bytes())
    stop_run(lab.host, run.run_dir, name=run.name)
    (saved,) = (Path(run.run_dir) / "work/checkpoints").iterdir()
    again = lab.start(name=run.name, resume=str(saved))
    assert again.run_dir == run.run_dir
    first = int(saved.name.rpartition("-")[2]) + 1
    wait_for(lambda: f"{first}/100000".encode() in (Path(run.run_dir) / "log.txt").read_bytes())
    stop_run(lab.host, run.run_dir, name=run.name)


def test_a_trainer_that_does_not_listen_is_killed_after_its_grace(lab: Lab, tmp_path: Path) -> None:
    script = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(600)\n"
    deaf = foreign_project(tmp_path, script=script)
    order = Order(str(deaf))
    run = start_run(
        lab.host, lab.ready, order, resolve_order(order, {}), target=parse_host("box"), home=lab.state, grace_s=1
    )
    wait_for(lambda: b"deaf" in (Path(run.run_dir) / "log.txt").read_bytes())
    result = stop_run(lab.host, run.run_dir, name=run.name)
    assert result.state == "stopped"
    assert "exit status 137" in result.steps[-1].detail


def test_an_orphaned_trainer_is_told_apart_and_can_still_be_stopped(lab: Lab) -> None:
    """The supervisor was killed: the run is not called dead, and its end is known again through a new supervisor."""
    run = lab.start()
    feed = lab.feed(run)
    tick_until(feed, lambda s: s.status is not None and len(s.history.train) > 1)
    os.kill(lab.status(run).supervisor_pid or 0, signal.SIGKILL)
    state = tick_until(feed, lambda s: any("supervisor" in w for w in s.warnings), 40)
    assert state.state in ("running", "starting")
    result = stop_run(lab.host, run.run_dir, name=run.name)
    assert result.state == "stopped"
    assert lab.trainers() == []
    feed.close()


def test_f5_tmux_and_ssh_may_die_and_the_run_goes_on(lab: Lab) -> None:
    run = lab.start()
    before = lab.status(run)
    for pid in [*lab.box.processes("tmux"), *lab.box.session_pids()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: lab.status(run).seq >= before.seq + 2)
    assert lab.trainers() == [before.pid]
    feed = lab.feed(run)
    assert tick_until(feed, lambda s: len(s.history.train) > 3).state in ("running", "starting")
    feed.close()
    assert stop_run(lab.host, run.run_dir, name=run.name).steps[-1].detail.endswith("exit status 11")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_f5_random_kills_leave_one_trainer_at_most_and_a_true_status(tmp_path: Path) -> None:
    """Three kills of each kind; `python -m tests.support.kills 100` makes a hundred of each by the same code. Most of a
    round is waiting, for a last word or for its absence, so three boxes have theirs at the same time."""
    with contextlib.ExitStack() as boxes, ThreadPoolExecutor(3) as pool:
        labs: list[Lab] = []
        for n in range(3):
            labs.append(Lab(tmp_path / f"box{n}"))
            boxes.callback(labs[n].close)
        ends = sum(pool.map(lambda n: rounds(labs[n], 1, seed=5 + n), range(3)), Counter())
    assert sum(ends.values()) == 3 * len(VICTIMS)
    assert any("exit status 11" in end for end in ends)
    assert any("lost" in end or "never began" in end for end in ends)


def test_f5_a_trainer_whose_supervisor_dies_at_its_birth_has_a_name(lab: Lab, tmp_path: Path) -> None:
    """The first status that names the trainer is there before the trainer is: nobody can be orphaned nameless."""
    script = "import os\nprint(open(os.environ['TUNEWATCH_RUN_DIR'] + '/status.json').read(), os.getpid())\n"
    order = Order(str(foreign_project(tmp_path, script=script)))
    run = start_run(lab.host, lab.ready, order, resolve_order(order, {}), target=parse_host("box"), home=lab.state)
    wait_for(lambda: lab.status(run).ended)
    said = next(line for line in (Path(run.run_dir) / "log.txt").read_text().splitlines() if line.startswith("{"))
    status, _, pid = said.rpartition(" ")
    assert json.loads(status)["pid"] == int(pid)


def test_f5_a_start_goes_on_over_a_link_that_breaks_in_its_middle(lab: Lab) -> None:
    """The answer to the launch is lost: it is asked again, and there is one trainer."""
    cut = threading.Event()

    def kill_sessions(step: DeedStep) -> None:
        if step.name == "start" and step.ok is None:
            cut.set()

    def killer() -> None:
        assert cut.wait(120)
        for _ in range(6):
            for pid in lab.box.session_pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    thread = threading.Thread(target=killer)
    thread.start()
    order = Order(str(lab.recipe))
    run = start_run(
        lab.host, lab.ready, order, resolve_order(order, {}), target=parse_host("box"), home=lab.state, grace_s=5,
        phases=Phases(kill_sessions),
    )  # fmt: skip
    thread.join(60)
    assert lab.trainers() == [lab.status(run).pid]
    assert stop_run(lab.host, run.run_dir, name=run.name).ok


def test_a_start_whose_link_never_comes_back_leaves_a_name_to_watch(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote.remote_run._START_S", 1.0)
    order = Order(str(lab.recipe))
    with FaultProxy((lab.box.host, lab.box.port)) as proxy:
        host = lab.box.connect(tmp_path / "state", port=proxy.port)

        def cut(step: DeedStep) -> None:
            if step.name == "start" and step.ok is None:
                host.close()
                proxy.mode = "refuse"

        with pytest.raises(UnreachableError, match="may be running") as told:
            start_run(
                host, lab.ready, order, resolve_order(order, {}), target=parse_host("box"), home=tmp_path / "state",
                phases=Phases(cut),
            )  # fmt: skip
    (known,) = known_runs(tmp_path / "state", tmp_path)
    assert f"tunewatch watch {known.name}" in told.value.hint


def test_f20_an_older_epoch_does_not_train_again(lab: Lab) -> None:
    """A run that moved on and came back under an older number is fenced off, and writes nothing."""
    run = lab.start(epoch=2)
    stop_run(lab.host, run.run_dir, name=run.name)
    log = (Path(run.run_dir) / "log.txt").read_bytes()
    with pytest.raises(RefusedError, match="epoch 2 is newer than 1"):
        lab.start(name=run.name, epoch=1)
    assert (Path(run.run_dir) / "log.txt").read_bytes() == log
    assert lab.trainers() == []
    assert lab.status(run).epoch == 2


@pytest.mark.parametrize(
    ("last_words", "reason"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "CUDA"),
        ("OSError: [Errno 28] No space left on device", "disk"),
        ("Traceback (most recent call last):\\nValueError: bad batch", "bad batch"),
    ],
    ids=["cuda oom", "disk full", "traceback"],
)
def test_why_a_trainer_crashed_is_said_in_words(last_words: str, reason: str, lab: Lab, tmp_path: Path) -> None:
    script = f"import sys\nprint({{'loss': 1.0, 'epoch': 0.1}})\nprint('{last_words}')\nsys.exit(1)\n"
    order = Order(str(foreign_project(tmp_path, script=script)))
    run = start_run(lab.host, lab.ready, order, resolve_order(order, {}), target=parse_host("box"), home=lab.state)
    feed = lab.feed(run)
    state = tick_until(feed, lambda s: s.state == "crashed")
    feed.close()
    assert reason in f"{state.reason} {state.history.traceback}"
    assert lab.status(run).rc in (1, 20, 21)


def test_a_box_that_cannot_run_it_says_why_and_what_to_do(lab: Lab) -> None:
    with pytest.raises(RefusedError, match="no-such-python") as told:
        prepare(lab.host, python="no-such-python")
    assert "launch" in told.value.hint
    lab.box.script("bin/oldpython", '#!/bin/sh\necho \'{"version": [3, 8, 1], "have": {"torch": null}}\'\n')
    with pytest.raises(RefusedError, match=r"3\.8\.1"):
        prepare(lab.host, python="oldpython")


def test_a_recipe_whose_command_is_missing_ends_with_its_own_words(lab: Lab, tmp_path: Path) -> None:
    recipe = foreign_project(tmp_path, recipe='kind = "command"\n[foreign]\ncommand = ["no-such-trainer"]\n')
    order = Order(str(recipe))
    run = start_run(lab.host, lab.ready, order, resolve_order(order, {}), target=parse_host("box"), home=lab.state)
    feed = lab.feed(run)
    state = tick_until(feed, lambda s: s.state == "crashed")
    assert "no-such-trainer" in (Path(run.run_dir) / "log.txt").read_text()
    assert state.reason
    feed.close()


def test_a_work_tree_that_is_too_large_is_refused_by_name(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote.ship.MAX_BYTES", 10_000)
    recipe = foreign_project(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"0" * 20_000)
    order = Order(str(recipe))
    with pytest.raises(RefusedError, match="MB") as told:
        start_run(lab.host, lab.ready, order, resolve_order(order, {}), target=parse_host("box"), home=lab.state)
    assert "weights.bin" in told.value.hint


def test_a_box_without_tmux_runs_all_the_same(tmp_path: Path) -> None:
    made = Sshd(tmp_path / "box", environment={"PATH": ""})
    tools = tmp_path / "box" / "bin"
    needed = "sh cat mkdir tar gzip touch mv rm chmod wc tail cp ln sed grep date df head sleep printf kill env tr"
    for name in needed.split():
        for place in ("/bin", "/usr/bin"):
            if Path(place, name).exists() and not (tools / name).exists():
                (tools / name).symlink_to(Path(place, name))
    config = made.folder / "sshd_config"
    config.write_text(config.read_text().replace(" PATH= ", f" PATH={tools} ").replace(" PATH=\n", f" PATH={tools}\n"))
    recipe = foreign_project(tmp_path / "project")
    with made as box, box.connect(tmp_path / "state") as host:
        ready = prepare(host, needs="command")
        assert not ready.tmux
        order = Order(str(recipe))
        run = start_run(
            host, ready, order, resolve_order(order, {}), target=parse_host("box"), home=tmp_path / "state", grace_s=5
        )
        assert run.attach is None
        assert stop_run(host, run.run_dir, name=run.name).steps[-1].detail.endswith("exit status 11")


def test_a_file_that_is_too_large_to_travel_is_refused_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"0" * 2_000_000)
    monkeypatch.setattr("remote.given.MAX_BYTES", 1 << 20)
    order = Order("stage1", overrides=(f"model.base={tmp_path / 'weights'}",))
    with pytest.raises(RefusedError, match=r"model\.base = .*weights has 2 MB; at most 1 MB are shipped"):
        resolve_order(order, {})
    assert resolve_order(Order("stage1", overrides=("model.base=owner/name",)), {}).model.base == "owner/name"


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.timeout(1200)
def test_a_stage_of_ours_runs_on_a_host_and_stops_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real trainer with data of this laptop, shipped, started over SSH, watched, stopped; its checkpoint whole."""
    from runner.config import load_recipe
    from runner.rundir import newest_whole_checkpoint

    pairs = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"prompt": f"{n} and {n % 7}?", "answer": f"{n + n % 7}"}) for n in range(400)]
    pairs.write_text("\n".join(lines) + "\n")

    state = tmp_path / "state"
    with Sshd(tmp_path / "box") as box:
        for module in ("remote.remote_run", "remote.stop"):
            monkeypatch.setattr(f"{module}.open_transport", lambda *_, **__: box.connect(state))
        changes = (
            f"model.base=demo evaluate.tasks=demo data.dataset={pairs} data.prompt_field=prompt "
            "data.answer_field=answer data.template=plain data.train_samples=300 data.eval_samples=40 "
            "train.max_steps=2000 train.optimizer=adamw train.batch_size=8 train.grad_accum=1 train.eval_steps=20 "
            "train.save_steps=20"
        )
        order = Order("stage5", overrides=tuple(changes.split()))
        run = run_on_host(order, "box", home=state, settings=Settings(), environment={})
        feed = RunFeed(run.name, home=state, connect=lambda _: box.connect(state))
        seen = tick_until(
            feed, lambda s: bool(s.history.evals and s.run_dir) or s.state in ("crashed", "finished"), 900
        )
        assert seen.state == "running", (seen.reason, seen.history.traceback)
        tick_until(feed, lambda s: s.history.source == "metrics")
        result = stop_target(run.name, home=state)
        ended = tick_until(feed, lambda s: s.state in ("stopped", "crashed", "finished"))
        feed.close()
        assert result.state == "stopped"
        assert ended.state == "stopped", ended.reason
        assert ended.status is not None
        assert ended.status.rc == 11
        assert newest_whole_checkpoint(Path(run.run_dir) / "checkpoints") is not None
        there = Path(load_recipe(Path(run.run_dir) / "config.toml").data.dataset)
        assert there.is_relative_to(Path(run.run_dir).parents[2] / "code")
        assert there.read_bytes() == pairs.read_bytes()
