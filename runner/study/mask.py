"""The prefix mask: the prompt attends to all of itself, the answer stays causal.

`PrefixLM` is mixed in front of a stock causal model class. Its forward takes `prompt_ids` (B, L): one id of 0 or more
per prompt block, -1 everywhere else (answer, padding); with a cache it stays what it was at the start of generation.
The 4D mask is built by transformers' own `create_causal_mask`, so its dtype and form are right for the attention used.

What a saved model is lies in its configuration: model_type `prefix_ministral3` (or `prefix_llama`) and `prompt_mask`. A
tool that knows nothing of this project cannot load it as an ordinary causal model by accident: AutoModel does not know
the type. `runner.study.load` is the way in.

Every configuration that would be causal without saying so raises MaskError instead: a static cache (transformers then
builds the mask before forward and never sees prompt_ids), chunked prefill (a later chunk cannot be seen by an earlier
one), flash attention (ignores the mask function), a ready 4D mask (a boolean one is *added* under eager), packed rows
whose 2D mask hides the document borders, and a forward that names no prompt.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from runner.errors import UsageError
from runner.recipe import MaskMode
from runner.study.loss import chunked_cross_entropy

ATTENTION = ("sdpa", "eager", "flex_attention")
"""The attention implementations that honour a mask function."""

_GROWING_CACHES = (None, "dynamic", "offloaded")


_Host: Any = object


class MaskError(UsageError):
    """A configuration under which the mask would silently not be the one that was asked for."""


class PrefixLM(_Host):  # type: ignore[misc] # mixed in front of a class that only the subclasses know
    """Mixed in front of a causal model class; see the module's text for what it promises."""

    _supports_flash_attn = False
    loss_chunk: int = 0
    """Positions per slice of the cross-entropy (`runner.study.loss`); 0 computes all logits at once."""

    @property
    def prompt_mask(self) -> MaskMode:
        """How the prompt attends, as recorded in the configuration."""
        mode: MaskMode = self.config.prompt_mask
        return mode

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        prompt_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The stock forward under the recorded mask.

        `prompt_ids` (B, L) is required when `prompt_mask` is "prompt_bidirectional" and refused when it is "causal".
        Raises MaskError for what would silently be something else.
        """
        _refuse_attention(self.config._attn_implementation)
        if self.prompt_mask == "causal":
            if prompt_ids is not None:
                raise MaskError(
                    "prompt_ids were given to a model whose recorded mask is 'causal'.",
                    hint="Load it with mask='prompt_bidirectional', or collate for 'causal'.",
                )
            if attention_mask is not None and attention_mask.dim() == 4:
                _refuse_ready_mask(attention_mask, self.config._attn_implementation)
            mask: Any = attention_mask
        else:
            if prompt_ids is None:
                raise MaskError(
                    "The recorded mask is 'prompt_bidirectional', and forward was not told what the prompt is.",
                    hint="Pass prompt_ids (B, L): 0 on the prompt, -1 elsewhere.",
                )
            mask = prefix_mask(self.config, _shape_of(input_ids, inputs_embeds, self.dtype), attention_mask,
                               past_key_values, position_ids, prompt_ids)  # fmt: skip
        common = {"position_ids": position_ids, "past_key_values": past_key_values, "inputs_embeds": inputs_embeds}
        if labels is not None and self.loss_chunk > 0:
            count = kwargs.pop("num_items_in_batch", None)
            hidden = self.model(input_ids=input_ids, attention_mask=mask, **common, **kwargs).last_hidden_state
            loss = chunked_cross_entropy(hidden, self.lm_head.weight, labels, self.loss_chunk, count)
            return CausalLMOutputWithPast(loss=loss)
        return super().forward(input_ids=input_ids, attention_mask=mask, labels=labels, **common, **kwargs)

    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """The stock generate; what is given is the prompt unless `prompt_ids` says otherwise.

        Raises MaskError for a cache or prefill that would see the prompt causally.
        """
        if self.prompt_mask == "prompt_bidirectional" and kwargs.get("prompt_ids") is None:
            ids = inputs if inputs is not None else kwargs.get("input_ids")
            if ids is None:
                raise MaskError(
                    "generate under a bidirectional prompt needs input_ids, or prompt_ids beside embeddings."
                )
            kwargs["prompt_ids"] = _whole_prompt(ids, kwargs.get("attention_mask"), self.config.pad_token_id)
        return super().generate(inputs, **kwargs)

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: Any, *rest: Any, **named: Any) -> Any:
        if self.prompt_mask == "prompt_bidirectional":
            if generation_config.cache_implementation not in _GROWING_CACHES:
                raise MaskError(
                    f"A '{generation_config.cache_implementation}' cache would make the prompt causal without a word.",
                    hint="Leave cache_implementation alone: the growing cache is exact.",
                )
            if generation_config.prefill_chunk_size is not None:
                raise MaskError(
                    "prefill_chunk_size would hide later prompt tokens from earlier ones.",
                    hint="Leave it unset under a bidirectional prompt.",
                )
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *rest, **named)


def prefix_mask(
    config: Any,
    shape: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Any,
    position_ids: torch.Tensor | None,
    prompt_ids: torch.Tensor,
) -> Any:
    """The attention mask of a bidirectional prompt, in the form that `config._attn_implementation` takes.

    `shape` is an empty (B, Q, 0) tensor that carries batch, query length, dtype and device. `prompt_ids` (B, L) covers
    the sequence from its start. Raises MaskError where the result would not be the mask that was asked for.
    """
    if attention_mask is not None and attention_mask.dim() != 2:
        _refuse_ready_mask(attention_mask, None)
    if past_key_values is not None and getattr(past_key_values, "is_compileable", False):
        raise MaskError(
            f"A {type(past_key_values).__name__} would make the prompt causal without a word.",
            hint="Use a DynamicCache.",
        )
    if prompt_ids.dim() != 2 or prompt_ids.shape[0] != shape.shape[0]:
        raise MaskError(f"prompt_ids must be (B, L) with B = {shape.shape[0]}, not {tuple(prompt_ids.shape)}.")
    if position_ids is not None and shape.shape[1] > 1:
        _check_packing(position_ids, attention_mask, prompt_ids, past_key_values)
    build = create_causal_mask if getattr(config, "sliding_window", None) is None else create_sliding_window_causal_mask
    return build(
        config=config,
        inputs_embeds=shape,
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        position_ids=position_ids,
        block_sequence_ids=prompt_ids,
    )


def _shape_of(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """An empty tensor with the batch and query length of the input: all that the mask builder reads."""
    source = input_ids if input_ids is not None else inputs_embeds
    if source is None:
        raise MaskError("forward needs input_ids or inputs_embeds.")
    return torch.empty((source.shape[0], source.shape[1], 0), dtype=dtype, device=source.device)


def _whole_prompt(ids: torch.Tensor, attention_mask: torch.Tensor | None, pad_id: int | None) -> torch.Tensor:
    """Everything that is not padding, as one block."""
    if attention_mask is None:
        if pad_id is not None and bool((ids == pad_id).any()):
            raise MaskError("The batch holds padding; pass its attention_mask to generate.")
        return torch.zeros_like(ids)
    return torch.where(attention_mask.bool(), 0, -1).to(ids.device)


def _check_packing(
    position_ids: torch.Tensor, attention_mask: torch.Tensor | None, prompt_ids: torch.Tensor, past_key_values: Any
) -> None:
    """Refuse packed rows that would leak: a 2D mask beside them, or one block id over two documents."""
    if past_key_values is not None and past_key_values.get_seq_length() > 0:
        return
    restart = position_ids[:, 1:] <= position_ids[:, :-1]  # (b, L-1): a new document begins
    if attention_mask is not None:
        real = attention_mask.bool()
        # positions of left padding restart too; a border inside the real tokens is a packed row
        if bool((restart & real[:, 1:] & real[:, :-1]).any()):
            raise MaskError(
                "Packed rows came with a 2D attention_mask, which switches the document borders off.",
                hint="Pass attention_mask=None for packed rows.",
            )
        return
    if not bool(restart.any()):
        return
    document = torch.nn.functional.pad(restart.long().cumsum(1), (1, 0))  # (b, L)
    document = document.expand(prompt_ids.shape[0], -1)
    for row, blocks in zip(document.tolist(), prompt_ids.tolist(), strict=True):
        owner: dict[int, int] = {}
        if any(block >= 0 and owner.setdefault(block, n) != n for n, block in zip(row, blocks, strict=False)):
            raise MaskError(
                "Two packed documents share a prompt block id: their prompts would see each other.",
                hint="Number the blocks of one row 0, 1, 2, ...",
            )


def _refuse_ready_mask(mask: torch.Tensor, attention: str | None) -> None:
    if attention is None:
        raise MaskError(
            f"A ready {mask.dim()}D attention_mask cannot be combined with a bidirectional prompt.",
            hint="Pass the 2D padding mask; the rest is built here.",
        )
    if attention == "eager" and mask.dtype == torch.bool:
        raise MaskError(
            "A boolean 4D mask under eager attention is added to the scores and masks nothing.",
            hint="Pass a float mask (0 and -inf), or use sdpa.",
        )


def _refuse_attention(attention: str | None) -> None:
    if attention not in ATTENTION:
        raise MaskError(
            f"Attention '{attention}' ignores the prompt mask and would be causal without a word.",
            hint=f"Use one of {', '.join(ATTENTION)}.",
        )


class PrefixMinistral3Config(Ministral3Config):  # type: ignore[no-untyped-call]
    """Ministral3Config that records how the prompt attends."""

    model_type = "prefix_ministral3"
    # needed whatever the rope type is, so it is no mistake worth a line in the log at every save
    ignore_keys_at_rope_validation = Ministral3Config.ignore_keys_at_rope_validation | {
        "original_max_position_embeddings"
    }
    prompt_mask: str = "prompt_bidirectional"


class PrefixLlamaConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """LlamaConfig that records how the prompt attends."""

    model_type = "prefix_llama"
    prompt_mask: str = "prompt_bidirectional"


class PrefixMinistral3ForCausalLM(PrefixLM, Ministral3ForCausalLM):  # type: ignore[misc, no-untyped-call]
    """Ministral 3 with a bidirectional prompt."""

    config_class = PrefixMinistral3Config
    # of a multimodal checkpoint only the text part is wanted, and of an FP8 one no scale of its activations: expected,
    # and no table in the log
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012 - the base class has it so
        r"vision_tower\.", r"multi_modal_projector\.", r"\.activation_scale$"
    ]  # fmt: skip


class PrefixLlamaForCausalLM(PrefixLM, LlamaForCausalLM):  # type: ignore[misc, no-untyped-call]
    """Llama with a bidirectional prompt."""

    config_class = PrefixLlamaConfig


PREFIX_CLASSES: dict[str, tuple[type[Any], type[Any]]] = {
    "ministral3": (PrefixMinistral3Config, PrefixMinistral3ForCausalLM),
    "llama": (PrefixLlamaConfig, PrefixLlamaForCausalLM),
}
"""Stock model_type of a causal model with its prefix configuration and class."""

for _config, _model in PREFIX_CLASSES.values():
    # with this module imported, AutoModel loads these types as what they are
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)
