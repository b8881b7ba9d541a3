"""The wall to Vast.ai: the only importer of its SDK, the only place where its rows, quirks and secrets are known.

What comes out is a value of `remote.provider` or one of its errors, whatever the server said. What is known of the
API and shaped this file:

- The SDK retries every verb after a time-out, the renting PUT included, and so can rent twice: `retry=1`.
- HTTP 200 with `{"success": false}` is a refusal. A refusal may carry `new_contract`: a box that bills.
- `show_instance(s)` of the SDK dies on rows that the API can hold; the raw v1 pages do not.
- A wrong key is answered with 401, 403 or 404; "offer gone" with 400, 404 or 410 and a text.
- A 429 is plain text and promises no Retry-After: calls of one endpoint are spaced by its documented threshold.
- Rows hold tokens (`extra_env`, `onstart`, `jupyter_token`): only named fields are taken, no row leaves this file.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from remote.provider import (
    Account,
    AmbiguousError,
    AuthError,
    Charge,
    CreditError,
    Instance,
    MarketOffer,
    NoSuchInstanceError,
    OfferGoneError,
    Order,
    PriceIncrease,
    RateLimitedError,
    RejectedError,
    UnavailableError,
    Wanted,
)
from remote.redact import redact
from remote.vast_rows import charge_from, increase_from, instance_from, is_row, number, offer_from, whole, word
from runner.errors import NotFoundError, TunewatchError

T = TypeVar("T")

THRESHOLDS = {
    "list": 1.0, "create": 4.5, "destroy": 3.0, "state": 1.0, "label": 1.0, "bid": 5.5, "charges": 1.0, "logs": 1.0,
    "keys": 1.0, "search": 0.5, "user": 0.5, "attach": 1.0, "increases": 1.0,
}  # fmt: skip
"""Documented seconds between two calls of one endpoint; a floor of our own where none is documented."""
PAGE = 25
_GONE = "no_such_ask"
_NO_INCREASE = "no_pending_price_increase"


class Limiter:
    """Keeps two calls of one endpoint at least its threshold apart; threads wait in line."""

    def __init__(
        self, thresholds: Mapping[str, float], clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._thresholds = thresholds
        self._clock = clock
        self._sleep = sleep
        self._free_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def wait(self, endpoint: str) -> None:
        """Return when the endpoint may be called."""
        with self._lock:
            now = self._clock()
            at = max(now, self._free_at.get(endpoint, 0.0))
            self._free_at[endpoint] = at + self._thresholds.get(endpoint, 0.0)
        if at > now:
            self._sleep(at - now)

    def hold(self, endpoint: str, seconds: float) -> None:
        """Nobody calls the endpoint for so long: the server said so."""
        with self._lock:
            self._free_at[endpoint] = max(self._free_at.get(endpoint, 0.0), self._clock() + seconds)


def key_configured() -> bool:
    """Whether there is a key where the SDK looks for one; it is neither read nor tried, and nothing is imported."""
    if os.environ.get("VAST_API_KEY"):
        return True
    home = Path.home()
    # whether the SDK heeds XDG_CONFIG_HOME depends on what else is installed beside it
    folders = {home / ".config", Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")}
    return any(path.is_file() for path in (home / ".vast_api_key", *(f / "vastai" / "vast_api_key" for f in folders)))


class VastProvider:
    """One account. Safe to share between threads: the SDK opens a session per request."""

    name = "vast"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        url: str | None = None,
        timeout_s: float = 20.0,
        create_timeout_s: float = 60.0,
        thresholds: Mapping[str, float] = THRESHOLDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        ssh_user: str = "root",
    ) -> None:
        """Take the key from `api_key`, VAST_API_KEY or the provider's own files; raises AuthError when there is none.

        `url` (default TUNEWATCH_VAST_URL, then the provider's) is another API server. Time-outs are per request.
        """
        if not hasattr(sys.stdout, "encoding"):
            # a full-screen display stands in for stdout, and the package asks it for its encoding while it is imported
            sys.stdout.encoding = "utf-8"  # type: ignore[misc]
        import vastai  # a second of imports: paid by the first command that talks to the provider

        # the package writes to stderr through this logger, which would tear up a full-screen display
        vastai.logger.handlers[:] = [logging.NullHandler()]
        server = url or os.environ.get("TUNEWATCH_VAST_URL") or None
        if server is not None:
            server = server.rstrip("/")
        try:
            self._sdk = vastai.VastAI(api_key=api_key, server_url=server, retry=1)
            self._slow = vastai.VastAI(api_key=api_key, server_url=server, retry=1)
        except RuntimeError as error:
            raise AuthError(
                "No key for Vast.ai was found.", hint="Set VAST_API_KEY, or save the key with the provider's own tool."
            ) from error
        self._sdk.client.timeout = timeout_s
        self._slow.client.timeout = create_timeout_s
        self._key: str = self._sdk.client.api_key or ""
        if not self._key:
            raise AuthError("The key for Vast.ai is empty.", hint="Set VAST_API_KEY.")
        self._limiter = Limiter(thresholds, clock, sleep)
        self._user = ssh_user

    @property
    def url(self) -> str:
        """The API server that is asked."""
        return str(self._sdk.client.server_url)

    def called(self, instance_id: int) -> str:
        """A box by its number."""
        return f"instance {instance_id}"

    # -- market -------------------------------------------------------------------------------------------------------

    def search(self, wanted: Wanted) -> list[MarketOffer]:
        """Listings, cheapest first. Filters are applied again here: the server was seen to return others."""
        query: dict[str, Any] = {"rentable": {"eq": True}, "external": {"eq": False}}
        query["disk_space"] = {"gte": wanted.disk_gb}
        if wanted.gpu:
            query["gpu_name"] = {"eq": wanted.gpu.replace("_", " ")}
        if wanted.max_price is not None:
            query["dph_total"] = {"lte": wanted.max_price}
        if wanted.min_vram_gb is not None:
            query["gpu_ram"] = {"gte": wanted.min_vram_gb * 1000}
        if wanted.min_reliability is not None:
            query["reliability2"] = {"gte": wanted.min_reliability}
        if wanted.verified:
            query["verified"] = {"eq": True}
        if wanted.region:
            query["geolocation"] = {"in": [wanted.region.upper()]}
        if wanted.num_gpus is not None:
            query["num_gpus"] = {"eq": wanted.num_gpus}
        offers = self._offers(query, wanted.disk_gb, spot=wanted.spot, limit=wanted.limit)
        return [offer for offer in offers if _fits(offer, wanted)]

    def offer(self, offer_id: int, *, disk_gb: float, spot: bool = False) -> MarketOffer:
        """One listing, priced for `disk_gb` GB."""
        for offer in self._offers({"id": {"eq": offer_id}}, disk_gb, spot=spot, limit=None):
            if offer.id == offer_id and offer.rentable:
                return offer
        raise OfferGoneError(f"Offer {offer_id} is no longer on the market.", hint="Look again: tunewatch offers.")

    def _offers(self, query: dict[str, Any], disk_gb: float, *, spot: bool, limit: int | None) -> list[MarketOffer]:
        rows = self._ask(
            "search",
            lambda: self._sdk.search_offers(
                query=query, type="bid" if spot else "on-demand", order="dph_total", limit=limit, storage=disk_gb,
                no_default=True,
            ),
        )  # fmt: skip
        if not isinstance(rows, list):
            raise UnavailableError("The market's answer holds no list of offers.")
        found = [offer_from(row, disk_gb, spot=spot) for row in rows]
        return sorted((offer for offer in found if offer is not None), key=lambda offer: offer.dph_total)

    def account(self) -> Account:
        """Spendable money."""
        row = self._ask("user", self._sdk.show_user)
        return Account(number(row.get("credit")) if is_row(row) else None)

    # -- instances ----------------------------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        """All pages; one call for each 25 boxes."""
        found: list[Instance] = []
        seen: set[int] = set()
        turned: set[str] = set()
        params: dict[str, Any] = {"select_filters": {}, "order_by": [{"col": "id", "dir": "asc"}], "limit": PAGE}
        while True:
            page = self._ask("list", lambda: self._sdk.show_instances_v1(params))
            rows = page.get("instances") if is_row(page) else None
            if not isinstance(rows, list) or page.get("success") is False:
                raise UnavailableError("The provider's list of instances is not a list.")
            for row in rows:
                instance = instance_from(row, self._user, self._clean)
                if instance is None:
                    raise UnavailableError("A row of the provider's list has no id; the list cannot be trusted.")
                if instance.id not in seen:
                    seen.add(instance.id)
                    found.append(instance)
            token = page.get("next_token")
            if not token:
                return found
            if str(token) in turned:
                raise UnavailableError("The provider's list of instances repeats a page.")
            turned.add(str(token))
            params["after_token"] = token

    def create(self, order: Order) -> int:
        """Rent by one PUT. Everything that is not a definite answer is AmbiguousError."""
        body = {
            "image": order.image,
            "disk": order.disk_gb,
            "label": order.label,
            "onstart_cmd": order.onstart,
            "env": dict(order.env),
            "ssh": True,
            "direct": True,
            # the SDK sends false by default, and a failed schedule then leaves a stopped box that bills for its disk
            "cancel_unavail": order.bid_usd_per_h is None,
        }
        if order.bid_usd_per_h is not None:
            body["bid_price"] = order.bid_usd_per_h
        try:
            answer = self._ask("create", lambda: self._slow.create_instance(order.offer_id, **body))
        except UnavailableError as error:
            raise AmbiguousError(
                f"It is not known whether offer {order.offer_id} was rented: {error.message}",
                hint="The label is looked for on the account before anything is tried again.",
            ) from error
        contract = whole(answer.get("new_contract")) if is_row(answer) else None
        if contract is not None and answer.get("success") is not False:
            return contract
        if is_row(answer) and answer.get("success") is False:
            raise self._rejected("rent", answer, contract)
        raise AmbiguousError("The provider answered the rental with neither an instance nor a refusal.")

    def destroy(self, instance_id: int) -> None:
        """Send the DELETE and look at what it says."""
        self._deed("destroy", f"destroy instance {instance_id}", lambda: self._sdk.destroy_instance(instance_id))

    def stop(self, instance_id: int) -> None:
        """Release the GPU."""
        self._deed("state", f"stop instance {instance_id}", lambda: self._sdk.stop_instance(instance_id))

    def start(self, instance_id: int) -> None:
        """Take the GPU again. HTTP 200 with `resources_unavailable` means that it was let."""
        self._deed("state", f"start instance {instance_id}", lambda: self._sdk.start_instance(instance_id))

    def label(self, instance_id: int, text: str) -> None:
        """Name a box."""
        self._deed("label", f"label instance {instance_id}", lambda: self._sdk.label_instance(instance_id, text))

    def attach_key(self, instance_id: int, public_key: str) -> None:
        """Let a key into one box: a key appended by a start script is lost when the provider rewrites the file."""
        self._deed("attach", "attach the SSH key", lambda: self._sdk.attach_ssh(instance_id, public_key))

    def logs(self, instance_id: int, tail: int = 100) -> str:
        """The end of the container's log."""
        text = self._ask("logs", lambda: self._sdk.logs(instance_id, tail=str(tail)))
        return self._clean(text) if isinstance(text, str) else ""

    # -- money --------------------------------------------------------------------------------------------------------

    def charges(self, since: float, until: float) -> list[Charge]:
        """The provider's own bill per instance."""
        found: list[Charge] = []
        token: str | None = None
        turned: set[str] = set()
        while True:
            more = {"next_token": token} if token else {}
            page = self._ask(
                "charges",
                lambda more=more: self._sdk.show_invoices_v1(  # type: ignore[misc]
                    charges=True, start_date=int(since), end_date=int(until) + 1, limit=100, charge_type=["instance"],
                    **more,
                ),
            )  # fmt: skip
            rows = page.get("results") if is_row(page) else None
            if not isinstance(rows, list):
                raise UnavailableError("The provider's bill is not a list.")
            found.extend(charge for charge in (charge_from(row) for row in rows) if charge is not None)
            following = page.get("next_token")
            if not following or str(following) in turned:
                return found
            token = str(following)
            turned.add(token)

    def price_increases(self) -> list[PriceIncrease]:
        """What hosts ask for."""
        page = self._ask("increases", self._sdk.show_pending_price_increases)
        rows = page.get("pending_price_increases") if is_row(page) else None
        if not isinstance(rows, list):
            return []
        return [row for row in (increase_from(r) for r in rows) if row is not None]

    def answer_increase(self, increase_id: int, *, accept: bool) -> None:
        """Answer by the number of the request itself: that of the instance would answer whatever is asked by now."""
        from vastai.api import price_increase

        answer = price_increase.accept if accept else price_increase.reject
        word = "accept" if accept else "reject"
        try:
            self._deed("increases", f"{word} the new price", lambda: answer(self._sdk.client, increase_id))
        except RejectedError as error:
            if error.error != _NO_INCREASE:
                raise
            raise NotFoundError(
                "This request for a higher price does not stand any more.", hint="See: tunewatch instances."
            ) from error

    def bid(self, instance_id: int, usd_per_h: float) -> None:
        """Bid for the GPU part."""
        self._deed("bid", f"bid for instance {instance_id}", lambda: self._sdk.change_bid(instance_id, price=usd_per_h))

    # -- the wall -----------------------------------------------------------------------------------------------------

    def _clean(self, text: str) -> str:
        return redact(text, self._key)

    def _deed(self, endpoint: str, what: str, call: Callable[[], Any]) -> None:
        answer = self._ask(endpoint, call)
        if not is_row(answer):
            raise UnavailableError(f"The provider's answer to '{what}' cannot be read.")
        if answer.get("success") is not True:
            raise self._rejected(what, answer, None)

    def _ask(self, endpoint: str, call: Callable[[], T]) -> T:
        """Carry out one SDK call; every foreign exception becomes one of ours here."""
        import requests

        self._limiter.wait(endpoint)
        try:
            return call()
        except TunewatchError:
            raise
        except requests.exceptions.HTTPError as error:
            raise self._from_http(endpoint, error) from None
        except requests.exceptions.JSONDecodeError:
            raise UnavailableError(f"The provider's answer ({endpoint}) is not JSON.") from None
        except requests.exceptions.Timeout:
            raise UnavailableError(f"The provider did not answer in time ({endpoint}).") from None
        except (requests.exceptions.RequestException, OSError) as error:
            raise UnavailableError(
                f"The provider cannot be reached ({endpoint}): {self._clean(type(error).__name__)}."
            ) from None
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            # the SDK reads keys of the answer unchecked: what it stumbles over is an odd answer, not a fault of ours
            raise UnavailableError(
                f"The provider's answer ({endpoint}) has an unknown shape: {type(error).__name__}."
            ) from None

    def _from_http(self, endpoint: str, error: Any) -> TunewatchError:
        response = error.response
        if response is None:
            return UnavailableError(f"The provider's answer ({endpoint}) is none.")
        status = int(response.status_code)
        try:
            document = response.json()
        except (ValueError, RecursionError):
            document = None
        row: Mapping[str, Any] = document if isinstance(document, dict) else {}
        code, text = word(row.get("error")), word(row.get("msg")) or word(row.get("detail"))
        if status == 429:
            quota = code == "search_quota_exceeded"
            wait = max(0.0, number(response.headers.get("Retry-After")) or 0.0) or (3600.0 if quota else 5.0)
            self._limiter.hold(endpoint, min(wait, 60.0))
            said = "The search quota of today is used up" if quota else f"The provider is asked too often ({endpoint})."
            return RateLimitedError(said, retry_after_s=wait)
        contract = whole(row.get("new_contract"))
        if contract is not None:
            return self._rejected(endpoint, row, contract)
        # a gate in front of the provider says 403, too, with a page of its own: that is no word about the key
        if status == 401 or (status == 403 and row) or code == "auth_error":
            return AuthError(
                f"The provider refused the key ({endpoint}): {self._clean(text or code or str(status))}.",
                hint="Check VAST_API_KEY: tunewatch doctor.",
            )
        if status >= 500 or not row:
            return UnavailableError(f"The provider answered {status} ({endpoint}).")
        if code in ("no_such_instance", "not_found"):
            return NoSuchInstanceError(f"The provider knows no such instance ({endpoint}).")
        if endpoint == "increases" and status == 409:
            # older servers word "there is no such request any more" so
            return RejectedError("There is no such request any more.", error=_NO_INCREASE)
        return self._rejected(endpoint, row, None)

    def _rejected(self, what: str, row: Mapping[str, Any], contract: int | None) -> TunewatchError:
        code, text = word(row.get("error")), word(row.get("msg")) or word(row.get("detail"))
        if contract is None and (_GONE in code or _GONE in text):
            return OfferGoneError(
                "The offer was let to somebody else in the meantime.", hint="Look again: tunewatch offers."
            )
        words = self._clean(": ".join(part for part in (code, text) if part) or "no reason given")
        if contract is None and ("credit" in code or code in ("missing_billing", "spend_rate_limit")):
            return CreditError(f"The account cannot pay for this: {words}.", hint="Add credit, then try again.")
        if code in ("no_such_instance", "not_found"):
            return NoSuchInstanceError("The provider knows no such instance.")
        return RejectedError(f"The provider refused to {what}: {words}.", error=code, new_contract=contract)


def _fits(offer: MarketOffer, wanted: Wanted) -> bool:
    if not offer.rentable or (offer.disk_space_gb is not None and offer.disk_space_gb < wanted.disk_gb):
        return False
    if wanted.gpu and offer.gpu_name.lower() != wanted.gpu.replace("_", " ").lower():
        return False
    if wanted.max_price is not None and offer.dph_total > wanted.max_price:
        return False
    if wanted.min_vram_gb is not None and offer.gpu_ram_mb < wanted.min_vram_gb * 1000:
        return False
    if wanted.num_gpus is not None and offer.num_gpus != wanted.num_gpus:
        return False
    if wanted.verified and not offer.verified:
        return False
    if wanted.region and not offer.place.upper().endswith(wanted.region.upper()):
        return False
    return wanted.min_reliability is None or (offer.reliability or 0.0) >= wanted.min_reliability
