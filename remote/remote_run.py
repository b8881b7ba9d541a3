"""Starts a recipe on a host, supervised, so that neither a closed SSH session nor a dead tmux server ends it.

One of our recipes runs as `python -m runner ...`; somebody's own command runs in a copy of its work tree inside the run
directory, with nothing in it changed. What is put into the run directory beside the contract's files:

    start.sh    sets the environment and becomes the supervisor; adopt.sh takes over an orphaned trainer
    pane.sh     what the tmux window runs: start.sh in a session of its own, and the log for the eye
    secrets     0600, `export` lines; supervise.out and supervise.rc: what the supervisor said last
    work/       the copy of a foreign work tree
"""

from __future__ import annotations

import os
import secrets as tokens
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from remote.bootstrap import Box, Phases, deliver, prepare, put_secrets
from remote.connect import open_transport
from remote.deeds import DeedResult, Progress, silent
from remote.given import refuse_large, ship_named
from remote.home import home as default_home
from remote.known import KnownRun, note_run
from remote.settings import Settings, load_settings
from remote.ship import work_tree
from remote.ssh_auth import AskPassphrase
from remote.stop import life_of
from remote.target import Target, parse_host
from remote.transport import Transport
from runner import rundir
from runner.config import ENVIRONMENT, load_recipe
from runner.errors import NotFoundError, RefusedError, UnreachableError, UsageError
from runner.needs import specs
from runner.recipe import Recipe

PASSED_ON = (*ENVIRONMENT, "HF_TOKEN", "HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES")
"""Names of the laptop's environment that reach a run on another machine."""
_START_S = 40.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StartedRun:
    """A run that was seen alive."""

    name: str
    """`<recipe>/<stamp>`: what `watch`, `stop` and `runs` call it."""
    target: str
    run_dir: str
    """Absolute, on the host."""
    pid: int | None
    attach: str | None
    """The command that opens its tmux session; None on a box without tmux."""
    result: DeedResult

    def to_json(self) -> dict[str, Any]:
        """The shape of every deed, with where the run is."""
        return self.result.to_json() | {"target": self.target, "run_dir": self.run_dir, "attach": self.attach}


@dataclass(frozen=True, slots=True)
class Order:
    """What to run, as it was typed on the laptop."""

    recipe: str
    """Name of one of ours, or a recipe file here."""
    config: str | None = None
    overrides: tuple[str, ...] = ()
    """`KEY=VALUE`, as after `--set`."""
    hf_repo_id: str = ""
    nproc: int = 1
    resume: str | None = None
    """A checkpoint on the host to go on from; None begins anew."""
    epoch: int = 0
    """Fencing epoch; goes up each time the run moves."""
    name: str | None = None
    """`<recipe>/<stamp>` to continue under; None makes a new one."""


def run_on_host(
    order: Order,
    host: str,
    *,
    home: Path | None = None,
    settings: Settings | None = None,
    environment: Mapping[str, str] | None = None,
    progress: Progress = silent,
    ask: AskPassphrase | None = None,
) -> StartedRun:
    """`tunewatch run RECIPE --host HOST`: make the host ready, start, and stay until the trainer was seen alive.

    `environment` is the laptop's (default `os.environ`); only the names in `PASSED_ON` travel. Raises UsageError for a
    recipe that cannot be used, RefusedError for a box that cannot run it, UnreachableError when it does not answer.
    """
    state = home or default_home()
    chosen = settings or load_settings(state)
    target = parse_host(host)
    env = dict(os.environ if environment is None else environment)
    recipe = resolve_order(order, env)
    phases = Phases(progress)
    with open_transport(target, home=state, ask=ask) as transport:
        needs = "command" if recipe.kind == "command" else "study"
        box = prepare(transport, python=chosen.text("launch.python"), needs=needs, more=specs(recipe), phases=phases)
        return start_run(
            transport, box, order, recipe, target=target, home=state, grace_s=chosen.number("launch.grace"),
            environment=env, phases=phases,
        )  # fmt: skip


def resolve_order(order: Order, environment: Mapping[str, str]) -> Recipe:
    """The recipe as it will run; everything that can be wrong with it is said before anything is sent."""
    recipe = load_recipe(order.recipe, order.overrides, environment, config=order.config)
    if recipe.kind == "command" and not recipe.command:
        raise UsageError(
            f"The recipe {order.recipe} names no command.", hint='Add [foreign] command = ["python", ...].'
        )
    refuse_large(recipe)
    return recipe


