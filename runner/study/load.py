"""Weights in, with the mask they were made for: the only way a model is loaded in this project.

A stock checkpoint (Ministral 3 in its multimodal layout or text only, Llama-like) takes the mask that the recipe asks
for. A checkpoint of ours has its mask in config.json and is refused under another one unless the caller says that the
difference is the experiment (`override=True`, the non-prefill comparison). No weight is ever left at its random start:
a missing key is an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from runner.errors import NotFoundError, UsageError
from runner.recipe import MaskMode
from runner.study.fetch import fetch_weights, is_folder_of_a_repository, refuse_lost_path
from runner.study.hub_words import not_loaded
from runner.study.mask import ATTENTION, PREFIX_CLASSES, MaskError, PrefixLM

_TEXT_KEYS = {r"^language_model\.model\.": "model.", r"^language_model\.lm_head\.": "lm_head."}
"""Where the text part of a multimodal Mistral 3 checkpoint keeps its weights."""


class Loaded(NamedTuple):
    """A model ready to use, and what was found out about it."""

    model: Any
    tokenizer: Any
    recorded: MaskMode | None
    """The mask in the checkpoint's metadata; None for a stock checkpoint."""
    notes: tuple[str, ...]


def load_model(
    source: str | Path,
    *,
    mask: MaskMode,
    revision: str = "main",
    attention: str = "sdpa",
    dtype: str = "float32",
    override: bool = False,
) -> Loaded:
    """Load model and tokenizer from a local directory, a Hub id or a folder of a Hub repository under `mask`.

    Raises NotFoundError for a name that does not exist, UsageError for a model that cannot be used, MaskError when the
    checkpoint was made for another mask and `override` is False.
    """
    import torch

    if attention not in ATTENTION:
        raise MaskError(f"Attention '{attention}' ignores the prompt mask.", hint=f"Use one of {', '.join(ATTENTION)}.")
    name, notes = str(source), []
    if is_folder_of_a_repository(name):
        name = str(fetch_weights(name, revision))
        notes.append(f"{source} fetched from the Hub")
    where: dict[str, Any] = {} if Path(name).is_dir() else {"revision": revision}
    if (Path(name) / "adapter_config.json").is_file():
        return _load_adapter(Path(name), mask=mask, attention=attention, dtype=dtype, override=override)
    config = read_config(name, revision)
    recorded: MaskMode | None = getattr(config, "prompt_mask", None)
    if recorded is not None and recorded != mask and not override:
        raise MaskError(
            f"{name} was made under the mask '{recorded}' and is asked for under '{mask}'.",
            hint="Evaluate it under its own mask, or run the comparison, which changes the mask on purpose.",
        )
    extra: dict[str, Any] = {}
    if config.model_type == "mistral3":
        quantization = getattr(config, "quantization_config", None)
        config = config.text_config
        if quantization is not None:
            config.quantization_config = quantization
        extra["key_mapping"] = _TEXT_KEYS
        notes.append("text part of a multimodal checkpoint")
    stock = str(config.model_type).removeprefix("prefix_")
    if stock not in PREFIX_CLASSES:
        known = ", ".join(sorted(PREFIX_CLASSES))
        raise UsageError(f"{name} is a '{config.model_type}' model; the prefix mask is built for {known}.")
    config_class, model_class = PREFIX_CLASSES[stock]
    settings = {k: v for k, v in config.to_dict().items() if k not in _NOT_CARRIED}
    ours = config_class(**settings, prompt_mask=mask)
    if fp8 := dequantised(config):
        # in the configuration, not as an argument: an argument asks to quantise a model that is not, and the 8-bit
        # numbers would be taken for weights without their scales
        ours.quantization_config = fp8
        notes.append("FP8 weights dequantised")
    with _translated(name, revision):
        model, report = model_class.from_pretrained(
            name,
            config=ours,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            output_loading_info=True,
            **where,
            **extra,
        )
    missing = sorted(report["missing_keys"])
    if scales := [key for key in report["unexpected_keys"] if "weight_scale" in key]:
        raise UsageError(f"{name} has weights in a quantised form that could not be undone ({scales[0]}).")
    if missing or report["mismatched_keys"]:
        shown = ", ".join(missing[:3]) or str(next(iter(report["mismatched_keys"])))
        raise UsageError(
            f"{name} lacks {len(missing) or 'matching'} weights that the model needs ({shown}).",
            hint="Loading it would leave them at random values.",
        )
    # saving would undo the key mapping and write a text model in the multimodal layout
    model._weight_conversions = None
    if fp8:
        _forget_quantisation(model)
        for parameter in model.parameters():
            # of a quantised checkpoint transformers leaves what was never quantised as it was stored; buffers stay
            parameter.data = parameter.data.to(getattr(torch, dtype))
    tokenizer = _load_tokenizer(name, where, notes)
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return Loaded(model, tokenizer, recorded, tuple(notes))


_NOT_CARRIED = ("model_type", "architectures", "prompt_mask", "transformers_version", "quantization_config", "dtype")


