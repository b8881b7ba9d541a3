"""What would stop a run, here or on a host: each thing looked at, what was found, and how to mend it.

A check never raises for what it finds. `bad` stops a launch, `note` only explains why something will be missing.
Nothing is changed by looking, on either side.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from remote.bootstrap import look
from remote.health import SCRIPT, Health, read_health
from remote.settings import load_settings
from remote.target import parse_host
from remote.transport import Transport, shell_path
from runner.errors import TunewatchError

Finding = Literal["good", "note", "bad"]
_LEAST_DISK = 15e9
"""Bytes: a small model, two checkpoints and what the trainer installs."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    finding: Finding
    found: str
    mend: str = ""
    """What to do about it; empty for what is good."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def check_here(home: Path, *, environment: Mapping[str, str] | None = None) -> Iterator[Check]:
    """This machine, its keys and its accounts. Asks the provider for the balance when a key is set."""
    env = os.environ if environment is None else environment
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("Python", "good", f"{version} at {sys.executable}")
    yield _writable(home)
    yield _settings(home)
    yield _keys(env)
    yield _terminal(env)
    missing = [name for name in ("torch", "transformers", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        yield Check("training here", "note", f"{', '.join(missing)} not installed", "pip install 'tunewatch[runner]'")
    else:
        yield Check("training here", "good", "torch and transformers are installed")
    yield (
        Check("Hub", "good", "HF_TOKEN is set")
        if env.get("HF_TOKEN") or (Path.home() / ".cache/huggingface/token").exists()
        else Check("Hub", "note", "no HF_TOKEN", "Set it to upload checkpoints or to read gated models.")
    )
    yield _provider(env)


def check_host(
    host: Transport, *, python: str = "python3", environment: Mapping[str, str] | None = None
) -> Iterator[Check]:
    """A box over its link. After a link or a key that fails there is nothing more to ask, and the list ends."""
    try:
        rtt = host.ping(timeout=20.0)
        home = host.home()
    except TunewatchError as error:
        yield Check("SSH", "bad", error.message, error.hint)
        return
    key = getattr(host, "key_used", "")
    by = f" with {key}" if key else ""
    yield Check("SSH", "good", f"{host.name} lets us in{by}, {rtt * 1000:.0f} ms a round trip, home {home}")
    for check in (
        lambda: _tmux(host),
        lambda: _python(host, python),
        lambda: _root(host),
        lambda: _way_out(host, python, environment or os.environ),
    ):
        yield _guarded(host.name, check)
    for found in _health(host):
        yield found
        if found.name == "GPU" and found.finding == "good":
            yield _guarded(host.name, lambda: _cuda(host, python))


def forget_host_key(text: str, home: Path) -> bool:
    """Drop the remembered key of a host: the next one is trusted on first use. Returns whether there was one."""
    from remote.known_hosts import KnownHosts
    from remote.ssh_config import login_for

    target = parse_host(text)
    alias = f"vast-{target.instance_id}" if target.kind == "vast" else login_for(target).alias
    return KnownHosts(home).forget(alias)


# here -------------------------------------------------------------------------------------------------------------


def _writable(home: Path) -> Check:
    probe = home / ".doctor"
    try:
        probe.write_text("x", encoding="ascii")
        probe.unlink()
    except OSError as error:
        return Check("own folder", "bad", f"{home}: {error.strerror}", "Name another one: TUNEWATCH_HOME=/path")
    free = shutil.disk_usage(home).free
    if free < 1e9:
        return Check("own folder", "note", f"{home}, {free / 1e9:.1f} GB free", "Mirrors of logs need some room.")
    return Check("own folder", "good", str(home))


def _settings(home: Path) -> Check:
    try:
        load_settings(home)
    except TunewatchError as error:
        return Check("settings", "bad", error.message, error.hint)
    there = (home / "settings.toml").exists()
    return Check("settings", "good", str(home / "settings.toml") if there else "defaults")


def _keys(env: Mapping[str, str]) -> Check:
    folder = Path.home() / ".ssh"
    files = sorted(p.name for p in folder.glob("id_*") if p.suffix != ".pub") if folder.is_dir() else []
    agent = env.get("SSH_AUTH_SOCK", "")
    if agent and Path(agent).exists():
        files.append("an agent")
    if not files:
        return Check("SSH keys", "note", "no key in ~/.ssh and no agent", "Make one: ssh-keygen -t ed25519")
    return Check("SSH keys", "good", ", ".join(files))


def _terminal(env: Mapping[str, str]) -> Check:
    size = shutil.get_terminal_size()
    said = f"{env.get('TERM', 'no TERM')}, {size.columns}x{size.lines}"
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    if encoding != "utf8":
        return Check("terminal", "note", f"{said}, {encoding or 'no encoding'}", "Charts need UTF-8: LANG=C.UTF-8")
    if size.columns < 80 or size.lines < 24:
        return Check("terminal", "note", said, "The screens want 80x24 or more.")
    return Check("terminal", "good", said)


def _provider(env: Mapping[str, str]) -> Check:
    if not env.get("VAST_API_KEY"):
        return Check("Vast.ai", "note", "no VAST_API_KEY", "Set it to rent; everything else works without.")
    try:
        from remote.vast import VastProvider

        credit = VastProvider().account().credit_usd
    except TunewatchError as error:
        return Check("Vast.ai", "bad", error.message, error.hint)
    if credit is None:
        return Check("Vast.ai", "note", "the key works; the balance is not told")
    if credit < 1:
        return Check("Vast.ai", "bad", f"${credit:.2f} left", "Instances stop at zero: add credit.")
    return Check("Vast.ai", "good", f"${credit:.2f} left")


# a host -----------------------------------------------------------------------------------------------------------


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except TunewatchError as error:
        return Check(name, "bad", error.message, error.hint)


def _tmux(host: Transport) -> Check:
    answer = host.run("tmux -V", timeout=10.0)
    if answer.rc == 0:
        return Check("tmux", "good", answer.text)
    return Check(
        "tmux", "note", "not there", "Runs survive without it; apt-get install tmux to attach to their terminal."
    )


def _python(host: Transport, python: str) -> Check:
    try:
        facts = look(host, python)
    except TunewatchError as error:
        return Check("Python", "bad", error.message, error.hint)
    version = ".".join(map(str, facts["version"]))
    torch = facts["have"]["torch"]
    if tuple(facts["version"]) < (3, 11):
        return Check(
            "Python", "bad", f"{facts['executable']} is {version}", "3.11 is needed: [launch] python in settings.toml"
        )
    if torch is None:
        return Check(
            "Python",
            "note",
            f"{facts['executable']} {version} has no torch",
            "Name the interpreter that has it: [launch] python in settings.toml",
        )
    return Check("Python", "good", f"{facts['executable']} {version}, torch {torch}")


_CUDA = """
import sys, warnings
warnings.simplefilter("ignore")
try: import torch
except ImportError as error: print("none", error); sys.exit()
if torch.version.cuda is None and not getattr(torch.version, "hip", None): print("built", torch.__version__); sys.exit()
try: torch.zeros(1, device="cuda").add_(1).item()
except Exception as error: print("fails", str(error).splitlines()[0]); sys.exit()
print("works", torch.__version__, "on", torch.cuda.device_count(), "x", torch.cuda.get_device_name(0))
"""


def _cuda(host: Transport, python: str) -> Check:
    """Whether torch can compute on the GPU that is there: by computing."""
    word = shell_path(python) if "/" in python else python
    answer = host.run(f"{word} -", stdin=_CUDA.encode(), timeout=120.0)
    kind, _, said = answer.text.splitlines()[-1].partition(" ") if answer.text else ("", "", answer.complaint)
    if kind == "works":
        return Check("CUDA", "good", f"torch {said}")
    if kind == "built":
        mend = "Name an interpreter whose torch was built for the GPU: [launch] python in settings.toml"
        return Check("CUDA", "bad", f"torch {said} was built without CUDA; training would use the processor", mend)
    if kind == "none":
        return Check("CUDA", "note", f"not tried: {said}", "Name the interpreter that has torch.")
    mend = "Does nvidia-smi work there, and is the driver new enough for this torch?"
    return Check("CUDA", "bad", f"torch cannot use the GPU: {said or 'it ended without a word'}", mend)


def _root(host: Transport) -> Check:
    answer = host.run('mkdir -p "$HOME/tunewatch" && p="$HOME/tunewatch/.doctor.$$" && : >"$p" && rm -f "$p"')
    if answer.rc == 0:
        return Check("~/tunewatch", "good", "can be written")
    return Check("~/tunewatch", "bad", answer.complaint, "Everything of ours lies there: make it writable.")


def _way_out(host: Transport, python: str, env: Mapping[str, str]) -> Check:
    """Whether the box reaches the Hub; asked by its own interpreter, because curl may be missing."""
    endpoint = env.get("HF_ENDPOINT") or "https://huggingface.co"
    script = (
        "import sys, urllib.request, urllib.error\n"
        "try: urllib.request.urlopen(urllib.request.Request(sys.argv[1], method='HEAD'), timeout=6)\n"
        "except urllib.error.HTTPError: pass\n"
        "except Exception as error: sys.exit(str(getattr(error, 'reason', error)))\n"
    )
    word = shell_path(python) if "/" in python else python
    answer = host.run(f"{word} - {shell_path(endpoint) if endpoint.startswith('/') else repr(endpoint)}",
                      stdin=script.encode(), timeout=20.0)  # fmt: skip
    if answer.rc == 0:
        return Check("network", "good", f"reaches {endpoint}")
    return Check(
        "network",
        "note",
        f"{endpoint} is not reached: {answer.complaint}",
        "Models and packages must be on the box already, and checkpoints cannot be uploaded.",
    )


def _health(host: Transport) -> Iterator[Check]:
    import time

    sent = time.time()
    try:
        answer = host.run(f'DIR="$HOME" PID=\n{SCRIPT}', timeout=20.0)
    except TunewatchError as error:
        yield Check("health", "bad", error.message, error.hint)
        return
    text = answer.stdout.decode("utf-8", "replace")
    yield from judge_health(read_health(text, now=time.monotonic(), wall_sent=sent, wall_got=time.time()))


def judge_health(health: Health) -> Iterator[Check]:
    """GPU, disk, memory and clock as checks; pure."""
    if health.gpus:
        names = ", ".join(f"{g.name} {(g.total_mib or 0) / 1024:.0f} GB" for g in health.gpus)
        yield Check("GPU", "good", names)
    else:
        yield Check("GPU", "note", health.gpu_note, "Training will use the processor.")
    if health.disk_free is None:
        yield Check("disk", "note", "df says nothing")
    elif health.disk_free < 1e9:
        yield Check("disk", "bad", f"{health.disk_free / 1e9:.1f} GB free", "Free some space; checkpoints need it.")
    elif health.disk_free < _LEAST_DISK:
        yield Check(
            "disk", "note", f"{health.disk_free / 1e9:.1f} GB free", "Two checkpoints of a 3B model need 80 GB."
        )
    else:
        yield Check("disk", "good", f"{health.disk_free / 1e9:.0f} GB free")
    if health.skew_s is None:
        yield Check("clock", "note", "the box does not tell its time")
    elif abs(health.skew_s) > 5:
        said = next((w for w in health.warnings() if "clock" in w), f"{health.skew_s:+.0f} s")
        yield Check("clock", "note", said, "Set the box's time; certificates and logs depend on it.")
    else:
        yield Check("clock", "good", f"{health.skew_s:+.1f} s against this machine")