def start_run(
    transport: Transport,
    box: Box,
    order: Order,
    recipe: Recipe,
    *,
    target: Target,
    home: Path,
    grace_s: float = 60.0,
    environment: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
    phases: Phases | None = None,
) -> StartedRun:
    """Start `recipe` on a box that `prepare` made ready. `secrets` are added to what the environment passes on.

    Raises RefusedError, in the supervisor's own words, when it would not start: another trainer is here, a full disk.
    """
    phases = phases or Phases(silent)
    given = environment or {}
    values = {name: given[name] for name in PASSED_ON if given.get(name)} | dict(secrets or {})
    with phases.step("run directory") as say:
        name, run_dir = _make_run_dir(transport, box, order, recipe)
        say(run_dir)
        before = _status(transport, run_dir)
        put_secrets(transport, f"{run_dir}/secrets", values)
        command = _foreign(transport, box, recipe, order, run_dir) if recipe.kind == "command" else _ours(
            transport, box, recipe, order, run_dir
        )  # fmt: skip
        _put_scripts(transport, box, run_dir, command, grace_s, order.epoch)
    if recipe.foreign.setup and recipe.kind == "command":
        with phases.step("set-up of the recipe") as say:
            say(_set_up(transport, box, recipe, run_dir, order.epoch))
    session = "tw-" + name.replace("/", "-").replace(".", "-") if box.tmux else None
    where = Target(target.kind, run_dir, target.host, target.user, target.port, target.instance_id)
    known = KnownRun(name, str(where), recipe.name, target.instance_id, attach=_attach(target, session))
    with phases.step("start") as say:
        try:
            opened = _launch(transport, run_dir, session)
            status = _await_start(transport, run_dir, before)
        except UnreachableError as error:
            # it may be training by now: a run without a name here could be neither watched nor stopped
            note_run(known, home)
            raise UnreachableError(
                f"The link to {transport.name} was lost while {name} was being started: it may be running.",
                hint=f"tunewatch watch {name} says so once the host answers; starting another would train twice.",
            ) from error
        say(f"pid {status.pid}")
    attach = _attach(target, opened)
    note_run(replace(known, attach=attach), home)
    result = DeedResult(True, "running", name, target.instance_id, tuple(phases.steps))
    return StartedRun(name, str(where), run_dir, status.pid, attach, result)


def lay_out_run(
    transport: Transport, box: Box, order: Order, recipe: Recipe, *, environment: Mapping[str, str] | None = None
) -> None:
    """Do now what `start_run` would do for a run with a name before its trainer can start, as far as it takes long.

    That is the copy of somebody's work tree and the recipe's own set-up; harmless to repeat. Raises RefusedError.
    """
    if recipe.kind != "command" or order.name is None:
        return
    run_dir = f"{box.root}/runs/{order.name}"
    transport.run(f"mkdir -p {shlex.quote(run_dir)}", timeout=20.0)
    _foreign(transport, box, recipe, order, run_dir)
    if recipe.foreign.setup:
        given = environment or {}
        put_secrets(transport, f"{run_dir}/secrets", {name: given[name] for name in PASSED_ON if given.get(name)})
        _set_up(transport, box, recipe, run_dir, order.epoch)


def _make_run_dir(host: Transport, box: Box, order: Order, recipe: Recipe) -> tuple[str, str]:
    """A fresh run directory, or the one of the run that goes on."""
    if order.name is not None:
        run_dir = f"{box.root}/runs/{order.name}"
        host.run(f"mkdir -p {shlex.quote(run_dir)}")
        status = _status(host, run_dir)
        if status is not None and life_of(host, status).trainer:
            # looked for before anything of the living run is overwritten; the lock decides between two that race
            raise RefusedError(f"A trainer is already running on {order.name} (pid {status.pid}).", exists=run_dir)
        return order.name, run_dir
    moment = time.time()
    for _ in range(60):
        name = f"{recipe.name}/{time.strftime(rundir.STAMP, time.localtime(moment))}"
        run_dir = f"{box.root}/runs/{name}"
        q = shlex.quote(run_dir)
        answer = host.run(f"mkdir -p {shlex.quote(run_dir.rpartition('/')[0])} && mkdir {q}")
        if answer.rc == 0:
            return name, run_dir
        if "exists" not in answer.complaint:
            raise RefusedError(f"{run_dir} cannot be made on {host.name}: {answer.complaint}.")
        moment += 1
    raise RefusedError(f"No free name for a run directory under {box.root}/runs.")


