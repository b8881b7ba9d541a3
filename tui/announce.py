"""How an event reaches a person who looks elsewhere: desktop notice and title of the terminal, webhook, ntfy.

Nothing here blocks: the terminal gets a few bytes through its driver, the network is a thread with a bounded queue and
a time limit. A webhook's address is a secret (who has it may write), so no sentence of this file shows more of it
than the host.

Terminals: OSC 9 is understood by iTerm2, WezTerm, kitty, Ghostty and Windows Terminal, OSC 777 by foot, rxvt and the
VTE family (GNOME Terminal); one of them is sent, or WezTerm would show every notice twice. Inside tmux the sequence is
wrapped, and reaches the terminal when `allow-passthrough` is on; where nothing understands it, nothing is shown.
"""

from __future__ import annotations

import json
import queue
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runner.errors import UsageError
from tui.alerts import Event, Volume

if TYPE_CHECKING:
    from urllib.request import OpenerDirector, Request

# what sends is imported where something is sent: few have an address, and all wait for a curve

WEBHOOK_VARIABLE = "TUNEWATCH_WEBHOOK"
NTFY_VARIABLE = "TUNEWATCH_NTFY"
NTFY_TOKEN_VARIABLE = "TUNEWATCH_NTFY_TOKEN"  # noqa: S105 - the name of a variable
TIMEOUT_S = 6.0
ATTEMPTS = 2
WAITING = 50
"""Events that may wait to be sent; of more the oldest are dropped, and that is said."""

_ESC, _ST = "\x1b", "\x1b\\"


