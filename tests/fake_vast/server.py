"""The HTTP face of the stand-in: paths, bodies, codes and quirks of the provider's API on a loopback port."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fake_vast import contracts
from tests.fake_vast.boxes import BoxHost
from tests.fake_vast.clock import ScaledClock
from tests.fake_vast.faults import Fault, Faults
from tests.fake_vast.market import BadQueryError, search
from tests.fake_vast.world import Box, World

THRESHOLDS = {"list": 1.0, "show": 2.0, "create": 4.5, "destroy": 3.0, "state": 1.0, "bid": 5.5, "charges": 1.0}
"""Seconds between calls of one endpoint by one identity."""
FILTERABLE = {"id", "label", "actual_status", "gpu_name", "verification", "geolocation", "machine_id"}
PAGE = 25


class Refusal(Exception):  # noqa: N818 - it is an answer, not a failure of ours
    """An answer other than 200."""

    def __init__(self, status: int, document: dict[str, Any] | str) -> None:
        super().__init__(str(document))
        self.status = status
        self.document = document


def refusal(status: int, error: str, msg: str, **more: Any) -> Refusal:
    return Refusal(status, {"success": False, "error": error, "msg": msg, **more})


class FakeVast:
    """The server; use it as a context manager.

    `rate_limits` turns the documented thresholds on. `calls` lists `(operation, identity)` of everything answered.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] | None = None,
        boxes: Path | None = None,
        rate_limits: bool = False,
        python: str | None = None,
        port: int = 0,
        **world: Any,
    ) -> None:
        host = BoxHost(boxes, python=python) if boxes is not None else None
        self.world = World(clock or ScaledClock(), host=host, **world)
        self.faults = Faults()
        self.rate_limits = rate_limits
        self.calls: list[tuple[str, str]] = []
        self.bodies: list[tuple[str, Any]] = []
        self.limited = 0
        """Calls that came too soon."""
        self.closing = threading.Event()
        self.bad_key_status = 404
        self._last: dict[tuple[str, str], float] = {}
        self._results: dict[str, tuple[str, int]] = {}
        handler = type("Handler", (_Handler,), {"fake": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        self._threads = [threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)]
        if host is not None:
            self._threads.append(threading.Thread(target=self._tick_forever, daemon=True))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> FakeVast:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        for thread in self._threads:
            thread.join(timeout=5)
        if self.world.host is not None:
            self.world.host.close()

    def _tick_forever(self) -> None:
        while not self.closing.wait(0.05):
            self.world.tick()

    def count(self, operation: str) -> int:
        """How many calls of an operation arrived."""
        return sum(1 for name, _ in self.calls if name == operation)

    # -- requests -----------------------------------------------------------------------------------------------------

    def identify(self, header: str | None) -> Box | None:
        """None for the account's own key, the box for a scoped one."""
        if not header:
            raise refusal(403, "auth_error", "Missing authentication")
        key = header.removeprefix("Bearer ")
        if key == self.world.account_key:
            return None
        for box in self.world.boxes.values():
            if key == box.api_key and box.destroyed is None:
                return box
        raise refusal(self.bad_key_status, "auth_error", "Invalid user key")

    def limit(self, operation: str, identity: str) -> None:
        """Plain-text 429 when an identity comes back to an endpoint too soon."""
        if not self.rate_limits or operation not in THRESHOLDS:
            return
        now = self.world.clock()
        last = self._last.get((operation, identity))
        if last is not None and now - last < THRESHOLDS[operation] - 1e-6:
            self.limited += 1
            raise Refusal(429, f"API requests too frequent endpoint threshold={THRESHOLDS[operation]}")
        self._last[(operation, identity)] = now

    def box(self, box_id: int, identity: Box | None) -> Box:
        box = self.world.boxes.get(box_id)
        if identity is not None and identity is not box:
            raise refusal(401, "auth_error", "This key is scoped to another instance")
        if box is None or box.destroyed is not None:
            raise refusal(404, "no_such_instance", f"Instance {box_id} not found.")
        return box

    def do_search(self, body: dict[str, Any]) -> dict[str, Any]:
        rows = [row for row in self.world.offers.values() if not row.get("gone")]
        try:
            return {"offers": search(rows, body)}
        except BadQueryError as error:
            raise refusal(400, "invalid_request", str(error)) from None

    def do_create(self, offer_id: int, body: dict[str, Any]) -> dict[str, Any]:
        offer = self.world.offers.get(offer_id)
        gone = f"error 404/3603: no_such_ask Instance type by id {offer_id} is not available."
        if offer is None or offer.get("gone") or not offer["rentable"]:
            raise refusal(404, "invalid_args", gone)
        _validate(body)
        if self.world.credit() <= 0.0:
            raise refusal(400, "insufficient_credit", "Your balance is too low to rent.")
        if offer.get("unavailable"):
            if body.get("cancel_unavail"):
                raise refusal(410, "no_such_ask", f"error 410/3907: ask {offer_id} is no longer available.")
            box = self.world.create(offer_id, body)
            self.world.stop(box)
            return {"success": True, "new_contract": box.id, "instance_api_key": box.api_key}
        if "price" in body and body["price"] is not None and body["price"] < offer["min_bid"]:
            box = self.world.create(offer_id, body)
            self.world.stop(box)
            raise refusal(400, "invalid_price", "Bid is below the minimum bid.", new_contract=box.id)
        box = self.world.create(offer_id, body)
        return {"success": True, "new_contract": box.id, "instance_api_key": box.api_key}

    def do_list(self, query: dict[str, Any]) -> dict[str, Any]:
        boxes = []
        for box in sorted(self.world.boxes.values(), key=lambda b: b.id):
            if box.destroyed is None and box.hidden_lists > 0:
                box.hidden_lists -= 1
                continue
            if box.destroyed is not None:
                if box.lingering_lists <= 0:
                    continue
                box.lingering_lists -= 1
            boxes.append(box)
        rows = [self.world.row(box) for box in boxes]
        for name, conditions in (query.get("select_filters") or {}).items():
            if name not in FILTERABLE:
                raise refusal(400, "invalid_request", f"cannot filter on computed column {name}")
            for operator, wanted in conditions.items():
                rows = [row for row in rows if _match(row.get(name), operator, wanted)]
        token = str(query.get("after_token") or "")
        if token:
            if not token.isdigit():
                raise refusal(400, "invalid_token", "bad after_token")
            rows = [row for row in rows if row["id"] > int(token)]
        limit = int(query.get("limit") or PAGE)
        if limit > PAGE:
            raise refusal(400, "invalid_request", "limit is at most 25")
        page = rows[:limit]
        labels: dict[str, int] = {}
        for row in rows:
            labels[row["label"] or ""] = labels.get(row["label"] or "", 0) + 1
        return {
            "success": True,
            "instances_found": len(page),
            "total_instances": len(rows),
            "label_counts": labels,
            "next_token": str(page[-1]["id"]) if len(rows) > limit else None,
            "instances": page,
        }

    def do_show(self, box_id: int, identity: Box | None) -> dict[str, Any]:
        box = self.world.boxes.get(box_id)
        if identity is not None and identity is not box:
            raise refusal(401, "auth_error", "This key is scoped to another instance")
        return {"instances": None if box is None or box.destroyed is not None else self.world.row(box)}

    def do_put_instance(self, box: Box, body: dict[str, Any]) -> dict[str, Any]:
        if "label" in body:
            if len(body["label"]) > 1024:
                raise refusal(400, "label_too_long", "label is too long")
            box.label = body["label"]
        elif body.get("state") == "stopped":
            self.world.stop(box)
        elif body.get("state") == "running" and not self.world.start(box):
            return {
                "success": False,
                "error": "resources_unavailable",
                "msg": "Required resources are currently unavailable, state change queued.",
            }
        return {"success": True, "msg": "done"}

    def do_charges(self, query: dict[str, Any]) -> dict[str, Any]:
        rows = self.world.charges()
        day = (query.get("select_filters") or {}).get("day", {})
        rows = [row for row in rows if row["end"] >= day.get("gte", 0) and row["start"] <= day.get("lte", 1e12)]
        return {"success": True, "count": len(rows), "total": len(rows), "next_token": None, "results": rows}

    def do_user(self) -> dict[str, Any]:
        return {
            "id": 4711,
            "email": "someone@example.org",
            "credit": self.world.credit(),
            "balance": 0.0,
            "ssh_key": "",
            "can_pay": True,
            "api_key": self.world.account_key,
        }

    def result(self, text: str) -> str:
        """A result that is ready at the second look."""
        token = uuid.uuid4().hex
        self._results[token] = (text, 1)
        return f"{self.url}/results/{token}"

    def take_result(self, token: str) -> str | None:
        text, looks = self._results.get(token, ("", 1))
        self._results[token] = (text, looks - 1)
        return text if looks <= 0 else None

    # -- the table of paths -------------------------------------------------------------------------------------------

    def route(self, method: str, path: str, query: dict[str, Any], body: Any, auth: str | None) -> tuple[str, Any]:
        """`(operation, thunk)` for a request; the thunk carries it out."""
        parts = [part for part in path.split("/") if part]
        if parts[:2] not in (["api", "v0"], ["api", "v1"]):
            raise Refusal(404, "not found")
        version, parts = parts[1], parts[2:]
        box_id = next((int(part) for part in parts if part.isdigit()), 0)
        shape = [("#" if part.isdigit() else part) for part in parts]
        me = self.identify(auth)
        identity = "account" if me is None else str(me.id)
        world = self.world

        def own(action: Callable[[Box], Any]) -> Callable[[], Any]:
            return lambda: action(self.box(box_id, me))

        def account(action: Callable[[], Any]) -> Callable[[], Any]:
            def checked() -> Any:
                if me is not None:
                    raise refusal(401, "auth_error", "This key may not do that")
                return action()

            return checked

        def done(action: Callable[[], object]) -> dict[str, Any]:
            action()
            return {"success": True}

        table: dict[tuple[str, str], tuple[str, Callable[[], Any]]] = {
            ("POST", "bundles"): ("search", account(lambda: self.do_search(body))),
            ("PUT", "asks/#"): ("create", account(lambda: self.do_create(box_id, body))),
            ("GET", "instances"): ("list", account(lambda: self.do_list(query))),
            ("GET", "instances/#"): ("show", lambda: self.do_show(box_id, me)),
            ("DELETE", "instances/#"): ("destroy", own(lambda b: done(lambda: world.destroy(b, identity)))),
            ("PUT", "instances/#"): ("state", own(lambda b: self.do_put_instance(b, body))),
            ("PUT", "instances/reboot/#"): ("reboot", own(lambda b: {"success": True})),
            ("PUT", "instances/bid_price/#"): ("bid", own(lambda b: contracts.bid(world, b, body.get("price")))),
            ("PUT", "instances/accept-price-increase"): (
                "accept", account(lambda: contracts.answer(world, body, accept=True)),
            ),
            ("PUT", "instances/reject-price-increase"): (
                "reject", account(lambda: contracts.answer(world, body, accept=False)),
            ),
            ("POST", "instances/#/ssh"): ("attach", own(lambda b: done(lambda: world.attach_key(b, body["ssh_key"])))),
            ("PUT", "instances/request_logs/#"): (
                "logs",
                own(lambda b: {"success": True, "result_url": self.result(self.world.logs.get(b.id, "no log yet\n"))}),
            ),
            ("GET", "instances/pending-price-increases"): (
                "increases",
                account(lambda: _envelope(self.world.price_increases)),
            ),
            ("GET", "users/current"): ("user", account(self.do_user)),
            ("GET", "charges"): ("charges", account(lambda: self.do_charges(query))),
            ("GET", "ssh"): ("keys", account(lambda: self.world.account_ssh_keys)),
            ("POST", "ssh"): ("add_key", account(lambda: self._add_account_key(body))),
        }  # fmt: skip
        found = table.get((method, "/".join(shape)))
        if found is None:
            raise Refusal(404, f"no such path {method} {path} ({version})")
        operation, thunk = found
        self.calls.append((operation, identity))
        self.limit(operation, identity)
        return operation, thunk

    def _add_account_key(self, body: dict[str, Any]) -> dict[str, Any]:
        if not body.get("ssh_key"):
            raise refusal(400, "no_ssh_key", "no key given")
        row = {"id": len(self.world.account_ssh_keys) + 1, "user_id": 4711, "public_key": body["ssh_key"]}
        self.world.account_ssh_keys.append(row)
        return {"success": True, "key": row}


def _envelope(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"success": True, "count": len(rows), "truncated": False, "pending_price_increases": rows}


def _validate(body: dict[str, Any]) -> None:
    if len(body.get("image") or "") > 1024 or not body.get("image"):
        raise refusal(400, "invalid_args", "image is missing or too long")
    if len(body.get("onstart") or "") > 4096:
        raise refusal(400, "invalid_args", "onstart is longer than 4096 characters")
    if len(body.get("label") or "") > 256:
        raise refusal(400, "invalid_args", "label is longer than 256 characters")
    if float(body.get("disk") or 10) < 8:
        raise refusal(400, "invalid_args", "disk is at least 8 GB")
    if any(len(str(value)) > 256 for value in (body.get("env") or {}).values()):
        raise refusal(400, "invalid_args", "a value in env is longer than 256 characters")


def _match(value: Any, operator: str, wanted: Any) -> bool:
    if operator == "in":
        return value in wanted
    if operator == "neq":
        return bool(value != wanted)
    if operator == "eq":
        return bool(value == wanted)
    raise refusal(400, "invalid_request", f"unknown operator {operator}")


class _Handler(BaseHTTPRequestHandler):
    fake: FakeVast
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Nothing: the calls are counted instead."""

    def _handle(self, method: str) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length) if length else b""
        parts = url.path.strip("/").split("/")
        if parts[0] == "results":
            text = self.fake.take_result(parts[1])
            self._send(404 if text is None else 200, b"" if text is None else text.encode(), "text/plain")
            return
        query = {name: _value(values[0]) for name, values in parse_qs(url.query).items()}
        try:
            body = json.loads(raw) if raw else {}
            with self.fake.world.lock:
                self.fake.world.tick()
                operation, thunk = self.fake.route(method, url.path, query, body, self.headers.get("Authorization"))
                self.fake.bodies.append((operation, body))
                fault = self._fault(operation, body)
                if fault is None:
                    self._json(200, thunk())
                    return
                document: Any = None
                if fault.effect or fault.merge:
                    document = thunk()
            self._wrong(fault, document)
        except Refusal as error:
            if isinstance(error.document, str):
                self._send(error.status, error.document.encode(), "text/plain")
            else:
                self._json(error.status, error.document)

    def _fault(self, operation: str, body: Any) -> Fault | None:
        names = [operation]
        if operation == "state" and isinstance(body, dict):
            names = ["label"] if "label" in body else ["stop" if body.get("state") == "stopped" else "start"]
        return self.fake.faults.take(names[0])

    def _wrong(self, fault: Fault, document: Any) -> None:
        if fault.hang:
            self.fake.closing.wait(60)
            self.close_connection = True
            return
        if fault.reset:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                self.connection.close()
            return
        if fault.merge:
            self._json(fault.status, {**document, **fault.merge})
            return
        self._send(fault.status, fault.body, fault.content_type, extra=40 if fault.truncate else 0)

    def _json(self, status: int, document: Any) -> None:
        self._send(status, json.dumps(document).encode(), "application/json")

    def _send(self, status: int, body: bytes, content_type: str, extra: int = 0) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body) + extra))
            self.end_headers()
            self.wfile.write(body)
            if extra:
                self.close_connection = True

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def do_DELETE(self) -> None:
        self._handle("DELETE")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
