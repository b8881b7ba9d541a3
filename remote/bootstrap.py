"""Makes a box ready to run: our code, an interpreter on top of its torch, secrets. Everything lies under ~/tunewatch.

    ~/tunewatch/code/<hash>/      our runner, or a work tree; by content, never changed
    ~/tunewatch/venv/<hash>/      by interpreter and requirements; a link `current` names the last one
    ~/tunewatch/runs/...          run directories

The rules of this file:

- torch is never installed, upgraded or moved: the environment sees the packages of the box's interpreter, whatever made
  that one (system, conda, another venv), and what is missing is installed beside it with torch pinned to what is there.
  The version is compared before and after.
- Every step can be done again: it looks first, and leaves its mark last.
- A secret goes over stdin into a file that was 0600 before the first byte; never into an argument, a name or a log.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from remote.deeds import DeedStep, Progress, silent
from remote.ship import Parcel, our_code
from remote.transport import Transport, shell_path
from runner.errors import RefusedError, TunewatchError

ROOT = "tunewatch"
"""Relative to the home directory of the box's user."""

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "command": (),
    "study": ("transformers>=5.20,<6", "accelerate>=1.10,<2", "tomli>=2.3,<3", "tomli-w>=1.0,<2",
              "huggingface_hub>=1.0,<3", "safetensors"),
}  # fmt: skip
"""What a kind of run needs beside torch; `runner.needs` knows what one recipe asks for beyond that. A foreign recipe
brings its own by its `setup`."""

_LOOK = r"""
import importlib.metadata as m, json, site, sys, sysconfig
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
paths = [p for p in dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path])
         if p and p.endswith(("site-packages", "dist-packages"))]
names = sys.argv[1:]
print(json.dumps({"version": list(sys.version_info[:3]), "executable": sys.executable, "paths": paths,
                  "have": {n: version(n) for n in names}}))
"""

_MISSING = r"""
import importlib.metadata as m, json, re, sys
def number(v): return tuple(int(p) for p in re.findall(r"\d+", v)[:3])
missing = []
for spec in sys.argv[1:]:
    name = re.split(r"[<>=!]", spec)[0]
    try: have = number(m.version(name))
    except m.PackageNotFoundError:
        missing.append(spec); continue
    for sign, want in re.findall(r"(>=|<)([\d.]+)", spec):
        if (sign == ">=" and have < number(want)) or (sign == "<" and have >= number(want)):
            missing.append(spec); break
print(json.dumps(missing))
"""


DEFAULT_PYTHON = "python3"
PYTHON_FILE = "tunewatch/python"
"""Below the home of a rented box: the start script writes there which python3 the image itself has on its PATH."""
IMAGE_PYTHONS = ("/opt/conda/bin/python3", "/venv/main/bin/python3")
"""Where the images of PyTorch and those of the market keep theirs."""


@dataclass(frozen=True, slots=True)
class Box:
    """A host that is ready."""

    home: str
    """Absolute home directory of the user there."""
    code: str
    """Absolute path of our code, for PYTHONPATH."""
    python: str
    """Absolute path of the environment's interpreter."""
    torch: str | None
    """Version of the torch that is there; None when there is none."""
    tmux: bool
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each phase took, for the forecast's set-up term."""

    @property
    def root(self) -> str:
        """~/tunewatch, absolute."""
        return f"{self.home}/{ROOT}"


