"""Shadow bets: every forecast is a bet, settled when the run ends. Here is the scoring; `remote.bets` keeps them.

The calibration so far is shown, and used: intervals that held the truth too seldom are widened, gently, because the
evidence of a few runs must not overrule the hundred recorded ones behind the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PRIOR_RUNS = 10.0
"""The default interval counts as this many runs with exactly the promised coverage."""
PROMISED = 0.80
LARGEST_WIDENING = 0.15


@dataclass(frozen=True, slots=True)
class Bet:
    """One forecast of one run, with the truth once it is known."""

    run_id: str
    step: int
    """Where the run was."""
    horizon: int
    p10: int
    p50: int
    p90: int
    p_early: float
    truth: int | None = None
    """Where it ended; None while it runs."""

    @property
    def held(self) -> bool | None:
        """Whether the interval held the truth."""
        return None if self.truth is None else self.p10 <= self.truth <= self.p90

    @property
    def error(self) -> float | None:
        """Of the median, as a share of the horizon."""
        return None if self.truth is None else abs(self.p50 - self.truth) / self.horizon


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well the bets came true."""

    runs: int
    bets: int
    coverage: float | None
    """Share of settled intervals that held the truth; each run counts once, however many bets it had."""
    median_error: float | None
    brier: float | None
    """Mean squared error of the probability of an early stop."""
    widen: float
    """What to add to the mass of the shown interval."""

    def in_words(self) -> str:
        """One line for the screen."""
        if self.coverage is None or self.median_error is None:
            return "No forecast has been settled yet."
        runs = "run" if self.runs == 1 else "runs"
        return (
            f"{self.runs} {runs} settled: the interval held the end in {self.coverage:.0%} (promised {PROMISED:.0%}), "
            f"median error {self.median_error:.0%} of the horizon."
        )


def calibration(bets: Sequence[Bet]) -> Calibration:
    """Score the settled bets. Bets of one run hang together, so every run has the weight one."""
    settled: dict[str, list[Bet]] = {}
    for bet in bets:
        if bet.truth is not None:
            settled.setdefault(bet.run_id, []).append(bet)
    if not settled:
        return Calibration(0, 0, None, None, None, 0.0)
    held = [sum(bool(b.held) for b in run) / len(run) for run in settled.values()]
    errors = sorted(sum(b.error or 0.0 for b in run) / len(run) for run in settled.values())
    brier = [
        sum((b.p_early - float((b.truth or 0) < b.horizon)) ** 2 for b in run) / len(run) for run in settled.values()
    ]
    n = len(settled)
    # the coverage a sceptic would believe: the promise seen PRIOR_RUNS times, and then our runs
    believed = (PROMISED * PRIOR_RUNS + sum(held)) / (PRIOR_RUNS + n)
    widen = max(-LARGEST_WIDENING, min(LARGEST_WIDENING, PROMISED - believed))
    middle = errors[n // 2] if n % 2 else (errors[n // 2 - 1] + errors[n // 2]) / 2
    return Calibration(n, sum(map(len, settled.values())), sum(held) / n, middle, sum(brier) / n, widen)
