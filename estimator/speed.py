"""How fast does another GPU train, relative to this one, and how sure is that.

Several kinds of evidence about the log of the ratio, each with its standard deviation, are combined by inverse
variance: the same model of GPU, measured training speeds (`gpus.toml`), a model of the time per step, the provider's
own score, finished runs of our own, and a live probe, beside which everything else fades.

The time model splits a step of the reference GPU into a share that moves memory (helped a little by cache), one that
multiplies matrices, one that follows the power limit and one that no GPU makes faster:

    t(gpu) = sum of share_i * (value_i of an A100 SXM4 80 GB / value_i of the gpu),   v = 1 / t

The shares are fitted to the measured column with relative errors; leaving out one GPU at a time its error is 4 % in the
median and 17 % at P90 (`leave_one_out`, printed by tests/bench/bench_forecast.py).
"""

from __future__ import annotations

import functools
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from estimator.offer import Offer
from estimator.simulate import Floats

TABLE = Path(__file__).with_name("gpus.toml")
REFERENCE = "A100 SXM4 80GB"
CACHE_EXPONENT = 0.08
SHARES = (0.43, 0.24, 0.20, 0.11)
"""Memory, matrices, power, constant: `fit_shares` on the table, rounded; a test holds them to it."""

SAME_SKU_SD = 0.05
"""Hosts with the same GPU: 1 to 2 % in a data centre, more on a marketplace."""
MEASURED_SD = 0.10
MODEL_SD = 0.17
UNVERIFIED_SD = 0.08
"""Added to the time model where a number of the table was not confirmed by anybody."""
SCORE_SD = 0.20
UNKNOWN_SD = 0.45
OWN_RUN_SD = 0.04
PROBE_SD = 0.02
FLOOR_SD = 0.04
"""Kinds of evidence are not independent: together they never get below this without a probe or an own run."""


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One row of the table; units in `gpus.toml`."""

    name: str
    aliases: tuple[str, ...]
    vram_gb: float
    bw_gbs: float
    tflops: float
    tdp_w: float
    l2_mb: float
    source: str
    measured: float | None = None
    measured_source: str = ""
    checked: str = ""
    recalled: tuple[str, ...] = ()
    """Columns whose number nobody was found to confirm."""

    @property
    def unverified(self) -> bool:
        """Whether the time model rests on a number of this row that nobody confirmed."""
        return bool({"bw_gbs", "tflops", "tdp_w"} & set(self.recalled))


@dataclass(frozen=True, slots=True)
class SpeedRatio:
    """Speed of another box relative to this one."""

    mean: float
    """Median of the log-normal: 2 is twice as fast."""
    log_sd: float
    sources: tuple[str, ...]
    """What it rests on, strongest first."""
    known: bool = True
    """False when the GPU is not in the table."""


@dataclass(frozen=True, slots=True)
class OwnRun:
    """A finished run of ours: the same recipe gave `steps_per_s` on `gpu`."""

    recipe: str
    gpu: str
    steps_per_s: float


@functools.lru_cache(maxsize=1)
def gpu_table() -> tuple[GpuSpec, ...]:
    """The table that ships."""
    with TABLE.open("rb") as file:
        rows = tomllib.load(file)["gpu"]
    lists = ("aliases", "recalled")
    return tuple(GpuSpec(**{**row, **{key: tuple(row.get(key, ())) for key in lists}}) for row in rows)


@functools.lru_cache(maxsize=4096)
def spec_of(name: str, vram_gib: float | None = None) -> GpuSpec | None:
    """Find a GPU by the provider's name; where one name covers several memory sizes the nearest size is taken."""
    size = re.search(r"[\s_-](\d+)\s?GB$", name.upper())
    if size:
        vram_gib = vram_gib or float(size.group(1))
        name = name[: size.start()]
    wanted = _plain(name)
    found = [s for s in gpu_table() if wanted in {_plain(a) for a in (*s.aliases, s.name)}]
    if not found:
        return None
    if vram_gib is None:
        return found[0]
    near = min(found, key=lambda s: abs(s.vram_gb - vram_gib))
    # half the memory under the same name is another product (a modified card, a slice): not this row
    return near if abs(near.vram_gb - vram_gib) <= 0.25 * near.vram_gb else None


