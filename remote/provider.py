"""What a place that lets GPUs can be asked, in words of our own: `remote.vast` and `remote.hosts` fulfil it.

The promises, held by one test suite against each implementation:

- Every value is frozen and was checked: a row that cannot be read becomes an `Instance` with status "unknown", never
  an exception. No value carries a secret.
- `instances()` is complete or raises. Its absence of an id is evidence; a failed call is not.
- `create` sends exactly one request. When it cannot be known whether a box came of it, it raises AmbiguousError; when
  the provider refused and a box exists all the same, RejectedError carries its id in `new_contract`.
- `destroy` and `stop` raise unless the provider said that it was done; that alone is no proof.

    TunewatchError
    ├── NotFoundError
    │   └── OfferGoneError          the listing was let to somebody else, or withdrawn
    ├── RefusedError
    │   └── CreditError             not enough money on the account
    ├── UnreachableError
    │   └── UnavailableError        no answer, 5xx, or an answer that is not the provider's language
    ├── ProviderError
    │   ├── AuthError               the key is missing, wrong, or may not do this
    │   ├── RateLimitedError        asked too often; retry_after_s says when to ask again
    │   ├── NoSuchInstanceError     the provider says that this id does not exist
    │   └── RejectedError           a definite no, with its code; new_contract when a box exists all the same
    └── UnconfirmedError
        └── AmbiguousError          sent, and nobody knows whether it was done
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from runner.errors import (
    NotFoundError,
    ProviderError,
    RefusedError,
    UnconfirmedError,
    UnreachableError,
)

HOURS_PER_MONTH = 720.0
"""The provider's month for storage prices."""


class OfferGoneError(NotFoundError):
    """The listing is no longer there."""


class CreditError(RefusedError):
    """The account cannot pay for this."""


class UnavailableError(UnreachableError):
    """The provider did not answer in its own language: time-out, 5xx, HTML, half a document."""


class AuthError(ProviderError):
    """The key is missing, wrong, or not allowed to do this."""


class RateLimitedError(ProviderError):
    """Asked too often."""

    retry = True

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float = 5.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class NoSuchInstanceError(ProviderError):
    """The provider knows no instance of this id."""


class RejectedError(ProviderError):
    """A definite no."""

    def __init__(self, message: str, *, error: str = "", new_contract: int | None = None, hint: str = "") -> None:
        exists = f"instance {new_contract}" if new_contract is not None else ""
        super().__init__(message, hint=hint, exists=exists)
        self.error = error
        self.new_contract = new_contract
        """A box that exists, and bills, although the call was refused."""


class AmbiguousError(UnconfirmedError):
    """The request may have been carried out; only a listing can tell."""


Status = Literal[
    "provisioning", "created", "loading", "running", "stopped", "exited", "frozen", "rebooting", "offline", "unknown"
]
KNOWN_STATUS: frozenset[str] = frozenset(
    ("provisioning", "created", "loading", "running", "stopped", "exited", "frozen", "rebooting", "offline", "unknown")
)
_FAILURE_WORDS = ("error", "failed", "failure", "exception", "traceback", "oci runtime", "permission denied")


@dataclass(frozen=True, slots=True)
class SshPair:
    """One way in. Host and port belong together and are never combined with those of another pair."""

    kind: Literal["direct", "proxy"]
    host: str
    port: int
    user: str = "root"


@dataclass(frozen=True, slots=True)
class MarketOffer:
    """A listing, priced for the disk that was asked for."""

    id: int
    machine_id: int
    """The physical box; 0 when the listing does not say."""
    host_id: int | None
    gpu_name: str
    num_gpus: int
    gpu_ram_mb: float
    """Per GPU."""
    dph_base: float
    """USD/h for the GPUs."""
    dph_total: float
    """USD/h with `disk_gb` of disk."""
    storage_cost: float
    """USD per GB and month of 720 h."""
    disk_gb: float
    """GB the price was made for."""
    disk_space_gb: float | None = None
    """GB that can be had."""
    inet_up_cost: float = 0.0
    """USD per GB."""
    inet_down_cost: float = 0.0
    inet_up: float | None = None
    """Mbit/s."""
    inet_down: float | None = None
    reliability: float | None = None
    duration_s: float | None = None
    """Seconds the host will keep it."""
    cuda_max: float | None = None
    """Highest CUDA version of the host's driver."""
    verified: bool = False
    place: str = ""
    min_bid: float | None = None
    """USD/h, GPU part, for an interruptible contract."""
    spot: bool = False
    direct_ports: int = 0
    rentable: bool = True
    dlperf: float | None = None
    own: str = ""
    """The name of a machine of one's own; empty for a listing of the market."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The provider's own fields, for the estimator; numbers and names only."""

    @property
    def as_typed(self) -> str:
        """What `--offer` takes for it."""
        return f"host:{self.own}" if self.own else str(self.id)


