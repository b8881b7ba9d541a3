"""The top line: what is learning, when it ends, what it costs, whether the link is alive.

Parts have a priority and shorter forms. What does not fit is shortened or left out from the least important on; the
time left and the dollars are never cut.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, cast

from rich.cells import cell_len
from rich.text import Text
from textual.app import RenderResult
from textual.events import Resize
from textual.reactive import reactive
from textual.widget import Widget

from tui import words

if TYPE_CHECKING:
    from tui.app import TunewatchApp
    from tui.last_seen import LastSeen
    from tui.rental_view import RentalSnapshot
    from tui.snapshot import RunSnapshot

STATE_GLYPHS = {
    "starting": "◌",
    "running": "●",
    "finished": "✓",
    "stopped": "■",
    "crashed": "✗",
    "silent": "?",
    "unreachable": "⌁",
}
STATE_COLOURS = {
    "starting": "accent",
    "running": "success",
    "finished": "primary",
    "stopped": "primary",
    "crashed": "error",
    "silent": "warning",
    "unreachable": "warning",
}
LINK_COLOURS = {"live": "success", "stale": "warning", "reconnecting": "warning", "offline": "error"}


class Part(NamedTuple):
    """One part of the line: its forms from the longest to the shortest, each with the colour of the theme."""

    forms: tuple[str, ...]
    colour: str = "foreground"
    priority: int = 0
    """The lowest goes first; a part of `ALWAYS` keeps its shortest form whatever happens."""
    bold: bool = False


ALWAYS = 100
GAP = "  "


def fit(parts: list[Part], width: int) -> list[tuple[str, Part]]:
    """Choose a form of each part so that the line fits `width` cells; parts keep their order."""
    chosen: dict[int, int] = dict.fromkeys(range(len(parts)), 0)

    def too_long() -> bool:
        shown = [cell_len(parts[i].forms[form]) for i, form in chosen.items()]
        return sum(shown) + len(GAP) * max(len(shown) - 1, 0) > width

    def shorten(i: int) -> None:
        while too_long() and chosen[i] + 1 < len(parts[i].forms):
            chosen[i] += 1

    order = sorted(chosen, key=lambda i: parts[i].priority)
    # the parts that stay whatever happens have the longest words: they give those up before any other is touched
    for i in [i for i in order if parts[i].priority >= ALWAYS]:
        while too_long() and chosen[i] + 2 < len(parts[i].forms):
            chosen[i] += 1
    for i in order:
        if parts[i].priority < ALWAYS:
            shorten(i)
    for i in order:
        if too_long() and parts[i].priority < ALWAYS:
            del chosen[i]
    for i in order:
        if i in chosen:
            shorten(i)
    for i in sorted(order, key=lambda i: (parts[i].priority >= ALWAYS, -parts[i].priority)):
        # what was shortened for a part that is gone now may have its words back
        while i in chosen and chosen[i] > 0:
            chosen[i] -= 1
            if too_long():
                chosen[i] += 1
                break
    return [(parts[i].forms[form], parts[i]) for i, form in sorted(chosen.items())]


def parts(snapshot: RunSnapshot, rental: RentalSnapshot | None = None, *, looks_only: bool = False) -> list[Part]:
    """The parts of the line for one snapshot, and for what bills at this moment where something does."""
    history = snapshot.history
    colour, glyph = STATE_COLOURS[snapshot.state], STATE_GLYPHS[snapshot.state]
    state = (f"{glyph} {_state_word(snapshot)}", f"{glyph} {snapshot.state}", glyph)
    if snapshot.lost and rental is not None and rental.moving(snapshot.name):
        colour, state = "warning", ("⇄ moving", "⇄ moving", "⇄")
    out = [Part(state, colour, 60, bold=True)]
    name = snapshot.name or snapshot.target
    short = name.rstrip("/").rsplit("/", 1)[-1]
    out.append(Part(tuple(dict.fromkeys((words.shorten(name, 34), words.shorten(short, 18)))), "foreground", 30))
    if history.step is not None:
        of = f"{history.step}/{history.max_steps}" if history.max_steps else f"step {history.step}"
        forms = [of]
        if history.max_steps:
            share = min(history.step / history.max_steps, 1.0)
            forms.insert(0, f"{of} {_bar(share, 12)} {words.percent(share)}")
        out.append(Part(tuple(forms), "foreground", 50))
    if snapshot.step_s is not None:
        out.append(Part((words.per_step(snapshot.step_s),), "secondary", 20))
    out.append(_eta(snapshot))
    out.append(_money(snapshot))
    if looks_only:
        out.append(Part(("read-only",), "warning", 65))
    if rental is not None and rental.forms:
        out.append(Part(rental.forms, rental.colour, 70, bold=True))
    link = snapshot.link
    dot = {"live": "●", "stale": "◐", "reconnecting": "◌", "offline": "○"}[link.word]
    said = link.word if link.age_s is None else f"{link.word} {words.age(link.age_s)}"
    out.append(Part((f"{dot} {said}", f"{dot} {link.word}", dot), LINK_COLOURS[link.word], 40))
    return out


def _state_word(snapshot: RunSnapshot) -> str:
    from runner.autostop import Phase  # known once there is a snapshot; the first frame has none

    reason = snapshot.ruling.state.reason if snapshot.declared else None
    if snapshot.state in ("stopped", "finished") and snapshot.ruling.state.phase is Phase.FIRED and reason:
        return f"{snapshot.state}: {reason}"
    return snapshot.state


def _bar(share: float, width: int) -> str:
    full = round(share * width * 2)
    return "━" * (full // 2) + ("╸" if full % 2 else "") + "─" * (width - full // 2 - full % 2)


def _eta(snapshot: RunSnapshot) -> Part:
    if snapshot.ended:
        took = words.duration(snapshot.history.elapsed_s)
        return Part((f"took {took}",), "foreground", ALWAYS, bold=True)
    if snapshot.declared and snapshot.ruling.state.stopped_at is not None:
        # its own rule has ended the training; what goes on is an evaluation, a save or an upload
        return Part(("training is done", "trained"), "primary", ALWAYS, bold=True)
    stop, end = snapshot.eta_stop_s, snapshot.eta_s
    if stop is not None and end is not None and stop < 0.97 * end:
        left, most = words.duration(stop), words.duration(end)
        forms = (f"ETA {left} by auto-stop, {most} at most", f"ETA {left} … {most}", f"ETA {left}")
        return Part(forms, "primary", ALWAYS, bold=True)
    return Part((f"ETA {words.duration(end if end is not None else stop)}",), "primary", ALWAYS, bold=True)


def _money(snapshot: RunSnapshot) -> Part:
    if snapshot.dph is None:
        return Part(("no price known", "$?"), "foreground", ALWAYS)
    if not snapshot.dph:
        return Part(("$0.00 on this machine", "$0.00 here", "$0.00"), "foreground", ALWAYS)
    spent, end = words.usd(snapshot.usd_spent), words.usd(snapshot.usd_at_end)
    return Part((f"{spent} spent → {end}", f"{spent} → {end}", f"→{end}"), "accent", ALWAYS, bold=True)


class StatusLine(Widget):
    """One row at the top of a run."""

    DEFAULT_CSS = """
    StatusLine { height: 1; padding: 0 1; background: $panel; }
    """

    snapshot: reactive[RunSnapshot | None] = reactive(None)
    memory: reactive[LastSeen | None] = reactive(None)
    """What it said when the run was last looked at; shown until there is a snapshot."""
    rental: reactive[RentalSnapshot | None] = reactive(None)

    def on_mount(self) -> None:
        """What bills comes from the application, whatever run is shown."""
        control = cast("TunewatchApp", self.app)
        control.rental_changed.subscribe(self, self._rental)
        self.rental = control.rental

    def _rental(self, rental: RentalSnapshot) -> None:
        self.rental = rental

    def on_resize(self, event: Resize) -> None:
        """A new width is a new choice of forms."""
        self.refresh()

    def _from_memory(self) -> Text:
        """The line as it stood, quiet, with its age in place of the link."""
        assert self.memory is not None  # noqa: S101 - only called with one
        ago = words.duration(max(time.time() - self.memory.at, 0.0), parts=1)
        known = [*(Part(*part) for part in self.memory.parts), Part((f"○ as of {ago} ago, reading …", f"○ {ago} ago"))]
        line = Text(no_wrap=True, overflow="crop", end="", style="dim")
        for number, (form, part) in enumerate(fit(known, self.size.width)):
            line.append(GAP if number else "").append(form, self.app.theme_variables.get(part.colour, ""))
        return line

    def render(self) -> RenderResult:
        """Fit the parts into the row."""
        if self.snapshot is None:
            return self._from_memory() if self.memory is not None else Text("reading …", style="dim")
        variables = self.app.theme_variables
        line = Text(no_wrap=True, overflow="crop", end="")
        known = parts(self.snapshot, self.rental, looks_only=self.app.has_class("-read-only"))
        for number, (form, part) in enumerate(fit(known, self.size.width)):
            style = variables.get(part.colour, "") + (" bold" if part.bold else "")
            line.append((GAP if number else ""), "").append(form, style.strip())
        return line
