"""How good is the stop forecast? Scores it on recorded curves.

    python -m estimator.backtest --curves FILE --patience 4 --min-delta 0.003 --min-steps-frac 0.1 --json [--dump OUT]
    python -m estimator.backtest --held-out

The first form forecasts the curves of a file with the library that ships; a curve that is itself in that library, and
all others from its source, are left out of it for this forecast. The second holds out the shipped curves by source; the
curves that the project made itself teach there and are not scored.
Everything is counted in evaluations: a run of N evals stands for a horizon of N, and the rule counts in them too. For
each share of progress the first k evals are shown, and (p10, p50, p90) are compared with the eval at which the rule
really stopped. pinball and width are shares of N.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimator.library import STUDY, Curve, Library, shipped, trimmed
from estimator.pack import read_curves
from estimator.plateau import forecast_stop
from estimator.view import RunView
from runner.autostop import CountFrom, StopRule, replay

PROGRESS = (0.1, 0.2, 0.3, 0.5)
LEVELS = (0.1, 0.5, 0.9)


@dataclass(frozen=True, slots=True)
class Protocol:
    """The rule of the backtest; min_steps is a share of each curve's own length.

    Raises ValueError, in words, for a share outside 0 to 1; the rule itself judges the rest.
    """

    patience: int = 4
    min_delta: float = 0.003
    min_steps_frac: float = 0.1
    count_from: CountFrom = "min_steps"

    def __post_init__(self) -> None:
        if not 0 <= self.min_steps_frac <= 1:
            raise ValueError(f"min-steps-frac is a share of the curve, 0 to 1, not {self.min_steps_frac}")

    def rule(self, length: int) -> StopRule:
        """The rule for a curve of `length` evals."""
        first = max(1, round(self.min_steps_frac * length))
        return StopRule(self.patience, self.min_delta, first, self.count_from)


@dataclass(frozen=True, slots=True)
class Scored:
    """One forecast beside the truth, in evals."""

    curve: int
    family: str
    progress: float
    k: int
    length: int
    truth: int
    p10: int
    p50: int
    p90: int
    ms: float
    """Processor time of the forecast."""
    samples: tuple[int, ...]

    @property
    def stopper(self) -> bool:
        """Whether the rule really ended the run early."""
        return self.truth < self.length

    @property
    def covered(self) -> bool:
        """Whether the truth lies in the interval."""
        return self.p10 <= self.truth <= self.p90

    @property
    def pinball(self) -> float:
        """Mean quantile loss at .1, .5, .9 as a share of the length."""
        losses = (
            max(q * (self.truth - p), (q - 1) * (self.truth - p))
            for q, p in zip(LEVELS, (self.p10, self.p50, self.p90), strict=True)
        )
        return sum(losses) / len(LEVELS) / self.length

    @property
    def width(self) -> float:
        """Of the interval, as a share of the length."""
        return (self.p90 - self.p10) / self.length

    @property
    def error(self) -> float:
        """Of the median, as a share of the length."""
        return abs(self.p50 - self.truth) / self.length


def true_stop(losses: Sequence[float] | NDArray[np.float64], rule: StopRule) -> int:
    """The eval at which the rule stops this curve, its length when it never does."""
    return replay(rule, [(i, float(v)) for i, v in enumerate(losses, 1)]).stopped_at or len(losses)


def score(
    curves: Sequence[Curve],
    protocol: Protocol,
    library: Library,
    held_out: Callable[[int], Callable[[Library], NDArray[np.bool_]] | None],
) -> list[Scored]:
    """Forecast every curve at every progress. `held_out(i)` says what the library may not use for curve i."""
    scored: list[Scored] = []
    for number, curve in enumerate(curves):
        losses = trimmed(curve.steps, curve.losses)
        length = len(losses)
        rule = protocol.rule(length)
        truth = true_stop(losses, rule)
        for progress in PROGRESS:
            k = max(3, round(progress * length))
            if k >= truth or k >= length - 1:
                continue
            view = RunView(
                step=k,
                horizon=length,
                eval_every=1,
                evals=tuple((i, float(v), None) for i, v in enumerate(losses[:k], 1)),
            )
            # what is drawn depends on what the forecast may see, not on where in a file the curve stands
            rng = np.random.default_rng((zlib.crc32(losses[:k].tobytes()), length))
            began = time.process_time()
            forecast = forecast_stop(view, rule, rng, library, held_out=held_out(number))
            ms = (time.process_time() - began) * 1e3
            ends = (forecast.p10, forecast.p50, forecast.p90)
            samples = tuple(int(s) for s in forecast.samples)
            scored.append(Scored(number, curve.family, progress, k, length, truth, *ends, ms, samples))
    return scored


def by_source(curves: Sequence[Curve], library: Library) -> Callable[[int], Callable[[Library], NDArray[np.bool_]]]:
    """Leave a curve's whole source out of the library when the curve itself is in it."""
    known = {(c.repo, c.path, c.sub) for c in library.curves}

    def for_curve(number: int) -> Callable[[Library], NDArray[np.bool_]]:
        curve = curves[number]
        own = curve.group if (curve.repo, curve.path, curve.sub) in known else None
        return lambda lib: np.asarray(lib.groups == own)

    return for_curve


def recorded(library: Library) -> list[Curve]:
    """The curves of the library that somebody else recorded: those it is judged by."""
    return [curve for curve in library.curves if curve.kind != STUDY]


