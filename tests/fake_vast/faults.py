"""Scripted faults: what the provider answers instead, and whether the effect took place all the same.

A fault is queued for an operation (`search create list show destroy stop start label attach user charges logs bid`)
and used up one call at a time.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One wrong answer."""

    name: str
    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    effect: bool = False
    """Whether the request is carried out before the wrong answer is given."""
    hang: bool = False
    """Do not answer at all; the connection stays open until the server closes."""
    reset: bool = False
    """Close the connection without an answer."""
    truncate: bool = False
    """Announce a longer body than is sent."""
    after: int = 0
    """How many calls of the operation are answered properly first."""
    merge: dict[str, Any] = field(default_factory=dict)
    """Keys put into the proper answer (after the effect) instead of replacing it."""


def json_fault(name: str, status: int, document: Any, **kwargs: Any) -> Fault:
    return Fault(name, status, json.dumps(document).encode(), **kwargs)


HTML = b"<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"

RATE_LIMITED = Fault("429", 429, b"API requests too frequent endpoint threshold=4.5", "text/plain")
SERVER_ERROR = Fault("500", 500, b"Internal Server Error", "text/plain")
BAD_GATEWAY = Fault("502", 502, HTML, "text/html")
HTML_OK = Fault("html 200", 200, HTML, "text/html")
EMPTY = Fault("empty 200", 200, b"")
TRUNCATED = Fault("truncated json", 200, b'{"success": true, "new_con')
CUT_BODY = Fault("body cut short", 200, b'{"success": true, "inst', truncate=True)
NULL_INSTANCES = json_fault("instances null", 200, {"instances": None})
NOT_AN_OBJECT = json_fault("a list instead of an object", 200, [1, 2])
NOT_SUCCESS = json_fault("success false", 200, {"success": False, "error": "unknown", "msg": "try again later"})
HANG = Fault("hang", hang=True)
RESET = Fault("reset", reset=True)
UNAUTHORISED = json_fault("401", 401, {"success": False, "error": "auth_error", "msg": "Invalid user key"})
HANG_AFTER = Fault("hang after effect", hang=True, effect=True)
RESET_AFTER = Fault("reset after effect", reset=True, effect=True)
ERROR_AFTER = Fault("500 after effect", 500, b"Internal Server Error", "text/plain", effect=True)
GATEWAY_AFTER = Fault("502 after effect", 502, HTML, "text/html", effect=True)
EMPTY_AFTER = Fault("empty 200 after effect", 200, b"", effect=True)
TRUNCATED_AFTER = Fault("truncated after effect", 200, b'{"success": tr', effect=True)
NO_CREDIT = json_fault(
    "insufficient credit", 400, {"success": False, "error": "insufficient_credit", "msg": "Your balance is too low."}
)

WITHOUT_EFFECT = (
    RATE_LIMITED, SERVER_ERROR, BAD_GATEWAY, HTML_OK, EMPTY, TRUNCATED, CUT_BODY, NULL_INSTANCES, NOT_AN_OBJECT,
    NOT_SUCCESS, RESET,
)  # fmt: skip
WITH_EFFECT = (RESET_AFTER, ERROR_AFTER, GATEWAY_AFTER, EMPTY_AFTER, TRUNCATED_AFTER)


class Faults:
    """The queue, one per operation."""

    def __init__(self) -> None:
        self._queues: dict[str, list[Fault]] = {}
        self._lock = threading.Lock()
        self.used: list[tuple[str, str]] = []

    def add(self, operation: str, *faults: Fault, times: int = 1) -> None:
        with self._lock:
            self._queues.setdefault(operation, []).extend(list(faults) * times)

    def take(self, operation: str) -> Fault | None:
        with self._lock:
            queue = self._queues.get(operation)
            if not queue:
                return None
            if queue[0].after > 0:
                first = queue[0]
                queue[0] = Fault(**{**first.__dict__, "after": first.after - 1})
                return None
            fault = queue.pop(0)
            self.used.append((operation, fault.name))
            return fault

    def clear(self) -> None:
        with self._lock:
            self._queues.clear()
