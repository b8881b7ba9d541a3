"""Searching, filtering and finding steps in a log: against a plain reading of the same bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.errors import UsageError
from tests.test_logindex import MESSY, opened, texts
from tui.logindex import LogIndex
from tui.logscan import Filter, LineScan, Search, StepSearch, eval_of_line
from tui.logtext import Pattern

PATTERNS = [
    *("a", "loss", "LOSS", "a+", "^a", "a$", "(a|é)", "[^a]", "oss a", r"lo\w+", "(?:lo)+ss", ".", "é"),
    *("loss|a$", "(?:loss|é)a?", "(a|(lo|x)ss)"),
]


def run(scan: LineScan | StepSearch) -> None:
    while scan.slice():
        pass


def lines_found(scan: LineScan) -> list[int]:
    return [scan.at(row) for row in range(len(scan))]


def plain(index: LogIndex, pattern: str) -> list[int]:
    """The lines whose cleaned text matches, one regex call per line: the reference."""
    fold = re.IGNORECASE if pattern == pattern.lower() else 0
    hits = []
    for number in range(index.line_count):
        text = index.block(number, number + 1)[0].decode("utf-8", "replace")
        if re.search(pattern, text, fold):
            hits.append(number)
    return hits


@given(data=MESSY, pattern=st.sampled_from(PATTERNS), block=st.integers(1, 40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_search_finds_the_lines_that_match_whatever_the_block(
    tmp_path: Path, data: bytes, pattern: str, block: int
) -> None:
    # bytes that are no UTF-8 have another length before and after decoding, which [^a] and . do not care for
    path = tmp_path / "log"
    path.write_bytes(data)
    index = opened(path, block=block, tail=1 << 20)
    search = Search(index, Pattern(pattern))
    run(search)
    assert lines_found(search) == plain(index, pattern)


@given(data=MESSY, include=st.sampled_from(["", *PATTERNS]), exclude=st.sampled_from(["", *PATTERNS]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_filters_keep_what_is_included_and_not_excluded(
    tmp_path: Path, data: bytes, include: str, exclude: str
) -> None:
    path = tmp_path / "log"
    path.write_bytes(data)
    index = opened(path, block=16)
    scan = Filter(index, Pattern(include) if include else None, Pattern(exclude) if exclude else None)
    run(scan)
    kept = set(plain(index, include)) if include else set(range(index.line_count))
    assert lines_found(scan) == sorted(kept - (set(plain(index, exclude)) if exclude else set()))


@given(
    hits=st.sets(st.integers(0, 20)),
    visible=st.sets(st.integers(0, 20)),
    line=st.integers(-1, 21),
    forward=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_next_and_previous_pass_over_hidden_hits_and_go_round(
    tmp_path: Path, hits: set[int], visible: set[int], line: int, forward: bool
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"%s%s\n" % (b"h" * (n in hits), b"v" * (n in visible)) for n in range(21)))
    index = opened(path)
    search, shown = Search(index, Pattern("h")), Filter(index, Pattern("v"), None)
    run(search)
    run(shown)
    both = sorted(hits & visible)
    beyond = [n for n in both if n > line] if forward else [n for n in reversed(both) if n < line]
    expected = (beyond[0], False) if beyond else (((both[0] if forward else both[-1]), True) if both else None)
    assert search.step(line, forward, shown) == expected


def test_search_goes_on_where_the_file_grew_and_takes_the_unfinished_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"loss 1\nother\nlo")
    index = opened(path)
    search = Search(index, Pattern("loss"))
    run(search)
    assert lines_found(search) == [0]
    for piece, expected in ((b"ss", [0, 2]), (b"y\nloss\n", [0, 2, 3])):
        with path.open("ab") as file:
            file.write(piece)
        index.refresh()
        while index.scan():
            pass
        run(search)
        assert lines_found(search) == expected
    assert search.ordinal(3) == 3
    assert search.ordinal(1) == 0


def test_a_search_of_an_older_generation_says_it_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"loss\n" * 5)
    index = opened(path)
    search = Search(index, Pattern("loss"))
    path.write_bytes(b"x")
    index.refresh()
    assert search.stale()
    assert search.slice() is False
    assert len(search) == 0


def test_search_sees_what_is_shown_not_the_frames_beneath(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\r 5/60 [..]\r        \r{'loss': 1}\nlo\x1b[1mss\x1b[0m\n")
    index = opened(path)
    for pattern, expected in (("5/60", []), (r"^\{'loss", [0]), ("loss", [0, 1])):
        search = Search(index, Pattern(pattern))
        run(search)
        assert lines_found(search) == expected


def test_a_pattern_without_capitals_ignores_case_and_one_with_does_not() -> None:
    assert Pattern("error").matches(b"Some ERROR")
    assert not Pattern("Error").matches(b"some error")
    assert Pattern(r"\x41").matches(b"a")
    assert Pattern("É").matches("É".encode())
    assert Pattern("é").matches("É".encode())


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(", "does not read: missing ), unterminated subpattern at position 1"),
        ("a[", "position 2"),
        ("*", "nothing to repeat at position 1"),
        ("(a+)+$", "repeats a repeat"),
        ("(?:x|(y*)z)*", "repeats a repeat"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_a_sentence(pattern: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        Pattern(pattern)


def test_spans_are_in_cells_of_the_shown_text() -> None:
    assert Pattern("é|x").spans("aÉxx") == [(1, 2), (2, 3), (3, 4)]
    assert Pattern("q*").spans("aaa") == []


# As transformers 4.57 and tqdm write it: a logged step, an evaluation with its nested bar, two more logged steps.
LOG = (
    b"\r  0%|          | 0/400 [00:00<?, ?it/s]\r  2%| | 7/400 [00:00<00:05, 65.52it/s]\r          \r{'loss': 5.1178}\n"
    b"\r  2%| | 10/400 [00:00<00:05, 65.52it/s]\r  4%| | 14/400 [00:00<00:05, 67.96it/s]\r        \r{'loss': 3.9931}\n"
    b"\r  5%| | 20/400 [00:00<00:05, 67.96it/s]\n"
    b"\r  0%|          | 0/16 [00:00<?, ?it/s]\x1b[A\r      \r\n"
    b"\r         \r\x1b[A{'eval_loss': 3.338894844055176, 'eval_runtime': 0.0868, 'epoch': 0.08}\n"
    b"\r  5%| | 20/400 [00:00<00:05, 67.96it/s]\n"
    b"\r100%|####| 16/16 [00:00<00:00, 193.51it/s]\x1b[A\n"
    b"\r     \x1b[A\r  5%| | 21/400 [00:00<00:08]\r  7%| | 29/400 [00:00<00:07, 50.30it/s]\r       \r{'loss': 3.1278}\n"
    b"\r  8%| | 30/400 [00:00<00:07, 50.30it/s]\r 10%| | 40/400 [00:09<00:07, 50.30it/s]\r         \r{'loss': 2.9081}\n"
    b"\r 10%| | 40/400 [00:09<00:07, 50.30it/s]\r 11%| | 44/400 [00:10<00:07, 50.30it/s]"
)


@pytest.mark.parametrize(
    ("step", "line", "found", "text"),
    [
        (10, 0, 10, "{'loss': 5.1178}"),
        (20, 1, 20, "{'loss': 3.9931}"),
        (30, 7, 30, "{'loss': 3.1278}"),
        (40, 8, 40, "{'loss': 2.9081}"),
        (43, 9, 44, " 11%| | 44/400 [00:10<00:07, 50.30it/s]"),
    ],
)
@pytest.mark.parametrize("block", [64, 1 << 18])
def test_jump_to_step_lands_on_its_dict_or_else_on_the_bar(
    tmp_path: Path, step: int, line: int, found: int, text: str, block: int
) -> None:
    path = tmp_path / "log"
    path.write_bytes(LOG)
    index = opened(path, block=block)
    for max_steps in (400, None):
        search = StepSearch(index, step, max_steps)
        run(search)
        assert search.result() == (line, found)
    assert texts(index)[line] == text


def test_jump_to_step_takes_a_line_that_names_the_step_when_there_is_no_bar(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'[train] step=200/400\n{"event": "eval", "step": 300}\nsteps: 400\nstep=4000\nstep: 400\n')
    index = opened(path)
    for step, line in ((200, 0), (300, 1), (400, 4), (500, None)):
        search = StepSearch(index, step)
        run(search)
        result = search.result()
        assert (result.line if result else None) == line


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("{'eval_loss': 3.113975763320923, 'eval_runtime': 0.0579}", 3.113975763320923),
        ("{'eval_loss': '1.4e-05', 'epoch': '1'}", 1.4e-05),
        ("{'eval_loss': inf}", float("inf")),
        ('{"event":"eval","step":300,"eval_loss":1.372}', 1.372),
        ("metric_for_best_model: eval_loss", None),
        ("{'loss': '1.2'}", None),
    ],
)
def test_an_evaluation_is_told_by_its_printed_loss(text: str, loss: float | None) -> None:
    assert eval_of_line(text) == loss


RECORDED = sorted((Path(__file__).parent / "data" / "trainer-logs").glob("*.truth.json"))


@pytest.mark.parametrize("truth", RECORDED, ids=lambda path: path.name.removesuffix(".truth.json"))
def test_on_every_recorded_log_each_logged_step_is_found(truth: Path) -> None:
    known = json.loads(truth.read_text())
    index = opened(truth.with_name(truth.name.replace(".truth.json", ".txt")))
    for point in (p for p in known["log_history"] if "loss" in p):
        search = StepSearch(index, point["step"], known["max_steps"])
        run(search)
        found = search.result()
        if not known["steps_in_log"]:
            assert found is None
            continue
        assert found is not None
        if "buffered" in truth.name:
            # the text is written later than it happened: what stands there is the bar of that moment
            assert point["step"] <= found.step <= point["step"] + 20
            continue
        text = index.line(found.line).text
        printed = re.search(r"'loss': '?([\d.]+(?:e-\d+)?)", text)
        assert printed is not None, text
        assert float(printed[1]) == pytest.approx(point["loss"], rel=1e-3)
        assert found.step == point["step"]
