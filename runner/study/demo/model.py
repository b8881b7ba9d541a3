"""The miniature model: a Ministral3 of about one million parameters and a byte tokenizer, both made here from nothing.

The architecture class, the rope keys and the tied embedding are those of Ministral 3 3B, so the mask, the loading and
the checkpoints of the full study run through the same code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

BASE_MODEL = Path(__file__).parent / "base_model"
"""The committed causal base checkpoint; `python -m runner.study.demo.base` makes it."""

PAD, BOS, EOS = 256, 257, 258


def demo_config(**changes: Any) -> Any:
    """Ministral3Config of the miniature: hidden 128, 4 layers, 4 heads over 2 key/value heads, 0.97 M parameters."""
    from transformers import Ministral3Config

    shape: dict[str, Any] = {
        "vocab_size": 260,
        "hidden_size": 128,
        "intermediate_size": 480,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "sliding_window": None,
        # both extra keys must be there: Ministral3 computes with them whatever the rope type is
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 512,
        },
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    return Ministral3Config(**{**shape, **changes})


def byte_tokenizer() -> Any:
    """A tokenizer whose ids 0 to 255 are the bytes themselves, with <pad>, <s> and </s> behind them.

    It is an ordinary fast tokenizer, so AutoTokenizer, the chat templates and lm-eval take it like any other.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {char: byte for byte, char in _byte_chars().items()}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<pad>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        pad_token="<pad>",  # noqa: S106 - a token of the vocabulary, not a secret
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        clean_up_tokenization_spaces=False,
    )


def _byte_chars() -> dict[int, str]:
    """The printable character that the byte-level pre-tokenizer writes for each byte (the table of GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in table)
    return table | {byte: chr(256 + n) for n, byte in enumerate(others)}
