"""Notices that leave the screen: what bytes the terminal gets, and what a real HTTP server receives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from runner.errors import UsageError
from tui.alerts import Event, Volume
from tui.announce import WAITING, Address, Courier, addresses, desktop_notice, terminal_title

CRASH = Event("box:/x", "crashed", "crashed", "stage5: crashed → 457 é", "error", Volume.BELL, 457)


class Receiver:
    """A server that records what arrives and answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], dict[str, object]]] = []
        self.answers: list[int] = []
        self.arrived = threading.Semaphore(0)
        self.hold = threading.Event()
        self.hold.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, dict(self.headers), json.loads(body)))
                outer.hold.wait(20)
                code = outer.answers.pop(0) if outer.answers else 200
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", f"http://127.0.0.1:{outer.port}/elsewhere")
                self.end_headers()
                outer.arrived.release()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.hold.set()
    one.server.shutdown()
    one.server.server_close()


def delivered(to: Address, *events: Event, timeout: float = 60.0) -> list[str]:
    """Send and wait for the end; the sentences of trouble."""
    said: list[str] = []
    courier = Courier((to,), said.append, timeout=timeout)
    courier.start()
    for event in events:
        courier.send(event)
    courier.finish(200)
    assert not courier.is_alive()
    return said


def test_a_webhook_gets_the_sentence_and_the_facts(receiver: Receiver) -> None:
    assert delivered(Address("webhook", receiver.url("/hook/SECRET")), CRASH) == []
    ((path, headers, body),) = receiver.got
    assert path == "/hook/SECRET"
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "text": CRASH.text,
        "content": CRASH.text,
        "title": "crashed",
        "kind": "crashed",
        "severity": "error",
        "target": "box:/x",
        "step": 457,
    }


def test_ntfy_is_published_as_json_to_the_root_with_its_token(receiver: Receiver) -> None:
    assert delivered(Address("ntfy", receiver.url("/base/my-runs"), "tk_1"), CRASH) == []
    ((path, headers, body),) = receiver.got
    assert path == "/base"
    assert headers["Authorization"] == "Bearer tk_1"
    assert body == {"topic": "my-runs", "title": "tunewatch: crashed", "message": CRASH.text, "priority": 5}


def test_quiet_events_are_not_sent(receiver: Receiver) -> None:
    toast = Event("t", "best", "best", "x", volume=Volume.TOAST)
    assert delivered(Address("webhook", receiver.url("/")), toast, CRASH) == []
    assert len(receiver.got) == 1


def test_a_server_that_stumbles_is_asked_again_and_one_that_refuses_is_not(receiver: Receiver) -> None:
    receiver.answers = [500, 200, 404]
    said = delivered(Address("webhook", receiver.url("/SECRET")), CRASH, CRASH)
    assert len(receiver.got) == 3
    assert said == ["The webhook at 127.0.0.1 answered 404; a notice was not delivered."]


def test_a_dead_server_is_one_sentence_without_the_secret() -> None:
    said = delivered(Address("webhook", "http://127.0.0.1:1/hook/SECRET"), CRASH, CRASH, CRASH)
    assert said == ["The webhook at 127.0.0.1 cannot be reached; a notice was not delivered."]


def test_a_server_that_does_not_answer_is_left_after_the_time_limit(receiver: Receiver) -> None:
    receiver.hold.clear()
    said = delivered(Address("webhook", receiver.url("/SECRET")), CRASH, timeout=0.2)
    assert said == ["The webhook at 127.0.0.1 did not answer in time; a notice was not delivered."]


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.answers = [302]
    said = delivered(Address("ntfy", receiver.url("/topic"), "tk_1"), CRASH)
    assert [path for path, _, _ in receiver.got] == ["/"]
    assert said == ["The ntfy at 127.0.0.1 answered 302; a notice was not delivered."]


def test_sending_never_waits_and_of_too_many_the_oldest_are_dropped(receiver: Receiver) -> None:
    receiver.hold.clear()
    said: list[str] = []
    courier = Courier((Address("webhook", receiver.url("/")),), said.append)
    courier.start()
    for _ in range(WAITING + 10):
        courier.send(CRASH)
    assert said
    assert set(said) == {"A notice was dropped: more happens than can be sent."}
    receiver.hold.set()
    courier.finish(200)
    assert WAITING <= len(receiver.got) < WAITING + 10


def test_addresses_come_from_the_environment_and_their_repr_keeps_the_secret() -> None:
    environment = {
        "TUNEWATCH_WEBHOOK": "https://hooks.example.com/services/SECRET",
        "TUNEWATCH_NTFY": "https://ntfy.sh/topic",
        "TUNEWATCH_NTFY_TOKEN": "tk_SECRET",
    }
    found = addresses(environment)
    assert [a.kind for a in found] == ["webhook", "ntfy"]
    assert "SECRET" not in repr(found)
    assert addresses({}) == ()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TUNEWATCH_WEBHOOK", "file:///etc/SECRET", "begin with https://"),
        ("TUNEWATCH_WEBHOOK", "SECRET", "begin with https://"),
        ("TUNEWATCH_WEBHOOK", "http://[SECRET", "no address"),
        ("TUNEWATCH_NTFY", "https://ntfy.sh/", "end in a topic"),
    ],
)
def test_an_address_that_cannot_be_used_is_named_by_its_variable(name: str, value: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        addresses({name: value})
    assert name in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-256color"}, "\x1b]9;tunewatch: stage5: crashed → 457 é\x1b\\"),
        ({"TERM": "foot"}, "\x1b]777;notify;tunewatch crashed;stage5: crashed → 457 é\x1b\\"),
        ({"VTE_VERSION": "7200"}, "\x1b]777;notify;tunewatch crashed;stage5: crashed → 457 é\x1b\\"),
        ({"TMUX": "/tmp/x"}, "\x1bPtmux;\x1b\x1b]9;tunewatch: stage5: crashed → 457 é\x1b\x1b\\\x1b\\"),
    ],
)
def test_each_terminal_gets_one_notice_in_its_own_words(environment: dict[str, str], expected: str) -> None:
    assert desktop_notice(CRASH, environment) == expected


def test_text_cannot_leave_its_escape_sequence() -> None:
    nasty = Event("t", "warning", "a;b\x07", "x\x1b]0;owned\x07\n\x9d y\u202e", volume=Volume.BELL)
    for environment in ({}, {"TERM": "rxvt"}):
        inner = desktop_notice(nasty, environment)[1:-2]
        assert inner.isprintable()
    assert desktop_notice(nasty, {"TERM": "rxvt"}).count(";") == 4
    assert terminal_title("a\x1b\\b\nc") == "\x1b]2;a \\b c\x1b\\"
