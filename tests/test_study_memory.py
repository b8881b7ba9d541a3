"""The memory account agrees with the known arithmetic of Ministral 3 3B, and names the term that breaks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.config import load_recipe
from runner.study.memory import Shape, verdict
from runner.study.rate import in_words, utilisation
from tests.support.study import stock_model, tiny_model

pytestmark = pytest.mark.study

MINISTRAL_3B = Shape(parameters=3_429_006_336, hidden=3072, layers=26, heads=32, vocab=131_072)


def made(*overrides, have=40.0):
    return verdict(MINISTRAL_3B, load_recipe("stage5", overrides, env={}), have)


@pytest.mark.parametrize("family", ["ministral3", "llama"])
def test_the_parameter_count_is_exact(family):
    for model in (stock_model(family), tiny_model(family=family)):
        assert Shape.of(model.config).parameters == model.num_parameters()


def test_the_published_shape_gives_the_published_count():
    from transformers import Ministral3Config

    config = Ministral3Config(
        hidden_size=3072, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=131_072, tie_word_embeddings=True,
    )  # fmt: skip
    assert Shape.of(config) == MINISTRAL_3B


@pytest.mark.parametrize(
    ("overrides", "gigabytes"),
    [
        (["dtype=bfloat16", "optimizer=adamw"], 27.4),
        (["dtype=float32", "optimizer=adamw"], 54.9),
        (["dtype=float32", "optimizer=adamw_8bit"], 34.3),
        (["dtype=bfloat16", "optimizer=adamw_8bit"], 20.6),
        (["dtype=bfloat16", "optimizer=adafactor"], 13.7),
    ],
)
def test_weights_gradients_and_states_are_the_known_sums(overrides, gigabytes):
    terms = made(*overrides).terms
    total = (terms["weights"] + terms["gradients"] + terms["optimizer"]) * 2**30 / 1e9
    assert total == pytest.approx(gigabytes, rel=0.03)


def test_fp32_adamw_does_not_fit_the_seeds_card_and_8_bit_states_are_tight_or_fit():
    assert made("optimizer=adamw").state == "no"
    assert made("optimizer=adamw").worst == "optimizer"
    assert made().state in ("fits", "tight")
    assert made("dtype=bfloat16", "optimizer=adamw").state == "fits"
    assert made("lora_rank=16", "dtype=bfloat16", have=16.0).state == "fits"


def test_the_embeddings_gradients_are_counted_where_it_is_trained_and_the_default_still_has_room():
    """An A100 of 40 GB tells 39.4 GiB of itself."""
    assert made().terms["embedding gradients"] == pytest.approx(2 * 131_072 * 3072 * 4 / 2**30)
    assert "embedding gradients" not in made("lora_rank=16").terms
    assert made(have=39.4).state == "tight"


def test_without_slicing_and_checkpointing_the_activations_break_it():
    one = made("loss_chunk=0", "batch_size=8", "max_length=4096", "dtype=bfloat16", "optimizer=adafactor")
    assert one.worst == "logits"
    two = made("activation_checkpointing=false", "batch_size=4", "dtype=bfloat16", "optimizer=adafactor")
    assert two.worst == "activations"
    assert "the largest is activations" in two.in_words()


@given(st.integers(1, 64), st.integers(16, 8192))
def test_more_tokens_never_need_less(batch, length):
    less = made(f"batch_size={batch}", f"max_length={length}")
    more = made(f"batch_size={batch + 1}", f"max_length={length + 16}")
    assert less.need_gib <= more.need_gib


def test_without_a_card_there_is_a_sum_and_no_verdict():
    assert made(have=None).state == "unknown"
    assert "of " not in made(have=None).in_words().split("(")[0]


def test_utilisation_is_the_share_of_the_cards_peak():
    """The study's run: 2.82 s for a step of 16 examples of at most 1,024 tokens on an A100."""
    tokens_per_s = 16 * 1024 / 2.82
    share = utilisation(tokens_per_s, MINISTRAL_3B, 1024, "NVIDIA A100-SXM4-40GB")
    per_token = 6 * 3_429_006_336 + 12 * 26 * 3072 * 1024
    assert share == pytest.approx(tokens_per_s * per_token / 312e12)
    assert 0.3 < share < 0.5
    assert utilisation(tokens_per_s, MINISTRAL_3B, 1024, "NVIDIA A100-SXM4-40GB", cards=2) == pytest.approx(share / 2)
    assert utilisation(1.0, MINISTRAL_3B, 1024, "NVIDIA H100 PCIe") > utilisation(1.0, MINISTRAL_3B, 1024, "H100 SXM")
    assert utilisation(1.0, MINISTRAL_3B, 1024, "a card of tomorrow") is None
    assert in_words(5810.4, MINISTRAL_3B, 1024, None) == "5,810 tokens/s"
