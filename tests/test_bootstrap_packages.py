"""A box that lacks packages gets them beside its torch, never another torch; over real sshd, real venv, real pip.

The box's interpreter is a virtual environment of its own in which torch is the one installed here and some packages
are missing; its index is a folder of wheels, made of the packages installed here, or nothing that answers.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from remote.bootstrap import Phases, environment, look, prepare
from runner.errors import RefusedError
from tests.support.sshd import Sshd

pytestmark = pytest.mark.slow
MISSING = ("accelerate", "tomli_w")
OTHER_TORCH = "99.0"


def wheel_of(name: str, folder: Path) -> Path:
    """A wheel of an installed pure-Python package, from the files that its own record names."""
    found = importlib.metadata.distribution(name)
    wheel = folder / f"{name.replace('-', '_')}-{found.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in found.files or []:
            path = Path(str(found.locate_file(file)))
            if path.is_file() and ".." not in file.parts and "__pycache__" not in file.parts:
                archive.write(path, str(file))
    return wheel


def made_up_wheel(name: str, version: str, folder: Path, requires: str = "") -> None:
    """A wheel with one module, which may want something."""
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{name}.py": f"__version__ = '{version}'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            rows.append(f"{path},sha256={digest},{len(text)}")
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]) + "\n")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with pip and torch and all that is installed here, but for what is in `MISSING`."""
    place = tmp_path_factory.mktemp("box-python") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith((*MISSING, "__editable__", "tunewatch")) and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    return place / "bin" / "python"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the box's index offers: the missing packages, and a torch that nobody may install."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in MISSING:
        wheel_of(name, folder)
    made_up_wheel("torch", OTHER_TORCH, folder)
    made_up_wheel("harness", "1.5", folder)
    made_up_wheel("greedy", "1.0", folder, requires=f"torch>={OTHER_TORCH}")
    return folder


def box_with(folder: Path, python: Path, **index: str) -> Sshd:
    """A box whose pip knows nothing of the configuration of this machine."""
    return Sshd(folder / "box", python=str(python), environment={"PIP_CONFIG_FILE": "/dev/null", **index})


def test_what_is_missing_is_installed_beside_the_torch_of_the_box(tmp_path: Path, python: Path, wheels: Path) -> None:
    torch = importlib.metadata.version("torch")
    with (
        box_with(tmp_path, python, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels)) as box,
        box.connect(tmp_path / "state") as host,
    ):
        assert look(host, "python3")["have"]["torch"] == torch
        phases = Phases(lambda _: None)
        ready = prepare(host, phases=phases)
        said = next(step.detail for step in phases.steps if step.name == "environment")
        assert said.startswith("made, installed accelerate")
        asked = host.run(
            f"{ready.python} -c 'import accelerate, tomli_w, torch, sys; "
            "print(accelerate.__file__); print(torch.__file__); print(torch.__version__)'",
            timeout=240,
        )
        assert asked.rc == 0, asked.complaint
        ours, theirs, version = asked.text.splitlines()
        assert f"{box.home}/tunewatch/venv/" in ours
        assert "tunewatch/venv" not in theirs
        assert (ready.torch, version) == (torch, torch)
        (site,) = Path(ready.python).parent.parent.glob("lib/python*/site-packages")
        assert not list(site.glob("torch*")), "no torch of ours, not even the same one"
        before = {p.name for p in python.parent.parent.glob("lib/python*/site-packages/*")}
        assert not any(name.startswith(MISSING) for name in before), "the box's own interpreter is left as it was"
        phases = Phases(lambda _: None)
        again = prepare(host, phases=phases)
        assert again.python == ready.python
        assert next(step.detail for step in phases.steps if step.name == "environment") == "was there"
        phases = Phases(lambda _: None)
        more = prepare(host, more=("harness>=1.2,<2",), phases=phases)
        assert next(step.detail for step in phases.steps if step.name == "environment").endswith("harness>=1.2,<2")
        assert host.run(f"{more.python} -c 'import harness, accelerate'", timeout=240).rc == 0


def test_a_package_that_wants_another_torch_is_refused_and_nothing_moves(
    tmp_path: Path, python: Path, wheels: Path
) -> None:
    with (
        box_with(tmp_path, python, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels)) as box,
        box.connect(tmp_path / "state") as host,
    ):
        facts = look(host, "python3")
        with pytest.raises(RefusedError, match="greedy is missing on box, and the installation failed") as told:
            environment(host, facts, ("greedy",))
        assert "\n" not in told.value.message
        assert look(host, "python3")["have"]["torch"] == importlib.metadata.version("torch")
        assert not list(box.home.glob("tunewatch/venv/*/.whole"))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"PIP_NO_INDEX": "1"}, "no package index that it knows has them"),
        ({"PIP_INDEX_URL": "http://127.0.0.1:1/simple"}, "no package index is reached from there"),
    ],
    ids=["no index", "nobody listens"],
)
def test_a_box_without_a_way_to_an_index_is_one_sentence_with_the_next_thing_to_try(
    index: dict[str, str], words: str, tmp_path: Path, python: Path
) -> None:
    with box_with(tmp_path, python, **index) as box, box.connect(tmp_path / "state") as host:
        with pytest.raises(RefusedError, match="accelerate") as told:
            prepare(host)
        assert told.value.message.count(". ") == 0
        assert words in told.value.message
        assert "pip install" in told.value.hint
        # a foreign recipe needs nothing of it
        assert prepare(host, needs="command").torch
