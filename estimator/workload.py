"""What has to be carried to a new box before it trains, and away from it afterwards, and how long that takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from estimator.memory import ModelShape, TrainShape
from estimator.offer import Offer

BOOT_H = 0.08
"""From the order to the first SSH login, image aside: about five minutes on a healthy host."""
INSTALL_H = 0.12
"""Unpacking and building packages, bandwidth aside."""
TOKENISE_H = 0.05
"""Tokenising, loading the model, the first step."""
LINK_SHARE = 0.6
"""Of the listed bandwidth that one download really gets."""
LINK_CEILING = 3000.0
"""Mbit/s; beyond it the other end is slower than the host."""
ASSUMED_LINK = 300.0
"""Mbit/s where the listing does not say."""
SETUP_LOG_SD = 0.25
"""Hosts differ in everything that is not bandwidth."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The goods. GB are 1e9 bytes."""

    image_gb: float = 8.0
    """Container image; the provider pulls it before the GPU is billed."""
    env_gb: float = 3.0
    """Python packages."""
    model_gb: float = 7.0
    """Base model or checkpoint that is downloaded before the first step."""
    data_gb: float = 0.2
    upload_gb: float = 0.0
    """What goes to the Hub at the end."""
    disk_gb: float = 60.0
    model: ModelShape | None = None
    """None leaves the memory verdict open."""
    train: TrainShape = field(default_factory=TrainShape)
    recipe: str = ""


def transfer_h(gigabytes: float, mbit_per_s: float | None) -> float:
    """Hours for `gigabytes` over a listed link."""
    listed = mbit_per_s or ASSUMED_LINK
    return gigabytes * 8000.0 / (min(listed, LINK_CEILING) * LINK_SHARE) / 3600.0


def setup_phases(offer: Offer, work: Workload) -> dict[str, float]:
    """Hours of each phase until the first step, in order; one entry when the offer carries a known total."""
    if offer.setup_h is not None:
        return {"setup": offer.setup_h}
    return {
        "boot": BOOT_H,
        "image": transfer_h(work.image_gb, offer.inet_down),
        "dependencies": INSTALL_H + transfer_h(work.env_gb, offer.inet_down),
        "model": transfer_h(work.model_gb, offer.inet_down),
        "data": TOKENISE_H + transfer_h(work.data_gb, offer.inet_down),
    }


def traffic_usd(offer: Offer, work: Workload, *, moving: bool) -> float:
    """USD for bytes: down before the first step when moving, up at the end in either case."""
    down = (work.env_gb + work.model_gb + work.data_gb) * (offer.inet_down_cost or 0.0) if moving else 0.0
    return down + work.upload_gb * (offer.inet_up_cost or 0.0)


def hourly_rates(offer: Offer, work: Workload) -> tuple[float, float]:
    """USD per hour for the GPU and for the disk that will really be created.

    `dph_total` is right only when the search asked for that disk; with base price and storage price known it is not
    used. An interruptible offer without a price of its own costs its lowest bid.
    """
    disk = offer.disk_dph(work.disk_gb)
    if offer.dph_base is not None and disk is not None:
        return offer.dph_base, disk
    return offer.dph, 0.0
