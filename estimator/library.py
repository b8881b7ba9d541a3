"""Real evaluation curves and what they say about a new one: analogs continued through the auto-stop machine.

`curves.npz` holds evaluation-loss curves of public training runs and of the miniature study (sources in CURVES.md,
packed by `estimator.pack`).
A *state* is one curve after its first k evals, described by a few numbers in units of the rule's min_delta. For a run
the nearest states are found, at most two per curve, and the run is continued the way those curves went on: their
increments, scaled to the run's own recent movement, in absolute evals or stretched to the run's horizon. What comes
out are loss paths, not labels, so any rule and either counting mode can be asked of them afterwards.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from estimator.simulate import Floats, Ints
from runner.autostop import StopRule

FILE = Path(__file__).with_name("curves.npz")

NEIGHBOURS = 60
PER_CURVE = 2
BANDWIDTH_RANK = 15
"""The kernel's width is the distance of this neighbour, so it adapts to how crowded the library is there."""
STUDY = "study"
"""The kind of the curves that the project made itself: real Trainer runs of the miniature study."""
STUDY_TRUST = 0.5
"""Weight of such a curve beside one that somebody recorded elsewhere."""
AT_HOME, FAR = 1.15, 4.0
"""Distances to the nearest analogs: usual for the library's own curves held out, and for a curve unlike them all."""
WEIGHTS = np.array([1.0, 1.0, 1.0, 0.7, 1.0, 1.0, 0.7, 1.0, 1.0, 0.5, 0.5])
"""Of the eleven features, set once by judgement; halving or doubling any moves the held-out score by a few percent."""
SCALE_POWER = 0.8
"""How far an analog's increments are scaled to the run's own: 0 not at all, 1 fully."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One recorded run."""

    kind: str
    repo: str
    path: str
    sub: str
    steps: Floats
    losses: Floats
    runtimes: Floats
    """Seconds per evaluation; NaN where the source does not tell."""
    elapsed: Floats
    """Seconds since the start; NaN where the source does not tell."""

    @property
    def group(self) -> str:
        """Curves of one group stem from one source and are held out together."""
        return group_of(self.kind, self.repo, self.path)

    @property
    def family(self) -> str:
        """Fine-tunes with the Hugging Face Trainer are one family, every other kind is its own."""
        return "hf" if self.kind.startswith("hf") else self.kind


def make_curve(names: Sequence[str], columns: Sequence[Floats]) -> Curve:
    """A curve from kind, repo, path, sub and from steps, losses, runtimes, elapsed."""
    kind, repo, path, sub = names
    steps, losses, runtimes, elapsed = columns
    return Curve(kind, repo, path, sub, steps, losses, runtimes, elapsed)


def group_of(kind: str, repo: str, path: str) -> str:
    """The source by which a curve is held out: repository, MLPerf submitter, record folder or task file."""
    if kind.startswith("mlperf"):
        return "mlperf:" + path.split("/")[0]
    if kind == "nanogpt":
        return "nanogpt:" + "/".join(path.split("/")[:3])
    if kind == "taskset":
        return "taskset:" + path
    if kind == STUDY:
        return STUDY
    return "hf:" + repo


def trimmed(steps: Floats, losses: Floats) -> Floats:
    """The losses that count as evals: a first one at step 0 is no result of training and goes when enough is left."""
    return losses[1:] if len(losses) > 10 and steps[0] == 0 else losses


