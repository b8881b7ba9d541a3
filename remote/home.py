"""Where tunewatch keeps what it must not forget: the journal, mirrors, known_hosts and settings."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`$TUNEWATCH_HOME`, or the platform's state directory; made on first use, readable by its owner alone."""
    given = os.environ.get("TUNEWATCH_HOME")
    if given:
        path = Path(given).expanduser()
    else:
        import platformdirs

        path = Path(platformdirs.user_state_dir("tunewatch", appauthor=False))
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path
