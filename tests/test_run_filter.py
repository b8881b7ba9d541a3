"""The filter language against an independent reading of the same queries, and on anything that can be typed."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import UsageError
from tui.run_filter import DEEPEST, FilterError, parse_filter, parse_number

RUN = {
    "name": "stage5/20260215",
    "state": "running",
    "gpu": "A100-SXM4-40GB",
    "loss": 1.118,
    "step": 457,
    "dph": 0.7411,
    "instance": None,
    "note": "",
    "ours": True,
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", True),
        ("   ", True),
        ("stage5", True),
        ("STAGE5 running", True),
        ("stage5 finished", False),
        ("finished | running", True),
        ("state:run", True),
        ("state=run", False),
        ("state=RUNNING", True),
        ("state!=finished", True),
        ("gpu:a100", True),
        ("gpu:*40gb", True),
        ("gpu:A1?0*", True),
        ("gpu:*80gb", False),
        ("gpu:[", False),
        ("loss<1.2", True),
        ("loss<1.118", False),
        ("loss<=1.118", True),
        ("step>=457 step<458", True),
        ("step=457", True),
        ("step=457.0", True),
        ("step:45", True),
        ("dph<$0.75", True),
        ("step<1k", True),
        ("step>1M", False),
        ("instance<5", False),
        ("instance!=5", True),
        ("instance=5", False),
        ("state>1", False),
        ("has:loss", True),
        ("has:instance", False),
        ("has:note", False),
        ("NOT has:instance", True),
        ("!has:instance", True),
        ("NOT state:running", False),
        ("NOT NOT state:running", True),
        ("state:crashed OR loss<1.2 gpu:A100", True),
        ("(state:crashed OR loss<1.2) gpu:H100", False),
        ("state:crashed AND loss<1.2 OR running", True),
        ("state:crashed AND (loss<1.2 OR running)", False),
        ('name:"stage5/2026"', True),
        ("'running'", True),
        ('"state:running"', False),
        ("ours:yes", True),
        ("and", False),
        ("nothing=x", False),
    ],
)
def test_what_is_typed_shows_or_hides_a_run(text: str, shown: bool) -> None:
    assert parse_filter(text).matches(RUN) is shown


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("loss<abc", "Position 6: 'loss<' needs a number after it, not 'abc'."),
        ("state: x", "Position 7: a value is missing after 'state:'."),
        ("(a OR b", "Position 1: this bracket is not closed."),
        ("a OR", "Position 5: something to look for is missing here."),
        ("a AND AND b", "Position 7: something to look for is missing here."),
        ("| a", "Position 1: something to look for is missing here."),
        ("a )", "Position 3: a bracket is closed that was not opened."),
        ("()", "Position 2: something to look for is missing here."),
        ('name:"x', "Position 6: this quotation mark is not closed."),
        ('""', "Position 1: there is nothing between these quotation marks."),
        ("NOT", "Position 4: something to look for is missing here."),
    ],
)
def test_what_does_not_parse_is_a_sentence_with_its_position(text: str, sentence: str) -> None:
    with pytest.raises(FilterError, match=f"^{re.escape(sentence)}$"):
        parse_filter(text)


def test_a_field_that_does_not_exist_gets_the_nearest_one() -> None:
    known = {"state", "loss", "gpu"}
    assert parse_filter("state:x has:loss word", known)
    with pytest.raises(UsageError, match=r"Position 6: there is no field 'stat'; did you mean 'state'\?$"):
        parse_filter("word stat:running", known)
    with pytest.raises(ValueError, match="there are gpu, loss, state"):
        parse_filter("has:zzz", known)


def test_nan_is_found_by_its_name_and_by_no_comparison() -> None:
    run = {"loss": math.nan}
    assert parse_filter("loss:nan").matches(run)
    assert not parse_filter("loss<5 OR loss>=5").matches(run)


@given(st.text(alphabet="ab <>=!:()|\"'*ANDORT1.$\u00e9\t", max_size=40))
def test_anything_typed_is_a_filter_or_a_sentence_within_it(text: str) -> None:
    position = 1
    try:
        parse_filter(text).matches(RUN)
    except FilterError as error:
        position = error.position
    assert 1 <= position <= len(text) + 1


@pytest.mark.parametrize("opened", ["(", "NOT ", "!"])
def test_a_thousand_brackets_are_refused_and_do_not_break_the_stack(opened: str) -> None:
    with pytest.raises(FilterError, match="too many"):
        parse_filter(opened * 1000 + "a")
    assert parse_filter("(" * DEEPEST + "running" + ")" * DEEPEST).matches(RUN)


# An independent reading: a query as a tree of Python values, written out and evaluated by itself.
FIELDS = st.fixed_dictionaries(
    {"a": st.integers(-3, 3) | st.none(), "b": st.sampled_from(["x", "xy", "Y"]) | st.none()}
)
LEAVES = st.one_of(
    st.tuples(st.just("cmp"), st.sampled_from(["<", "<=", ">", ">=", "=", "!="]), st.integers(-3, 3)),
    st.tuples(st.just("in"), st.sampled_from(["x", "y", "X"]), st.booleans()),
    st.tuples(st.just("has"), st.sampled_from(["a", "b"]), st.none()),
)
TREES = st.recursive(
    LEAVES,
    lambda t: st.one_of(
        st.tuples(st.just("not"), t, st.none()), st.tuples(st.just("and"), t, t), st.tuples(st.just("or"), t, t)
    ),
    max_leaves=8,
)
Tree = tuple[str, object, object]


def written(tree: Tree) -> str:
    kind, left, right = tree
    match kind:
        case "cmp":
            return f"a{left}{right}"
        case "in":
            return f'b:"{left}"' if right else f"b:{left}"
        case "has":
            return f"has:{left}"
        case "not":
            return f"NOT ({written(left)})"  # type: ignore[arg-type]
        case "and":
            return f"({written(left)}) ({written(right)})"  # type: ignore[arg-type]
    return f"({written(left)}) | ({written(right)})"  # type: ignore[arg-type]


def holds(tree: Tree, run: dict[str, object]) -> bool:
    kind, left, right = tree
    a, b = run["a"], run["b"]
    match kind:
        case "cmp":
            if left == "!=":
                return a != right
            if not isinstance(a, int) or not isinstance(right, int):
                return False
            return {"<": a < right, "<=": a <= right, ">": a > right, ">=": a >= right, "=": a == right}[str(left)]
        case "in":
            return isinstance(b, str) and str(left).lower() in b.lower()
        case "has":
            return run[str(left)] is not None
        case "not":
            return not holds(left, run)  # type: ignore[arg-type]
        case "and":
            return holds(left, run) and holds(right, run)  # type: ignore[arg-type]
    return holds(left, run) or holds(right, run)  # type: ignore[arg-type]


@given(tree=TREES, run=FIELDS)
def test_every_tree_means_what_it_says(tree: Tree, run: dict[str, object]) -> None:
    assert parse_filter(written(tree)).matches(run) is holds(tree, run)


@given(left=LEAVES, middle=LEAVES, right=LEAVES, run=FIELDS)
def test_and_binds_closer_than_or_without_brackets(
    left: Tree, middle: Tree, right: Tree, run: dict[str, object]
) -> None:
    text = f"{written(left)} OR {written(middle)} AND {written(right)}"
    assert parse_filter(text).matches(run) is (holds(left, run) or (holds(middle, run) and holds(right, run)))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("$0.74", 0.74),
        ("6k", 6000),
        ("1.5M", 1.5e6),
        ("40%", 40),
        ("-1e-3", -1e-3),
        (".5", 0.5),
        ("5x", None),
        ("", None),
    ],
)
def test_numbers_are_read_as_people_type_them(text: str, number: float | None) -> None:
    assert parse_number(text) == (pytest.approx(number) if number is not None else None)
