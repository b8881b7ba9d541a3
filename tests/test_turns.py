"""Threads that read let the screen go first, and never wait for one that is gone."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from remote import tail
from remote.tail import FileTail
from tui import turns
from tui.turns import ScreenFirst


def test_a_reader_waits_while_the_screen_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LONGEST_S", 60.0)
    loop = asyncio.new_event_loop()
    screen = threading.Thread(target=loop.run_forever, daemon=True)
    screen.start()
    order: list[str] = []
    drawn, drawing = threading.Event(), threading.Event()

    def draw() -> None:
        drawing.set()
        drawn.wait(60)
        order.append("drawn")

    def read() -> None:
        ScreenFirst(loop)()
        order.append("read")

    loop.call_soon_threadsafe(draw)
    assert drawing.wait(60)
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(0.2)
    assert order == []
    drawn.set()
    reader.join(60)
    assert order == ["drawn", "read"]
    loop.call_soon_threadsafe(loop.stop)
    screen.join(60)
    loop.close()
    ScreenFirst(loop)()  # and returns where there is no screen any more


def test_a_busy_screen_slows_a_reader_down_and_does_not_end_it() -> None:
    loop = asyncio.new_event_loop()  # never runs: it answers nothing
    try:
        ScreenFirst(loop)()
    finally:
        loop.close()


def test_others_have_a_turn_after_each_slice_of_a_long_file_and_none_in_a_short_one(tmp_path: Path) -> None:
    class Kept:
        def __init__(self) -> None:
            self.data = b""

        def feed(self, data: bytes) -> None:
            self.data += data

    path = tmp_path / "log.txt"
    path.write_bytes(bytes(range(256)) * (4 * tail._SLICE // 256) + b"end")
    lengths: list[int] = []
    file = FileTail(path, Kept)
    while not file.advance(60.0, lambda: lengths.append(len(file.reader.data))):
        pass
    assert lengths == [tail._SLICE * n for n in (1, 2, 3, 4)]
    assert file.reader.data == path.read_bytes()
    with path.open("ab") as more:
        more.write(b"a line\n")
    lengths.clear()
    assert file.advance(60.0, lambda: lengths.append(0))
    assert not lengths