class Library:
    """Curves padded into one matrix, with the features of every state; made once, read by many forecasts."""

    def __init__(self, curves: Collection[Curve]) -> None:
        self.curves = tuple(curves)
        values = [trimmed(c.steps, c.losses) for c in self.curves]
        self.lengths: Ints = np.array([len(v) for v in values], dtype=np.int64)
        width = int(self.lengths.max())
        self.losses: Floats = np.stack([np.pad(v, (0, width - len(v)), mode="edge") for v in values])
        self.groups = np.array([c.group for c in self.curves])
        self.families = np.array([c.family for c in self.curves])
        self.trust: Floats = np.where(self.families == STUDY, STUDY_TRUST, 1.0)
        rows = [np.column_stack([np.full(n - 1, i), np.arange(1, n)]) for i, n in enumerate(self.lengths)]
        states = np.concatenate(rows)
        self.curve: Ints = states[:, 0]
        """Of each state, the curve."""
        self.k: Ints = states[:, 1]
        """Of each state, the evals seen; from 1 to one before the last."""
        self._raw = _movement(self.losses, self.curve, self.k)
        self._by_rule = functools.lru_cache(maxsize=32)(self._features)

    def features(self, rule: StopRule, min_share: float) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Features of every state under a rule, their spread, and which states the rule has not stopped yet.

        `min_share` is min_steps as a share of the horizon: each curve's own horizon stands in for the run's.
        """
        return self._by_rule(rule.patience, rule.min_delta, rule.count_from, round(min_share, 3))

    def _features(
        self, patience: int, min_delta: float, count_from: str, min_share: float
    ) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        first = np.maximum(1, np.round(min_share * self.lengths)).astype(np.int64)
        judged_from = first if count_from == "min_steps" else np.ones_like(first)
        references, bads = _machine(self.losses, judged_from, min_delta)
        stops = _stops(bads, first, patience, self.lengths)
        row, at = self.curve, self.k - 1
        features = describe(
            self._raw, references[row, at], bads[row, at], self.k, self.lengths[row], unit_of(min_delta)
        )
        return features, features.std(axis=0) + 1e-9, self.k < stops[row]


def unit_of(min_delta: float) -> float:
    """The unit of loss in which movement is measured; a rule without min_delta is given a small one."""
    return max(min_delta, 1e-4)


def _movement(losses: Floats, curve: Ints, k: Ints) -> Floats:
    """Columns, in loss units: gain per eval over the recent third and the last two, noise, fall, rise, level."""
    last = losses[curve, k - 1]
    lowest = np.minimum.accumulate(losses, axis=1)[curve, k - 1]
    third = np.maximum(np.minimum(k - 1, np.maximum(2, k // 3)), 0)
    two = np.minimum(k - 1, 2)
    gain = (losses[curve, k - 1 - third] - last) / np.maximum(third, 1)
    recent = (losses[curve, k - 1 - two] - last) / np.maximum(two, 1)
    # two evals have no second difference: a column that nothing looks at stands for it
    bends = np.abs(np.diff(losses, 2, axis=1)) if losses.shape[1] > 2 else np.zeros((len(losses), 1))
    # the median of the newest eight second differences, of fewer where there are fewer
    window = k[:, None] - 3 - np.arange(8)[None, :]
    seen = window >= 0
    noise = np.zeros(len(k))
    if bends.shape[1]:
        wide = np.sort(np.where(seen, bends[curve[:, None], np.clip(window, 0, bends.shape[1] - 1)], np.inf), axis=1)
        count, row = seen.sum(axis=1), np.arange(len(k))
        middle = (wide[row, np.maximum(count - 1, 0) // 2] + wide[row, np.minimum(count // 2, 7)]) / 2
        noise = np.where(k > 2, middle, 0.0)
    noise = np.where(k == 2, np.abs(gain), noise)
    return np.column_stack([gain, recent, noise, losses[curve, 0] - lowest, last - lowest, last])


def _machine(losses: Floats, judged_from: Ints, min_delta: float) -> tuple[Floats, Ints]:
    """Reference and count of `runner.autostop` after every eval of every curve; the stop itself is left out."""
    n, width = losses.shape
    references = np.full((n, width), np.inf)
    bads = np.zeros((n, width), dtype=np.int64)
    reference, bad = np.full(n, np.inf), np.zeros(n, dtype=np.int64)
    for j in range(width):
        judged = judged_from <= j + 1
        better = judged & (reference - losses[:, j] > min_delta + 1e-9)
        reference = np.where(better, losses[:, j], reference)
        bad = np.where(better, 0, np.where(judged, bad + 1, bad))
        references[:, j], bads[:, j] = reference, bad
    return references, bads


def _stops(bads: Ints, first: Ints, patience: int, lengths: Ints) -> Ints:
    at = np.arange(1, bads.shape[1] + 1)[None, :]
    fires = (bads >= patience) & (at >= first[:, None]) & (at <= lengths[:, None])
    return np.where(fires.any(axis=1), fires.argmax(axis=1) + 1, lengths)


def describe(raw: Floats, reference: Floats, bad: Ints, k: Ints, length: Ints, unit: float) -> Floats:
    """The eleven features of states: movement in units of min_delta, machine state, place and level."""
    gain, recent, noise, fall, rise, last = raw.T
    ahead = np.where(np.isfinite(reference), reference - last, 0.0)
    return np.column_stack(
        [
            _slog(gain / unit),
            _slog(recent / unit),
            np.log(noise * 0.604 / unit + 0.1),  # 1.48 / sqrt(6): from a median second difference to a sd
            _slog(fall / unit),
            _slog(rise / unit),
            bad,
            _slog(ahead / unit),
            np.log(k),
            k / length,
            np.log(length),
            np.log(np.maximum(last, 1e-3)),
        ]
    )


def _slog(x: Floats) -> Floats:
    signed: Floats = np.sign(x) * np.log1p(np.abs(x))
    return signed


@dataclass(frozen=True, slots=True)
class Seen:
    """What a forecast knows of the run, in evals."""

    losses: Floats
    """The k evals so far, all finite."""
    length: int
    """Evals there will be in all if nothing stops the run."""
    rule: StopRule
    reference: float | None
    bad: int
    min_share: float

    @property
    def k(self) -> int:
        """Evals seen."""
        return len(self.losses)


def neighbours(
    library: Library, seen: Seen, held_out: Callable[[Library], NDArray[np.bool_]] | None = None
) -> tuple[Ints, Floats, float]:
    """Indices of the nearest states, their weights (sum 1), and how far away they are (the width of the kernel, about 1
    where the library is at home). `held_out` marks curves that must not be used.

    Runs with fewer than three evals are compared with states of the same count, where not all features exist.
    """
    features, spread, alive = library.features(seen.rule, seen.min_share)
    usable = alive & ((library.k >= 3) if seen.k >= 3 else (library.k == max(1, seen.k)))
    if held_out is not None:
        usable = usable & ~held_out(library)[library.curve]
    candidates = np.flatnonzero(usable)
    if len(candidates) == 0:
        return candidates, np.zeros(0), FAR
    if seen.k == 0:
        # what tunewatch watches is a fine-tune more often than not: half of the weight is theirs
        owners = library.curve[candidates]
        tunes = np.isin(library.families[owners], ("hf", STUDY))
        trust = library.trust[owners]
        prior = trust * np.where(tunes, 0.5 / max(1.0, trust[tunes].sum()), 0.5 / max(1.0, trust[~tunes].sum()))
        return candidates, prior / prior.sum(), AT_HOME
    one = np.zeros(1, dtype=np.int64)
    mine = describe(
        _movement(seen.losses[None, :], one, one + seen.k),
        np.array([math.inf if seen.reference is None else seen.reference]),
        one + seen.bad,
        one + seen.k,
        one + seen.length,
        unit_of(seen.rule.min_delta),
    )
    gaps = (features[candidates] - mine) / spread * WEIGHTS
    distance = np.sqrt(np.einsum("ij,ij->i", gaps, gaps))
    picked = _nearest(distance, library.curve[candidates])
    near = distance[picked]
    width = near[min(len(near) - 1, BANDWIDTH_RANK)] + 1e-6
    weight = library.trust[library.curve[candidates[picked]]] * np.exp(-0.5 * (near / width) ** 2)
    return candidates[picked], weight / weight.sum(), float(width)


def _nearest(distance: Floats, curve: Ints) -> list[int]:
    """Indices of the nearest states, at most PER_CURVE of one curve, near ones first."""
    # the nearest few hundred nearly always do; sorting all of them is the larger part of a forecast's time
    few = min(len(distance), 10 * NEIGHBOURS)
    for reach in (few, len(distance)):
        front = np.argpartition(distance, reach - 1)[:reach]
        picked: list[int] = []
        used: dict[int, int] = {}
        for i in front[np.lexsort((front, distance[front]))].tolist():
            owner = int(curve[i])
            if used.get(owner, 0) < PER_CURVE:
                used[owner] = used.get(owner, 0) + 1
                picked.append(i)
                if len(picked) == NEIGHBOURS:
                    return picked
    return picked


def analog_paths(
    library: Library, seen: Seen, states: Ints, weights: Floats, n: int, rng: np.random.Generator
) -> Floats:
    """Losses of the coming evals, shape (n, length - k), continued as the states' own curves went on."""
    coming = seen.length - seen.k
    # systematic resampling: every state gets its share of the paths up to one
    picks = np.searchsorted(np.cumsum(weights), (np.arange(n) + rng.random()) / n)
    chosen = states[np.minimum(picks, len(states) - 1)]
    curve, k = library.curve[chosen], library.k[chosen]
    if seen.k == 0:
        # nothing seen: the run is the analog from its first eval on
        k = np.zeros_like(k)
    left = library.lengths[curve] - k
    draw, second = rng.random((2, n))
    stretch = (draw < 0.5) | ((left >= coming) & (second < 0.3))
    pace = np.where(stretch, left / coming, 1.0)
    ahead = np.arange(1, coming + 1)[None, :] * pace[:, None]
    inside = np.minimum(ahead, left[:, None])
    position = np.maximum(k[:, None] - 1 + inside, 0.0)
    low = np.minimum(position.astype(np.int64), (library.lengths[curve] - 1)[:, None])
    high = np.minimum(low + 1, (library.lengths[curve] - 1)[:, None])
    share = position - low
    rows: Floats = library.losses[curve[:, None], low] * (1 - share) + library.losses[curve[:, None], high] * share
    end = library.lengths[curve] - 1
    back = np.maximum(end - 3, np.maximum(k - 1, 0))
    slope = (library.losses[curve, end] - library.losses[curve, back]) / np.maximum(1, end - back)
    # past the end of a shorter curve its last slope goes on at half strength
    rows += 0.5 * slope[:, None] * (ahead - inside)
    if seen.k == 0:
        return rows
    start = library.losses[curve, k - 1]
    floor = 2 * unit_of(seen.rule.min_delta)
    mine = abs(seen.losses[-1] - seen.losses[max(0, seen.k - 4)]) + floor
    theirs = np.abs(start - library.losses[curve, np.maximum(0, k - 4)]) + floor
    scale = np.clip(mine / theirs, 0.25, 4.0) ** SCALE_POWER
    paths: Floats = seen.losses[-1] + (rows - start[:, None]) * scale[:, None]
    return paths


@functools.lru_cache(maxsize=1)
def shipped() -> Library:
    """The library that comes with the package."""
    return Library(load(FILE))


def load(path: Path) -> list[Curve]:
    """Read a packed file."""
    with np.load(path, allow_pickle=False) as packed:
        ends = np.cumsum(packed["lengths"])
        starts = ends - packed["lengths"]
        names = [packed[key] for key in ("kind", "repo", "path", "sub")]
        columns = [packed[key] for key in ("steps", "losses", "runtimes", "elapsed")]
    return [
        make_curve([str(name[i]) for name in names], [column[a:b] for column in columns])
        for i, (a, b) in enumerate(zip(starts, ends, strict=True))
    ]
