"""Loss curves drawn from simple formulas, of every shape that training shows: what is in no library."""

from __future__ import annotations

import numpy as np

from estimator.library import Curve, make_curve

LENGTHS = (10, 12, 16, 25, 40, 60, 100, 200, 500)
NOISES = (0.0, 0.0005, 0.002, 0.008, 0.03)
SCALES = (0.01, 0.1, 1.0, 1.0, 4.0, 12.0)


def power_law(rng, t):
    n = len(t)
    return rng.uniform(0.3, 1) + rng.uniform(0.5, 2) * (n * t + 1) ** -rng.uniform(0.2, 1.2)


def exponential(rng, t):
    return rng.uniform(0.2, 1) + rng.uniform(0.3, 2) * np.exp(-t * rng.uniform(2, 15))


def straight(rng, t):
    return 2 - rng.uniform(0.2, 1.5) * t


def annealed(rng, t):
    """A cosine schedule: falls again while the rate goes to zero."""
    fall = np.exp(-t * rng.uniform(4, 15))
    return 0.8 + rng.uniform(0.2, 1) * fall + rng.uniform(0.05, 0.3) * 0.5 * (1 + np.cos(np.pi * t))


def restarts(rng, t):
    """A cosine schedule that restarts two to five times: the loss jumps up at each."""
    phase = (t * rng.integers(2, 6)) % 1
    wave = rng.uniform(0.02, 0.15) * np.cos(np.pi * phase) * np.exp(-t)
    return 0.7 + rng.uniform(0.3, 1) * np.exp(-t * rng.uniform(2, 8)) + wave


def late_drop(rng, t):
    """A plateau and then a second fall."""
    drop = rng.uniform(0.1, 0.4) / (1 + np.exp(-(t - rng.uniform(0.2, 0.8)) * rng.uniform(20, 80)))
    return 1 + 0.6 * np.exp(-t * rng.uniform(10, 30)) - drop


def double_descent(rng, t):
    hump = rng.uniform(0.05, 0.4) * np.exp(-(((t - rng.uniform(0.25, 0.5)) / rng.uniform(0.05, 0.15)) ** 2))
    return 0.8 + 0.8 * np.exp(-t * rng.uniform(8, 25)) + hump - 0.3 * t


def warm_up_bump(rng, t):
    bump = rng.uniform(0.1, 0.8) * np.exp(-(((t - 0.05) / 0.04) ** 2))
    return 0.8 + rng.uniform(0.5, 1.5) * np.exp(-t * rng.uniform(3, 12)) + bump


def over_fitting(rng, t):
    rise = rng.uniform(0.1, 1.2) * np.maximum(0, t - rng.uniform(0.1, 0.5))
    return 0.9 + 0.8 * np.exp(-t * rng.uniform(5, 25)) + rise


def rising(rng, t):
    return rng.uniform(0.5, 1) + rng.uniform(0.05, 1) * t


def flat(rng, t):
    return np.full(len(t), rng.uniform(0.5, 2))


def spiky(rng, t):
    return power_law(rng, t) + (rng.random(len(t)) < 0.07) * rng.uniform(0.1, 0.8, len(t))


SMOOTH = (power_law, exponential, straight, annealed, rising, flat, spiky)
"""Shapes whose beginning tells of their end."""
TREACHEROUS = (restarts, late_drop, double_descent, warm_up_bump, over_fitting)
"""Shapes that turn: before the turn nothing tells of it."""


def drawn_curve(shape, rng) -> Curve:
    """One curve of a shape, of random length, noise and scale; all losses above 0."""
    n = int(rng.choice(LENGTHS))
    clean = shape(rng, np.arange(n) / n)
    losses = np.abs(clean + rng.choice(NOISES) * rng.standard_normal(n)) + 1e-3
    unknown = np.full(n, np.nan)
    columns = (np.arange(1.0, n + 1), np.round(losses * rng.choice(SCALES), 6), unknown, unknown)
    return make_curve((shape.__name__, "drawn", shape.__name__, ""), columns)
