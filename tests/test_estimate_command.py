"""`tunewatch estimate` from outside: typed numbers, an offers file, a real log, and wrong input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from estimator.memory import STATE_BYTES
from tui.commands.estimate import OPTIMISERS

LOG = Path(__file__).parent / "data" / "trainer-logs" / "5.23.0-pipe-crash.txt"
SEED_ROWS = [
    (31457957, "A100 SXM4", 40960, 0.7411, 1.0, 0.6),
    (2, "A100 SXM4", 40960, 0.6676, 0.945, 0.75),
    (3, "H100 PCIE", 81920, 1.1347, 1.1435, 1.0),
]
NAMES = ("id", "gpu_name", "gpu_ram", "dph_total", "speed", "setup_h")
SEED_OFFERS = {"offers": [{"num_gpus": 1, **dict(zip(NAMES, row, strict=True))} for row in SEED_ROWS]}


@pytest.fixture
def estimate(tmp_path):
    offers = tmp_path / "offers.json"
    offers.write_text(json.dumps(SEED_OFFERS))

    def run(*args, code=0):
        done = subprocess.run(
            [sys.executable, "-c", "from tui.cli import main; main()", "estimate", *map(str, args)],
            capture_output=True,
            text=True,
            env={**os.environ, "TUNEWATCH_HOME": str(tmp_path / "home"), "COLUMNS": "200"},
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done

    run.offers = offers
    return run


def test_typed_numbers_give_the_seeds_table_as_one_json_document(estimate):
    done = estimate("--steps", 6000, "--rate", 0.349, "--offers", estimate.offers, "--json")
    document = json.loads(done.stdout)
    assert document["stay"] is None
    assert [round(q["usd"]["base"], 2) for q in document["quotes"]] == [3.98, 3.87, 5.87]
    assert [round(q["hours"]["pess"], 2) for q in document["quotes"]] == [8.56, 9.17, 7.96]
    wanted = {"offer_id", "gpu", "dph", "hours", "usd", "fits", "speed", "speed_sd", "setup_h", "notes"}
    assert all(wanted <= set(q) for q in document["quotes"])


def test_the_table_for_people_has_a_line_per_offer(estimate):
    lines = estimate("--steps", 6000, "--rate", 0.349, "--offers", estimate.offers).stdout.splitlines()
    assert "3.39 / 3.98 / 6.34" in lines[1]
    assert len(lines) == 4


def test_a_real_log_gives_a_stay_row_on_the_box_of_speed_one(estimate):
    done = estimate(LOG, "--steps", 5000, "--offers", estimate.offers, "--json")
    document = json.loads(done.stdout)
    assert document["stay"]["dph"] == 0.7411
    assert document["throughput"]["effective_steps_per_s"] > 0


def test_a_models_config_judges_the_memory_of_every_offer(estimate, tmp_path):
    config = tmp_path / "config.json"
    shape = {"num_hidden_layers": 26, "hidden_size": 3072, "num_attention_heads": 32, "num_key_value_heads": 8}
    config.write_text(json.dumps({**shape, "head_dim": 128, "intermediate_size": 9216, "vocab_size": 131072}))
    args = ("--steps", 100, "--rate", 1, "--offers", estimate.offers, "--model", config, "--json")
    classic = json.loads(estimate(*args, "--optimiser", "adamw").stdout)["quotes"]
    assert [q["fits"] for q in classic] == ["no", "no", "fits"]
    assert "adamw_bf16" in classic[0]["advice"]
    (said,) = (note for note in classic[0]["notes"] if "fit" in note)
    assert said == "does not fit: needs 64 of 39 GiB (weights and optimiser 57); try adamw_bf16"
    tuned = json.loads(estimate(*args, "--lora", 16).stdout)["quotes"]
    assert {q["fits"] for q in tuned} == {"fits"}


def test_a_rate_measured_on_an_offers_box_decides_its_speed(estimate):
    """Without it the H100 is known to about a tenth; with it to a few percent, and nothing else moves."""
    rows = [{k: v for k, v in row.items() if k not in ("speed", "setup_h")} for row in SEED_OFFERS["offers"]]
    estimate.offers.write_text(json.dumps({"offers": rows}))
    asked = (LOG, "--here", 31457957, "--offers", estimate.offers, "--steps", 6000, "--json")
    guessed = json.loads(estimate(*asked).stdout)
    rate = guessed["throughput"]["effective_steps_per_s"]
    probed = json.loads(estimate(*asked, "--probe", f"3={1.8 * rate}").stdout)
    before, after = guessed["quotes"][2], probed["quotes"][2]
    assert before["speed_sd"] > 0.05
    assert after["speed_sd"] <= 0.02
    assert after["speed"] == pytest.approx(1.8, rel=0.02)
    assert after["speed_sources"][0] == "live probe"
    assert after["hours"]["pess"] - after["hours"]["opt"] < before["hours"]["pess"] - before["hours"]["opt"]
    assert probed["quotes"][1] == guessed["quotes"][1]
    assert "no offer 99" in estimate(*asked, "--probe", "99=1", code=3).stderr
    assert "not a probe" in estimate(*asked, "--probe", "3=fast", code=2).stderr


def test_past_forecasts_are_said_and_a_typed_rule_is_no_bet(estimate, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    bet = {"run": "old", "step": 100, "horizon": 1000, "p10": 200, "p50": 300, "p90": 400, "p_early": 0.9}
    book = home / "bets.jsonl"
    book.write_text(json.dumps(bet) + "\n" + json.dumps({"run": "old", "truth": 310}) + "\n")
    before = book.read_text()
    done = estimate(LOG, "--offers", estimate.offers, "--steps", 6000, "--patience", 3)
    assert "1 run settled: the interval held the end in 100%" in done.stdout
    assert book.read_text() == before


def test_the_optimisers_on_the_command_line_are_the_estimators():
    assert set(OPTIMISERS) == set(STATE_BYTES)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ((), 2, "--steps and --rate"),
        (("--steps", 10, "--rate", 0.3, "--offers", "missing.json"), 3, "missing.json"),
        (("--steps", 10, "--rate", -1), 2, "rate"),
        (("/no/such/run",), 3, "/no/such/run"),
        ((LOG, "--deadline", "soon"), 2, "soon"),
    ],
)
def test_wrong_input_is_one_sentence_and_an_exit_code(estimate, args, code, words):
    done = estimate(*args, code=code)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
