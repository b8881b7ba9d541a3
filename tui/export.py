"""What leaves the program as files: the series as CSV, a one-page status in Markdown, the screen as SVG and PNG.

The first half is pure (values in, text out); `write_all` writes. No file replaces one
that exists, and none is left half written. The page is what a person who runs a study writes by hand
(state, goals, progress, evals, auto-stop, estimate), so it may be pasted into a repository as it is.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.autostop import Judgement
from runner.history import RunHistory
from tui import stop_words, words
from tui.snapshot import QuoteRow, RunSnapshot

STUDY = (
    ("stage1", "Stage 1 baseline eval"),
    ("stage2", "Stage 2 ablated eval"),
    ("stage4", "Stage 4 post-FT ablated eval"),
    ("non_prefill", "Non-prefill comparison"),
)
"""The results of a study, in the order of its page."""
CLIPBOARD_BYTES = 74_994
"""Bytes of base64 that xterm, and tmux with it, take in one OSC 52 sequence."""


# -- values to text ------------------------------------------------------------------------------------------------


def train_csv(history: RunHistory) -> str:
    """The training series as CSV; a value the trainer did not print is empty, one that is no number says so."""
    head = ("step", "loss", "grad_norm", "learning_rate", "epoch", "wall_s")
    return _csv(head, [(p.step, p.loss, p.grad_norm, p.learning_rate, p.epoch, p.wall) for p in history.train])


def eval_csv(history: RunHistory, judgements: Sequence[Judgement] = ()) -> str:
    """The evaluations as CSV, each with what the auto-stop rule made of it where it was judged."""
    head = ("step", "eval_loss", "printed", "eval_runtime_s", "epoch", "wall_s", "gain", "judged", "bad", "why")
    by_step = {j.step: j for j in judgements}
    rows = []
    for e in history.evals:
        j = by_step.get(e.step) if e.step is not None else None
        verdict = (j.gain, "yes" if j.judged else "no", j.bad, j.why) if j is not None else (None, None, None, None)
        rows.append((e.step, e.eval_loss, e.printed, e.eval_runtime, e.epoch, e.wall, *verdict))
    return _csv(head, rows)


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return out.getvalue()


def status_page(snapshot: RunSnapshot, *, when: str) -> str:
    """One page of Markdown that says how the run stands. `when` is the date and time to write on it."""
    title = snapshot.name or snapshot.target
    parts = [
        [f"# {_text(title)} - Status", "", f"Written by tunewatch, {when}."],
        _current(snapshot),
        _study(snapshot.history),
        _live(snapshot),
        _evals(snapshot),
        _auto_stop(snapshot),
        _estimate(snapshot),
        _troubles(snapshot),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _current(snapshot: RunSnapshot) -> list[str]:
    reason = f": {_text(snapshot.reason)}" if snapshot.reason else ""
    lines = ["## Current State", f"- State: **{snapshot.state}**{reason}"]
    if snapshot.history.stage:
        lines.append(f"- Under way: {_text(snapshot.history.stage)}")
    if snapshot.link.word != "live":
        lines.append(f"- Link: {snapshot.link.word}, last answer {words.age(snapshot.link.age_s)} ago")
    return lines


def _study(history: RunHistory) -> list[str]:
    if not history.stages:
        return []
    macros = {s.name: s.macro for s in history.stages}
    lines = ["## Confirmed Metrics"]
    named = dict(STUDY)
    for name, macro in macros.items():
        lines.append(f"- {named.get(name, _text(name))} macro: `{macro:.10f}`")
    one, two, four, other = (macros.get(name) for name, _ in STUDY)
    if one is not None and two is not None:
        lines.append(f"- Stage 2 damage vs Stage 1: `{two - one:+.10f}`{_retention(two, one)}")
    if two is not None and four is not None:
        lines.append(f"- Stage 4 gain vs Stage 2: `{four - two:+.10f}`")
    if one is not None and four is not None and one:
        lines.append(f"- Stage 4 retention vs Stage 1: `{four / one:.4f}x`")
    if one is not None and other is not None:
        lines.append(f"- Non-prefill side effect (FT - vanilla): `{other - one:+.10f}`")
    return lines


def _retention(value: float, base: float) -> str:
    return f" (retention `{value / base:.3f}x`)" if base else ""


def _live(snapshot: RunSnapshot) -> list[str]:
    history = snapshot.history
    if history.step is None and not history.train:
        return []
    of = f"{history.step}/{history.max_steps}" if history.max_steps else f"step {history.step}"
    progress = f"- Progress: `{of}` at `{words.duration(history.elapsed_s)}` elapsed"
    lines = ["## Live Run", f"- Target: `{_code(snapshot.target)}`"]
    gpu = _gpu(snapshot)
    if gpu or snapshot.dph:
        price = f"`${snapshot.dph:.4f}/h`" if snapshot.dph else ""
        lines.append("- Box: " + ", ".join(x for x in (f"`{_code(gpu)}`" if gpu else "", price) if x))
    lines.append(progress + (f" (`~{words.per_step(snapshot.step_s)}`)" if snapshot.step_s is not None else ""))
    if history.train and history.train[-1].loss is not None:
        lines.append(f"- Training loss: `{words.loss(history.train[-1].loss)}` at step {history.train[-1].step}")
    if snapshot.eta_s is not None:
        lines.append(f"- To the last step: {words.duration(snapshot.eta_s)}")
    if snapshot.usd_spent is not None and snapshot.dph:
        end = f", {words.usd(snapshot.usd_at_end)} at the end (base)" if snapshot.usd_at_end is not None else ""
        lines.append(f"- Spent: {words.usd(snapshot.usd_spent)}{end}")
    return lines


def _gpu(snapshot: RunSnapshot) -> str:
    gpus = snapshot.health.get("gpus") or ()
    names = [g.get("name", "") if isinstance(g, dict) else getattr(g, "name", "") for g in gpus]
    return f"{len(names)}x {names[0]}" if len(names) > 1 else (names[0] if names else "")


def _evals(snapshot: RunSnapshot) -> list[str]:
    if not snapshot.history.evals:
        return []
    judged = {j.step: j for j in snapshot.ruling.judgements}
    lines = ["## Evals", "| step | eval_loss | runtime | gain | auto-stop |", "|---:|---:|---:|---:|---|"]
    for e in snapshot.history.evals:
        j = judged.get(e.step) if e.step is not None else None
        loss = e.printed or words.loss(e.eval_loss)
        runtime = f"{e.eval_runtime:.3f}s" if e.eval_runtime is not None else "–"
        best = " ★" if e.step is not None and e.step == snapshot.ruling.state.best_step else ""
        why, gain = (j.why, words.signed(j.gain)) if j is not None else ("", "–")
        lines.append(f"| {e.step if e.step is not None else '?'} | `{loss}`{best} | {runtime} | {gain} | {why} |")
    if snapshot.history.pending_evals:
        steps = ", ".join(map(str, snapshot.history.pending_evals))
        lines.append(f"\nDone, value not written yet: {steps}.")
    return lines


def _auto_stop(snapshot: RunSnapshot) -> list[str]:
    said = "declared by the run" if snapshot.declared else "assumed here"
    lines = [
        "## Auto-stop",
        f"- Rule ({said}): {snapshot.ruling.rule.in_words()}",
        f"- State: {stop_words.phase_words(snapshot, snapshot.ruling)[0]}",
    ]
    if not snapshot.ended and snapshot.ruling.state.stopped_at is None:
        lines.append(f"- Projection: {stop_words.projection_words(snapshot.ruling.projection, snapshot)}")
    if snapshot.other is not None:
        lines.append(f"- {stop_words.other_words(snapshot, snapshot.other)}")
    return lines


def _estimate(snapshot: RunSnapshot) -> list[str]:
    rows = [row for row in (snapshot.stay, *snapshot.quotes) if row is not None]
    if not rows:
        return []
    lines = ["## Runtime/$ Estimate"]
    if snapshot.effective_sps:
        lines += [f"Using the measured effective throughput (`~{snapshot.effective_sps:.3f} step/s`).", ""]
    lines += [
        "| offer | $/h | wall h (opt / base / pess) | cost (opt / base / pess) | notes |",
        "|---|---:|---|---|---|",
    ]
    return lines + [_quote(row) for row in rows]


def _quote(row: QuoteRow) -> str:
    name = "stay here" if row.stay else f"{_text(row.gpu)} `{_code(row.offer_id)}`"
    hours = " / ".join(words.hours(h) for h in row.hours)
    cost = " / ".join(words.usd(u) for u in row.usd)
    return f"| {name} | `${row.dph:.4f}` | `{hours}` | `{cost}` | {_text('; '.join(row.notes))} |"


def _troubles(snapshot: RunSnapshot) -> list[str]:
    lines = [f"- {_text(warning)}" for warning in snapshot.warnings]
    if snapshot.history.traceback:
        lines += ["", "```", snapshot.history.traceback.replace("```", "'''"), "```"]
    return ["## Warnings", *lines] if lines else []


def _text(value: str) -> str:
    """Words that Markdown takes as words: marks, table bars and line ends cannot break the page."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(value.split()))