def _ours(host: Transport, box: Box, recipe: Recipe, order: Order, run_dir: str) -> list[str]:
    """`python -m runner ...` for one of our recipes; files of the laptop travel into the run directory."""
    named = order.recipe
    if Path(order.recipe).is_file():
        named = f"{run_dir}/{recipe.name}.toml"
        host.put(Path(order.recipe), named)
    words = [box.python, "-m", "runner", named, "--run-dir", run_dir]
    if order.config is not None:
        host.put(Path(order.config), f"{run_dir}/config-given.toml")
        words += ["--config", f"{run_dir}/config-given.toml"]
    for pair in order.overrides:
        words += ["--set", pair]
    words += ship_named(host, recipe)
    if order.hf_repo_id:
        words += ["--hf-repo-id", order.hf_repo_id]
    if order.nproc > 1:
        words += ["--nproc", str(order.nproc)]
    if order.resume is not None:
        words += ["--resume", order.resume]
    return words


def _foreign(host: Transport, box: Box, recipe: Recipe, order: Order, run_dir: str) -> list[str]:
    """Somebody's own command in a copy of its work tree, without our code in its way."""
    tree, _ = deliver(host, work_tree(recipe.workdir))
    q = shlex.quote
    work = f"{run_dir}/work"
    answer = host.run(f"[ -d {q(work)} ] || {{ cp -R {q(tree)} {q(work)} && rm -f {q(work)}/.whole; }}", timeout=300.0)
    if answer.rc != 0:
        raise RefusedError(f"The work tree could not be laid out on {host.name}: {answer.complaint}.")
    words = list(recipe.command)
    if order.resume is not None:
        words += [part.replace("{checkpoint}", order.resume) for part in recipe.resume]
    # its own PYTHONPATH, not ours: the name `runner` may be taken in its tree
    script = (
        'cd "$1" || exit 1; shift; if [ -n "$TW_PYTHONPATH" ]; then PYTHONPATH=$TW_PYTHONPATH; else unset PYTHONPATH; '
        'fi; exec "$@"'
    )
    return ["sh", "-c", script, "sh", work, *words]


def _put_scripts(host: Transport, box: Box, run_dir: str, command: list[str], grace_s: float, epoch: int) -> None:
    q = shlex.quote
    before = (
        f"#!/bin/sh\ncd {q(run_dir)} || exit 1\n[ -r ./secrets ] && . ./secrets\n"
        f"TW_PYTHONPATH=$PYTHONPATH PATH={q(box.python.rpartition('/')[0])}:$PATH PYTHONPATH={q(box.code)}\n"
        "export TW_PYTHONPATH PATH PYTHONPATH\n"
    )
    supervise = f"exec {q(box.python)} -m runner.box.supervise --run-dir {q(run_dir)} --grace {grace_s:g}"
    own_session = "import os,sys; os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])"
    scripts = {
        "start.sh": f"{before}{supervise} --epoch {epoch} -- {shlex.join(command)}\n",
        "adopt.sh": f"{before}{supervise} --adopt\n",
        "pane.sh": f"#!/bin/sh\ncd {q(run_dir)} || exit 1\nrm -f supervise.rc\n"
        "# a session of its own: when tmux goes, its windows are hung up, this one is not among them\n"
        f"{q(box.python)} -c {q(own_session)} sh start.sh </dev/null >>supervise.out 2>&1 &\n"
        "run=$!\n"
        "if [ -t 1 ]; then tail -n +1 -F log.txt 2>/dev/null & show=$!; fi\n"
        'wait $run; echo $? >supervise.rc\n[ -z "$show" ] || { sleep 2; kill $show; }\n',
    }
    # one question for the three, each whole or not at all: a run that moves stands still meanwhile
    writes = [f"printf %s {q(text)} >.{name}.part && mv .{name}.part {name}" for name, text in scripts.items()]
    deed = f"umask 077 && cd {q(run_dir)} && {' && '.join(writes)} && chmod 700 {' '.join(scripts)}"
    answer = host.run("sh -s", stdin=deed.encode())  # a command of one's own may be longer than a line may be
    if answer.rc != 0:
        raise RefusedError(f"{run_dir} on {host.name} cannot be written: {answer.complaint or answer.rc}.")