class Phases:
    """Runs the steps of a deed with timers, telling each to `progress` as it begins and ends."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.steps: list[DeedStep] = []

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """One phase; call what it yields with the detail to show. An error is told, then goes on up."""
        said = ""

        def say(detail: str) -> None:
            nonlocal said
            said = detail

        began = time.monotonic()
        self._progress(DeedStep(name, None))
        try:
            yield say
        except TunewatchError as error:
            self._end(DeedStep(name, False, error.message, time.monotonic() - began))
            raise
        self._end(DeedStep(name, True, said, time.monotonic() - began))

    def _end(self, step: DeedStep) -> None:
        self.steps.append(step)
        self._progress(step)

    @property
    def seconds(self) -> dict[str, float]:
        """Name of each phase with its duration in seconds."""
        return {step.name: step.seconds or 0.0 for step in self.steps}


def prepare(
    host: Transport,
    *,
    python: str = DEFAULT_PYTHON,
    needs: str = "study",
    more: Iterable[str] = (),
    phases: Phases | None = None,
) -> Box:
    """Make `host` ready for a run of `needs` ("study" or "command"). Doing it again costs two questions.

    `python` is the interpreter to build on, `more` are packages that this recipe alone asks for (`runner.needs`).
    Raises RefusedError for a box that cannot run it, in words and with a way out, and LinkError when the link breaks
    (what was done stays, the next call goes on).
    """
    phases = phases or Phases(silent)
    with phases.step("look at the box") as say:
        home = host.home()
        facts = _look_around(host, python)
        tmux = host.run("command -v tmux").rc == 0
        torch = facts["have"]["torch"]
        version = ".".join(map(str, facts["version"]))
        say(f"Python {version}, torch {torch or 'absent'}, tmux {'there' if tmux else 'absent'}")
        _check(facts, python, needs, host.name)
    with phases.step("ship our code") as say:
        parcel = our_code()
        code, sent = deliver(host, parcel)
        say(f"{parcel.name}, {len(parcel.data) / 1e6:.1f} MB" if sent else f"{parcel.name} was there")
    with phases.step("environment") as say:
        interpreter, made = environment(host, facts, (*REQUIREMENTS[needs], *more))
        say(made)
    return Box(home, code, interpreter, torch, tmux, phases.seconds)


def _look_around(host: Transport, python: str) -> dict[str, Any]:
    """`look`, and where nobody named an interpreter and the usual one has no torch, the one of the image that has it:
    a session over SSH does not have the PATH of the container.
    """
    try:
        facts = look(host, python)
    except RefusedError:
        other = _with_torch(host) if python == DEFAULT_PYTHON else ""
        if not other:
            raise
        return look(host, other)
    if python == DEFAULT_PYTHON and facts["have"]["torch"] is None:
        other = _with_torch(host)
        return look(host, other) if other else facts
    return facts


def _with_torch(host: Transport) -> str:
    """The interpreter with torch that the start script wrote down, or that images are known to have; empty for none."""
    places = " ".join(shlex.quote(place) for place in IMAGE_PYTHONS)
    return host.run(
        f'for p in "$(cat "$HOME/{PYTHON_FILE}" 2>/dev/null)" {places}; do [ -n "$p" ] && "$p" -c \'import sys, '
        'importlib.util as u; sys.exit(u.find_spec("torch") is None)\' 2>/dev/null && echo "$p" && break; done; :',
        timeout=60.0,
    ).text


def look(host: Transport, python: str) -> dict[str, Any]:
    """What the interpreter of the box is and sees. Raises RefusedError when there is none."""
    answer = host.run(f"{_word(python)} - torch transformers tomli", stdin=_LOOK.encode(), timeout=60.0)
    if answer.rc != 0:
        said = f" ({answer.complaint})" if answer.complaint else ""
        raise RefusedError(
            f"'{python}' cannot be run on {host.name}{said}.",
            hint='Name the interpreter that has torch: [launch] python = "/path/to/python" in settings.toml.',
        )
    try:
        facts = json.loads(answer.stdout.decode("utf-8", "replace").splitlines()[-1])
    except (ValueError, IndexError):
        raise RefusedError(f"'{python}' on {host.name} is not a Python that answers as one.") from None
    return dict(facts)


def _check(facts: dict[str, Any], python: str, needs: str, name: str) -> None:
    version = tuple(facts["version"])
    least = (3, 11) if needs == "study" else (3, 9)
    if version < least:
        raise RefusedError(
            f"'{python}' on {name} is Python {'.'.join(map(str, version))}; {'.'.join(map(str, least))} is needed.",
            hint='Name a newer one: [launch] python = "/path/to/python" in settings.toml.',
        )
    if needs == "study" and facts["have"]["torch"] is None:
        raise RefusedError(
            f"'{python}' on {name} has no torch, and tunewatch never installs it.",
            hint="Rent an image that has torch, or name the interpreter that has it: [launch] python in settings.toml.",
        )


def deliver(host: Transport, parcel: Parcel) -> tuple[str, bool]:
    """Unpack a parcel under ~/tunewatch/code/<name>; returns its absolute path and whether it had to be sent."""
    place = f"{ROOT}/code/{parcel.name}"
    there = host.run(f"[ -e {shell_path(place)}/.whole ]").rc == 0
    if not there:
        archive = f"{place}.tar.gz"
        host.put(parcel.data, archive)
        a, p = shell_path(archive), shell_path(place)
        # unpacked beside and renamed: another laptop may be doing the same at this moment
        answer = host.run(
            f"t={p}.$$ && rm -rf \"$t\" && mkdir -p \"$t\" && tar -xzf {a} -C \"$t\" && touch \"$t\"/.whole && "
            f"{{ mv -T \"$t\" {p} 2>/dev/null || mv \"$t\" {p} 2>/dev/null || [ -e {p}/.whole ]; }}; rc=$?; "
            f"rm -rf \"$t\" {a}; exit $rc",
            timeout=300.0,
        )  # fmt: skip
        if answer.rc != 0:
            raise RefusedError(f"Our code could not be unpacked on {host.name}: {answer.complaint or answer.rc}.")
    return f"{host.home()}/{place}", not there


def environment(host: Transport, facts: dict[str, Any], requirements: tuple[str, ...]) -> tuple[str, str]:
    """An interpreter that sees the box's packages and has what is missing; returns its path and what was done."""
    identity = json.dumps([facts["executable"], facts["version"], facts["have"]["torch"], requirements])
    place = f"{host.home()}/{ROOT}/venv/{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    inner = f"{place}/bin/python"
    q = shlex.quote
    if host.run(f"[ -e {q(place)}/.whole ] && {q(inner)} -c ''", timeout=60.0).rc == 0:
        return inner, "was there"
    lines = "\n".join(facts["paths"])
    # --without-pip: ensurepip is missing on every Debian without python3-venv
    made = host.run(
        f"rm -rf {q(place)} && {q(facts['executable'])} -m venv --without-pip {q(place)} && "
        f"site=$({q(inner)} -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))') && "
        f"cat > \"$site/of-the-box.pth\"",
        stdin=lines.encode() + b"\n", timeout=180.0,
    )  # fmt: skip
    if made.rc != 0:
        raise RefusedError(f"No virtual environment can be made on {host.name}: {made.complaint}.")
    done = "made"
    missing = _answer(host, inner, _MISSING, requirements)
    if missing:
        _install(host, facts, inner, missing)
        left = _answer(host, inner, _MISSING, requirements)
        if left:
            raise RefusedError(f"Still missing on {host.name} after the installation: {', '.join(left)}.")
        done = f"made, installed {', '.join(missing)}"
    torch = look(host, inner)["have"]["torch"]
    if torch != facts["have"]["torch"]:
        raise RefusedError(
            f"The environment on {host.name} sees torch {torch}, the box has {facts['have']['torch']}; it is not used.",
            hint=f"Remove {place} there and report what installs torch.",
        )
    host.run(f"touch {q(place)}/.whole && ln -sfn {q(place)} {q(place.rpartition('/')[0])}/current")
    return inner, done


