"""Weights come in whole, or not at all: multimodal layout, FP8, names that do not exist, tokenizers without padding."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.errors import NotFoundError, UsageError
from tests.support.study import losses, save_checkpoint, stock_model, tiny_model, tokenizer, train

pytestmark = pytest.mark.study

IDS = torch.arange(3, 17)[None]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test of this file may reach for the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory):
    """A tiny Mistral 3 with its vision tower, saved as the published checkpoints are."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralVisionConfig

    text = stock_model().config
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=8, image_size=28,
        patch_size=14,
    )  # fmt: skip
    torch.manual_seed(0)
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=9)
    config.tie_word_embeddings = True
    model = Mistral3ForConditionalGeneration(config).eval()
    return save_checkpoint(model, tmp_path_factory.mktemp("multimodal")), model


def test_the_text_part_of_a_multimodal_checkpoint_gives_the_same_logits(multimodal):
    from runner.study.load import load_model

    path, whole = multimodal
    loaded = load_model(path, mask="causal")
    assert "text part of a multimodal checkpoint" in loaded.notes
    torch.testing.assert_close(logits(loaded.model), logits(whole), atol=1e-6, rtol=1e-6)
    assert not any("vision" in name for name, _ in loaded.model.named_parameters())


def test_a_checkpoint_of_ours_is_saved_without_the_vision_tower_and_loads_again(multimodal, tmp_path):
    from runner.study.load import load_model

    first = load_model(multimodal[0], mask="prompt_bidirectional")
    save_checkpoint(first.model, tmp_path)
    again = load_model(tmp_path, mask="prompt_bidirectional")
    assert again.recorded == "prompt_bidirectional"
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))


