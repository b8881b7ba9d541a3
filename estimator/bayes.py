"""Bayesian power law with drift: futures of a loss curve from its own evals alone.

    y_t = c + a * t^-b + d * g(t) + noise,   t = 1, 2, ... evals

b from a grid, g one of nothing, linear, logarithmic; (c, a, d, sigma^2) have a normal-inverse-gamma prior, so each of
the 21 models is solved in closed form and weighted by its marginal likelihood. Noise of the future is AR(1). The drift
terms matter: without them the curve flattens too soon and the stop is called too early, and over-fitting (a rising
loss) cannot be said at all. Formulas: Bishop, Pattern Recognition and Machine Learning, section 3.5 and exercise 3.12.
"""

from __future__ import annotations

import numpy as np

from estimator.simulate import Floats

EXPONENTS = np.array([0.15, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0])
DRIFT_PRIOR = np.array([0.6, 0.2, 0.2])
"""Prior weight of no drift, linear drift and logarithmic drift."""
NOISE_FLOOR = 0.0015
"""Loss. No evaluation is quieter: 250 to 2,000 examples leave at least this much."""
AR = 0.3
PRIOR_DEGREES = 1.5


def power_law_paths(losses: Floats, length: int, n: int, rng: np.random.Generator) -> Floats:
    """Losses of evals k+1 .. `length`, shape (n, length - k), drawn from the posterior after k = len(losses) evals.

    Needs two evals or more, all finite.
    """
    k = len(losses)
    span = max(float(np.ptp(losses)), 0.02)
    noise = _noise(losses)
    design = _design(length)
    seen = design[:, :k]
    # the early transient of a curve says little about its tail: its weight ramps up
    weight = np.linspace(0.35, 1.0, k)
    prior_mean = np.array([losses[-1], 0.0, 0.0])
    drifts = np.repeat(np.arange(3), len(EXPONENTS))
    variance = np.empty((len(design), 3))
    variance[:, 0] = 10.0**2
    variance[:, 1] = (6 * span) ** 2
    # a drift that is switched off keeps its column, pinned to zero, so that all models have one shape
    variance[:, 2] = np.where(drifts == 0, 1e-12, span**2 + 0.01**2)
    precision = np.zeros((len(design), 3, 3))
    precision[:, range(3), range(3)] = noise**2 / variance

    weighted = seen * weight[None, :, None]
    posterior = precision + np.einsum("mki,mkj->mij", weighted, seen)
    covariance = np.linalg.inv(posterior)
    pull = precision @ prior_mean + np.einsum("mki,k->mi", weighted, losses)
    mean = np.einsum("mij,mj->mi", covariance, pull)
    shape = PRIOR_DEGREES + k / 2
    residual = (weight * losses**2).sum() + np.einsum("i,mij,j->m", prior_mean, precision, prior_mean)
    scale = PRIOR_DEGREES * noise**2 + 0.5 * (residual - np.einsum("mi,mij,mj->m", mean, posterior, mean))
    scale = np.maximum(scale, 1e-12)
    evidence = 0.5 * (np.log(precision[:, range(3), range(3)]).sum(axis=1) - np.linalg.slogdet(posterior)[1])
    evidence += -shape * np.log(scale) + np.log(DRIFT_PRIOR[drifts])
    odds = np.exp(evidence - evidence.max())

    model = np.repeat(np.arange(len(design)), rng.multinomial(n, odds / odds.sum()))
    sigma = np.sqrt(scale[model] / rng.gamma(shape, size=n))
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(3))
    theta = mean[model] + np.einsum("nij,nj->ni", root[model], rng.standard_normal((n, 3))) * sigma[:, None]
    fit = np.einsum("nti,ni->nt", design[:, k - 1 :][model], theta)
    shocks = rng.standard_normal((length - k, n)) * sigma * np.sqrt(1 - AR**2)
    offset = losses[-1] - fit[:, 0]
    paths = fit[:, 1:].T.copy()
    for j in range(length - k):
        offset = AR * offset + shocks[j]
        paths[j] += offset
    futures: Floats = paths.T
    return futures


def _noise(losses: Floats) -> float:
    """Prior scale of the noise: a fraction of the median bend, most of which is curvature and not noise."""
    if len(losses) < 3:
        return NOISE_FLOOR
    return max(float(np.median(np.abs(np.diff(losses, 2)))) * 0.184, NOISE_FLOOR)  # 0.45 / sqrt(6)


def _design(length: int) -> Floats:
    """Columns 1, t^-b and g(t) of every model, shape (21, length, 3)."""
    t = np.arange(1, length + 1, dtype=np.float64)
    falls = t[None, :] ** -EXPONENTS[:, None]
    drifts = np.stack([np.zeros(length), t / length, np.log(t) / np.log(max(length, 2))])
    design = np.empty((len(drifts) * len(EXPONENTS), length, 3))
    design[:, :, 0] = 1.0
    design[:, :, 1] = np.tile(falls, (len(drifts), 1))
    design[:, :, 2] = np.repeat(drifts, len(EXPONENTS), axis=0)
    return design
