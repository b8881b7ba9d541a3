"""Every key, once: dispatch, footer, help page and docs/keys.md are read from here.

A key belongs to a place (a screen, or everywhere). Deeds that cost or destroy have a capital letter and ask before
they do anything; no harmless key is their neighbour by a slip of Shift alone.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import NamedTuple

from textual.binding import Binding, BindingType

PLACES = {
    "everywhere": "Everywhere",
    "live": "A run",
    "logs": "Logs",
    "runs": "Runs",
    "offers": "Offers",
}


class Key(NamedTuple):
    """One action and the keys that reach it."""

    keys: str
    """Names as Textual has them, separated by commas."""
    action: str
    footer: str
    """One word for the footer."""
    sentence: str
    """What it does, for the help page and docs/keys.md."""
    place: str = "everywhere"
    shown: bool = False
    """Whether it stands in the footer."""
    caps: str = ""
    """How the keys are written for people; empty: as they are named."""
    deed: bool = False
    """Whether it is refused in a read-only session."""

    def label(self) -> str:
        """The keys as a person reads them."""
        names = {
            "question_mark": "?",
            "plus": "+",
            "equals_sign": "=",
            "minus": "-",
            "left_square_bracket": "[",
            "right_square_bracket": "]",
            "slash": "/",
            "colon": ":",
            "exclamation_mark": "!",
            "escape": "Esc",
            "enter": "Enter",
            "space": "Space",
            "ctrl+p": "Ctrl+P",
            "left": "←",
            "right": "→",
            "tab": "Tab",
        }
        return self.caps or " ".join(names.get(key, key) for key in self.keys.split(","))


KEYS: tuple[Key, ...] = (
    Key("q", "quit", "Quit", "Leave tunewatch; the run goes on", shown=True),
    Key("question_mark,f1", "help", "Help", "All keys", shown=True, caps="?"),
    Key("ctrl+p", "command_palette", "Palette", "Every action by name", caps="Ctrl+P"),
    Key("escape", "back", "Back", "One layer out"),
    Key("R", "show_runs", "Runs", "The list of runs", shown=True),
    Key("o", "show_offers", "Offers", "The market with a quote for every offer", shown=True),
    Key("e", "show_events", "Events", "What happened: stops, best values, faults of the link", shown=True),
    Key("T", "next_theme", "Theme", "Next theme"),
    Key("1", "pane('loss')", "Loss", "Training loss", "live"),
    Key("2", "pane('eval')", "Eval", "Eval loss", "live"),
    Key("3", "pane('speed')", "s/step", "Seconds per step", "live"),
    Key("4", "pane('stop')", "Auto-stop", "The rule, its state and every eval", "live"),
    Key("5", "pane('quotes')", "Quotes", "Finish time and bill on each offer", "live"),
    Key("6", "pane('tail')", "Log tail", "The end of the log", "live"),
    Key("7", "pane('box')", "Box", "GPU, memory, disk and network of the box", "live"),
    Key("z", "solo", "Maximise", "One pane alone, or all of them", "live", shown=True),
    Key("left,h", "cursor(-1)", "Cursor", "Cursor to the left on all charts", "live", caps="← h"),
    Key("right,l", "cursor(1)", "Cursor", "Cursor to the right on all charts", "live", caps="→ l"),
    Key("shift+left,H", "pan(-1)", "Pan", "Earlier steps", "live", caps="⇧← H"),
    Key("shift+right", "pan(1)", "Pan", "Later steps", "live", caps="⇧→"),
    Key("plus,equals_sign", "zoom(1)", "Zoom", "Fewer steps, around the cursor", "live", shown=True, caps="+"),
    Key("minus", "zoom(-1)", "Wider", "More steps", "live", caps="-"),
    Key("0", "reset_view", "Reset", "All steps, no cursor", "live"),
    Key("right_square_bracket", "smooth(1)", "Smoother", "More smoothing", "live", caps="]"),
    Key("left_square_bracket", "smooth(-1)", "Rougher", "Less smoothing", "live", caps="["),
    Key("x", "x_mode", "x axis", "x as step, time, logarithm, tokens", "live", shown=True),
    Key("y", "log_y", "log y", "Logarithmic y axis of the pane", "live"),
    Key("w", "what_if", "What-if", "Try another rule on this run; Apply asks the run for it", "live", shown=True),
    Key("r", "results", "Results", "Stages of the study and what the mask cost", "live"),
    Key("g", "box", "Box", "All that was measured of the box", "live"),
    Key("L", "logs", "Log", "The whole log: search, filter, follow", "live", shown=True),
    Key("C", "copy_summary", "Copy", "Copy a summary of the run", "live"),
    Key("E", "export", "Export", "Save SVG, PNG, CSV and a page of Markdown", "live"),
    Key("exclamation_mark", "shell", "Shell", "A shell where the run is (ssh, tmux), and back", "live", caps="!"),
    Key("S", "stop_run", "Stop", "Stop training with a checkpoint; asks first", "live", shown=True, deed=True),
    Key("M", "migrate_run", "Migrate", "Move to another offer; the name is asked for", "live", shown=True, deed=True),
    Key("K", "kill_run", "Kill", "Stop and destroy the box; the name is asked for", "live", shown=True, deed=True),
    Key("n", "app.launch", "Launch", "Rent a box for a new run, page by page; asks first", "live", deed=True),
    Key("slash", "search", "Search", "Search with a regular expression", "logs", shown=True, caps="/"),
    Key("n", "next_hit(1)", "Next", "Next hit", "logs", shown=True),
    Key("N", "next_hit(-1)", "Previous", "Previous hit", "logs"),
    Key("f", "include", "Include", "Show only lines that match", "logs", shown=True),
    Key("F", "exclude", "Exclude", "Hide lines that match", "logs"),
    Key("colon", "goto_step", "Go to", "Go to a step", "logs", shown=True, caps=":"),
    Key("w", "wrap", "Wrap", "Whole lines, or cut at the edge", "logs"),
    Key("b", "bars", "Bars", "Progress bars collapsed, or all of them", "logs"),
    Key("end,G", "follow", "Follow", "To the end, and stay there", "logs", shown=True, caps="End G"),
    Key("home,g", "top", "Top", "To the first line", "logs", caps="Home g"),
    Key("y", "copy_line", "Copy", "Copy the line under the cursor", "logs"),
    Key("W", "save_lines", "Save", "Save the lines shown to a file", "logs"),
    Key("enter", "open", "Open", "Open the run", "runs", shown=True, caps="Enter"),
    Key("slash", "filter", "Filter", "state:running gpu:A100 loss<1.2", "runs", shown=True, caps="/"),
    Key("s", "sort", "Sort", "Sort by the next column", "runs", shown=True),
    Key("space", "mark", "Mark", "Mark for comparison, up to five", "runs", shown=True, caps="Space"),
    Key("n", "app.launch", "Launch", "Rent a box for a new run, page by page; asks first", "runs", shown=True),
    Key("c", "compare", "Compare", "Curves of the marked runs over each other", "runs", shown=True),
    Key("enter", "rent", "Rent", "Rent the offer, or move the run there; asks first", "offers", shown=True),
    Key("slash", "filter", "Filter", "gpu:H100 price<1 vram>=40 fits:yes", "offers", shown=True, caps="/"),
    Key("s", "sort", "Sort", "Sort by the next column", "offers", shown=True),
    Key("p", "pareto", "Pareto", "Only offers (◆) that no other beats in time and money", "offers", shown=True),
    Key("b", "limit('budget')", "Budget", "USD to stay under: the chance on each offer", "offers", shown=True),
    Key("d", "limit('deadline')", "Deadline", "Time to be done in: the chance on each offer", "offers", shown=True),
    Key("r", "refresh", "Refresh", "Read the live market again", "offers", shown=True),
)


CHART_ACTIONS = frozenset({"cursor", "pan", "zoom", "reset_view", "smooth", "x_mode", "log_y"})
"""The actions of a run's screen that every screen with charts has."""


def bindings(place: str, actions: Container[str] | None = None) -> list[BindingType]:
    """The bindings of one place, for a screen's `BINDINGS`; with `actions`, of those alone."""
    return [
        Binding(key.keys, key.action, key.footer, show=key.shown, tooltip=key.sentence, key_display=_display(key))
        for key in KEYS
        if key.place == place and (actions is None or key.action.partition("(")[0] in actions)
    ]


def _display(key: Key) -> str:
    return key.label().split(" ")[0]


def groups(places: Iterable[str] = tuple(PLACES)) -> list[tuple[str, list[Key]]]:
    """The keys by place, each with the heading of its group."""
    return [(PLACES[place], [key for key in KEYS if key.place == place]) for place in places]


def markdown() -> str:
    """The tables of docs/keys.md; a test holds the page against it."""
    lines = []
    for heading, keys in groups():
        lines += [f"**{heading}**", "", "| key | does |", "|---|---|"]
        lines += [f"| `{key.label()}` | {key.sentence} |" for key in keys]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
