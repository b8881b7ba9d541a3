"""Bayesian learning curve with drift: futures of a loss curve from its own evals alone.

    y_t = c + a * (u(t) + s)^-b + d * g(t) + noise,   t = 1, 2, ... evals

- b from a grid: how steeply the curve bends.
- s from a grid, in shares of the horizon: 0 is the plain power law; a late start makes a fall that stays nearly
  straight, as fine-tunes with a small learning rate show, without a claim that it will flatten soon.
- u is t itself or the work done by then under a learning rate that falls linearly to zero at the horizon.
- Beside the power laws stand exponential falls exp(-r t / horizon): what a run does that really reaches a floor.
- g is nothing, linear or logarithmic. The prior of d leans to a further fall: real curves have more than one time
  scale, and a few evals show only the fastest. Its spread also allows a loss that rises again (over-fitting).

(c, a, d, sigma^2) have a normal-inverse-gamma prior, so each of the 156 models is solved in closed form and weighted
by its marginal likelihood. Noise of the future is AR(1). Formulas: Bishop, Pattern Recognition and Machine Learning,
section 3.5 and exercise 3.12. The grids and priors were compared on recorded curves (docs/forecast.md); what is here
lies on a plateau, where halving or doubling one number changes little.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from estimator.simulate import Floats

EXPONENTS = np.array([0.15, 0.3, 0.5, 0.8, 1.2, 2.0])
LATE_STARTS = (0.0, 0.1, 0.5, 2.0)
"""s as a share of the horizon."""
DECAYS = np.array([3.0, 6.0, 12.0, 25.0])
"""r of the exponential falls."""
DECAY_ODDS = 2.0
"""Prior weight of an exponential fall beside a power law, of which there are twelve times as many."""
DRIFT_PRIOR = np.array([0.3, 0.3, 0.4])
"""Prior weight of no drift, linear drift and logarithmic drift."""
DRIFT_LEAN = -0.2
"""Prior mean of d in units of the span of the evals seen."""
DRIFT_SPREAD = 0.3
"""Prior sd of d in the same units."""
NOISE_FLOOR = 0.0005
"""Loss. No evaluation is quieter."""
BEND_SHARE = 0.35
"""Prior scale of the noise as a share of the median second difference, most of which is curvature and not noise."""
AR = 0.3
PRIOR_DEGREES = 1.0
LARGEST = 1e9
"""Losses beyond it are worked with in a larger unit."""
OLDEST_WEIGHT = 0.35
"""Weight of the first eval; it rises to 1: the early transient of a curve says little about its tail."""


def power_law_paths(losses: Floats, length: int, n: int, rng: np.random.Generator) -> Floats:
    """Losses of evals k+1 .. `length`, shape (n, length - k), drawn from the posterior after k = len(losses) evals.

    Needs two evals or more, all finite.
    """
    k = len(losses)
    # squares of astronomical losses have no floating-point number
    unit = max(1.0, float(np.abs(losses).max()) / LARGEST)
    losses = losses / unit
    span = max(float(np.ptp(losses)), 0.02)
    noise = _noise(losses)
    design, drifts, odds = _design(length)
    seen = design[:, :k]
    weight = np.linspace(OLDEST_WEIGHT, 1.0, k)
    prior_mean = np.zeros((len(design), 3))
    prior_mean[:, 0] = losses[-1]
    prior_mean[:, 2] = np.where(drifts == 0, 0.0, DRIFT_LEAN * span)
    variance = np.empty((len(design), 3))
    variance[:, 0] = 10.0**2
    # all models may fall as far over the horizon, whatever their bend
    variance[:, 1] = (6 * span / np.abs(design[:, 0, 1] - design[:, -1, 1])) ** 2
    # a drift that is switched off keeps its column, pinned to zero, so that all models have one shape
    variance[:, 2] = np.where(drifts == 0, 1e-12, (DRIFT_SPREAD * span) ** 2 + 0.01**2)
    precision = np.zeros((len(design), 3, 3))
    precision[:, range(3), range(3)] = noise**2 / variance

    weighted = seen.transpose(0, 2, 1) * weight
    posterior = precision + weighted @ seen
    covariance = np.linalg.inv(posterior)
    prior_pull = precision[:, range(3), range(3)] * prior_mean
    mean = np.einsum("mij,mj->mi", covariance, prior_pull + weighted @ losses)
    shape = PRIOR_DEGREES + k / 2
    residual = (weight * losses**2).sum() + (prior_pull * prior_mean).sum(axis=1)
    scale = PRIOR_DEGREES * noise**2 + 0.5 * (residual - np.einsum("mi,mij,mj->m", mean, posterior, mean))
    scale = np.maximum(scale, 1e-12)
    evidence = 0.5 * (np.log(precision[:, range(3), range(3)]).sum(axis=1) - np.linalg.slogdet(posterior)[1])
    evidence += -shape * np.log(scale) + np.log(DRIFT_PRIOR[drifts] * odds)
    odds = np.exp(evidence - evidence.max())

    model = np.repeat(np.arange(len(design)), rng.multinomial(n, odds / odds.sum()))
    sigma = np.sqrt(scale[model] / rng.gamma(shape, size=n))
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(3))
    theta = mean[model] + np.einsum("nij,nj->ni", root[model], rng.standard_normal((n, 3))) * sigma[:, None]
    fit = (design[:, k - 1 :][model] @ theta[:, :, None])[:, :, 0]
    shocks = rng.standard_normal((length - k, n)) * sigma * np.sqrt(1 - AR**2)
    offset = losses[-1] - fit[:, 0]
    paths = fit[:, 1:].T.copy()
    for j in range(length - k):
        offset = AR * offset + shocks[j]
        paths[j] += offset
    futures: Floats = paths.T * unit
    return futures


def _noise(losses: Floats) -> float:
    """Prior scale of the noise."""
    if len(losses) < 3:
        return NOISE_FLOOR
    return max(float(np.median(np.abs(np.diff(losses, 2)))) * BEND_SHARE, NOISE_FLOOR)


@functools.lru_cache(maxsize=4)
def _design(length: int) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Columns 1, the fall (1 at the first eval) and g(t) of every model, shape (156, length, 3), each model's g, and
    its prior weight among those of the same g.
    """
    t = np.arange(1, length + 1, dtype=np.float64)
    # work under a linearly falling rate: the integral of 1 - t / (length + 1), in units of one eval at full rate
    annealed = t * (1 - 0.5 * t / (length + 1))
    powers = [(clock + start * length) ** -EXPONENTS[:, None] for clock in (t, annealed) for start in LATE_STARTS]
    falls = np.concatenate([*powers, np.exp(-DECAYS[:, None] * t / length)])
    falls /= falls[:, :1]
    odds = np.ones(len(falls))
    odds[-len(DECAYS) :] = DECAY_ODDS
    drifts = np.stack([np.zeros(length), t / length, np.log(t) / np.log(max(length, 2))])
    design = np.empty((len(drifts) * len(falls), length, 3))
    design[:, :, 0] = 1.0
    design[:, :, 1] = np.tile(falls, (len(drifts), 1))
    design[:, :, 2] = np.repeat(drifts, len(falls), axis=0)
    design.setflags(write=False)
    return design, np.repeat(np.arange(len(drifts)), len(falls)), np.tile(odds, len(drifts))