def _code(value: str) -> str:
    return " ".join(value.split()).replace("`", "'").replace("|", "\\|")


# -- text to files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what could not be, in sentences."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def in_words(self) -> str:
        """For a toast."""
        names = ", ".join(path.name for path in self.paths)
        return "\n".join([f"{names} in {self.paths[0].parent}" if names else "Nothing was written.", *self.notes])


def write_all(snapshot: RunSnapshot, folder: Path, *, when: str, svg: str = "") -> Exported:
    """Write CSV, Markdown and, with `svg`, pictures of the screen into `folder`. For a thread.

    Raises OSError when the folder cannot be written; files written before stay. `when` names the moment in words, and
    its digits name the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{_file_name(snapshot.name or snapshot.target)}-{re.sub(r'[^0-9]', '', when)[:14]}"
    history, paths, notes = snapshot.history, [], []
    if history.train:
        paths.append(_write(folder / f"{stem}-train.csv", train_csv(history).encode()))
    if history.evals:
        paths.append(_write(folder / f"{stem}-evals.csv", eval_csv(history, snapshot.ruling.judgements).encode()))
    paths.append(_write(folder / f"{stem}.md", status_page(snapshot, when=when).encode()))
    if svg:
        paths.append(_write(folder / f"{stem}.svg", svg.encode()))
        png = png_of(svg)
        if png is None:
            notes.append("No PNG: it needs resvg_py (pip install resvg_py). The SVG opens in any browser.")
        else:
            paths.append(_write(folder / f"{stem}.png", png))
    return Exported(tuple(paths), tuple(notes))


def png_of(svg: str, width: int = 1600) -> bytes | None:
    """The picture as PNG, `width` pixels wide; None where resvg_py is not installed.

    Not cairosvg and not rsvg-convert: they have no font fallback, or another advance, for braille.
    """
    if importlib.util.find_spec("resvg_py") is None:
        return None
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=width))


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-80:] or "run"


def _write(path: Path, data: bytes) -> Path:
    """Write a new file, whole or not at all; where the name is taken, a number is put behind it."""
    for number in range(1, 1000):
        target = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            file = target.open("xb")
        except FileExistsError:
            continue
        try:
            with file:
                file.write(data)
        except OSError:
            target.unlink(missing_ok=True)
            raise
        return target
    raise FileExistsError(f"{path} exists a thousand times")


def clipboard_words(text: str) -> str:
    """What to say after a copy through the terminal (OSC 52), which answers nothing and drops what is too long."""
    size = len(text.encode()) * 4 // 3
    if size > CLIPBOARD_BYTES:
        return (
            f"{len(text):,} characters: more than most terminals take into the clipboard. Export writes them to a file."
        )
    return f"Copied {len(text):,} characters."