@functools.lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    text = re.sub(r"NVIDIA|GEFORCE", "", name.upper())
    return re.sub(r"[^A-Z0-9]", "", text)


def relative_speed(
    here: Offer | None,
    there: Offer,
    *,
    probe: float | None = None,
    own_runs: Sequence[OwnRun] = (),
    recipe: str = "",
) -> SpeedRatio:
    """How many times faster `there` trains than `here`.

    `probe` is a ratio measured live on the target. Without `here` the reference is an A100 SXM4 80 GB. An unknown GPU
    still gets an answer, with `known` False and a wide spread.
    """
    if probe is not None and probe > 0:
        return _probed(probe, relative_speed(here, there, own_runs=own_runs, recipe=recipe))
    if there.speed is not None:
        return SpeedRatio(there.speed, SAME_SKU_SD, ("given with the offer",))
    box = spec_of(here.gpu, here.gpu_ram_gib) if here is not None else spec_of(REFERENCE)
    target = spec_of(there.gpu, there.gpu_ram_gib)
    evidence: list[tuple[float, float, str]] = []
    if own_runs:
        own = _own_ratio(own_runs, recipe, here.gpu if here is not None else REFERENCE, there.gpu)
        if own is not None:
            evidence.append((own, OWN_RUN_SD, "own finished runs"))
    if box is not None and target is not None:
        if box.name == target.name:
            live = _live_bandwidth(here, there)
            evidence.append((0.4 * live, SAME_SKU_SD, "the same GPU"))
        else:
            if box.measured and target.measured:
                evidence.append((math.log(target.measured / box.measured), MEASURED_SD, "measured training speeds"))
            model = math.log(model_speed(target, there) / model_speed(box, here))
            doubted = [spec.name for spec in (target, box) if spec.unverified]
            name = "memory, TFLOP/s and power" + (f" (unverified for {' and '.join(doubted)})" if doubted else "")
            evidence.append((model, math.hypot(MODEL_SD, UNVERIFIED_SD) if doubted else MODEL_SD, name))
    if here is not None and here.dlperf and there.dlperf:
        score = math.log(there.dlperf / there.num_gpus) - math.log(here.dlperf / here.num_gpus)
        # scored on image models: a difference in the score overstates one in fine-tuning
        evidence.append((0.8 * score, SCORE_SD if evidence else 2 * SCORE_SD, "the provider's score"))
    if not evidence:
        return SpeedRatio(1.0, UNKNOWN_SD, ("unknown GPU: counted as equally fast",), known=False)
    known = target is not None
    names = tuple(n for _, _, n in sorted(evidence, key=lambda e: e[1]))
    mean, sd = _pooled(evidence)
    if not known:
        sd = math.hypot(sd, 0.15)
    if not own_runs or names[0] != "own finished runs":
        sd = max(FLOOR_SD, sd)
    return SpeedRatio(math.exp(mean), sd, names, known)


def _probed(probe: float, tables: SpeedRatio) -> SpeedRatio:
    """A measurement on the target itself: the tables only steady its noise, and their disagreement does not count."""
    prior_sd = max(MEASURED_SD, tables.log_sd)
    share = PROBE_SD**2 / (PROBE_SD**2 + prior_sd**2)
    mean = (1 - share) * math.log(probe) + share * math.log(tables.mean)
    sd = math.sqrt(1 / (1 / PROBE_SD**2 + 1 / prior_sd**2))
    return SpeedRatio(math.exp(mean), sd, ("live probe", *tables.sources), tables.known)


