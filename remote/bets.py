"""Where the shadow bets are kept: one JSON line each in `bets.jsonl` of tunewatch's home, appended, never rewritten.

A line is a forecast `{"run", "step", "horizon", "p10", "p50", "p90", "p_early"}`, the end of a run `{"run", "truth"}`,
or how fast a finished run was `{"recipe", "gpu", "steps_per_s"}`, from which the speed between GPUs learns. A line that
cannot be read is passed over: a cut write costs one bet, not the file. Two screens that watch one run both write what
they see: what stands there already counts once.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from estimator.bets import Bet, Calibration, calibration
from estimator.plateau import StopForecast
from estimator.speed import OwnRun
from remote.home import home
from runner.history import RunHistory

NAME = "bets.jsonl"
KEPT_BYTES = 4 << 20
"""Only the newest part of a very long file is read."""


class BetBook:
    """The bets of all runs. One per process; the file is read once and appended to."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or home() / NAME
        self._bets, self._rates = _read(self.path)

    def place(self, run_id: str, step: int, horizon: int, forecast: StopForecast) -> bool:
        """Keep a forecast; at most one per run and step. Says whether it was new."""
        if any(b.run_id == run_id and b.step == step for b in self._bets):
            return False
        if forecast.method in ("stopped", "ended", "horizon"):
            return False
        bet = Bet(run_id, step, horizon, forecast.p10, forecast.p50, forecast.p90, forecast.p_early)
        self._append(
            {
                "run": run_id,
                "step": step,
                "horizon": horizon,
                "p10": bet.p10,
                "p50": bet.p50,
                "p90": bet.p90,
                "p_early": bet.p_early,
            }
        )
        self._bets.append(bet)
        return True

    def settle(self, run_id: str, truth: int) -> int:
        """Note where a run ended by its rule or its horizon; returns how many bets that settles.

        Not for runs that a person stopped or that crashed: those say nothing about the forecast.
        """
        unsettled = [i for i, b in enumerate(self._bets) if b.run_id == run_id and b.truth is None]
        if not unsettled:
            return 0
        self._append({"run": run_id, "truth": truth})
        for i in unsettled:
            self._bets[i] = replace(self._bets[i], truth=truth)
        return len(unsettled)

    def follow(self, history: RunHistory, stop: StopForecast | None) -> None:
        """Do what is due for a run that is watched: place the present forecast, or settle when the run has ended.

        One call a tick is enough and cheap: a forecast is placed once per step. A run without an id is not followed,
        and one that a person stopped or that crashed is left unsettled.
        """
        if history.run_id is None or stop is None or history.step is None:
            return
        ruled = history.declared_stop is not None and history.declared_stop.reason == "plateau"
        if history.ended == "finished" or (history.ended == "stopped" and ruled) or stop.method == "stopped":
            self.settle(history.run_id, history.step if history.ended else stop.p50)
        elif history.ended is None and history.max_steps and history.evals:
            at = max((e.step for e in history.evals if e.step is not None), default=None)
            if at is not None:
                self.place(history.run_id, at, history.max_steps, stop)

    def note_rate(self, recipe: str, gpu: str, steps_per_s: float) -> None:
        """Remember how fast a finished run of a recipe was on a GPU, by the provider's name for it."""
        if not (recipe and gpu and math.isfinite(steps_per_s) and steps_per_s > 0):
            return
        self._append({"recipe": recipe, "gpu": gpu, "steps_per_s": steps_per_s})
        self._rates.append(OwnRun(recipe, gpu, steps_per_s))

    def own_runs(self) -> tuple[OwnRun, ...]:
        """The rates noted so far, for `forecast_run(own_runs=...)`."""
        return tuple(self._rates)

    def of_run(self, run_id: str) -> list[Bet]:
        """The bets of one run, in the order they were placed."""
        return [b for b in self._bets if b.run_id == run_id]

    def calibration(self) -> Calibration:
        """How well the settled bets came true."""
        return calibration(self._bets)

    def _append(self, row: dict[str, Any]) -> None:
        line = (json.dumps(row) + "\n").encode()
        # one write of one line with O_APPEND: two processes do not mix their bytes
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)


def _read(path: Path) -> tuple[list[Bet], list[OwnRun]]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - KEPT_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return [], []
    bets: list[Bet] = []
    rates: list[OwnRun] = []
    placed: set[tuple[str, int]] = set()
    for line in text.splitlines():
        row = _row(line)
        run = row.get("run")
        if "recipe" in row:
            try:
                rates.append(OwnRun(str(row["recipe"]), str(row["gpu"]), float(row["steps_per_s"])))
            except (KeyError, TypeError, ValueError):
                continue
        if not isinstance(run, str):
            continue
        truth = row.get("truth")
        if isinstance(truth, int):
            bets = [replace(b, truth=truth) if b.run_id == run and b.truth is None else b for b in bets]
            continue
        try:
            step, horizon, p10, p50, p90 = (int(row[key]) for key in ("step", "horizon", "p10", "p50", "p90"))
            bet = Bet(run, step, horizon, p10, p50, p90, float(row["p_early"]))
        except (KeyError, TypeError, ValueError):
            continue
        if (run, step) not in placed:
            placed.add((run, step))
            bets.append(bet)
    return bets, [r for r in dict.fromkeys(rates) if math.isfinite(r.steps_per_s) and r.steps_per_s > 0]


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
