"""Offers from a file, or the bundled example market when none is given.

The bundled rows are examples: prices of a day, not of today. Three of them carry the measured speed and setup time of
the study this project began with. A file has the shape `{"offers": [row, ...]}` with the provider's field names.
"""

from __future__ import annotations

import json
from pathlib import Path

from estimator.offer import Offer
from runner.errors import NotFoundError, UsageError

BUNDLED = Path(__file__).with_name("market.json")


def load_offers(path: str | Path | None = None) -> list[Offer]:
    """Read offers; raises NotFoundError or UsageError with the file, the row and the field named."""
    source = BUNDLED if path is None else Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no offers file {source}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The offers file {source} cannot be read as text.") from error
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{source} is not JSON: {error}.") from error
    rows = document.get("offers") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise UsageError(f"{source} has no list 'offers'.", hint='Its shape is {"offers": [{"id": ..., ...}]}.')
    offers: list[Offer] = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UsageError(f"{source}, row {number} is not an object but {type(row).__name__}.")
        try:
            offers.append(Offer.from_row(row))
        except ValueError as error:
            raise UsageError(f"{source}, row {number}: {error}.") from error
    return offers


def running_offer(offers: list[Offer], offer_id: str | None = None) -> Offer | None:
    """The row of the box the run is on: the one named, else the one marked, else the only one of speed exactly 1.

    Speeds in an offers file are relative to the present box, so the single row of speed 1 is that box.
    Raises NotFoundError when `offer_id` is not among the offers.
    """
    if offer_id is not None:
        for offer in offers:
            if offer.id == offer_id:
                return offer
        raise NotFoundError(f"There is no offer {offer_id} in the list.")
    marked = [o for o in offers if o.current] or [o for o in offers if o.speed == 1.0]
    return marked[0] if len(marked) == 1 else None
