"""What all tests share: a state directory, the order in which modules are given out, the stand-in with real boxes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fake_vast import FakeVast


def pytest_configure(config: pytest.Config) -> None:
    """What tunewatch keeps for a person is not read and not written by its tests: a state directory of their own, for
    those that name none."""
    folder = tempfile.mkdtemp(prefix="tunewatch-tests-")
    os.environ["XDG_STATE_HOME"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests first, the others after them, each whole: workers that run side by side end together.

    Needs `--no-loadscope-reorder`: by itself xdist begins with the modules of many tests and leaves those of one or two
    long tests to the end, where one worker is busy and the others wait.
    """
    slow = {item.nodeid.partition("::")[0] for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in slow)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVast]:
    """A stand-in market whose boxes are real, one for a module."""
    from tests.support.rented import real_world

    with real_world(tmp_path_factory.mktemp("boxes")) as fake:
        yield fake


@pytest.fixture
def quiet(world: FakeVast) -> Iterator[None]:
    """Takes back what a test asked of the stand-in."""
    yield
    world.faults.clear()
    world.world.linger = 0
    world.world.refuse_start = False
