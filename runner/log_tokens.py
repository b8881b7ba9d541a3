r"""Cuts the bytes of a console log into tokens: progress bars, clears, dict lines, text.

A console log is not lines. tqdm draws with `\r`, clears a bar by overwriting it with spaces, moves down with `\n` and
up with `ESC [ A`; other programs write in between. So the stream is cut at every `\r` and `\n` into segments, and a
segment is: an optional bar frame, then text, in which cursor movements stand.

The rules of this file:

- Any chunking gives the same tokens. A token is reported as soon as its own bytes prove it complete (a frame by its
  `]`, a dict by its `}`), everything else when its segment ends; nothing is ever reported twice.
- No byte string raises. A segment without end is remembered up to LIMIT bytes.
- One pass, one regular expression per segment: a log of a million frames takes seconds.
"""

from __future__ import annotations

import re
from typing import Protocol

LIMIT = 16384
"""Bytes of one segment that are looked at; a line of text beyond it is noise."""

_SEGMENT = re.compile(
    rb"[\r\n](?: *+\d++%\|[^|\r\n]{0,4000}+\| (\d{1,12}+)/(\d{1,12}+) \[([0-9:]{4,12}+)<([^\]\r\n]{0,200}+)\])?+"
)
_SEGMENTS = re.compile(
    # the same with the rest of the segment, for all segments of a piece at once: only a line feed is captured
    rb"(?:\r|(\n))(?: *+\d++%\|[^|\r\n]{0,4000}+\| (\d{1,12}+)/(\d{1,12}+) \[([0-9:]{4,12}+)<([^\]\r\n]{0,200}+)\])?+"
    rb"([^\r\n]*+)"
)
_FRAME = re.compile(
    # the same bar in other clothes: behind colour codes, without blocks (Colab), or cut off by a narrow terminal
    rb" *\d{1,3}%(?:\|[^|\r\n]{0,4000}\|?)? +(\d{1,12})/(\d{1,12}) \[((?:\d+ days?, )?[\d:]{4,12})<"
    rb"(?:([^\]\r\n]{0,200})\]|([^\]\r\n]{0,200})$)"
)
_OTHER_BAR = re.compile(rb"([^|\r\n]{1,200}?): +\d{1,3}%\|")
_DICT = re.compile(
    rb"""\{(?=['"])(?:[^{}'"\\]++|'(?:[^'\\]++|\\.)*+'|"(?:[^"\\]++|\\.)*+"|\\.|\{[^{}]{0,2000}\})*+\}""", re.DOTALL
)
_ESCAPE = re.compile(rb"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)|[@-Z\\^_=>])")
_LEADING = re.compile(rb"(?:\x1b\[[0-9;?]*[@-~]|[ \x00])*+")
_COLOUR = rb"(?:\x1b\[[\d;]{0,12}m)?+"
_CARRIERS = (
    # what a log's carrier puts before each line: kubectl, docker and kubectl with timestamps, ts, compose, Ray
    rb"(?:" + _COLOUR + rb"(?:\[pod/[^\]\s]{1,200}\] |"
    rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:?\d\d) |"
    rb"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d |"
    rb"[\w.-]{1,64} +\| |"
    rb"\([\w. -]{1,80} pid=\d{1,10}(?:, ip=[\d.]{7,15})?\)" + _COLOUR + rb" )" + _COLOUR + rb")"
)
_CARRIER = re.compile(_CARRIERS + rb"{1,3}+")
_LABEL = re.compile(_CARRIERS + rb"{0,3}+(?:\[(?:default|rank)?\d+\]:? ?|\d{1,4}: )?(?=\{['\"])")
_WIPED = re.compile(rb" {20,}+[^\x1b{]")
_GLUED = re.compile(rb"[^\s:=(,\[{]\{'(?:loss|eval_\w+|train_runtime)': ")
"""A dict behind words that ended without a line feed; behind a blank it is part of somebody's sentence."""
_UP = re.compile(rb"\x1b\[\d*A")


