"""What the tests of renting share: a stand-in with a clock moved by hand, and a provider that talks to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from remote.vast import VastProvider
from tests.fake_vast import FakeVast, ManualClock

QUICK = {"NO_PROXY": "127.0.0.1,localhost"}


@contextmanager
def rented_world(**options: Any) -> Iterator[tuple[FakeVast, VastProvider, ManualClock]]:
    """A server without processes, its clock, and a provider with short time-outs."""
    os.environ.update(QUICK)
    clock = options.pop("clock", None) or ManualClock()
    timeout = options.pop("timeout_s", 3.0)
    with FakeVast(clock=clock, **options) as fake:
        yield fake, provider_for(fake, clock, timeout_s=timeout), clock


def as_laptop(monkeypatch: pytest.MonkeyPatch, fake: FakeVast, home: Path) -> None:
    """The environment of a person whose provider is the stand-in, for commands and screens."""
    for name, value in {
        "TUNEWATCH_HOME": str(home), "VAST_API_KEY": fake.world.account_key, "TUNEWATCH_VAST_URL": fake.url, **QUICK,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def provider_for(fake: FakeVast, clock: ManualClock, *, timeout_s: float = 3.0, **options: Any) -> VastProvider:
    """A provider on the same clock as the stand-in, so that waiting costs no time."""
    os.environ.update(QUICK)
    return VastProvider(
        api_key=fake.world.account_key, url=fake.url, timeout_s=timeout_s, create_timeout_s=timeout_s, clock=clock,
        sleep=clock.sleep, **options,
    )  # fmt: skip