def _plain(text: str, longest: int = 200) -> str:
    """Text that cannot leave its escape sequence: no control characters, one line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:longest]


def desktop_notice(event: Event, environment: Mapping[str, str]) -> str:
    """The escape sequence that asks the terminal for a desktop notice."""
    term = environment.get("TERM", "")
    if term.startswith(("rxvt", "foot")) or "VTE_VERSION" in environment:
        title = _plain(f"tunewatch {event.title}").replace(";", ",")
        return _through_tmux(f"{_ESC}]777;notify;{title};{_plain(event.text)}{_ST}", environment)
    # "9;4;…" would be Windows Terminal's progress bar: the text never begins with a digit
    return _through_tmux(f"{_ESC}]9;tunewatch: {_plain(event.text)}{_ST}", environment)


def terminal_title(text: str) -> str:
    """The escape sequence that names the terminal's window or tab. tmux understands it as the pane's title."""
    return f"{_ESC}]2;{_plain(text, 100)}{_ST}"


SAVE_TITLE = f"{_ESC}[22;2t"
"""Asks the terminal to remember its title (XTWINOPS)."""
RESTORE_TITLE = f"{_ESC}[23;2t"


def _through_tmux(sequence: str, environment: Mapping[str, str]) -> str:
    if not environment.get("TMUX"):
        return sequence
    return f"{_ESC}Ptmux;{sequence.replace(_ESC, _ESC * 2)}{_ST}"


@dataclass(frozen=True, slots=True)
class Address:
    """Where notices go. Its repr hides the secret part."""

    kind: Literal["webhook", "ntfy"]
    url: str
    token: str = ""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"The address of the {self.kind} has to begin with https:// and name a host.")
        if self.kind == "ntfy" and not parts.path.strip("/"):
            raise UsageError("The ntfy address has to end in a topic, as in https://ntfy.sh/my-runs.")

    @property
    def host(self) -> str:
        """All of it that may be shown."""
        return urllib.parse.urlsplit(self.url).hostname or ""

    def __repr__(self) -> str:
        return f"Address({self.kind} at {self.host})"

    def request(self, event: Event) -> Request:
        """The request that delivers one event."""
        from urllib.request import Request

        headers = {"Content-Type": "application/json", "User-Agent": "tunewatch"}
        if self.kind == "webhook":
            # Slack and Mattermost read "text", Discord "content"; who writes a receiver has the rest
            body: dict[str, Any] = {
                "text": event.text,
                "content": event.text,
                "title": event.title,
                "kind": event.kind,
                "severity": event.severity,
                "target": event.target,
                "step": event.step,
            }
            return Request(self.url, _encoded(body), headers, method="POST")  # noqa: S310 - checked above
        parts = urllib.parse.urlsplit(self.url)
        base, _, topic = parts.path.strip("/").rpartition("/")
        # published as JSON to the server's root, because a header cannot carry "→" or "é"
        body = {
            "topic": topic,
            "title": f"tunewatch: {event.title}",
            "message": event.text,
            "priority": {"error": 5, "warning": 4}.get(event.severity, 3),
        }
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        root = urllib.parse.urlunsplit((parts.scheme, parts.netloc, f"/{base}", "", ""))
        return Request(root, _encoded(body), headers, method="POST")  # noqa: S310 - checked above


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()


def addresses(environment: Mapping[str, str]) -> tuple[Address, ...]:
    """The addresses that the environment names. Raises UsageError that names the variable, never its value."""
    found = []
    for variable, kind, token in (
        (WEBHOOK_VARIABLE, "webhook", ""),
        (NTFY_VARIABLE, "ntfy", environment.get(NTFY_TOKEN_VARIABLE, "")),
    ):
        url = environment.get(variable, "").strip()
        if url:
            try:
                found.append(Address(kind, url, token))  # type: ignore[arg-type]
            except (UsageError, ValueError) as error:
                said = error.message if isinstance(error, UsageError) else "It is no address."
                raise UsageError(f"{variable} cannot be used. {said}") from None
    return tuple(found)


def _opener() -> OpenerDirector:
    """Opens an address and follows no redirect, which would take the event, and perhaps the token, to another host."""
    from urllib.request import HTTPRedirectHandler, build_opener

    class NoRedirect(HTTPRedirectHandler):
        def redirect_request(self, *args: Any, **named: Any) -> None:
            return None

    return build_opener(NoRedirect)


class Courier(threading.Thread):
    """Sends loud events to the addresses, one after the other; `trouble` is called from its thread with a sentence."""

    def __init__(self, to: tuple[Address, ...], trouble: Callable[[str], None], *, timeout: float = TIMEOUT_S) -> None:
        super().__init__(name="notices", daemon=True)
        self._to = to
        self._trouble = trouble
        self._timeout = timeout
        self._waiting: queue.Queue[Event | None] = queue.Queue(WAITING)
        self._opener = _opener()
        self._complained: set[Address] = set()
        """Addresses whose fault was said and not mended since: a dead server is one sentence, not one per event."""

    def send(self, event: Event) -> None:
        """Put an event into the queue, at once; quiet ones are not sent."""
        if event.volume < Volume.BELL or not self._to:
            return
        while True:
            try:
                self._waiting.put_nowait(event)
                return
            except queue.Full:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        try:
            self._waiting.get_nowait()
        except queue.Empty:
            return
        self._trouble("A notice was dropped: more happens than can be sent.")

    def finish(self, timeout: float = TIMEOUT_S) -> None:
        """Send what waits, then end; waits at most `timeout` seconds."""
        if not self.is_alive():
            return
        try:
            self._waiting.put(None, timeout=timeout)
        except queue.Full:
            return
        self.join(timeout)

    def run(self) -> None:
        """Send until told to end."""
        while (event := self._waiting.get()) is not None:
            for address in self._to:
                self._deliver(address, event)

    def _deliver(self, address: Address, event: Event) -> None:
        from urllib.error import HTTPError

        said = ""
        for _ in range(ATTEMPTS):
            try:
                with self._opener.open(address.request(event), timeout=self._timeout):
                    self._complained.discard(address)
                    return
            except HTTPError as error:
                said = f"answered {error.code}"
                error.close()
                if error.code < 500 and error.code != 429:
                    break  # it will not like it better a second time
            except (OSError, ValueError) as error:
                # str(error) of urllib may hold the address: only what kind of fault it was is said
                reason = getattr(error, "reason", error)
                said = "did not answer in time" if isinstance(reason, TimeoutError) else "cannot be reached"
        if address not in self._complained:
            self._complained.add(address)
            self._trouble(f"The {address.kind} at {address.host} {said}; a notice was not delivered.")
