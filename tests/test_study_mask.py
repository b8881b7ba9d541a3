"""The prompt sees all of itself, the answer stays causal, and whatever would silently be otherwise is refused."""

import subprocess
import sys

import pytest
import torch

from tests.support.study import save_checkpoint, stock_model, tiny_model

pytestmark = pytest.mark.study

BOTH = pytest.mark.parametrize("family", ["ministral3", "llama"])
KERNELS = pytest.mark.parametrize("attention", ["sdpa", "eager"])
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def batch(prompts=(5, 9), length=14, seed=1):
    """Random tokens (B, L) and prompt ids of the given lengths."""
    ids = torch.randint(3, 250, (len(prompts), length), generator=torch.Generator().manual_seed(seed))
    prompt_ids = torch.full_like(ids, -1)
    for n, end in enumerate(prompts):
        prompt_ids[n, :end] = 0
    return ids, prompt_ids


def logits(model, ids, prompt_ids=None, **more):
    with torch.no_grad():
        return model(input_ids=ids, prompt_ids=prompt_ids, **more).logits


def states(model, ids, prompt_ids=None):
    with torch.no_grad():
        return model(input_ids=ids, prompt_ids=prompt_ids, output_hidden_states=True).hidden_states[-1]


@BOTH
@KERNELS
def test_an_answer_token_never_changes_a_logit_before_it(family, attention):
    model = tiny_model(family=family, attention=attention)
    ids, prompt_ids = batch()
    before = logits(model, ids, prompt_ids)
    for row, start in enumerate((5, 9)):
        for j in range(start, ids.shape[1]):
            changed = ids.clone()
            changed[row, j] = (ids[row, j] + 7) % 250
            after = logits(model, changed, prompt_ids)
            assert torch.equal(after[row, :j], before[row, :j]), (row, j)
            assert not torch.equal(after[row, j:], before[row, j:]), "and it does change its own position"


@BOTH
@KERNELS
@pytest.mark.parametrize("mask", ["causal", "prompt_bidirectional"])
def test_a_later_prompt_token_changes_an_earlier_state_only_under_the_bidirectional_mask(family, attention, mask):
    model = tiny_model(mask, family=family, attention=attention)
    ids, prompt_ids = batch(prompts=(8,))
    given = prompt_ids if mask == "prompt_bidirectional" else None
    changed = ids.clone()
    changed[0, 7] = (ids[0, 7] + 7) % 250
    moved = (states(model, ids, given) - states(model, changed, given))[0, :7].abs().max()
    assert (moved > 1e-3) == (mask == "prompt_bidirectional")


@BOTH
@KERNELS
def test_causal_mode_is_the_stock_model_to_the_last_bit(family, attention):
    ids, _ = batch()
    ours = logits(tiny_model("causal", family=family, attention=attention), ids)
    with torch.no_grad():
        assert torch.equal(ours, stock_model(family, attention=attention)(input_ids=ids).logits)


def test_an_empty_prompt_is_the_causal_model():
    ids, prompt_ids = batch(prompts=(0, 1))
    torch.testing.assert_close(logits(tiny_model(), ids, prompt_ids), logits(tiny_model("causal"), ids), **CLOSE)


@BOTH
def test_sdpa_and_eager_agree(family):
    ids, prompt_ids = batch()
    one, two = (logits(tiny_model(family=family, attention=a), ids, prompt_ids) for a in ("sdpa", "eager"))
    torch.testing.assert_close(one, two, **CLOSE)


def test_a_sliding_window_limits_the_answer_and_keeps_the_prompt_whole():
    ids, prompt_ids = batch(prompts=(9,))
    model = tiny_model(sliding_window=4)
    changed = ids.clone()
    changed[0, 8] = (ids[0, 8] + 7) % 250
    assert (states(model, ids, prompt_ids) - states(model, changed, prompt_ids))[0, 0].abs().max() > 1e-4
    after_answer = ids.clone()
    after_answer[0, 12] = (ids[0, 12] + 7) % 250
    assert torch.equal(logits(model, ids, prompt_ids)[0, :12], logits(model, after_answer, prompt_ids)[0, :12])