def _pooled(evidence: Sequence[tuple[float, float, str]]) -> tuple[float, float]:
    """Mean and standard deviation by inverse variance."""
    weights = [1 / sd**2 for _, sd, _ in evidence]
    total = sum(weights)
    mean = sum(w * value for w, (value, _, _) in zip(weights, evidence, strict=True)) / total
    # evidence that disagrees by more than its spread widens the answer
    chi = sum(w * (value - mean) ** 2 for w, (value, _, _) in zip(weights, evidence, strict=True))
    return mean, math.sqrt(max(1.0, chi / max(1, len(evidence) - 1)) / total)


def _own_ratio(own_runs: Sequence[OwnRun], recipe: str, here: str, there: str) -> float | None:
    """Log ratio of the median rates of finished runs of one recipe on the two GPUs; None where one has none."""
    mine = [r.steps_per_s for r in own_runs if r.recipe == recipe and _plain(r.gpu) == _plain(here)]
    theirs = [r.steps_per_s for r in own_runs if r.recipe == recipe and _plain(r.gpu) == _plain(there)]
    if not mine or not theirs:
        return None
    return math.log(float(np.median(theirs)) / float(np.median(mine)))


def model_speed(spec: GpuSpec, offer: Offer | None = None) -> float:
    """Training speed relative to the reference by the time model; a power cap on the host is taken into account."""
    reference = spec_of(REFERENCE)
    if reference is None:
        raise LookupError(f"{REFERENCE} is missing in {TABLE.name}")
    power, tflops = spec.tdp_w, spec.tflops
    if offer is not None and offer.gpu_max_power and offer.gpu_max_power < 0.97 * spec.tdp_w:
        power = offer.gpu_max_power
        # clocks fall with about the cube root of power, and matrices feel it in full
        tflops *= (power / spec.tdp_w) ** (1 / 3)
    times = _times(spec, reference, power, tflops)
    return sum(SHARES) / sum(share * time for share, time in zip(SHARES, times, strict=True))


def _times(spec: GpuSpec, reference: GpuSpec, power: float, tflops: float) -> tuple[float, float, float, float]:
    cache = (spec.l2_mb / reference.l2_mb) ** CACHE_EXPONENT
    return reference.bw_gbs / (spec.bw_gbs * cache), reference.tflops / tflops, reference.tdp_w / power, 1.0


def _live_bandwidth(here: Offer | None, there: Offer) -> float:
    """Log ratio of the measured memory bandwidths of two hosts with the same GPU; 0 where one is missing."""
    if here is None or not here.gpu_mem_bw or not there.gpu_mem_bw:
        return 0.0
    return max(-0.2, min(0.2, math.log(there.gpu_mem_bw / here.gpu_mem_bw)))


def fit_shares(specs: Sequence[GpuSpec]) -> Floats:
    """Non-negative shares of the time model with the least squared relative error on the measured GPUs."""
    reference = spec_of(REFERENCE)
    if reference is None:
        raise LookupError(f"{REFERENCE} is missing in {TABLE.name}")
    used = [(s, s.measured) for s in specs if s.measured]
    rows = np.array([np.array(_times(s, reference, s.tdp_w, s.tflops)) * m for s, m in used])
    gram, pull = rows.T @ rows, rows.sum(axis=0)
    shares: Floats = np.full(4, 0.25)
    for _ in range(2000):
        # coordinate descent with the constraint kept at every move: four unknowns, no solver needed
        for i in range(4):
            rest = pull[i] - gram[i] @ shares + gram[i, i] * shares[i]
            shares[i] = max(0.0, rest / gram[i, i])
    return shares


def leave_one_out() -> dict[str, float]:
    """Relative error of the time model for each measured GPU, fitted without it."""
    reference = spec_of(REFERENCE)
    specs = [s for s in gpu_table() if s.measured]
    errors: dict[str, float] = {}
    for spec in specs:
        if reference is None or not spec.measured:
            continue
        shares = fit_shares([s for s in specs if s is not spec])
        speed = 1.0 / float(np.array(_times(spec, reference, spec.tdp_w, spec.tflops)) @ shares)
        errors[spec.name] = abs(math.log(speed / spec.measured))
    return errors
