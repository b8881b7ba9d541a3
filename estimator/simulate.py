"""The auto-stop machine of `runner.autostop` over many futures at once.

`simulate_stop` is `runner.autostop.advance` with the paths as a numpy axis; a property test holds the two equal on
random rules, states and paths. Only finite losses are simulated: a future does not turn into NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runner.autostop import StopRule, StopState

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TOLERANCE = 1e-9


def simulate_stop(rule: StopRule, state: StopState, steps: Sequence[int], futures: Floats) -> Ints:
    """The index into `steps` at which each path stops, `len(steps)` where it never does.

    `futures` has shape (paths, len(steps)); `steps` rises and lies after `state.last_step`. A state that has stopped
    gives index 0 for every path.
    """
    n = futures.shape[0]
    m = len(steps)
    stop = np.full(n, m, dtype=np.int64)
    if state.stopped_at is not None:
        return np.zeros(n, dtype=np.int64)
    if m == 0 or n == 0:
        return stop
    reference = np.full(n, np.inf if state.reference is None else state.reference)
    bad = np.full(n, state.bad, dtype=np.int64)
    armed = state.armed_at is not None
    columns = np.ascontiguousarray(futures.T)
    sizes = np.maximum(np.abs(columns), rule.min_delta)
    alive = np.ones(n, dtype=bool)
    # an infinite reference stands for "none yet": the first judged eval becomes it
    fresh = state.reference is None
    for j, step in enumerate(steps):
        armed = armed or step >= rule.min_steps
        if not armed and rule.count_from == "min_steps":
            continue
        value = columns[j]
        slack = 0.0 if fresh else _TOLERANCE * np.maximum(np.abs(reference), sizes[j])
        fresh = False
        better = reference - value > rule.min_delta + slack
        np.copyto(reference, value, where=better)
        bad += 1
        bad[better] = 0
        if armed and (rule.patience <= j + 1 + state.bad):
            ends = alive & (bad >= rule.patience)
            if ends.any():
                stop[ends] = j
                alive &= ~ends
                if not alive.any():
                    break
    return stop


def simulate_best(futures: Floats, stop: Ints, best: float | None) -> Floats:
    """Lowest loss each path has seen up to and with its stop, the best so far included."""
    m = futures.shape[1]
    if m == 0:
        return np.full(futures.shape[0], np.nan if best is None else best)
    lowest = np.minimum.accumulate(futures, axis=1)
    found: Floats = lowest[np.arange(len(stop)), np.minimum(stop, m - 1)]
    return found if best is None else np.minimum(found, best)
