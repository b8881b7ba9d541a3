"""The filter language of the lists: `state:running gpu:A100 loss<1.2`. Pure: text in, predicate over fields out.

    query   = both { ("OR" | "|") both }
    both    = one { ["AND"] one }
    one     = ("NOT" | "!") one | "(" query ")" | "has:" field | field op value | word
    op      = ":" contains, with * and ? as wildcards; "=" "!=" equal; "<" "<=" ">" ">=" numbers
    word, value = anything up to a blank, bracket or "|"; in double or single quotes those too

Words stand in any field. Letters compare without case; AND, OR and NOT are capitals, so that a run may be called "and".
A field that is unknown of a run (None, or not a number where one is compared) fits no comparison but `!=`.
Numbers may carry what people type with them: `$1.2`, `40%`, `6k`, `1.5M`.

>>> parse_filter("gpu:a100 loss<1.2 | NOT has:loss").matches({"gpu": "A100-SXM4", "loss": 1.118})
True
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from runner.errors import UsageError

Fields = Mapping[str, object]
DEEPEST = 40
"""Brackets and negations within each other; more is a mistake, or an attack on the stack."""

_TERM = re.compile(r"([A-Za-z_][\w.-]*)(<=|>=|!=|[:=<>])")
_NUMBER = re.compile(r"\$?([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)([kKM%]?)$")
_SCALE = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "%": 1.0}
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_STOP = frozenset(" \t()|\"'")


class FilterError(UsageError, ValueError):
    """A filter that does not parse; the sentence names the position, counted from 1."""

    def __init__(self, position: int, sentence: str) -> None:
        super().__init__(f"Position {position}: {sentence}")
        self.position = position


class Query(Protocol):
    """What a filter became."""

    def matches(self, fields: Fields) -> bool:
        """Whether a row with these fields is shown."""


@dataclass(frozen=True, slots=True)
class Everything:
    """The empty filter."""

    def matches(self, fields: Fields) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, slots=True)
class Word:
    """A word in any field."""

    text: str

    def matches(self, fields: Fields) -> bool:
        """Whether any field holds it."""
        return any(_holds(value, self.text) for value in fields.values())


@dataclass(frozen=True, slots=True)
class Has:
    """A field that is known."""

    field: str

    def matches(self, fields: Fields) -> bool:
        """Whether it is neither missing nor empty."""
        return fields.get(self.field) not in (None, "")


@dataclass(frozen=True, slots=True)
class Term:
    """One field against one value."""

    field: str
    op: str
    text: str
    number: float | None
    """The value as a number, when it is one."""

    def matches(self, fields: Fields) -> bool:
        """Whether the field compares so."""
        value = fields.get(self.field)
        if self.op == "!=":
            return not self._equals(value)
        if value is None:
            return False
        if self.op == ":":
            return _holds(value, self.text)
        if self.op == "=":
            return self._equals(value)
        known = _as_number(value)
        return known is not None and self.number is not None and _COMPARE[self.op](known, self.number)

    def _equals(self, value: object) -> bool:
        known = _as_number(value)
        if known is not None and self.number is not None:
            return known == self.number
        return value is not None and _fold(value) == self.text.casefold()


@dataclass(frozen=True, slots=True)
class All:
    """Every part holds."""

    parts: tuple[Query, ...]

    def matches(self, fields: Fields) -> bool:
        """Whether all do."""
        return all(part.matches(fields) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Any_:  # noqa: N801 - `Any` is taken
    """At least one part holds."""

    parts: tuple[Query, ...]

    def matches(self, fields: Fields) -> bool:
        """Whether one does."""
        return any(part.matches(fields) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Query

    def matches(self, fields: Fields) -> bool:
        """Whether it does not."""
        return not self.part.matches(fields)


def parse_filter(text: str, known: Collection[str] | None = None) -> Query:
    """Return the predicate for what was typed. `known` names the fields there are: another one is then an error.

    Raises FilterError (a ValueError) with one sentence and the position.
    """
    parser = _Parser(text, known)
    query = parser.query(0)
    if parser.at < len(text):
        raise parser.wrong("a bracket is closed that was not opened")
    return query


def _as_number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    return parse_number(value) if isinstance(value, str) else None


def parse_number(text: str) -> float | None:
    """Read `1.2`, `$0.74`, `6k`, `1.5M`, `40%`, `nan`; None when it is no number."""
    match = _NUMBER.match(text.strip())
    if match:
        return float(match[1]) * _SCALE[match[2]]
    return math.nan if text.strip().casefold() == "nan" else None


def _fold(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value == int(value if math.isfinite(value) else 1):
        return str(int(value))
    return str(value).casefold()


def _holds(value: object, text: str) -> bool:
    if value is None:
        return False
    folded, wanted = _fold(value), text.casefold()
    if "*" in wanted or "?" in wanted:
        return fnmatchcase(folded, wanted.replace("[", "[[]"))
    return wanted in folded


class _Parser:
    """Recursive descent over the characters; `at` is where it stands."""

    def __init__(self, text: str, known: Collection[str] | None) -> None:
        self.text = text
        self.known = known
        self.at = 0

    def wrong(self, sentence: str, at: int | None = None) -> FilterError:
        return FilterError((self.at if at is None else at) + 1, f"{sentence}.")

    def blank(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1

    def keyword(self, *names: str) -> bool:
        """Step over one of these keywords if it stands here as a whole word."""
        self.blank()
        for name in names:
            end = self.at + len(name)
            following = self.text[end : end + 1]
            whole = not name.isalpha() or not following or following in _STOP or following.isspace()
            if self.text.startswith(name, self.at) and whole:
                self.at = end
                return True
        return False

    def query(self, depth: int) -> Query:
        start = self.at
        self.blank()
        if depth == 0 and self.at == len(self.text):
            return Everything()
        parts = [self.both(depth)]
        while self.keyword("OR", "|"):
            parts.append(self.both(depth))
        if depth > DEEPEST:
            raise self.wrong("too many brackets", start)
        return parts[0] if len(parts) == 1 else Any_(tuple(parts))

    def both(self, depth: int) -> Query:
        parts = [self.one(depth)]
        while True:
            joined = self.keyword("AND")
            self.blank()
            ends = self.at == len(self.text) or self.text[self.at] in ")|" or self.peek("OR")
            if ends and not joined:
                return parts[0] if len(parts) == 1 else All(tuple(parts))
            parts.append(self.one(depth))

    def peek(self, name: str) -> bool:
        at = self.at
        found = self.keyword(name)
        self.at = at
        return found

    def one(self, depth: int) -> Query:
        if depth > DEEPEST:
            raise self.wrong("too many brackets or negations within each other")
        if self.keyword("NOT"):
            return Not(self.one(depth + 1))
        self.blank()
        here = self.text[self.at : self.at + 1]
        if here == "!" and self.text[self.at : self.at + 2] != "!=":
            self.at += 1
            return Not(self.one(depth + 1))
        if here == "(":
            opened = self.at
            self.at += 1
            inner = self.query(depth + 1)
            if not self.keyword(")"):
                raise self.wrong("this bracket is not closed", opened)
            return inner
        if not here or here in ")|" or self.peek("AND") or self.peek("OR"):
            raise self.wrong("something to look for is missing here")
        match = _TERM.match(self.text, self.at)
        return self.term(match) if match else Word(self.value())

    def term(self, match: re.Match[str]) -> Query:
        field, op = match[1].lower(), match[2]
        start, self.at = self.at, match.end()
        if self.at == len(self.text) or self.text[self.at].isspace() or self.text[self.at] in ")|":
            raise self.wrong(f"a value is missing after '{match[0]}'")
        value_at = self.at
        value = self.value()
        if field == "has" and op == ":":
            return Has(self.checked(value.lower(), value_at))
        self.checked(field, start)
        number = parse_number(value)
        if op in _COMPARE and (number is None or math.isnan(number)):
            raise self.wrong(f"'{match[0]}' needs a number after it, not '{value}'", value_at)
        return Term(field, op, value, number)

    def checked(self, field: str, at: int) -> str:
        if self.known is None or field in self.known:
            return field
        near = difflib.get_close_matches(field, self.known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(self.known))}"
        raise FilterError(at + 1, f"there is no field '{field}'; {hint}" + ("" if near else "."))

    def value(self) -> str:
        """A quoted text, or everything up to the next blank, bracket or bar."""
        quote = self.text[self.at]
        if quote in "\"'":
            end = self.text.find(quote, self.at + 1)
            if end < 0:
                raise self.wrong("this quotation mark is not closed")
            value = self.text[self.at + 1 : end]
            if not value:
                raise self.wrong("there is nothing between these quotation marks")
            self.at = end + 1
            return value
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in _STOP and not self.text[self.at].isspace():
            self.at += 1
        return self.text[start : self.at]
