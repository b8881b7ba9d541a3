"""What a test needs of its machine: without it, it is left out on a laptop and fails where all has to be there."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Leave the test out for want of `what`; under continuous integration (`CI` is set) that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"a part of the machine is missing: {what}", pytrace=False)
    pytest.skip(what)
