"""The backtest keeps its contract, and the forecast does not get worse unnoticed."""

import json
from pathlib import Path

import pytest

from estimator.backtest import Protocol, bootstrap, by_source, main, recorded, score, summary, true_stop
from estimator.library import load, shipped
from estimator.pack import pack, read_curves

STUDY_CURVES = Path(__file__).parent / "data" / "study-curves.jsonl"


@pytest.fixture
def curve_file(tmp_path):
    rows = [
        {"kind": "hf_notebook", "repo": "a/b", "path": "x.ipynb", "sub": "#0",
         "evals": [[i, 3.0 / (i + 1) ** 0.5, None, None] for i in range(21)]},
        {"kind": "taskset", "repo": "c/d", "path": "y.json", "sub": "",
         "evals": [[i * 200, 0.7 if i > 3 else 0.9 - 0.05 * i, 1.0, None] for i in range(25)]},
    ]  # fmt: skip
    path = tmp_path / "curves.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


def run(capsys, *args):
    assert main([*map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_json_has_the_keys_of_the_contract_and_repeats_itself(capsys, curve_file, tmp_path):
    args = ("--curves", curve_file, "--patience", 4, "--min-delta", 0.003, "--min-steps-frac", 0.1)
    one = run(capsys, *args, "--dump", tmp_path / "one.jsonl")
    two = run(capsys, *args, "--dump", tmp_path / "two.jsonl")
    assert {"coverage80", "coverage80_stoppers", "pinball", "width", "ms_per_forecast", "count_from"} <= set(one)
    assert one["count_from"] == "min_steps"
    del one["ms_per_forecast"], two["ms_per_forecast"]
    assert one == two
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_the_dump_holds_ordered_quantiles_inside_the_coming_evals(capsys, curve_file, tmp_path):
    out = tmp_path / "dump.jsonl"
    run(capsys, "--curves", curve_file, "--dump", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    lengths = {0: 20, 1: 24}  # the eval at step 0 is dropped from both
    assert {r["curve"] for r in rows} == {0, 1}
    for row in rows:
        assert row["k"] < row["p10"] <= row["p50"] <= row["p90"] <= lengths[row["curve"]]


def test_a_forecast_depends_on_what_was_seen_and_not_on_the_place_in_the_file_or_the_future(
    capsys, curve_file, tmp_path
):
    first, second = (json.loads(line) for line in curve_file.read_text().splitlines())
    other = {**second, "evals": [*second["evals"][:16], *([e[0], 9.0, None, None] for e in second["evals"][16:])]}
    turned = tmp_path / "turned.jsonl"
    turned.write_text(json.dumps(other) + "\n" + json.dumps(first) + "\n")
    dumps = []
    for path in (curve_file, turned):
        run(capsys, "--curves", path, "--patience", 12, "--dump", tmp_path / "d.jsonl")
        rows = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
        dumps.append({(r["curve"], r["k"]): (r["p10"], r["p50"], r["p90"], r["samples"]) for r in rows})
    straight, swapped = dumps
    seen = [(curve, k) for curve, k in straight if curve == 0 or k <= 15]
    assert len(seen) >= 6
    assert {key: straight[key] for key in seen} == {(c, k): swapped[1 - c, k] for c, k in seen}


def test_both_counting_modes_can_be_asked(capsys, curve_file):
    assert run(capsys, "--curves", curve_file, "--count-from", "start")["count_from"] == "start"


def test_the_true_stop_is_the_machines(curve_file):
    flat = [0.9, 0.85, 0.8] + [0.75] * 21
    assert true_stop(flat, Protocol().rule(24)) == 8
    assert true_stop([3 - 0.1 * i for i in range(10)], Protocol().rule(10)) == 10


def test_a_file_that_is_no_list_of_curves_is_named_with_its_line(capsys, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"kind": "x"}\n')
    assert main(["--curves", str(path)]) == 2
    assert "line 1" in capsys.readouterr().err
    assert main(["--curves", str(tmp_path / "none.jsonl")]) == 2
    path.write_bytes(bytes(range(256)))
    assert main(["--curves", str(path)]) == 2


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "\n \n",
        '{"evals": []}',
        '{"evals": [[1, 2.0, null, null]]}\r\n',
        '{"evals": [[1, 2.0], [2, 1.9], [3, 1.8], [4, 1.7]]}',
        '{"evals": [[1, NaN], [2, 1.0], [3, 0.9], [4, 0.8], [5, 0.7], [6, 0.6]]}',
    ],
)
def test_a_file_in_which_there_is_nothing_to_forecast_has_no_scores(capsys, tmp_path, lines):
    path = tmp_path / "bare.jsonl"
    path.write_text(lines)
    found = run(capsys, "--curves", path)
    assert found["forecasts"] == 0
    assert found["coverage80"] is found["pinball"] is found["width"] is found["ms_per_forecast"] is None
    assert main(["--curves", str(path)]) == 0


def test_a_curve_is_read_whatever_its_lines_carry_besides(capsys, tmp_path):
    evals = [[i, 3.0 / i**0.5] for i in range(1, 31)]
    plain = {"kind": "x", "repo": "a/b", "path": "p", "sub": "", "evals": evals}
    ragged = {**plain, "note": "a\u2028b", "evals": [e + [None] * (i % 4) for i, e in enumerate(evals)]}
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(plain).encode() + b"\r\n\r\n")
    one = run(capsys, "--curves", path)
    path.write_text(json.dumps(ragged, ensure_ascii=False))
    two = run(capsys, "--curves", path)
    assert one["forecasts"] == 4
    del one["ms_per_forecast"], two["ms_per_forecast"]
    assert one == two