def _set_up(host: Transport, box: Box, recipe: Recipe, run_dir: str, epoch: int) -> str:
    """The recipe's own preparation, in its work tree, with the environment first on the path."""
    q = shlex.quote
    path = q(box.python.rpartition("/")[0])
    words = q(f"{epoch} {box.python} {shlex.join(recipe.foreign.setup)}")
    answer = host.run(
        f'cd {q(run_dir)}/work || exit; [ "$(cat ../.set-up 2>/dev/null)" = {words} ] || '
        f"{{ . ../secrets && PATH={path}:$PATH && {shlex.join(recipe.foreign.setup)} && echo {words} >../.set-up; }}",
        timeout=1800.0,
    )
    if answer.rc != 0:
        raise RefusedError(
            f"The set-up of {recipe.name} ended with {answer.rc} on {host.name}: {answer.complaint}.",
            hint=f"It ran in {run_dir}/work: {shlex.join(recipe.foreign.setup)}",
        )
    return shlex.join(recipe.foreign.setup)


def _launch(host: Transport, run_dir: str, session: str | None) -> str | None:
    """Start pane.sh, in tmux where there is one; returns the name of its session."""
    q = shlex.quote
    pane = f"{run_dir}/pane.sh"
    if session is None:
        begin = f"sh {q(pane)} </dev/null >/dev/null 2>&1 & s="
    else:
        # a login that tmux started itself has TMUX set, and tmux would refuse to nest
        # an earlier window of the same run may still be there; whether a trainer is, the supervisor knows
        begin = (
            f'unset TMUX; s={q(session)}; n=1; while tmux has-session -t "=$s" 2>/dev/null; do n=$((n+1)); '
            f's={q(session)}-$n; done; tmux new-session -d -s "$s" -x 200 -y 50 sh {q(pane)} || exit'
        )
    # the answer may be lost with the link although the deed was done: asked again under the same number, it only says
    # what it did. An earlier start's last word would be taken for the word of this one.
    number = tokens.token_hex(8)
    command = (
        f'cd {q(run_dir)} || exit; if [ "$(head -n 1 .started 2>/dev/null)" != {number} ]; then '
        f'rm -f supervise.rc; echo {number} >.started; {begin}\necho "$s" >>.started; fi; sed -n 2p .started'
    )
    answer = _patiently(lambda: host.run(command))
    if answer.rc != 0:
        raise RefusedError(f"The run could not be started on {host.name}: {answer.complaint or answer.rc}.")
    return answer.text or None


def _status(host: Transport, run_dir: str) -> rundir.Status | None:
    try:
        return rundir.read_status(host.read_from(f"{run_dir}/{rundir.STATUS}", 0, limit=1 << 16).data)
    except NotFoundError:
        return None


def _await_start(host: Transport, run_dir: str, before: rundir.Status | None) -> rundir.Status:
    """Wait until the new supervisor has a trainer, or has given up. `before` is the status an earlier one left."""
    until = time.monotonic() + _START_S
    old = None if before is None else (before.supervisor_pid, before.pid, before.start_ticks)

    def first_words() -> rundir.Status | None:
        status = _patiently(lambda: _status(host, run_dir))
        new = status is not None and (status.supervisor_pid, status.pid, status.start_ticks) != old
        return status if status is not None and new and (status.pid is not None or status.ended) else None

    while True:
        if (status := first_words()) is not None:
            return status
        gone = _patiently(lambda: host.run(f"cat {shlex.quote(run_dir)}/supervise.rc 2>/dev/null")).text
        if gone or time.monotonic() > until:
            # its first status may have come between the two questions
            if (status := first_words()) is not None:
                return status
            said = _patiently(lambda: host.run(f"tail -n 3 {shlex.quote(run_dir)}/supervise.out 2>/dev/null")).text
            said = said or (f"exit status {gone}" if gone else f"no word within {_START_S:.0f} s")
            raise RefusedError(f"The supervisor did not start on {host.name}: {said}.", exists=run_dir)
        time.sleep(0.1)


def _patiently(ask: Callable[[], T]) -> T:
    """Ask again over a link that breaks, for as long as a start may take: a blink of it does not undo one."""
    until = time.monotonic() + _START_S
    while True:
        try:
            return ask()
        except UnreachableError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.3)


def _attach(target: Target, session: str | None) -> str | None:
    """The command a person types to look at the window itself; None where there is no tmux."""
    if session is None:
        return None
    words = ["ssh", "-t"]
    if target.port:
        words += ["-p", str(target.port)]
    login = f"{target.user}@{target.host}" if target.user else str(target.host)
    if target.kind == "vast":
        return f"tmux attach -t {session}"
    return shlex.join([*words, login, "tmux", "attach", "-t", session])


def order(recipe: str, *, overrides: Iterable[str] = (), **more: Any) -> Order:
    """An order from what a command line has."""
    return Order(recipe, overrides=tuple(overrides), **more)