def summary(scored: Sequence[Scored]) -> dict[str, float | None]:
    """The numbers of the contract, None where there is nothing to average."""
    stoppers = [s for s in scored if s.stopper]
    return {
        "coverage80": _mean(s.covered for s in scored),
        "coverage80_stoppers": _mean(s.covered for s in stoppers),
        "pinball": _mean(s.pinball for s in scored),
        "width": _mean(s.width for s in scored),
        "median_error": _median([s.error for s in scored]),
        "forecasts": len(scored),
        "forecasts_stoppers": len(stoppers),
    }


def bootstrap(scored: Sequence[Scored], draws: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """90 % intervals of the summary under resampling of whole curves; prefixes of one curve hang together.

    Empty when nothing was scored.
    """
    if not scored:
        return {}
    rng = np.random.default_rng(seed)
    curves = sorted({s.curve for s in scored})
    slot = {c: i for i, c in enumerate(curves)}
    sums = np.zeros((len(curves), 6))
    for s in scored:
        row = (1, s.covered, s.stopper, s.covered and s.stopper, s.pinball, s.width)
        sums[slot[s.curve]] += np.array(row, dtype=np.float64)
    total = sums[rng.integers(0, len(curves), (draws, len(curves)))].sum(axis=1)
    n, covered, stoppers, covered_stoppers, pinball, width = total.T
    shares = {
        "coverage80": covered / n,
        "coverage80_stoppers": covered_stoppers / np.maximum(stoppers, 1),
        "pinball": pinball / n,
        "width": width / n,
    }
    return {k: (float(np.quantile(v, 0.05)), float(np.quantile(v, 0.95))) for k, v in shares.items()}


def tables(scored: Sequence[Scored]) -> list[str]:
    """Per family and per progress, for people."""
    head = f"{'':24} {'n':>4} {'cover80':>8} {'stoppers':>9} {'(n)':>5} {'pinball':>8} {'width':>6} {'med.err':>8}"
    lines = [head, _line("all", scored)]
    lines += [_line(f, [s for s in scored if s.family == f]) for f in sorted({s.family for s in scored})]
    lines += [_line(f"at {p:.0%}", [s for s in scored if s.progress == p]) for p in PROGRESS]
    for p in PROGRESS[:2]:
        lines.append(_line(f"hf at {p:.0%}", [s for s in scored if s.progress == p and s.family == "hf"]))
    return lines


def _line(name: str, scored: Sequence[Scored]) -> str:
    numbers = summary(scored)
    cells = (
        _cell(numbers["coverage80"], 8, 3),
        _cell(numbers["coverage80_stoppers"], 9, 3),
        f"{numbers['forecasts_stoppers']:>5}",
        _cell(numbers["pinball"], 8, 4),
        _cell(numbers["width"], 6, 3),
        _cell(numbers["median_error"], 8, 3),
    )
    return " ".join((f"{name:24}", f"{len(scored):>4}", *cells))


def _cell(value: float | None, width: int, digits: int) -> str:
    return "-".rjust(width) if value is None else f"{value:{width}.{digits}f}"


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; exit code 2 for a file that is not a list of curves."""
    parser = argparse.ArgumentParser(prog="python -m estimator.backtest", description="Score the stop forecast.")
    parser.add_argument("--curves", type=Path, help="JSON lines; without it the shipped curves, held out by source")
    parser.add_argument("--held-out", action="store_true", help="hold out the shipped curves by source")
    parser.add_argument("--patience", type=int, default=4)
    parser.add_argument("--min-delta", type=float, default=0.003)
    parser.add_argument("--min-steps-frac", type=float, default=0.1)
    parser.add_argument("--count-from", choices=("min_steps", "start"), default="min_steps")
    parser.add_argument("--dump", type=Path, help="write one JSON line per forecast")
    parser.add_argument("--json", action="store_true", dest="as_json")
    args = parser.parse_args(argv)
    library = shipped()
    try:
        protocol = Protocol(args.patience, args.min_delta, args.min_steps_frac, args.count_from)
        protocol.rule(10)
        curves = recorded(library) if args.curves is None or args.held_out else read_curves(args.curves)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"estimator.backtest: {error}\n")
        return 2
    scored = score(curves, protocol, library, by_source(curves, library))
    if args.dump:
        try:
            args.dump.write_text("".join(json.dumps(_dumped(s)) + "\n" for s in scored), encoding="utf-8")
        except OSError as error:
            sys.stderr.write(f"estimator.backtest: {error}\n")
            return 2
    document: dict[str, Any] = {
        **summary(scored),
        "ms_per_forecast": _mean(s.ms for s in scored),
        "count_from": args.count_from,
    }
    if args.curves is None or args.held_out:
        document["interval90"] = bootstrap(scored)
    if args.as_json:
        sys.stdout.write(json.dumps(document) + "\n")
        return 0
    for line in tables(scored):
        sys.stdout.write(line + "\n")
    for name, (low, high) in bootstrap(scored).items():
        sys.stdout.write(f"{name}: 90 % of resampled curve sets in {low:.4f} to {high:.4f}\n")
    if scored:
        sys.stdout.write(f"{document['ms_per_forecast']:.2f} ms of processor time per forecast\n")
    return 0


def _dumped(scored: Scored) -> dict[str, Any]:
    row = {key: getattr(scored, key) for key in ("curve", "k", "p10", "p50", "p90")}
    return {**row, "samples": list(scored.samples)}


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, such as head, is no error
    raise SystemExit(main())