@pytest.mark.parametrize(
    "option",
    [("--patience", 0), ("--min-delta", -1), ("--min-delta", "nan"), ("--min-steps-frac", "nan"),
     ("--min-steps-frac", 1.5), ("--min-steps-frac", -0.1), ("--dump", "/nowhere/at/all.jsonl")],
)  # fmt: skip
def test_an_option_that_makes_no_sense_is_named_in_one_sentence(capsys, curve_file, option):
    assert main(["--curves", str(curve_file), *map(str, option), "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1


def test_a_shipped_curve_is_never_forecast_by_its_own_source():
    library = shipped()
    excluded = by_source(library.curves, library)(0)(library)
    assert excluded[0]
    assert set(library.groups[excluded]) == {library.curves[0].group}


def test_curves_the_project_made_itself_are_labelled_and_teach_but_are_not_scored():
    library = shipped()
    own = [c for c in library.curves if c.kind == "study"]
    assert own
    assert {c.repo for c in own} == {"tunewatch"}
    assert {c.group for c in own} == {"study"}
    assert len(recorded(library)) + len(own) == len(library.curves)
    assert "study" not in {c.family for c in recorded(library)}


def test_fine_tunes_of_the_miniature_that_are_not_in_the_library_are_forecast_as_well():
    """The odd numbers, and all from 112 on: the even ones before are in the library, no number was fitted to these."""
    curves = read_curves(STUDY_CURVES)
    library = shipped()
    known = {c.sub for c in library.curves if c.kind == "study"}
    assert len(curves) >= 80
    assert known.isdisjoint(c.sub for c in curves)
    scored = score(curves, Protocol(), library, lambda _: None)
    found = summary(scored)
    assert found["coverage80"] >= 0.72
    assert found["pinball"] <= 0.036
    assert found["width"] <= 0.20
    assert summary([s for s in scored if s.progress == 0.1])["median_error"] <= 0.10
    assert summary([s for s in scored if s.progress == 0.2])["median_error"] <= 0.03


def test_packing_keeps_every_number(curve_file, tmp_path):
    curves = read_curves(curve_file)
    pack(curves, tmp_path / "one.npz")
    pack(curves, tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    back = load(tmp_path / "one.npz")
    assert [c.losses.tolist() for c in back] == [c.losses.tolist() for c in curves]
    assert [(c.kind, c.repo, c.path, c.sub) for c in back] == [(c.kind, c.repo, c.path, c.sub) for c in curves]


@pytest.mark.parametrize("count_from", ["min_steps", "start"])
def test_held_out_by_source_the_shipped_curves_are_forecast_as_well_as_promised(count_from):
    """Loose bounds: they catch a broken forecast, not an unlucky draw. The figures are printed by the backtest."""
    library = shipped()
    scored = score(recorded(library), Protocol(count_from=count_from), library, by_source(recorded(library), library))
    found = summary(scored)
    assert 0.78 <= found["coverage80"] <= 0.95
    assert found["coverage80_stoppers"] >= 0.68
    assert found["pinball"] <= 0.030
    assert found["width"] <= 0.205
    low, high = bootstrap(scored)["coverage80"]
    assert low < found["coverage80"] < high
    for family in {s.family for s in scored}:
        part = summary([s for s in scored if s.family == family])
        assert part["coverage80"] >= 0.70, family


@pytest.mark.parametrize(
    ("patience", "min_delta", "count_from"),
    [(2, 0.001, "min_steps"), (3, 0.005, "start"), (6, 0.0, "start"), (8, 0.01, "min_steps"), (20, 0.005, "min_steps")],
)
def test_the_interval_holds_under_rules_that_are_far_from_the_usual_one(patience, min_delta, count_from):
    library = shipped()
    protocol = Protocol(patience, min_delta, count_from=count_from)
    scored = score(recorded(library), protocol, library, by_source(recorded(library), library))
    assert summary(scored)["coverage80"] >= 0.80
    for family in {s.family for s in scored}:
        part = summary([s for s in scored if s.family == family])
        assert part["coverage80"] >= 0.66, family
