"""The study's results over whatever screen is open: what the mask cost, what the fine-tune won back."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from runner.report import STAGES, compute_deltas
from tui import words
from tui.snapshot import RunSnapshot


class StudyScreen(ModalScreen[None]):
    """Stage table and deltas of one run."""

    DEFAULT_CSS = """
    StudyScreen { align: center middle; background: $background 60%; }
    StudyScreen > VerticalScroll {
        width: 92; max-width: 96%; height: auto; max-height: 90%;
        border: round $border; background: $surface; padding: 1 2;
        border-title-color: $foreground; border-subtitle-color: $text-muted;
    }
    StudyScreen Static { width: 1fr; height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,r,q,enter", "dismiss", "Close")]

    def __init__(self, snapshot: RunSnapshot) -> None:
        super().__init__()
        self.snapshot = snapshot

    def compose(self) -> ComposeResult:
        """One text."""
        with VerticalScroll() as box:
            box.border_title = f"{self.snapshot.name}: results"
            box.border_subtitle = "Esc closes"
            yield Static(study_text(self.snapshot, dict(self.app.theme_variables)), markup=False)


def study_text(snapshot: RunSnapshot, colours: dict[str, str]) -> Text:
    """Stages with their macro as bars, the deltas in words, and how the fine-tune ended."""
    history = snapshot.history
    done = {stage.name: stage for stage in history.stages}
    if not done:
        return Text("No stage of this run has been measured yet.", style="dim")
    out = Text()
    bar = colours.get("tw-line") or colours.get("primary", "")
    for name, meaning in STAGES.items():
        stage = done.get(name)
        out.append(f"{name:<12}", "bold" if stage else "dim")
        if stage is None:
            out.append("not measured yet\n", "dim")
            continue
        full = round(stage.macro * 20)
        out.append("━" * full, bar).append("─" * (20 - full), "dim")
        out.append(f" {stage.macro:.4f}  ", "bold").append(f"{meaning}\n", "dim")
        tasks = "  ".join(f"{task} {value:.3f}" for task, value in stage.tasks.items())
        out.append(f"{'':<12}{tasks}\n", "dim")
    deltas = compute_deltas({name: stage.macro for name, stage in done.items()})
    out.append("\n")
    for value, text in (
        (deltas.damage, "damage: what taking the prompt mask away cost"),
        (deltas.gain, "gain: what the fine-tune under that mask won back"),
        (deltas.side_effect, "side effect: the tuned model under its old mask"),
    ):
        colour = "" if value is None else colours.get("error" if value < 0 else "success", "")
        out.append(f"{words.signed(value):>9}  ", f"bold {colour}".strip()).append(f"{text}\n")
    kept = "–" if deltas.retention is None else f"{deltas.retention:.4f}x"
    out.append(f"{kept:>9}  ", "bold").append("retention: tuned over untouched\n")
    state = snapshot.ruling.state
    if state.stopped_at is not None:
        best = f"best {words.loss(state.best)} at step {state.best_step}"
        out.append(f"\nauto-stop ended the fine-tune at step {state.stopped_at} of {history.max_steps}, {best}\n")
    return out