class Sink(Protocol):
    """What a scanner reports to, in the order of the bytes."""

    def frame(self, n: bytes, total: bytes, elapsed: bytes, rest: bytes) -> None:
        """Take a bar without description: `n/total [elapsed<rest]`."""

    def clear(self) -> None:
        """Take a bar that was overwritten with spaces, the cursor back at its start."""

    def newline(self) -> None:
        """Take a line feed."""

    def up(self) -> None:
        """Take a cursor movement to the line above."""

    def other_bar(self, description: bytes) -> None:
        """Take a bar with a description: saving, loading, mapping."""

    def record(self, raw: bytes) -> None:
        """Take a dict that stands alone: at the start of a line, or glued to a bar."""

    def text(self, line: bytes) -> None:
        """Take any other text, colours removed; a piece of one line."""


class Scanner:
    """Feeds tokens to a sink."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._open = b"\n"
        """The segment under way, from its delimiter on; a file begins as if after a line feed."""
        self._told = _NEWLINE
        """How much of the open segment was reported already: up to its delimiter, its frame or its dict."""
        self._skipping = False
        """The open segment is longer than anybody will look at: wait for its end."""
        self._half = b""
        """A dict that began and did not end in its segment: torn by a full buffer, or wrapped by a terminal."""
        self._half_age = 0
        self._drawn_after = 0
        """The delimiter before the newest frame: where it is a line feed, a line of spaces may be a clear."""

    def feed(self, data: bytes) -> None:
        """Take in the next bytes."""
        if self._skipping:
            cut = _first_break(data, 0)
            if cut < 0:
                return
            data, self._skipping = data[cut:], False
        data = self._open + data
        last = max(data.rfind(b"\r"), data.rfind(b"\n"))
        if last > 0:
            first = _first_break(data, 1)
            self._finish(data[:first], data[first])
            if first < last:
                self._many(data, first, last)
            data = data[last:]
            self._told = _NOTHING
        self._peek(data)
        if len(data) > 4 * LIMIT:
            data, self._skipping = data[: 2 * LIMIT], True
        self._open = data

    def _many(self, data: bytes, first: int, last: int) -> None:
        """Report the complete segments between two delimiters; the hot loop."""
        frame, newline, gap = self._sink.frame, self._sink.newline, self._gap
        framed, begin, drawn = False, _CR, self._drawn_after
        left = b""
        for fed, n, total, elapsed, rest, text in _SEGMENTS.findall(data, first, last):
            if left:
                self._drawn_after = drawn
                gap(left, framed, begin, _LF if fed else _CR, _NOTHING)
                drawn = self._drawn_after
            if fed:
                begin = _LF
                newline()
            else:
                begin = _CR
            if n:
                framed, drawn = True, begin
                frame(n, total, elapsed, rest)
            else:
                framed = False
            left = text
        self._drawn_after = drawn
        if left:
            gap(left, framed, begin, data[last], _NOTHING)

    def _finish(self, segment: bytes, closing: int) -> None:
        """Report what was not yet reported of one complete segment."""
        told = self._told
        found = _SEGMENT.match(segment)
        if found is None:  # the file's first bytes hold no delimiter of their own
            return
        if told < _NEWLINE and segment[0] == _LF:
            self._sink.newline()
        framed = found.group(1) is not None
        if framed and told < _FRAMED:
            self._drawn_after = segment[0]
            self._sink.frame(found.group(1), found.group(2), found.group(3), found.group(4))
        if found.end() < len(segment):
            self._gap(segment[found.end() :], framed, segment[0], closing, told)

    def _peek(self, segment: bytes) -> None:
        """Report what is already certain of the open segment."""
        if self._told < _NEWLINE:
            if segment[0] == _LF:
                self._sink.newline()
            self._told = _NEWLINE
        found = _SEGMENT.match(segment)
        if found is None or self._told >= _RECORDED:
            return
        framed = found.group(1) is not None
        if framed and self._told < _FRAMED:
            self._drawn_after = segment[0]
            self._sink.frame(found.group(1), found.group(2), found.group(3), found.group(4))
            self._told = _FRAMED
        text = segment[found.end() : found.end() + LIMIT]
        if not text:
            return
        lead = _LEADING.match(text)
        at = begin = lead.end() if lead else 0
        other = None if framed else _FRAME.match(text, at)
        if other is not None and other.group(4) is not None:
            self._lead(text[:begin])
            if self._told < _OTHER:
                self._alternative(other, segment[0])
                self._told = _OTHER
            at = other.end()
        label = _LABEL.match(text, at)
        record = _DICT.match(text, label.end() if label else at)
        if record is not None and b"\x1b" not in record.group():
            self._lead(text[:begin])
            self._half = b""
            self._sink.record(record.group())
            self._told = _RECORDED

    def _lead(self, lead: bytes) -> None:
        """Report the cursor movements before the words of the open segment, once."""
        if self._told < _LEAD:
            self._ups(lead)
            self._told = _LEAD

    def _alternative(self, found: re.Match[bytes], opening: int) -> None:
        self._drawn_after = opening
        n, total, elapsed, rest, cut = found.groups()
        self._sink.frame(n, total, elapsed, rest if rest is not None else cut)

    def _gap(self, text: bytes, framed: bool, opening: int, closing: int, told: int) -> None:
        """Report the text between a delimiter (or the frame after it) and the next delimiter."""
        text = text[:LIMIT]
        if not framed and text[0] == _BRACE and told == _NOTHING:  # the common case of the general one below
            record = _DICT.match(text)
            if record is not None and record.end() == len(text) and b"\x1b" not in text:
                self._half = b""
                self._sink.record(text)
                return
        if not framed and opening == _LF and text[0] not in b" {":
            carrier = _CARRIER.match(text)
            if carrier is not None:
                text = text[carrier.end() :]
        if not framed and not text.strip(b" "):
            if (opening == _CR and closing == _CR) or (len(text) >= 20 and self._drawn_after == _LF):
                self._sink.clear()
            return
        if not framed and opening == _CR and _WIPED.match(text):
            self._sink.clear()  # another program's words came right after the bar was wiped out
        ups_after = 0
        if b"\x1b" in text:
            lead = _LEADING.match(text)
            at = lead.end() if lead else 0
            if told < _LEAD:
                self._ups(text[:at])
            ups_after = len(_UP.findall(text, at))
            text = _ESCAPE.sub(b"", text[at:])
        text = text.rstrip(b" \x00")
        if not framed and text[:1] != b"{":
            other = _FRAME.match(text.lstrip(b" \x00"))
            if other is not None:
                if told < _OTHER:
                    self._alternative(other, opening)
                text = text.lstrip(b" \x00")[other.end() :]
        if text:
            self._words(text, told)
        for _ in range(ups_after):
            self._sink.up()

    def _words(self, line: bytes, told: int) -> None:
        """Report text that is no frame: a dict, a piece of one, a bar with a description, or words."""
        text = line.lstrip(b" \x00")
        label = None if text[:1] == b"{" else _LABEL.match(text)
        begin = label.end() if label else 0
        if text.startswith((b"{'", b'{"'), begin):
            record = _DICT.match(text, begin)
            if record is None:
                self._half, self._half_age = text[begin:4096], 0
                return
            self._half = b""
            if told < _RECORDED:
                self._sink.record(record.group())
            text = text[record.end() :].strip()
            if text:
                self._sink.text(text)
            return
        if self._half:
            joined = _DICT.match(self._half + text)
            if joined is not None:
                self._half = b""
                self._sink.record(joined.group())
                return
            self._half_age += 1
            self._half = self._half + text if self._half_age < 8 and len(self._half) < 4096 else b""
        glued = _GLUED.search(text)
        record = _DICT.match(text, glued.start() + 1) if glued else None
        if glued is not None and record is not None:
            self._sink.text(text[: glued.start() + 1])
            self._sink.record(record.group())
            return
        bar = _OTHER_BAR.match(text)
        if bar is not None:
            self._sink.other_bar(bar.group(1))
        else:
            self._sink.text(line)

    def _ups(self, lead: bytes) -> None:
        for _ in _UP.findall(lead):
            self._sink.up()


_CR, _LF, _BRACE = b"\r\n{"
_NOTHING, _NEWLINE, _FRAMED, _LEAD, _OTHER, _RECORDED = range(6)
"""What of a segment was reported, in the order of its parts."""


def _first_break(data: bytes, start: int) -> int:
    """Where the first line break (CR or LF) at or after `start` is, -1 when there is none."""
    returned, fed = data.find(b"\r", start), data.find(b"\n", start)
    if returned < 0 or fed < 0:
        return max(returned, fed)
    return min(returned, fed)
