"""Memory fit: monotone, names what breaks it, and its advice really makes it fit."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.memory import MINISTRAL_3B, ModelShape, TrainShape, largest_batch, memory_fit, memory_terms

ORDER = {"no": 0, "tight": 1, "fits": 2}
trains = st.builds(
    TrainShape,
    batch=st.sampled_from([1, 2, 8, 32]),
    length=st.sampled_from([256, 2048, 8192]),
    optimiser=st.sampled_from(["adamw", "adamw_bf16", "adamw_8bit", "adafactor"]),
    lora_rank=st.sampled_from([None, 16]),
    checkpointing=st.booleans(),
    eager_attention=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(trains, st.floats(1, 200), st.floats(1, 200))
def test_more_memory_never_fits_worse(train, one, two):
    small, large = sorted((one, two))
    verdicts = [ORDER[memory_fit(MINISTRAL_3B, train, v).verdict] for v in (small, large)]
    assert verdicts[0] <= verdicts[1]


@settings(max_examples=60, deadline=None)
@given(trains)
def test_a_larger_batch_never_needs_less(train):
    need = sum(memory_terms(MINISTRAL_3B, train).values())
    assert sum(memory_terms(MINISTRAL_3B, replace(train, batch=train.batch * 2)).values()) > need


@pytest.mark.parametrize(("optimiser", "states_gib"), [("adamw", 50.7), ("adamw_bf16", 25.3), ("adamw_8bit", 19.0)])
def test_the_states_of_3_4_billion_parameters_are_16_8_and_6_bytes_each(optimiser, states_gib):
    terms = memory_terms(MINISTRAL_3B, TrainShape(optimiser=optimiser))
    assert terms["weights and optimiser"] == pytest.approx(states_gib, abs=0.1)


def test_the_seeds_40_gb_card_excludes_classic_adamw_and_takes_pure_bf16():
    classic = memory_fit(MINISTRAL_3B, TrainShape(optimiser="adamw"), 40)
    assert (classic.verdict, classic.worst) == ("no", "weights and optimiser")
    assert "adamw_bf16" in classic.advice
    assert memory_fit(MINISTRAL_3B, TrainShape(optimiser="adamw_bf16"), 40).verdict == "fits"


def test_logits_of_a_big_batch_are_named_and_the_mild_remedy_comes_first():
    fit = memory_fit(MINISTRAL_3B, TrainShape(batch=16), 40)
    assert (fit.verdict, fit.worst) == ("no", "logits")
    assert fit.advice.startswith("batch 1")


def test_the_batch_that_is_suggested_fits_and_its_double_does_not():
    batch = largest_batch(MINISTRAL_3B, TrainShape(), 80)
    assert batch >= 4
    assert memory_fit(MINISTRAL_3B, TrainShape(batch=batch), 80).verdict == "fits"
    assert memory_fit(MINISTRAL_3B, TrainShape(batch=2 * batch), 80).verdict != "fits"
    assert largest_batch(MINISTRAL_3B, TrainShape(optimiser="adamw"), 24) == 0


def test_unknown_memory_leaves_the_verdict_open_with_the_need_worked_out():
    fit = memory_fit(MINISTRAL_3B, TrainShape(), None)
    assert fit.verdict == "unknown"
    assert fit.need_gib > 20


def test_a_config_file_gives_the_published_number_of_parameters():
    llama = {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    }
    assert ModelShape.from_config(llama).params == pytest.approx(8.03e9, rel=0.001)
    assert ModelShape.from_config({"text_config": llama}).layers == 32


@pytest.mark.parametrize("bad", [None, 0, "many", True, 2.5])
def test_a_config_without_a_usable_field_names_it(bad):
    config = {"num_hidden_layers": bad, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 256}
    with pytest.raises(ValueError, match="num_hidden_layers"):
        ModelShape.from_config(config)


def test_a_model_too_large_for_any_remedy_is_told_to_find_a_bigger_gpu():
    huge = ModelShape(params=400e9, layers=120, hidden=16384, heads=128, vocab=128000)
    assert memory_fit(huge, TrainShape(), 24).advice == "a GPU with more memory"
