"""The name every box of ours carries at the provider: who rented it, for which run, in which attempt.

    tunewatch:<laptop>:<run>:<nonce>

The label goes into the body of the rental itself, so a box whose answer was lost can be found by it. Prefix and laptop
tell ours from boxes of other people on the same account. It is public: nothing secret goes in.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

PREFIX = "tunewatch"


@dataclass(frozen=True, slots=True)
class Label:
    """A label taken apart."""

    laptop: str
    run: str
    nonce: str

    def __str__(self) -> str:
        return f"{PREFIX}:{self.laptop}:{self.run}:{self.nonce}"


def new_label(laptop: str, run: str) -> Label:
    """A label that no other rental has."""
    return Label(laptop, re.sub(r"[^\w./+-]", "_", run)[:120], secrets.token_hex(4))


def read_label(text: str) -> Label | None:
    """The parts of one of our labels, or None for any other text."""
    parts = text.split(":")
    if len(parts) != 4 or parts[0] != PREFIX or not parts[3]:
        return None
    return Label(*parts[1:])