@KERNELS
def test_right_and_left_padding_change_nothing(attention):
    model = tiny_model(attention=attention)
    ids, prompt_ids = batch(prompts=(5,), length=9)
    alone = logits(model, ids, prompt_ids)[0]
    pad = torch.nn.functional.pad
    real = torch.ones_like(ids)
    right = logits(model, pad(ids, (0, 4), value=256), pad(prompt_ids, (0, 4), value=-1),
                   attention_mask=pad(real, (0, 4)))[0, :9]  # fmt: skip
    torch.testing.assert_close(right, alone, **CLOSE)
    mask = pad(real, (4, 0))
    left = logits(model, pad(ids, (4, 0), value=256), pad(prompt_ids, (4, 0), value=-1), attention_mask=mask,
                  position_ids=(mask.cumsum(1) - 1).clamp(min=0))[0, 4:]  # fmt: skip
    torch.testing.assert_close(left, alone, **CLOSE)


def test_packed_documents_are_as_if_alone():
    model = tiny_model()
    parts = [batch(prompts=(end,), length=size, seed=n) for n, (end, size) in enumerate([(3, 7), (5, 8), (2, 4)])]
    ids = torch.cat([ids for ids, _ in parts], 1)
    blocks = torch.cat([torch.where(p == 0, n, -1) for n, (_, p) in enumerate(parts)], 1)
    positions = torch.cat([torch.arange(i.shape[1]) for i, _ in parts])[None]
    packed = logits(model, ids, blocks, position_ids=positions)
    alone = torch.cat([logits(model, *part) for part in parts], 1)
    torch.testing.assert_close(packed, alone, **CLOSE)


@KERNELS
@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"num_beams": 3}], ids=["cache", "no cache", "beams"])
def test_generation_gives_the_logits_of_the_full_forward(attention, how):
    """A left-padded batch of prompts of 5, 9 and 12 tokens, greedily and by beams."""
    model = tiny_model(attention=attention)
    rows = [batch(prompts=(n,), length=n, seed=n)[0] for n in (5, 9, 12)]
    ids = torch.cat([torch.nn.functional.pad(r, (12 - r.shape[1], 0), value=256) for r in rows])
    mask = (ids != 256).long()
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 256, "eos_token_id": None, **how}
    together = model.generate(ids, attention_mask=mask, **settings)
    for n, row in enumerate(rows):
        if how.get("num_beams"):
            single = model.generate(row, attention_mask=torch.ones_like(row), use_cache=False, **settings)
            assert torch.equal(together[n, 12:], single[0, row.shape[1] :])
            continue
        sequence = row
        for step in range(6):
            prompt_ids = torch.full_like(sequence, -1)
            prompt_ids[0, : row.shape[1]] = 0
            following = logits(model, sequence, prompt_ids)[0, -1].argmax()
            assert together[n, 12 + step] == following
            sequence = torch.cat([sequence, following[None, None]], 1)


def test_cached_steps_equal_the_full_forward_in_every_logit():
    model = tiny_model()
    prompt = batch(prompts=(9,), length=9)[0]
    made = model.generate(prompt, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True,
                          pad_token_id=256, eos_token_id=None)  # fmt: skip
    prompt_ids = torch.full_like(made.sequences, -1)
    prompt_ids[:, :9] = 0
    whole = logits(model, made.sequences, prompt_ids)
    for n, step in enumerate(made.logits):
        torch.testing.assert_close(step[0], whole[0, 8 + n], **CLOSE)
    causal = logits(tiny_model("causal"), made.sequences)
    assert (causal - whole)[0, 8:].abs().max() > 1e-3, "and the causal model is another one"


def test_activation_checkpointing_gives_the_same_loss_and_gradients():
    ids, prompt_ids = batch()
    labels = torch.where(prompt_ids == 0, -100, ids)
    results = []
    for on in (False, True):
        model = tiny_model().train()
        if on:
            model.activation_checkpointing_enable()
        loss = model(input_ids=ids, prompt_ids=prompt_ids, labels=labels).loss
        loss.backward()
        results.append((loss.detach(), model.model.layers[0].self_attn.q_proj.weight.grad))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], **CLOSE)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("count", [None, 40])
def test_sliced_cross_entropy_gives_the_same_loss_and_gradients(chunk, count):
    ids, prompt_ids = batch()
    labels = torch.where(prompt_ids == 0, -100, ids)
    results = []
    for size in (0, chunk):
        model = tiny_model().train()
        model.loss_chunk = size
        extra = {} if count is None else {"num_items_in_batch": count}
        loss = model(input_ids=ids, prompt_ids=prompt_ids, labels=labels, **extra).loss
        loss.backward()
        results.append((loss.detach(), model.lm_head.weight.grad.clone()))
    torch.testing.assert_close(results[0][0], results[1][0], **CLOSE)
    torch.testing.assert_close(results[0][1], results[1][1], **CLOSE)


