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
    tuned = json.loads(estimate(*args, "--lora", 16).stdout)["quotes"]
    assert {q["fits"] for q in tuned} == {"fits"}


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
