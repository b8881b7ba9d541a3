"""The GPU's way to the same mask: flex_attention's block mask gives what the dense mask gives.

Uncompiled, so that the processor computes it; on a GPU the same mask function is compiled. Its backward pass exists on
GPUs alone, and training by it elsewhere is refused.
"""

import pytest
import torch

from tests.support.study import tiny_model
from tests.test_study_mask import BOTH, CLOSE, batch, logits

pytestmark = pytest.mark.study


@pytest.fixture(autouse=True)
def uncompiled():
    """transformers compiles flex_attention, which takes a minute and a C++ compiler; the mathematics is the same."""
    with torch.compiler.set_stance("force_eager"):
        yield


@BOTH
@pytest.mark.parametrize("prompts", [(5, 9), (14, 1), (0, 14)], ids=str)
def test_the_block_mask_is_the_dense_mask(family, prompts):
    ids, prompt_ids = batch(prompts=prompts)
    flex = logits(tiny_model(family=family, attention="flex_attention"), ids, prompt_ids)
    torch.testing.assert_close(flex, logits(tiny_model(family=family), ids, prompt_ids), **CLOSE)


def test_padding_on_either_side_is_masked_alike():
    ids, prompt_ids = batch(prompts=(5,), length=9)
    alone = logits(tiny_model(), ids, prompt_ids)
    model, pad = tiny_model(attention="flex_attention"), torch.nn.functional.pad
    for left, right in ((0, 4), (4, 0)):
        mask = pad(torch.ones_like(ids), (left, right))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        given = pad(ids, (left, right), value=256), pad(prompt_ids, (left, right), value=-1)
        padded = logits(model, *given, attention_mask=mask, position_ids=positions)[:, left : left + 9]
        torch.testing.assert_close(padded, alone, **CLOSE)


def test_packed_documents_keep_their_blocks():
    first, second = batch(prompts=(3,), length=7), batch(prompts=(5,), length=8, seed=2)
    ids = torch.cat([first[0], second[0]], 1)
    blocks = torch.cat([first[1], torch.where(second[1] == 0, 1, -1)], 1)
    positions = torch.cat([torch.arange(7), torch.arange(8)])[None]
    packed = logits(tiny_model(attention="flex_attention"), ids, blocks, position_ids=positions)
    alone = torch.cat([logits(tiny_model(), *part) for part in (first, second)], 1)
    torch.testing.assert_close(packed, alone, **CLOSE)


def test_generation_with_a_cache_chooses_the_same_tokens():
    prompt = batch(prompts=(9,), length=9)[0]
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 256, "eos_token_id": None}
    flex = tiny_model(attention="flex_attention").generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    assert torch.equal(flex, tiny_model().generate(prompt, attention_mask=torch.ones_like(prompt), **settings))