def test_sliced_cross_entropy_of_a_batch_without_labels_is_zero_and_differentiable():
    ids, prompt_ids = batch()
    model = tiny_model().train()
    model.loss_chunk = 4
    loss = model(input_ids=ids, prompt_ids=prompt_ids, labels=torch.full_like(ids, -100)).loss
    loss.backward()
    assert loss.item() == 0.0


def refused(model, says, **given):
    from runner.study.mask import MaskError

    ids, prompt_ids = batch(prompts=(5,), length=9)
    with pytest.raises(MaskError, match=says):
        model(**{"input_ids": ids, "prompt_ids": prompt_ids, **given})


def test_a_forward_that_does_not_name_the_prompt_is_refused():
    refused(tiny_model(), "not told what the prompt is", prompt_ids=None)


def test_a_prompt_given_to_a_causal_model_is_refused():
    refused(tiny_model("causal"), "recorded mask is 'causal'")


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_ready_4d_mask_is_refused_under_a_bidirectional_prompt(dtype):
    refused(tiny_model(), "4D attention_mask cannot be combined", attention_mask=torch.ones(1, 1, 9, 9).to(dtype))


def test_a_boolean_4d_mask_under_eager_is_refused_even_when_causal():
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    refused(tiny_model("causal", attention="eager"), "masks nothing", attention_mask=mask, prompt_ids=None)


@pytest.mark.parametrize("mask", ["causal", "prompt_bidirectional"])
def test_flash_attention_is_refused(mask):
    model = tiny_model(mask)
    model.config._attn_implementation = "flash_attention_2"
    refused(model, "Attention 'flash_attention_2' ignores the prompt mask")


def test_a_static_cache_object_is_refused():
    from transformers import StaticCache

    model = tiny_model()
    refused(model, "StaticCache", past_key_values=StaticCache(config=model.config, max_cache_len=16))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"cache_implementation": "static"}, "'static' cache"),
        ({"cache_implementation": "quantized"}, "'quantized' cache"),
        ({"prefill_chunk_size": 3}, "prefill_chunk_size"),
    ],
)
def test_generation_settings_that_would_be_causal_are_refused(setting, says):
    from runner.study.mask import MaskError

    ids, _ = batch(prompts=(5,), length=5)
    with pytest.raises(MaskError, match=says):
        tiny_model().generate(ids, max_new_tokens=2, pad_token_id=256, **setting)
    out = tiny_model("causal").generate(ids, max_new_tokens=2, pad_token_id=256, prefill_chunk_size=3)
    assert out.shape == (1, 7), "a causal model may do it"


def test_generation_over_padding_without_its_mask_is_refused():
    from runner.study.mask import MaskError

    ids, _ = batch(prompts=(5,), length=5)
    ids[0, 0] = 256
    with pytest.raises(MaskError, match="attention_mask"):
        tiny_model().generate(ids, max_new_tokens=2)


def test_packed_rows_with_a_2d_mask_or_a_shared_block_are_refused():
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    refused(tiny_model(), "switches the document borders off", position_ids=positions,
            attention_mask=torch.ones(1, 9, dtype=torch.long))  # fmt: skip
    blocks = torch.tensor([[0, 0, -1, -1, 0, 0, 0, -1, -1]])
    refused(tiny_model(), "share a prompt block id", position_ids=positions, prompt_ids=blocks)


def test_a_saved_checkpoint_cannot_be_loaded_as_a_causal_model_by_accident(tmp_path):
    """AutoModel in a process that knows nothing of this project stops instead of dropping the mask."""
    save_checkpoint(tiny_model(), tmp_path)
    code = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "prefix_ministral3" in done.stderr


def test_the_recorded_mask_is_read_back_and_enforced(tmp_path):
    from runner.study.load import load_model, read_mask
    from runner.study.mask import MaskError

    save_checkpoint(tiny_model(), tmp_path)
    assert read_mask(tmp_path) == "prompt_bidirectional"
    loaded = load_model(tmp_path, mask="prompt_bidirectional")
    ids, prompt_ids = batch()
    assert torch.equal(logits(loaded.model, ids, prompt_ids), logits(tiny_model(), ids, prompt_ids))
    with pytest.raises(MaskError, match="made under the mask 'prompt_bidirectional' and is asked for under 'causal'"):
        load_model(tmp_path, mask="causal")
    on_purpose = load_model(tmp_path, mask="causal", override=True)
    assert torch.equal(logits(on_purpose.model, ids), logits(tiny_model("causal"), ids))
