"""Colours: our three themes, and the palette of the charts derived from whichever theme is on.

Meaning never hangs on colour alone: best is a star, lines carry their names, states are words. The theme
`tunewatch-cvd` takes its colours from Okabe and Ito (2008), which people with any colour vision tell apart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from textual.color import Color
from textual.theme import Theme

from tui.palette import Palette

if TYPE_CHECKING:
    from tui.axes import Marker, Role

ROLE_VARIABLES: Mapping[Role, str] = {
    "raw": "tw-raw",
    "line": "tw-line",
    "second": "tw-second",
    "best": "tw-best",
    "min_steps": "tw-rule",
    "patience": "tw-patience",
    "projected": "tw-projected",
    "stop": "tw-stop",
    "a": "tw-a",
    "b": "tw-b",
    "c": "tw-c",
    "d": "tw-d",
    "e": "tw-e",
}

_DARK = {
    "tw-raw": "#414a73",
    "tw-line": "#8c9eff",
    "tw-second": "#4fb8a8",
    "tw-best": "#7ee787",
    "tw-rule": "#8b949e",
    "tw-patience": "#e3b341",
    "tw-projected": "#d2a8ff",
    "tw-stop": "#ff7b72",
    "tw-a": "#8c9eff",
    "tw-b": "#f0a35e",
    "tw-c": "#4fd1b8",
    "tw-d": "#f28fb8",
    "tw-e": "#e3d26f",
}
_LIGHT = {
    "tw-raw": "#b6bde0",
    "tw-line": "#3f51b5",
    "tw-second": "#00796b",
    "tw-best": "#2e7d32",
    "tw-rule": "#6e7781",
    "tw-patience": "#9a6700",
    "tw-projected": "#8250df",
    "tw-stop": "#cf222e",
    "tw-a": "#3f51b5",
    "tw-b": "#bc4c00",
    "tw-c": "#00796b",
    "tw-d": "#bf3989",
    "tw-e": "#7d6608",
}
_CVD = {
    "tw-raw": "#2f5870",
    "tw-line": "#56b4e9",
    "tw-second": "#cc79a7",
    "tw-best": "#f0e442",
    "tw-rule": "#999999",
    "tw-patience": "#e69f00",
    "tw-projected": "#cc79a7",
    "tw-stop": "#d55e00",
    "tw-a": "#56b4e9",
    "tw-b": "#e69f00",
    "tw-c": "#009e73",
    "tw-d": "#cc79a7",
    "tw-e": "#f0e442",
}


def _quiet(border: str, blurred: str) -> dict[str, str]:
    return {
        "border": border,
        "border-blurred": blurred,
        "footer-background": "transparent",
        "footer-key-foreground": border,
        "block-cursor-text-style": "none",
    }


THEMES = (
    Theme(
        name="tunewatch",
        primary="#8c9eff",
        secondary="#4fb8a8",
        accent="#d2a8ff",
        warning="#e3b341",
        error="#ff7b72",
        success="#7ee787",
        foreground="#d5dbe5",
        background="#0f131a",
        surface="#141a23",
        panel="#1b2330",
        dark=True,
        variables={**_DARK, **_quiet("#8c9eff", "#2a3344")},
    ),
    Theme(
        name="tunewatch-light",
        primary="#3f51b5",
        secondary="#00796b",
        accent="#8250df",
        warning="#9a6700",
        error="#cf222e",
        success="#2e7d32",
        foreground="#1f2328",
        background="#fbfbfd",
        surface="#f3f4f8",
        panel="#e7e9f1",
        dark=False,
        variables={**_LIGHT, **_quiet("#3f51b5", "#cfd4e2")},
    ),
    Theme(
        name="tunewatch-cvd",
        primary="#56b4e9",
        secondary="#009e73",
        accent="#cc79a7",
        warning="#e69f00",
        error="#d55e00",
        success="#f0e442",
        foreground="#e6e6e6",
        background="#101214",
        surface="#16191c",
        panel="#1f2429",
        dark=True,
        variables={**_CVD, **_quiet("#56b4e9", "#31373d")},
    ),
)
DEFAULT_THEME = "tunewatch"


def palette_of(variables: Mapping[str, str], *, marker: Marker = "braille") -> Palette:
    """The palette of a chart from a theme's variables; a foreign theme lends its own main colours."""
    background = _colour(variables.get("background"), "#101010")
    foreground = _colour(variables.get("foreground"), "#e0e0e0")
    stand_ins: dict[Role, str] = {
        "line": "primary",
        "second": "secondary",
        "best": "success",
        "patience": "warning",
        "projected": "accent",
        "stop": "error",
        "a": "primary",
        "b": "warning",
        "c": "success",
        "d": "accent",
        "e": "secondary",
    }
    roles: dict[Role, str] = {}
    for role, name in ROLE_VARIABLES.items():
        given = variables.get(name) or variables.get(stand_ins.get(role, ""))
        roles[role] = _colour(given, "").hex6 if given else background.blend(foreground, 0.55).hex6
    if "tw-raw" not in variables:
        roles["raw"] = background.blend(Color.parse(roles["line"]), 0.4).hex6
    return Palette(
        roles=roles,
        shades={
            "patience": background.blend(Color.parse(roles["patience"]), 0.13).hex6,
            "projected": background.blend(Color.parse(roles["projected"]), 0.13).hex6,
        },
        text=background.blend(foreground, 0.55).hex6,
        grid=background.blend(foreground, 0.17).hex6,
        cursor=background.blend(foreground, 0.8).hex6,
        marker=marker,
    )


def _colour(value: str | None, default: str) -> Color:
    """A theme's value as a colour; themes made for ANSI terminals hold names that have no RGB."""
    try:
        colour = Color.parse(value or default)
    except ValueError:
        colour = Color.parse(default or "#808080")
    return Color(colour.r, colour.g, colour.b)


def default_marker() -> Marker:
    """Braille where the terminal speaks Unicode; `TUNEWATCH_CHARTS` = braille, blocks or ascii overrides."""
    given = os.environ.get("TUNEWATCH_CHARTS", "")
    if given in ("braille", "blocks", "ascii"):
        return given  # type: ignore[return-value]
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or "UTF-8"
    return "ascii" if locale in ("C", "POSIX") else "braille"
