"""The framed text panes of a run, the strip of stages and the row of tabs; each shows what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

if TYPE_CHECKING:
    from runner.history import RunHistory

STUDY_STAGES = ("stage1", "stage2", "stage5", "stage4", "non_prefill")
"""The order in which the miniature study runs."""
SHORT = {"non_prefill": "compare"}
"""Shorter words for a narrow terminal."""


class TextPane(VerticalScroll):
    """A frame with text that scrolls."""

    DEFAULT_CSS = """
    TextPane {
        border: round $border-blurred;
        border-title-color: $foreground;
        border-title-style: none;
        border-subtitle-color: $text-muted;
        padding: 0 1;
        scrollbar-size-vertical: 1;
        scrollbar-background: $background;
        scrollbar-color: $border-blurred;
    }
    TextPane:focus { border: round $border; }
    TextPane > Static { width: 1fr; height: auto; }
    TextPane.-cut > Static { text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, title: str, *, id: str, classes: str = "") -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id, classes=classes)
        self.border_title = title
        self._body = Static("", markup=False)
        self._shown: Text | None = None

    def compose(self) -> ComposeResult:
        """One text."""
        yield self._body

    def show(self, text: Text) -> None:
        """Show `text`; the same text again costs nothing."""
        if self._shown is None or text != self._shown or text.spans != self._shown.spans:
            self._shown = text
            self._body.update(text)

    def show_end(self, text: Text) -> None:
        """Show `text` and stay at its last line."""
        self.show(text)
        self.scroll_end(animate=False)


def stage_line(history: RunHistory, colours: Mapping[str, str], width: int = 120) -> Text | None:
    """The stages of a study with their macro, the one under way marked; None for a run without stages.

    Where `width` columns are too few, the words are shorter.
    """
    whole = _stages(history, colours, " › ", {})
    return whole if whole is None or len(whole) <= width else _stages(history, colours, " ", SHORT)


def _stages(history: RunHistory, colours: Mapping[str, str], gap: str, short: Mapping[str, str]) -> Text | None:
    if not history.stages and history.stage is None:
        return None
    done = {stage.name: stage for stage in history.stages}
    names = list(STUDY_STAGES) if all(n in STUDY_STAGES for n in done) else list(done)
    if history.stage is not None and history.stage not in names:
        names.append(history.stage)
    out = Text(no_wrap=True, overflow="ellipsis")
    for number, name in enumerate(names):
        out.append(gap if number else "", "dim")
        said = short.get(name, name)
        if name in done:
            out.append(f"✓ {said} ", colours.get("success", ""))
            out.append(f"{done[name].macro:.3f}", "bold")
        elif name == "stage5" and (history.ended or any(n in done for n in names[number:])):
            stop = history.declared_stop.stopped_at if history.declared_stop else None
            out.append(f"✓ {said} ", colours.get("success", ""))
            out.append(f"@{stop or history.step}", "bold")
        elif name == history.stage:
            out.append(f"▸ {said}", f"bold {colours.get('primary', '')}")
        else:
            out.append(f"· {said}", "dim")
    return out


def tail_text(lines: Sequence[str], colours: Mapping[str, str]) -> Text:
    """Log lines with their kind in colour: evals, bars, failures."""
    out = Text(no_wrap=True, overflow="ellipsis")
    for number, line in enumerate(lines):
        out.append("\n" if number else "")
        out.append(line, line_style(line, colours))
    return out


def line_style(line: str, colours: Mapping[str, str]) -> str:
    """The style of one log line."""
    from tui.tail import is_bar

    if is_bar(line):
        return colours.get("tw-rule") or "dim"
    if "eval_loss" in line and line.lstrip().startswith("{"):
        return colours.get("tw-line") or colours.get("primary", "")
    if line.lstrip().startswith("{"):
        return ""
    if line.startswith("Traceback") or "Error" in line or "ERROR" in line:
        return colours.get("error", "")
    if "WARN" in line or "Warning" in line:
        return colours.get("warning", "")
    return "dim"


class PaneTabs(Static):
    """The names of the panes in one row; a click opens one."""

    DEFAULT_CSS = """
    PaneTabs {
        height: 1; padding: 0 1;
        link-style: none; link-color: $foreground; link-style-hover: bold;
        link-background-hover: $panel; link-color-hover: $foreground;
    }
    """

    def show_tabs(self, names: Sequence[tuple[str, str]], chosen: str) -> None:
        """Write the row: `names` are (pane, title)."""
        pieces = []
        for number, (name, title) in enumerate(names, start=1):
            body = f"{number} {title}"
            inner = f"[reverse] {body} [/]" if name == chosen else f"[dim] {body} [/]"
            pieces.append(f"[@click=screen.pane('{name}')]{inner}[/]")
        self.update("".join(pieces))