def _answer(host: Transport, python: str, script: str, words: tuple[str, ...]) -> list[str]:
    answer = host.run(f"{shlex.quote(python)} - {shlex.join(words)}", stdin=script.encode(), timeout=60.0)
    if answer.rc != 0:
        raise RefusedError(f"The environment on {host.name} cannot be used: {answer.complaint}.")
    return list(json.loads(answer.stdout))


def _install(host: Transport, facts: dict[str, Any], inner: str, missing: list[str]) -> None:
    """Install into the environment with the box's own pip (or uv), torch pinned to what is there."""
    q = shlex.quote
    torch = facts["have"]["torch"]
    pin = f"torch=={torch}\n" if torch else ""
    words = shlex.join(missing)
    # pip sees the packages of the box through the environment; uv looks at the environment alone, and would install a
    # torch of its own if it were not told that nothing needs one
    without = 'printf "torch; python_version < \'0\'\\n" >"$c.over"' if torch else ': >"$c.over"'
    answer = host.run(
        f"c=$(mktemp) && cat > \"$c\" && if {q(facts['executable'])} -m pip --version >/dev/null 2>&1; then "
        f"{q(facts['executable'])} -m pip --python {q(inner)} install -q --no-input --retries 2 -c \"$c\" {words}; "
        f"elif command -v uv >/dev/null 2>&1; then {without}; "
        f"uv pip install -q --python {q(inner)} -c \"$c\" --override \"$c.over\" {words}; "
        "else echo 'neither pip nor uv is on the box' >&2; false; fi; rc=$?; rm -f \"$c\" \"$c.over\"; exit $rc",
        stdin=pin.encode(), timeout=1800.0,
    )  # fmt: skip
    if answer.rc != 0:
        said = answer.stderr.decode("utf-8", "replace")
        if _NO_WAY_OUT.search(said):
            why = "no package index is reached from there"
        elif "from versions: none" in said:
            why = "no package index that it knows has them"
        else:
            why = f"the installation failed: {(answer.complaint or str(answer.rc)).removeprefix('ERROR: ').rstrip('.')}"
        raise RefusedError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing on {host.name}, and {why}.",
            hint=f"Install there what is missing, from an index or a folder of wheels that it can read: "
            f"{facts['executable']} -m pip install {words}",
        )


_NO_WAY_OUT = re.compile(
    r"Retrying \(|Max retries|NewConnectionError|ConnectTimeout|Name or service not known|Temporary failure in name|"
    r"Failed to (?:fetch|establish)|error sending request|dns error|Network is unreachable"
)
"""What pip and uv say when nobody answers."""


def put_secrets(host: Transport, path: str, values: Mapping[str, str]) -> None:
    """Write `export NAME='value'` lines into a 0600 file, over stdin. Names must be names; values may be anything."""
    lines = []
    for name, value in values.items():
        if not name.isidentifier():
            raise RefusedError(f"'{name}' is not a name for an environment variable.")
        lines.append(f"export {name}={shlex.quote(value)}\n")
    host.put("".join(lines).encode(), path, mode=0o600)


def _word(python: str) -> str:
    """An interpreter for the shell: a name on the PATH, or a path with `~` understood."""
    return shell_path(python) if "/" in python else shlex.quote(python)
