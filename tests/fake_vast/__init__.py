"""A stand-in for the provider: a real HTTP server on loopback whose instances are real sshd processes.

It answers what the documents and recorded replies say the provider answers, the odd parts included, and it can be told
to fail in every way that was seen: see `faults.py`. `python -m tests.fake_vast` runs it as a program.
"""

from tests.fake_vast.clock import ManualClock, ScaledClock
from tests.fake_vast.faults import Fault, Faults
from tests.fake_vast.server import FakeVast
from tests.fake_vast.world import Box, World

__all__ = ["Box", "FakeVast", "Fault", "Faults", "ManualClock", "ScaledClock", "World"]