@dataclass(frozen=True, slots=True)
class Instance:
    """A rented box as the provider describes it."""

    id: int
    label: str
    status: Status
    intended: str
    """What the account wants: running, stopped; empty when unknown."""
    status_word: str = ""
    """The provider's own word."""
    message: str = ""
    spot: bool = False
    machine_id: int | None = None
    host_id: int | None = None
    gpu_name: str = ""
    num_gpus: int = 1
    gpu_ram_mb: float = 0.0
    gpu_util: float | None = None
    """Per cent."""
    dph_base: float = 0.0
    dph_total: float = 0.0
    disk_usd_per_h: float = 0.0
    disk_gb: float = 0.0
    inet_up_cost: float = 0.0
    inet_down_cost: float = 0.0
    start_date: float | None = None
    """Seconds since the epoch, the provider's clock."""
    end_date: float | None = None
    min_bid: float | None = None
    """USD/h, GPU part: the least bid that holds an interruptible box at this moment."""
    cur_state: str = ""
    next_state: str = ""
    image: str = ""
    ssh: tuple[SshPair, ...] = ()
    """The ways in, direct first."""
    own: str = ""
    """The name of a machine of one's own; empty for a rented box."""
    address: str = ""
    """How `tunewatch run --host` names a machine of one's own."""
    python: str = ""
    """The interpreter to build on there, where hosts.toml names one."""

    @property
    def called(self) -> str:
        """What it is called within a sentence."""
        return f"host {self.own}" if self.own else f"instance {self.id}"

    @property
    def billing_usd_per_h(self) -> float:
        """What it costs at this moment: everything while the GPU is held, the disk alone when stopped."""
        if self.status == "offline":
            return 0.0
        if self.status in ("running", "frozen", "rebooting"):
            return self.dph_total
        return self.disk_usd_per_h

    @property
    def halted(self) -> bool:
        """Stopped by somebody: by us, by a higher bid, by an empty account, or by the end of the contract."""
        return self.intended in ("stopped", "exited") or (self.cur_state == "stopped" and self.next_state == "stopped")

    def boot_failure(self) -> str:
        """Why this box will never come up, or "" while it may."""
        if self.status == "offline":
            return "the host went offline"
        if self.halted:
            return f"the provider gave up starting it{': ' + self.message if self.message else ''}"
        if self.status in ("provisioning", "created", "loading") and any(
            word in self.message.lower() for word in _FAILURE_WORDS
        ):
            return self.message
        return ""


@dataclass(frozen=True, slots=True)
class Account:
    """What the account can spend."""

    credit_usd: float | None


@dataclass(frozen=True, slots=True)
class Charge:
    """What the provider says an instance has cost, by kind (gpu, disk, bwd, bwu)."""

    instance_id: int
    start: float
    end: float
    usd: float
    items: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PriceIncrease:
    """A host asks for more from the end of the contract on."""

    id: int
    instance_id: int
    old_usd_per_h: float
    """GPU and disk, where the provider tells both."""
    new_usd_per_h: float
    contract_end: float | None
    """Seconds since the epoch; the new price counts from then on, and not before."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a search asks for. Prices in USD/h, memory in GB per GPU, disk in GB."""

    gpu: str | None = None
    max_price: float | None = None
    min_vram_gb: float | None = None
    min_reliability: float | None = None
    verified: bool = True
    region: str | None = None
    """Two letters of a country."""
    spot: bool = False
    disk_gb: float = 60.0
    num_gpus: int | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What to create on an offer. Nothing in it is a secret: the provider stores and shows all of it."""

    offer_id: int
    label: str
    image: str
    disk_gb: float
    onstart: str
    bid_usd_per_h: float | None = None
    """GPU part; given exactly when the contract is interruptible."""
    env: Mapping[str, str] = field(default_factory=dict)


class Provider(Protocol):
    """A market and the boxes rented on it."""

    name: str

    def called(self, instance_id: int) -> str:
        """What a box, or an offer, is called within a sentence; never asks anybody."""
        ...

    def search(self, wanted: Wanted) -> list[MarketOffer]:
        """Listings that fulfil `wanted`, cheapest first."""
        ...

    def offer(self, offer_id: int, *, disk_gb: float, spot: bool = False) -> MarketOffer:
        """One listing priced for `disk_gb`; raises OfferGoneError."""
        ...

    def account(self) -> Account:
        """Credit."""
        ...

    def instances(self) -> list[Instance]:
        """Everything rented on this account, complete."""
        ...

    def create(self, order: Order) -> int:
        """Rent, by exactly one request; returns the instance id."""
        ...

    def destroy(self, instance_id: int) -> None:
        """End the contract and delete the disk; raises NoSuchInstanceError when there is none."""
        ...

    def stop(self, instance_id: int) -> None:
        """Release the GPU, keep (and pay) the disk."""
        ...

    def start(self, instance_id: int) -> None:
        """Take the GPU again; raises RejectedError when it was let to somebody else."""
        ...

    def label(self, instance_id: int, text: str) -> None:
        """Name a box."""
        ...

    def attach_key(self, instance_id: int, public_key: str) -> None:
        """Let an SSH key into one box."""
        ...

    def logs(self, instance_id: int, tail: int = 100) -> str:
        """The end of the container's log, secrets removed."""
        ...

    def charges(self, since: float, until: float) -> list[Charge]:
        """What was billed between two moments (seconds since the epoch)."""
        ...

    def price_increases(self) -> list[PriceIncrease]:
        """Requests of hosts for more money."""
        ...

    def answer_increase(self, increase_id: int, *, accept: bool) -> None:
        """Answer exactly this request; raises NotFoundError when it does not stand any more."""
        ...

    def bid(self, instance_id: int, usd_per_h: float) -> None:
        """Bid so much for the GPU part of an interruptible box."""
        ...


OWN_IDS = 1 << 40
"""Machines of one's own are numbered from here on: no number of the market comes near."""


def is_own(number: int) -> bool:
    """Whether the number of a box or an offer is that of a machine of one's own."""
    return number >= OWN_IDS


def upper(text: str) -> str:
    """A sentence that begins with what a box is called.

    >>> upper("host Attic2")
    'Host Attic2'
    """
    return text[:1].upper() + text[1:]


def find(instances: Sequence[Instance], instance_id: int) -> Instance | None:
    """The instance of an id in a listing."""
    return next((row for row in instances if row.id == instance_id), None)
