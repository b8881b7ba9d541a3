"""Speed between GPUs: evidence is weighed, the unknown is said, the table is sound."""

import math
from dataclasses import replace

import numpy as np
import pytest

from estimator.offer import Offer
from estimator.speed import SHARES, OwnRun, fit_shares, gpu_table, leave_one_out, model_speed, relative_speed, spec_of

A100 = Offer("1", "A100 SXM4", 0.74, gpu_ram_gib=40)
H100 = Offer("2", "H100 PCIE", 1.13, gpu_ram_gib=80)
L40S = Offer("3", "L40S", 0.58, gpu_ram_gib=45)
NOVEL = Offer("4", "RTX 9090 Super", 0.5, gpu_ram_gib=64)


def test_every_gpu_of_the_table_has_its_numbers_and_its_source():
    for spec in gpu_table():
        assert spec.source
        assert min(spec.vram_gb, spec.bw_gbs, spec.tflops, spec.tdp_w, spec.l2_mb) > 0
        assert (spec.measured is None) == (spec.measured_source == "")


def test_a_number_is_confirmed_by_somebody_or_called_recalled():
    columns = {"bw_gbs", "tflops", "tdp_w", "l2_mb"}
    for spec in gpu_table():
        assert set(spec.recalled) <= columns, spec.name
        assert spec.checked or set(spec.recalled) == columns, spec.name
    assert [spec.name for spec in gpu_table() if spec.unverified] == []


def test_a_speed_that_rests_on_unverified_numbers_says_so_and_is_wider(monkeypatch):
    offer = Offer("6", "RTX A5000", 0.2, gpu_ram_gib=24)
    sound = relative_speed(A100, offer)
    doubted = replace(spec_of("RTX A5000"), recalled=("bw_gbs",))
    rows = tuple(doubted if spec.name == "RTX A5000" else spec for spec in gpu_table())
    monkeypatch.setattr("estimator.speed.gpu_table", lambda: rows)
    spec_of.cache_clear()
    guess = relative_speed(A100, offer)
    spec_of.cache_clear()
    assert "unverified" in guess.sources[0]
    assert "RTX A5000" in guess.sources[0]
    assert "unverified" not in " ".join(sound.sources)
    assert guess.mean == sound.mean
    assert guess.log_sd > sound.log_sd
    measured = relative_speed(A100, H100)
    assert measured.sources[0] == "measured training speeds"


@pytest.mark.parametrize(
    ("name", "vram", "expected"),
    [
        ("A100 SXM4", 40, "A100 SXM4 40GB"),
        ("A100 SXM4", 80, "A100 SXM4 80GB"),
        ("A100-SXM4-40GB", None, "A100 SXM4 40GB"),
        ("NVIDIA GeForce RTX 4090", 23.99, "RTX 4090"),
        ("RTX 6000Ada", 48, "RTX 6000 Ada"),
        ("H100 SXM", 79.6, "H100 SXM"),
        ("RTX PRO 6000 S", 95.6, "RTX PRO 6000"),
        ("RTX 4090", 47.9, None),
        ("RTX 9090", 24, None),
    ],
)
def test_the_providers_names_find_their_row_by_memory_too(name, vram, expected):
    found = spec_of(name, vram)
    assert (found.name if found else None) == expected


def test_the_same_gpu_is_about_as_fast_and_a_faster_one_faster():
    assert relative_speed(A100, replace(A100, id="9")).mean == pytest.approx(1.0)
    ratio = relative_speed(A100, H100)
    assert 1.1 < ratio.mean < 1.6
    assert relative_speed(H100, A100).mean == pytest.approx(1 / ratio.mean, rel=1e-6)


def test_more_evidence_never_widens_unless_it_disagrees():
    model_only = relative_speed(A100, L40S)
    agreeing = 52.0 * model_only.mean ** (1 / 0.8)
    scored = relative_speed(replace(A100, dlperf=52.0), replace(L40S, dlperf=agreeing))
    assert scored.log_sd < model_only.log_sd
    contradicted = relative_speed(replace(A100, dlperf=52.0), replace(L40S, dlperf=agreeing * 6))
    assert contradicted.log_sd > model_only.log_sd


def test_a_live_probe_collapses_the_spread():
    probed = relative_speed(A100, L40S, probe=0.83)
    assert probed.log_sd <= 0.021
    assert probed.mean == pytest.approx(0.83, rel=0.02)


def test_own_finished_runs_outweigh_tables():
    runs = [OwnRun("stage5", "A100 SXM4", 0.349), OwnRun("stage5", "L40S", 0.2094), OwnRun("other", "L40S", 9.0)]
    ratio = relative_speed(A100, L40S, own_runs=runs, recipe="stage5")
    assert ratio.mean == pytest.approx(0.6, rel=0.05)
    assert ratio.sources[0] == "own finished runs"


def test_a_power_cap_slows_a_gpu():
    spec = spec_of("RTX 4090", 24)
    capped = Offer("5", "RTX 4090", 0.3, gpu_ram_gib=24, gpu_max_power=300.0)
    assert model_speed(spec, capped) < 0.97 * model_speed(spec)


def test_an_unknown_gpu_gets_an_answer_that_says_so_and_is_wide():
    blind = relative_speed(A100, NOVEL)
    assert not blind.known
    assert blind.log_sd > 0.4
    scored = relative_speed(replace(A100, dlperf=50.0), replace(NOVEL, dlperf=100.0))
    assert not scored.known
    assert scored.mean > 1.2
    assert blind.log_sd > scored.log_sd > 0.3


def test_a_gpu_left_out_of_the_fit_is_predicted_within_six_percent_in_the_median():
    errors = list(leave_one_out().values())
    assert len(errors) >= 12
    assert float(np.median(errors)) <= 0.06
    assert float(np.quantile(errors, 0.9)) <= 0.20


def test_the_shares_in_the_code_are_the_fitted_ones():
    assert np.allclose(fit_shares(gpu_table()), SHARES, atol=0.01)
    assert math.isclose(sum(SHARES), 1.0, abs_tol=0.03)
