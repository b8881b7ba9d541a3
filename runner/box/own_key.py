"""The instance's own key, and the little of the provider that it may ask for: look at itself, stop, destroy.

The key is scoped to this instance by the provider; the account's key never comes to a box. It stands in the environment
of the container's first process, not in an SSH session, so the start script keeps a copy in ~/tunewatch/container.env.
Standard library only, syntax of Python 3.9.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.box.limits import Limits

ENV_FILE = "tunewatch/container.env"


def container_environment(home: Path | None = None, first: Path = Path("/proc/1/environ")) -> dict[str, str]:
    """CONTAINER_ID and CONTAINER_API_KEY from the start script's file, the first process, or our own environment."""
    found: dict[str, str] = {}
    places = [(home or Path.home()) / ENV_FILE, first]
    for place in places:
        try:
            raw = place.read_bytes()
        except OSError:
            continue
        for entry in raw.replace(b"\n", b"\0").split(b"\0"):
            name, _, value = entry.decode("utf-8", "replace").partition("=")
            if name in ("CONTAINER_ID", "CONTAINER_API_KEY") and value and name not in found:
                found[name] = value
    for name in ("CONTAINER_ID", "CONTAINER_API_KEY"):
        if name not in found and os.environ.get(name):
            found[name] = os.environ[name]
    return found


class Api:
    """The provider, as far as a box may talk to it. Every method returns (worked, what was said)."""

    def __init__(self, url: str, instance_id: int, key: str, timeout_s: float = 15.0) -> None:
        self._base = f"{url.rstrip('/')}/api/v0/instances/{instance_id}/"
        self._id = instance_id
        self._key = key
        self._timeout = timeout_s
        try:
            local = urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
        except ValueError:
            local = False  # an address that is none: the first call says so
        # a proxy in the environment is honoured, but never for a server on this very machine
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))

    def _call(self, method: str, body: Mapping[str, Any] | None, query: str = "") -> tuple[int, Any, str]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": "Bearer " + self._key, "Content-Type": "application/json"}
        try:
            request = urllib.request.Request(self._base + query, data=data, headers=headers, method=method)  # noqa: S310
            with self._opener.open(request, timeout=self._timeout) as answer:
                status, raw = answer.status, answer.read(1 << 20)
        except urllib.error.HTTPError as error:
            status, raw = error.code, _rest(error)
        # an answer that is cut off or is no HTTP at all is an error of http.client's own, not of the system
        except (OSError, ValueError, http.client.HTTPException) as error:
            return 0, None, f"no answer ({type(error).__name__})"
        try:
            return status, json.loads(raw), f"HTTP {status}"
        except (ValueError, RecursionError):
            return status, None, f"HTTP {status}, not JSON"

    def prove(self) -> tuple[bool, str]:
        """A GET on our own instance: nothing changes, and it shows that key, address and id are right."""
        status, document, said = self._call("GET", None, "?owner=me")
        row = document.get("instances") if isinstance(document, dict) else None
        if status == 200 and isinstance(row, dict) and row.get("id") == self._id:
            return True, "the key of this instance works"
        if status in (401, 403, 404):
            return False, f"the provider refused the key of this instance ({said})"
        return False, f"the provider did not show this instance ({said})"

    def destroy(self) -> tuple[bool, str]:
        """End the rental and delete the disk."""
        return self._yes(*self._call("DELETE", {}))

    def stop(self) -> tuple[bool, str]:
        """Release the GPU, keep the disk."""
        return self._yes(*self._call("PUT", {"state": "stopped"}))

    def ended(self, what: str) -> bool | None:
        """Whether the provider has done what it said yes to; None when it does not say.

        After a destruction the key is unknown together with its instance; after a stop the row wants to be stopped.
        """
        status, document, _ = self._call("GET", None, "?owner=me")
        if status in (401, 403, 404):
            return True if what == "destroy" else None
        if status != 200 or not isinstance(document, dict) or "instances" not in document:
            return None
        row = document["instances"]
        if row is None:
            return True
        if not isinstance(row, dict):
            return None
        return what == "stop" and row.get("intended_status") in ("stopped", "exited")

    @staticmethod
    def _yes(status: int, document: Any, said: str) -> tuple[bool, str]:
        if status == 200 and isinstance(document, dict) and document.get("success") is True:
            return True, "done"
        if isinstance(document, dict) and isinstance(document.get("error"), str):
            said = f"{said} {document['error'][:60]}"
        return False, said


def _rest(error: urllib.error.HTTPError) -> bytes:
    try:
        return error.read(1 << 16)
    except (OSError, ValueError, http.client.HTTPException):
        return b""


def api_from_environment(limits: Limits) -> Api | None:
    """The provider with this container's own key; None when the container has none, or belongs to another instance."""
    found = container_environment()
    key, container = found.get("CONTAINER_API_KEY"), found.get("CONTAINER_ID", "")
    if not key or not key.isprintable() or (container.isdigit() and int(container) != limits.instance_id):
        return None
    return Api(limits.url, limits.instance_id, key)


def end_container(instance_id: int, first: Path = Path("/proc/1/environ")) -> str:
    """End the container's first process, after making sure that it is the container's and not the machine's."""
    try:
        environment = first.read_bytes().split(b"\0")
    except OSError:
        return "the first process cannot be looked at"
    if f"CONTAINER_ID={instance_id}".encode() not in environment:
        return "the first process is not this container's, it is left alone"
    try:
        os.kill(1, signal.SIGTERM)
    except OSError as error:
        return f"the first process could not be signalled: {error.strerror}"
    return "the container's first process was told to end"