def test_a_missing_weight_is_an_error_and_not_a_random_number(tmp_path):
    from runner.study.load import load_model

    save_checkpoint(stock_model(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks 1 weights .*layers\.1\.mlp\.up_proj"):
        load_model(tmp_path, mask="causal")


def test_without_the_key_mapping_the_multimodal_layout_would_be_caught(multimodal, monkeypatch):
    """The trap itself: stock loading leaves every weight random and only reports it."""
    from runner.study import load

    monkeypatch.setattr(load, "_TEXT_KEYS", {})
    with pytest.raises(UsageError, match="lacks"):
        load.load_model(multimodal[0], mask="causal")


@pytest.mark.parametrize("family", ["ministral3", "llama"])
def test_stock_checkpoints_load_under_either_mask(tmp_path, family):
    from runner.study.load import load_model

    save_checkpoint(stock_model(family), tmp_path)
    loaded = load_model(tmp_path, mask="causal")
    assert torch.equal(logits(loaded.model), logits(stock_model(family)))
    assert loaded.recorded is None
    assert load_model(tmp_path, mask="prompt_bidirectional").model.prompt_mask == "prompt_bidirectional"


def test_fp8_weights_are_asked_for_dequantised_and_other_quantisations_refused():
    from runner.study.load import dequantised

    config = stock_model().config
    assert dequantised(config) is None
    config.quantization_config = {
        "quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None,
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    made = dequantised(config)
    assert made == {**config.quantization_config, "dequantize": True}
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(UsageError, match="quantised with 'gptq'"):
        dequantised(config)


@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_an_fp8_checkpoint_loads_as_the_weights_it_stands_for(tmp_path, scheme):
    """8-bit weights with their inverse scales, per block or (as Ministral 3 Instruct) one for each matrix."""
    from runner.study.load import load_model

    save_checkpoint(stock_model(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    wanted = {}
    for name in [n for n in weights if n.endswith("proj.weight")]:
        scale = weights[name].abs().max() / 448
        eight = (weights[name] / scale).to(torch.float8_e4m3fn)
        weights[name] = eight
        weights[name.replace("weight", "weight_scale_inv")] = scale.reshape(1, 1) if scheme == "dynamic" else scale
        if scheme == "static":
            weights[name.replace("weight", "activation_scale")] = torch.tensor(1.0)
        wanted[name] = eight.float() * scale
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "activation_scheme": scheme, "modules_to_not_convert": ["lm_head"],
        "weight_block_size": [128, 128] if scheme == "dynamic" else None,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(tmp_path, mask="causal")
    assert "FP8 weights dequantised" in loaded.notes
    for name, value in wanted.items():
        got = loaded.model.get_parameter(name)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.data, value, atol=1e-6, rtol=1e-2)
    assert "quantization_config" not in loaded.model.config.to_dict(), "what is saved is no FP8 checkpoint any more"


@pytest.mark.parametrize(("scheme", "block"), [("static", None), ("dynamic", (16, 16))])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_multimodal_fp8_checkpoint_as_transformers_writes_it_gives_the_weights_it_was_made_of(
    multimodal, tmp_path, monkeypatch, scheme, block, dtype
):
    """The layout of Ministral 3 Instruct: FP8 text part, the rest in bfloat16. Only its writer asks for a GPU."""
    from transformers import FineGrainedFP8Config, Mistral3ForConditionalGeneration
    from transformers.quantizers import quantizer_finegrained_fp8 as quantizer

    from runner.study.load import load_model

    wanted = FineGrainedFP8Config(
        activation_scheme=scheme, weight_block_size=block,
        modules_to_not_convert=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(quantizer.FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)
        made = Mistral3ForConditionalGeneration.from_pretrained(
            multimodal[0], quantization_config=wanted, dtype=torch.bfloat16, device_map="cpu"
        )
    for name, parameter in made.named_parameters():
        if name.endswith("activation_scale"):
            parameter.data = torch.tensor(1.0)
    save_checkpoint(made, tmp_path)
    eight = [v for v in load_file(tmp_path / "model.safetensors").values() if v.dtype == torch.float8_e4m3fn]
    assert len(eight) == 14, "seven projections in each of two layers"
    loaded = load_model(tmp_path, mask="causal", dtype=dtype)
    assert {p.dtype for p in loaded.model.parameters()} == {getattr(torch, dtype)}
    source = load_model(multimodal[0], mask="causal").model
    for name, value in source.named_parameters():
        got = loaded.model.get_parameter(name).float()
        # e4m3 keeps three bits of the mantissa; what was not quantised lost to bfloat16 alone
        torch.testing.assert_close(got, value, atol=2e-3, rtol=0.07 if "proj" in name else 0.008)
    torch.testing.assert_close(logits(loaded.model).float(), logits(source), atol=0.05, rtol=0.1)


def test_a_directory_that_is_no_whole_checkpoint_is_a_sentence(tmp_path):
    """What a cut copy leaves: half of the weights, none, no tokenizer; and a path that leads nowhere."""
    from runner.study.load import load_model

    save_checkpoint(stock_model(), tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UsageError, match="its weights are damaged or cut"):
        load_model(tmp_path, mask="causal")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="no file named model"):
        load_model(tmp_path, mask="causal")
    (tmp_path / "model.safetensors").write_bytes(weights)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(UsageError, match="has no tokenizer that can be read"):
        load_model(tmp_path, mask="causal")
    with pytest.raises(NotFoundError, match="There is no model directory"):
        load_model(tmp_path / "nowhere", mask="causal")


def test_names_that_do_not_exist_are_sentences(tmp_path):
    from runner.study.load import load_model

    with pytest.raises(NotFoundError, match="No model 'nobody/nothing' at revision 'v9'"):
        load_model("nobody/nothing", mask="causal", revision="v9")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_model(tmp_path, mask="causal")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UsageError, match="is a 'gpt2' model; the prefix mask is built for llama, ministral3"):
        load_model(tmp_path, mask="causal")


def test_flash_attention_is_refused_before_anything_is_loaded(tmp_path):
    from runner.study.load import load_model
    from runner.study.mask import MaskError

    with pytest.raises(MaskError, match="sdpa, eager, flex_attention"):
        load_model(tmp_path, mask="causal", attention="flash_attention_2")


def test_a_model_without_a_pad_token_pads_with_its_end_token(tmp_path):
    from runner.study.load import load_model

    model = stock_model()
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_model(tmp_path, mask="causal")
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id
    assert any("no pad token" in note for note in loaded.notes)


def test_lora_without_peft_says_what_to_install(monkeypatch):
    from runner.study.load import with_adapter

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match="pip install peft"):
        with_adapter(tiny_model(), 4)


def test_a_lora_checkpoint_is_small_keeps_its_mask_and_loads_as_the_tuned_model(tmp_path):
    """Train an adapter, load it merged: the logits are the adapter's, and the wrong mask is refused."""
    from runner.study.load import load_model, read_mask
    from runner.study.mask import MaskError

    base = save_checkpoint(stock_model(), tmp_path / "base")
    outcome = train(base, tmp_path / "run", "lora_rank=4", "learning_rate=1e-2")
    seen = losses(tmp_path / "run")
    assert seen[12] < seen[1]
    assert (outcome.best / "adapter_model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size
    assert read_mask(outcome.best) == "prompt_bidirectional"
    tuned = load_model(outcome.best, mask="prompt_bidirectional")
    before = load_model(base, mask="prompt_bidirectional")
    assert "LoRA adapter merged" in tuned.notes
    changed = [n for n, p in tuned.model.named_parameters() if not torch.equal(p, before.model.get_parameter(n))]
    assert changed
    assert all("proj" in name for name in changed), "only the projections have adapters"
    with pytest.raises(MaskError, match="trained under 'prompt_bidirectional'"):
        load_model(outcome.best, mask="causal")


def test_the_committed_base_model_is_small_and_has_its_recipe_and_log():
    import tomli

    from runner.study.demo.base import RECIPE
    from runner.study.demo.model import BASE_MODEL

    assert sum(p.stat().st_size for p in BASE_MODEL.iterdir() if p.is_file()) < 4_000_000
    assert tomli.loads((BASE_MODEL / "recipe.toml").read_text()) == RECIPE
    last = json.loads((BASE_MODEL / "log.jsonl").read_text().splitlines()[-1])
    assert last["macro"] > 0.9