def _forget_quantisation(model: Any) -> None:
    """What is trained and saved from here on is an ordinary model."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def dequantised(config: Any) -> dict[str, Any] | None:
    """The quantisation setting that loads FP8 weights as ordinary ones; None when there is nothing to undo.

    Raises UsageError for another quantisation: training on top of it is not the same experiment.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    settings = dict(found) if isinstance(found, dict) else found.to_dict()
    method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method")))
    if method != "fp8":
        raise UsageError(f"The checkpoint is quantised with '{method}'; only FP8 can be dequantised for training.")
    return {**settings, "quant_method": "fp8", "dequantize": True}


def read_config(source: str | Path, revision: str = "main") -> Any:
    """The configuration of a model; no weight is read. Raises like `load_model`."""
    from transformers import AutoConfig

    name = str(source)
    if is_folder_of_a_repository(name):
        name = str(fetch_weights(name, revision))
    with _translated(name, revision):
        return AutoConfig.from_pretrained(name, **({} if Path(name).is_dir() else {"revision": revision}))


def read_mask(checkpoint: str | Path) -> MaskMode | None:
    """The mask recorded in a local checkpoint (config.json, or beside an adapter); None for a stock one."""
    beside = Path(checkpoint) / ADAPTER_MASK
    path = beside if beside.is_file() else Path(checkpoint) / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise NotFoundError(f"{checkpoint} holds no config.json: it is no checkpoint.") from None
    mode: MaskMode | None = config.get("prompt_mask")
    return mode


def set_mask(model: PrefixLM, mask: MaskMode) -> None:
    """Change the mask of a loaded model on purpose (stage 2 after stage 1, the comparison); it is saved with it."""
    model.config.prompt_mask = mask


def load_tokenizer(source: str | Path, revision: str = "main") -> Any:
    """The tokenizer alone, with a pad token; no weight is read. Raises like `load_model`."""
    name = str(source)
    if is_folder_of_a_repository(name):
        name = str(fetch_weights(name, revision))
    return _load_tokenizer(name, {} if Path(name).is_dir() else {"revision": revision}, [])


def _load_tokenizer(name: str, where: dict[str, Any], notes: list[str]) -> Any:
    from transformers import AutoTokenizer

    try:
        with _translated(name, where.get("revision", "main")):
            tokenizer = AutoTokenizer.from_pretrained(name, **where)
    except UsageError as error:
        raise UsageError(
            f"{name} has no tokenizer that can be read.", hint="Its files (tokenizer.json) belong beside the weights."
        ) from error
    if tokenizer.eos_token_id is None:
        raise UsageError(f"The tokenizer of {name} has no end token; an answer could never end.")
    if tokenizer.pad_token_id is None:
        # padding is masked and never labelled, so any token will do; the end token is always there
        tokenizer.pad_token = tokenizer.eos_token
        notes.append("no pad token: padding with the end token")
    return tokenizer


def with_adapter(model: Any, rank: int) -> Any:
    """The model with a LoRA adapter of `rank` on every projection, all else frozen."""
    peft = peft_package()
    settings = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, settings)


def seal_adapter(folder: Path, mask: MaskMode) -> None:
    """Write the mask beside an adapter, whose own configuration has no place for it; before the manifest."""
    if (folder / "adapter_config.json").is_file():
        (folder / ADAPTER_MASK).write_text(json.dumps({"prompt_mask": mask}))


ADAPTER_MASK = "prompt_mask.json"
"""The mask under which a LoRA checkpoint was trained."""


def _load_adapter(path: Path, *, mask: MaskMode, attention: str, dtype: str, override: bool) -> Loaded:
    """A LoRA checkpoint: its base under the mask, the adapter merged into it."""
    peft = peft_package()
    settings = json.loads((path / "adapter_config.json").read_text())
    recorded = read_mask(path)
    if recorded is not None and recorded != mask and not override:
        raise MaskError(f"The adapter {path} was trained under '{recorded}' and is asked for under '{mask}'.")
    base = load_model(
        settings["base_model_name_or_path"],
        mask=mask,
        revision=settings.get("revision") or "main",
        attention=attention,
        dtype=dtype,
        override=override,
    )
    model = peft.PeftModel.from_pretrained(base.model, str(path)).merge_and_unload()
    return base._replace(model=model, recorded=recorded, notes=(*base.notes, "LoRA adapter merged"))


def peft_package() -> Any:
    """The package peft, or a sentence that says how to get it."""
    try:
        import peft
    except ModuleNotFoundError:
        raise UsageError("LoRA needs the package peft, which is not installed.", hint="pip install peft") from None
    return peft


class _translated:  # noqa: N801 - reads as a word in a with statement
    """Turns what transformers and the Hub raise for a wrong name into a sentence."""

    def __init__(self, name: str, revision: str) -> None:
        self.name, self.revision = name, revision

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, SafetensorError):
            raise UsageError(
                f"{self.name} cannot be loaded: its weights are damaged or cut ({error}).",
                hint="Fetch or copy it again; tunewatch audit reads it once more.",
            ) from error
        if error is None or not isinstance(error, (OSError, ValueError)) or isinstance(error, UsageError):
            return
        if Path(self.name).exists():
            raise UsageError(f"{self.name} cannot be loaded: {str(error).splitlines()[0]}") from error
        refuse_lost_path(self.name, error)
        raise not_loaded("model", self.name, self.revision, error) from error
