"""The miniature study makes evaluation curves for the forecast, in the form that `estimator.pack` reads."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from estimator.pack import read_curves
from runner.study.demo.curves import curve, examples, main, setting


def test_a_number_decides_its_settings_and_numbers_differ():
    assert setting(7) == setting(7)
    drawn = [setting(n) for n in range(60)]
    assert len({s.rate for s in drawn}) == 60
    assert {s.fresh for s in drawn} == {True, False}
    assert all(10 <= s.evals <= 60 and 4 <= s.every <= 20 for s in drawn)


def test_later_numbers_draw_adapters_and_restarts_and_earlier_ones_keep_their_settings():
    earlier, later = [setting(n) for n in range(112)], [setting(n) for n in range(112, 212)]
    assert {s.adapter for s in earlier} == {0}
    assert {s.cycles for s in earlier} == {1}
    assert {s.adapter for s in later} == {0, 2, 8, 16}
    assert 20 <= sum(s.adapter > 0 for s in later) <= 45
    assert all((s.cycles > 1) == (s.schedule == "cosine_with_restarts") for s in later)
    assert not any(s.fresh and s.adapter for s in later)


def test_wrong_answers_keep_their_length_and_their_letters():
    wrong = replace(setting(1), wrong=1.0)
    for example in examples(wrong, "train", 50):
        assert example.answer
        assert example.answer.isdigit() or example.answer.isalpha()


@pytest.mark.study
@pytest.mark.parametrize("more", [{}, {"adapter": 2, "fresh": False, "schedule": "cosine_with_restarts", "cycles": 2}])
def test_a_curve_is_a_real_run_of_the_trainer_to_its_horizon(tmp_path, monkeypatch, more):
    short = replace(setting(1), evals=3, every=2, train=16, evaluate=16, batch=4, **more)
    row = curve(short, tmp_path)
    assert [at for at, *_ in row["evals"]] == [2, 4, 6]
    assert all(0 < loss < 20 for _, loss, *_ in row["evals"])
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr("runner.study.demo.curves.setting", lambda number: replace(short, number=number))
    assert main([str(out), "--from", "4", "--count", "1"]) == 0
    assert main([str(out), "--from", "4", "--count", "1"]) == 0
    assert len(out.read_text().splitlines()) == 1
    (packed,) = read_curves(Path(out))
    assert (packed.kind, packed.sub) == ("study", "#4")
    assert json.loads(out.read_text())["repo"] == "tunewatch"
