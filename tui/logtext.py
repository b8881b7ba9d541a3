r"""What a person sees of the bytes of a log: one text per physical line, and patterns that search that text.

Rules of this file:

- A physical line ends at `\n` alone. Within it a progress bar overwrites itself with `\r`; what stays is the last part
  that is not blank, so a thousand frames of tqdm are one line that moves.
- Terminal escapes (colours, tqdm's cursor-up) are not text. A `\r` before the `\n` is a line end of Windows or a tty.
- Search and filters see what is shown: `clean` is applied to a whole block before a pattern looks at it, and
  `clean(block)` has exactly the lines of `block` (a property test holds this).
- A pattern without capitals ignores case, as in ripgrep's smart case. Folding the block with `bytes.lower` and leaving
  the pattern alone is eight times faster than `re.IGNORECASE` (0.11 s against 0.87 s for one literal over 95 MB),
  because the engine keeps its literal prefix.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from runner.errors import UsageError

_ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)|[PX^_][^\x1b\n]*\x1b\\|[ -/]*[0-~])")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")

_DENSE = 400
"""Bytes per hit below which looking at line after line is faster than jumping from hit to hit."""


def collapse(line: bytes) -> bytes:
    r"""Return what a line with `\r` in it shows at its end: the last part that is not blank.

    >>> collapse(b"\r 2%| 1/60\r 3%| 2/60\r          \r{'loss': 4.8}")
    b"{'loss': 4.8}"
    """
    line = line.rstrip(b"\r")
    end = len(line)
    if b"\r" not in line:
        return line
    while end > 0:
        start = line.rfind(b"\r", 0, end) + 1
        part = line[start:end]
        if part.strip():
            return part
        end = start - 1
    return b""


def clean(block: bytes) -> bytes:
    """Strip escapes and collapse bars in every line of `block`; the number of lines stays."""
    if b"\x1b" in block:
        block = _ANSI.sub(b"", block)
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
        if b"\r" in block:
            block = _collapsed(block)
    return block


def _collapsed(block: bytes) -> bytes:
    """Collapse the lines that need it; the others, nearly all in most logs, are never looked at one by one."""
    parts: list[bytes] = []
    done = 0
    at = block.find(b"\r")
    while at >= 0:
        start = block.rfind(b"\n", done, at) + 1 or done
        end = block.find(b"\n", at)
        end = len(block) if end < 0 else end
        parts += (block[done:start], collapse(block[start:end]))
        done = end
        at = block.find(b"\r", end)
    return b"".join((*parts, block[done:]))


def shown(line: bytes) -> str:
    """Decode one cleaned line for display: bad UTF-8 becomes U+FFFD, tabs spaces, control bytes caret notation."""
    return _CONTROL.sub(lambda m: f"^{chr(ord(m.group()) ^ 64)}", line.decode("utf-8", "replace").expandtabs())


class Pattern:
    """A regular expression over the lines of a log.

    Raises UsageError, as one sentence, for a pattern that does not compile or that could take for ever.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.fold = not any(c.isupper() for c in text)
        """Whether case is ignored: only when the pattern has no capital."""
        try:
            parsed = importlib.import_module("re._parser").parse(text)
            self.on_text = re.compile(text, re.IGNORECASE if self.fold else 0)
            raw = re.compile(text.encode("utf-8"))
        except re.error as error:
            where = f" at position {error.pos + 1}" if error.pos is not None else ""
            raise UsageError(f"The pattern does not read: {error.msg}{where}.") from error
        except (RecursionError, OverflowError) as error:
            raise UsageError("The pattern is nested too deeply.") from error
        if _runaway(parsed):
            raise UsageError("The pattern repeats a repeat, as in (a+)+, which can take for ever on one line.")
        # a class such as [éè] or a folded É is more than one byte: then each line is decoded first
        self._decode = not text.isascii()
        # the escape \xNN names a byte that folding may have changed
        self._lower = self.fold and "\\x" not in text
        self._search = re.compile(raw.pattern, re.IGNORECASE).search if self.fold and not self._lower else raw.search
        self._needles = () if self._decode or (self.fold and not self._lower) else _needles(parsed)
        self._plain = self._needles == (text.encode("utf-8"),)

    def hits(self, cleaned: bytes, base: int) -> list[int]:
        """Return the numbers of the lines of a cleaned block that match; its first line has number `base`."""
        if self._decode:
            search = self.on_text.search
            lines = cleaned.split(b"\n")
            return [n for n, line in enumerate(lines, base) if search(line.decode("utf-8", "replace"))]
        hay = cleaned.lower() if self._lower else cleaned
        needles = self._needles
        if not needles:
            find = self._search
            return [n for n, line in enumerate(hay.split(b"\n"), base) if find(line)]
        if sum(map(hay.count, needles)) * _DENSE < len(hay):
            found = [self._jump(hay, base, needle) for needle in needles]
            return found[0] if len(found) == 1 else sorted(set().union(*found))
        lines = hay.split(b"\n")
        if self._plain:
            (needle,) = needles
            return [n for n, line in enumerate(lines, base) if needle in line]
        find = self._search
        return [n for n, line in enumerate(lines, base) if find(line)]

    def matches(self, cleaned: bytes) -> bool:
        """Whether one cleaned line (without its newline) matches."""
        return bool(self.hits(cleaned, 0))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end of every match in a shown line, for the highlight; empty matches are left out."""
        return [m.span() for m in self.on_text.finditer(text) if m.end() > m.start()]

    def _jump(self, hay: bytes, base: int, needle: bytes) -> list[int]:
        """Go from one occurrence of a needle to the next; most of the block is never looked at by Python."""
        found: list[int] = []
        counted = position = 0
        number = base
        while (at := hay.find(needle, position)) >= 0:
            number += hay.count(b"\n", counted, at)
            start = hay.rfind(b"\n", 0, at) + 1
            end = hay.find(b"\n", at)
            end = len(hay) if end < 0 else end
            if self._plain or self._search(hay[start:end]):
                found.append(number)
            counted, position, number = end + 1, end + 1, number + 1
        return found


def compile_pattern(text: str) -> Pattern | None:
    """Return the pattern for `text`, None when nothing was typed. Raises UsageError as `Pattern` does."""
    return Pattern(text) if text else None


def _needles(parsed: Any) -> tuple[bytes, ...]:
    """Plain texts of which every match contains at least one, as long as can be; empty when there are none.

    >>> import re._parser as parser
    >>> _needles(parser.parse("x?(warning|traceback) at [0-9]+")), _needles(parser.parse("a|[bc]"))
    ((b'warning', b'traceback'), ())
    """
    best: tuple[bytes, ...] = ()
    run = b""
    for op, value in parsed:
        name = str(op)
        if name == "LITERAL" and value < 128 and value != 10:
            run += bytes([value])
            best = max(best, (run,), key=_shortest)
            continue
        run = b""
        inner: tuple[bytes, ...] = ()
        if name == "SUBPATTERN" and not value[1] and not value[2]:
            inner = _needles(value[3])
        elif name in ("MAX_REPEAT", "MIN_REPEAT") and value[0] >= 1:
            inner = _needles(value[2])
        elif name == "BRANCH":
            branches = [_needles(branch) for branch in value[1]]
            if all(branches):
                inner = tuple(needle for branch in branches for needle in branch)
        best = max(best, inner, key=_shortest)
    return best if len(best) <= 8 else ()


def _shortest(needles: tuple[bytes, ...]) -> int:
    return min(map(len, needles), default=0)


def _runaway(parsed: Any, inside: bool = False) -> bool:
    """Whether an unbounded repeat stands inside an unbounded repeat."""
    for op, value in parsed:
        name = str(op)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            endless = value[1] > 1000
            if (endless and inside) or _runaway(value[2], inside or endless):
                return True
        elif name == "SUBPATTERN":
            if _runaway(value[3], inside):
                return True
        elif name == "BRANCH":
            if any(_runaway(branch, inside) for branch in value[1]):
                return True
        elif name in ("ASSERT", "ASSERT_NOT") and _runaway(value[1], inside):
            return True
    return False
