"""What a rented container is made of: its image, chosen by the host's driver, and what it runs at every start."""

from __future__ import annotations

from remote.bootstrap import PYTHON_FILE
from remote.provider import MarketOffer
from remote.rent import BootError

IMAGES = (
    (12.9, "pytorch/pytorch:2.8.0-cuda12.9-cudnn9-runtime"),
    (12.8, "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime"),
    (12.6, "pytorch/pytorch:2.8.0-cuda12.6-cudnn9-runtime"),
)
"""Least CUDA version of the host's driver, and the image for it; the newest that fits is taken.

The three tags are in public build files, and the first two in records of rentals on this very market. Their interpreter
is /opt/conda/bin/python3 (3.11).
"""
OURS = frozenset(image for _, image in IMAGES)


def choose_image(offer: MarketOffer, wanted: str = "") -> str:
    """The image for a host's driver; raises BootError when its driver is too old for any.

    A machine of one's own has what it has, and gets none. A listing that does not tell its driver gets the oldest.
    """
    if wanted or offer.own:
        return wanted
    if offer.cuda_max is None:
        return IMAGES[-1][1]
    for least, image in IMAGES:
        if offer.cuda_max + 1e-6 >= least:
            return image
    raise BootError(
        f"The driver of offer {offer.id} knows CUDA {offer.cuda_max:g}; the oldest image needs {IMAGES[-1][0]:g}.",
        hint="Choose another offer.",
    )


def image_in_words(offer: MarketOffer, image: str) -> str:
    """Which image a box was rented with, and whether that is a guess."""
    if not image:
        return ""
    guessed = " (a guess: the listing does not tell its driver)" if offer.cuda_max is None and image in OURS else ""
    return f", {image}{guessed}"


def onstart(public_key: str) -> str:
    """What the container runs at every start. At most 4096 characters, and nothing secret: the provider stores it.

    It keeps the container's own variables for the guard and the path of the image's python3, which an SSH session does
    not have, and starts the guard again after a restart of the container.
    """
    return f"""#!/bin/bash
umask 077
cd "${{HOME:=/root}}" || exit 1
mkdir -p tunewatch .ssh
touch .no_auto_tmux
command -v python3 > {PYTHON_FILE}
printf 'CONTAINER_ID=%s\\nCONTAINER_API_KEY=%s\\n' "$CONTAINER_ID" "$CONTAINER_API_KEY" > tunewatch/.env.part
mv tunewatch/.env.part tunewatch/container.env
grep -qsF '{public_key}' .ssh/authorized_keys || echo '{public_key}' >> .ssh/authorized_keys
[ -x tunewatch/onstart.sh ] && tunewatch/onstart.sh
exit 0
"""
