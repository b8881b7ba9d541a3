"""settings.toml under `home()`: what a person decides once for this laptop.

    [launch]
    python = "/opt/conda/bin/python"     # the interpreter to build on, on every box

One table (`SETTINGS`) says what there is; reading, suggestions and help come from it. A file that cannot be used is
refused with its line and key, never half obeyed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.home import home as default_home
from runner.errors import UsageError

FILE = "settings.toml"


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing to decide."""

    default: str | float | int | bool
    text: str
    """What it decides, with its unit."""


SETTINGS: dict[str, Setting] = {
    "launch.python": Setting("python3", "Interpreter on a box to build on: the one that has torch."),
    "launch.grace": Setting(60.0, "Seconds from the request to stop to the kill."),
    "kill.proof": Setting(180.0, "Seconds to look for the proof that a box is gone before it is called unconfirmed."),
    "watch.front": Setting(1.0, "Seconds between two looks at the run in front."),
    "watch.background": Setting(10.0, "Seconds between two looks at the runs behind it."),
    "recover.auto": Setting(False, "Replace a box that is lost, and go on from the newest checkpoint, without asking."),
    "recover.most": Setting(2, "Times that one run may be moved by itself."),
    "recover.price": Setting(1.0, "USD per hour that the new box may cost, its disk in it."),
    "recover.total": Setting(20.0, "USD that a run may cost in all, with what the new box is expected to add."),
    "recover.after": Setting(180.0, "Seconds that the provider has to have called a box lost."),
    "market.offers": Setting("", "An offers file to quote from instead of the bundled example market."),
    "look.theme": Setting("", "Name of the theme; empty for the default."),
}


class Settings:
    """The values in force; `settings["launch.python"]`."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = {key: setting.default for key, setting in SETTINGS.items()} | dict(values or {})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def text(self, key: str) -> str:
        """A setting that is a text."""
        return str(self._values[key])

    def number(self, key: str) -> float:
        """A setting that is a number."""
        return float(self._values[key])


def load_settings(home: Path | None = None) -> Settings:
    """Read settings.toml; a missing file means the defaults. Raises UsageError that names file, line and key."""
    path = (home or default_home()) / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
    import tomli

    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}.") from None
    values: dict[str, Any] = {}
    for section, rows in document.items():
        pairs = rows.items() if isinstance(rows, dict) else [(None, rows)]
        for name, value in pairs:
            key = section if name is None else f"{section}.{name}"
            values[key] = _checked(key, value, path, _line(text, name or section))
    return Settings(values)


def _checked(key: str, value: Any, path: Path, line: int) -> Any:
    where = f"{path}, line {line}"
    setting = SETTINGS.get(key)
    if setting is None:
        near = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(SETTINGS)}."
        raise UsageError(f"{where}: there is no setting '{key}'.", hint=hint)
    wanted = type(setting.default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not wanted:
        words = {str: "a text in quotes", float: "a number", int: "a whole number", bool: "true or false"}
        raise UsageError(f"{where}: {key} must be {words[wanted]}, not {value!r}.", hint=setting.text)
    if isinstance(value, float) and value <= 0:
        raise UsageError(f"{where}: {key} must be more than 0, not {value!r}.", hint=setting.text)
    return value


def _line(text: str, name: str) -> int:
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"\s*\[?\s*[\"']?{re.escape(name)}\b", line):
            return number
    return 1
