"""The log as numbered lines: what is shown of which bytes, and what happens when the file changes under us."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.errors import NotFoundError
from tui.logindex import LONGEST, Change, LogIndex
from tui.logtext import clean, collapse, shown

MESSY = st.lists(
    st.sampled_from(
        [
            b"a",
            b"loss",
            b"\n",
            b"\r",
            b"\r\n",
            b" ",
            b"\x1b[A",
            b"\x1b[31m",
            b"\x1b",
            b"\x00",
            b"\xff",
            "é".encode(),
            b"\t",
        ]
    ),
    max_size=60,
).map(b"".join)


def opened(path: Path, **sizes: int) -> LogIndex:
    index = LogIndex(path, **sizes)
    index.open()
    while index.scan():
        pass
    return index


def texts(index: LogIndex) -> list[str]:
    return [index.line(n).text for n in range(index.line_count)]


def physical(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


@given(MESSY)
def test_cleaning_a_block_is_cleaning_its_lines(data: bytes) -> None:
    assert clean(data).split(b"\n") == [clean(line + b"\n")[:-1] for line in data.split(b"\n")]


@given(data=MESSY, block=st.integers(1, 9), tail=st.integers(1, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_lines_are_those_of_the_file_whatever_the_block_size(
    tmp_path: Path, data: bytes, block: int, tail: int
) -> None:
    path = tmp_path / "log"
    path.write_bytes(data)
    index = opened(path, block=block, tail=tail)
    assert texts(index) == [shown(clean(line)) for line in physical(data)]
    assert index.numbered
    assert index.progress == 1.0


@given(data=MESSY, more=st.lists(MESSY, max_size=3), block=st.integers(1, 9), tail=st.integers(1, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_growth_at_any_moment_gives_the_same_lines(
    tmp_path: Path, data: bytes, more: list[bytes], block: int, tail: int
) -> None:
    path = tmp_path / "log"
    path.write_bytes(data)
    index = LogIndex(path, block=block, tail=tail)
    index.open()
    for piece in more:
        index.scan()
        with path.open("ab") as file:
            file.write(piece)
        assert index.refresh() is (Change.GREW if piece else Change.NONE)
    while index.scan():
        pass
    assert texts(index) == [shown(clean(line)) for line in physical(data + b"".join(more))]


def test_the_tail_of_a_big_file_is_there_before_the_rest_is_numbered(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"line %d\n" % n for n in range(200_000)))
    index = LogIndex(path, tail=1 << 12)
    index.open()
    assert not index.numbered
    assert index.line(index.line_count - 1).text == "line 199999"
    with path.open("ab") as file:
        file.write(b"newest\n")
    index.refresh()
    index.scan()
    assert index.line(index.line_count - 1).text == "newest"
    assert not index.numbered
    while index.scan():
        pass
    assert index.numbered
    assert index.line(4711).text == "line 4711"
    assert index.line_count == 200_001


def test_a_thousand_bar_frames_are_one_line() -> None:
    frames = b"".join(b"\r %d%%| %d/100 [00:00<?, ?it/s]" % (n, n) for n in range(100))
    assert collapse(frames + b"\r" + b" " * 40 + b"\r{'loss': '1.118'}") == b"{'loss': '1.118'}"
    assert collapse(frames).endswith(b"99/100 [00:00<?, ?it/s]")


def test_a_line_of_endless_frames_shows_its_last_one_and_says_it_is_a_bar(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"\r %d/99999 [0s]" % n for n in range(20_000)))
    line = opened(path).line(0)
    assert (line.text, line.cut, line.bar) == (" 19999/99999 [0s]", 0, True)


def test_windows_ends_escapes_nul_and_bad_utf8_are_shown_as_text(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\x1b[31mred\x1b[0m\r\na\x00b\xff\tc\r\n\x1b]0;title\x07done")
    assert texts(opened(path)) == ["red", "a^@b\ufffd    c", "done"]


def test_a_megabyte_line_is_cut_and_says_by_how_much(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 1_000_000 + b"\nnext\n")
    index = opened(path)
    assert len(index.line(0).text) == LONGEST
    assert index.line(0).cut == 1_000_000 - LONGEST
    assert index.line(1).text == "next"


def test_an_empty_file_has_no_lines_and_takes_the_first_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    index = opened(path)
    assert index.line_count == 0
    path.write_bytes(b"first")
    assert index.refresh() is Change.GREW
    index.scan()
    assert texts(index) == ["first"]
    with pytest.raises(IndexError):
        index.line(1)


def test_a_last_line_without_newline_counts_and_grows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    index = opened(path)
    assert (index.line_count, index.settled_count) == (2, 1)
    with path.open("ab") as file:
        file.write(b"o\n")
    index.refresh()
    index.scan()
    assert texts(index) == ["one", "two"]
    assert index.settled_count == 2


def test_a_shrunken_file_starts_a_new_generation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthree\n")
    index = opened(path)
    before = index.generation
    os.truncate(path, 4)
    assert index.refresh() is Change.RESTARTED
    index.scan()
    assert index.generation == before + 1
    assert texts(index) == ["one"]


def test_a_file_truncated_between_two_looks_gives_empty_lines_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n" * 100_000)
    index = opened(path)
    os.truncate(path, 0)
    assert index.line(99_999).text == ""
    assert index.refresh() is Change.RESTARTED


def test_a_replaced_file_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    index = opened(path)
    fresh = tmp_path / "fresh"
    fresh.write_bytes(b"new one\nnew two\n")
    fresh.replace(path)
    assert index.refresh() is Change.RESTARTED
    index.scan()
    assert texts(index) == ["new one", "new two"]


def test_a_file_rewritten_in_place_is_noticed_by_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"run one\n")
    index = opened(path)
    path.write_bytes(b"run two, longer\n")
    assert index.refresh() is Change.RESTARTED


def test_a_deleted_file_stays_readable_and_its_successor_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    index = opened(path)
    path.unlink()
    assert index.refresh() is Change.MISSING
    assert texts(index) == ["one"]
    path.write_bytes(b"two\n")
    assert index.refresh() is Change.RESTARTED


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot be read: No such file"):
        LogIndex(tmp_path / "none").open()
