"""Reads recipes: how file, environment and command line together decide every setting.

A recipe is one of ours (`demo`, `stage1` to `stage5`, by name) or a file. Later layers win: the recipe, the file given
with `--config`, the environment names of the study's first scripts (`MAX_STEPS`, `AUTO_STOP_PATIENCE_EVALS`, ...),
`--set KEY=VALUE`. A key is written `train.max_steps` or, since no two sections share a name, `max_steps`. What was
decided is written to the run directory's config.toml and is itself a recipe again. A kind "command" names any program
that writes a Hugging Face Trainer log. Light: no torch, no network.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import shlex
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from runner.atomic import write_atomic
from runner.autostop import StopRule
from runner.errors import NotFoundError, UsageError
from runner.recipe import (
    CommandSettings,
    DataSettings,
    EvaluateSettings,
    Kind,
    MaskMode,
    ModelSettings,
    Recipe,
    TrainSettings,
)

__all__ = ["MaskMode", "Recipe", "as_document", "load_recipe", "recipe_names", "with_settings", "write_resolved"]

RECIPES = Path(__file__).parent / "recipes"

ENVIRONMENT: dict[str, str] = {
    "MODEL_ID": "model.base",
    "MODEL_REVISION": "model.revision",
    "MAX_STEPS": "train.max_steps",
    "TRAIN_SAMPLES": "data.train_samples",
    "EVAL_SAMPLES": "data.eval_samples",
    "EVAL_STEPS": "train.eval_steps",
    "SAVE_STEPS": "train.save_steps",
    "LOGGING_STEPS": "train.logging_steps",
    "MAX_LENGTH": "data.max_length",
    "BATCH_SIZE": "train.batch_size",
    "GRAD_ACCUM": "train.grad_accum",
    "LR": "train.learning_rate",
    "LR_SCHEDULER": "train.lr_scheduler",
    "WARMUP_RATIO": "train.warmup_ratio",
    "WEIGHT_DECAY": "train.weight_decay",
    "AUTO_STOP_PATIENCE_EVALS": "stop.patience",
    "AUTO_STOP_MIN_DELTA": "stop.min_delta",
    "AUTO_STOP_MIN_STEPS": "stop.min_steps",
    "AUTO_STOP_COUNT_FROM": "stop.count_from",
    "HF_REPO_ID": "train.hf_repo_id",
}
"""The environment names that are read, and the setting each one decides. `--set` takes them too."""


SECTIONS: dict[str, type] = {
    "model": ModelSettings,
    "data": DataSettings,
    "train": TrainSettings,
    "stop": StopRule,
    "evaluate": EvaluateSettings,
    "foreign": CommandSettings,
}
_TOP: dict[str, Any] = {"kind": Kind, "title": str, "name": str}


def _fields() -> dict[str, Any]:
    """Full name of every setting with its type."""
    table: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        hints = get_type_hints(cls)
        table |= {f"{section}.{f.name}": hints[f.name] for f in dataclasses.fields(cls)}
    return table


FIELDS: dict[str, Any] = _fields()
"""`section.key` of every setting with its Python type."""


def recipe_names() -> list[str]:
    """The recipes that come with the project."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(
    name_or_path: str | Path,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    env: Mapping[str, str] | None = None,
    *,
    config: str | Path | None = None,
) -> Recipe:
    """Resolve a recipe by name or file, with `KEY=VALUE` overrides and the study's environment names.

    `env` is the environment to read, `os.environ` when None. Raises NotFoundError for an unknown recipe and UsageError,
    naming file, line and key, for anything that cannot be used.
    """
    path = _find(name_or_path)
    text, document = _read(path)
    values = _flatten(path, text, document)
    if config is not None:
        extra = Path(config)
        extra_text, extra_document = _read(extra)
        values |= _flatten(extra, extra_text, extra_document)
    for variable, value in (os.environ if env is None else env).items():
        if variable in ENVIRONMENT and value.strip():
            key = ENVIRONMENT[variable]
            values[key] = _convert(key, FIELDS[key], value, f"the environment variable {variable}")
    for key, value in _pairs(overrides):
        full = _full_name(key, "--set")
        values[full] = _convert(full, FIELDS.get(full, _TOP.get(full)), value, "--set")
    recipe = _build(values, path)
    _check(recipe)
    return recipe


def write_resolved(path: str | Path, recipe: Recipe) -> None:
    """Write every decided setting to `path`; reading it back with `load_recipe` gives the same recipe."""
    import tomli_w

    write_atomic(path, tomli_w.dumps(as_document(recipe)).encode())


def as_document(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain TOML values, by section."""
    document: dict[str, Any] = {"kind": recipe.kind, "name": recipe.name}
    if recipe.title:
        document["title"] = recipe.title
    parts: dict[str, Any] = {"model": recipe.model, "data": recipe.data, "train": recipe.train}
    parts |= {"stop": recipe.stop_rule, "evaluate": recipe.evaluate, "foreign": recipe.foreign}
    for section, part in parts.items():
        if part is None or (section == "foreign") != (recipe.kind == "command" and section == "foreign"):
            continue
        document[section] = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(part).items()}
    return document


def _find(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    own = RECIPES / f"{text}.toml"
    if re.fullmatch(r"\w+", text) and own.is_file():
        return own
    path = Path(text)
    if path.is_file():
        return path
    near = difflib.get_close_matches(text, recipe_names(), n=1)
    hint = f"Did you mean '{near[0]}'?" if near else f"Ours are {', '.join(recipe_names())}; anything else is a file."
    raise NotFoundError(f"There is no recipe '{text}'.", hint=hint)


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    import tomli

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"There is no file {path}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        return text, tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        lines = text.splitlines()
        # an error at the end of the file stands on the last line that says something
        line = min(error.lineno, len(lines))
        while line > 1 and not lines[line - 1].strip():
            line -= 1
        key = re.match(r"\s*\[*\s*([\w.\-\"']+)", lines[line - 1]) if lines else None
        where = f"{path}, line {line}" + (f", key '{key[1]}'" if key else "")
        raise UsageError(f"{where}: {error.msg}.", hint="The file is not valid TOML.") from None


def _flatten(path: Path, text: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Full names with converted values; the error names file, line and key."""
    values: dict[str, Any] = {}
    for key, value in document.items():
        inner = value.items() if isinstance(value, dict) else ((None, value),)
        for name, item in inner:
            written = key if name is None else f"{key}.{name}"
            if name is not None and key not in SECTIONS:
                where = f"{path}, line {_line_of(text, key)}"
                raise UsageError(f"{where}: there is no section [{key}].{_suggest(key, SECTIONS)}")
            where = f"{path}, line {_line_of(text, name or key)}"
            full = _full_name(written, where)
            values[full] = _convert(full, FIELDS.get(full, _TOP.get(full)), item, where)
    return values


def _line_of(text: str, key: str) -> int:
    pattern = re.compile(rf"\s*\[?\s*[\"']?{re.escape(key)}[\"']?\s*[=\]]")
    return next((n for n, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def _full_name(key: str, where: str) -> str:
    """`max_steps`, `train.max_steps` or `MAX_STEPS` to `train.max_steps`."""
    if key in FIELDS or key in _TOP:
        return key
    if key in ENVIRONMENT:
        return ENVIRONMENT[key]
    matches = [full for full in FIELDS if full.partition(".")[2] == key]
    if matches:
        return matches[0]
    names = [*FIELDS, *(full.partition(".")[2] for full in FIELDS), *ENVIRONMENT, *_TOP]
    raise UsageError(f"{where}: there is no setting '{key}'.{_suggest(key, names)}")


def _suggest(key: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(names), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def _pairs(overrides: Iterable[str] | Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        yield from overrides.items()
        return
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set wants KEY=VALUE, not '{text}'.")
        yield key.strip(), value.strip()


def _convert(key: str, kind: Any, value: Any, where: str) -> Any:
    """Check one value against its type; text is read as the type asks."""

    def refuse(wanted: str) -> UsageError:
        return UsageError(f"{where}: {key} wants {wanted}, not {value!r}.")

    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            near = _suggest(str(value), get_args(kind))
            raise UsageError(f"{where}: {key} wants one of {', '.join(get_args(kind))}, not {value!r}.{near}")
        return value
    if get_origin(kind) is tuple:
        return _words(value, refuse)
    if kind is bool:
        return _truth(value, refuse)
    if kind is int:
        return _whole(value, refuse)
    if kind is float:
        return _number(value, refuse)
    if not isinstance(value, str):
        raise refuse("text")
    return value


_Refuse = typing.Callable[[str], UsageError]


def _words(value: Any, refuse: _Refuse) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(shlex.split(value.replace(",", " ") if " " not in value else value))
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise refuse("a list of words")


def _truth(value: Any, refuse: _Refuse) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "yes", "1", "false", "no", "0"):
        return value.lower() in ("true", "yes", "1")
    raise refuse("true or false")


def _whole(value: Any, refuse: _Refuse) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise refuse("a whole number")
    try:
        number = int(value)
    except ValueError:
        raise refuse("a whole number") from None
    if number < 0:
        raise refuse("a whole number of 0 or more")
    return number


def _number(value: Any, refuse: _Refuse) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise refuse("a number")
    try:
        number = float(value)
    except ValueError:
        raise refuse("a number") from None
    if not math.isfinite(number):
        raise refuse("a finite number")
    return number


def _build(values: Mapping[str, Any], path: Path) -> Recipe:
    if "kind" not in values:
        raise UsageError(f"{path}: the key 'kind' is missing.", hint=f"It is one of {', '.join(get_args(Kind))}.")
    parts: dict[str, dict[str, Any]] = {}
    for full, value in values.items():
        section, _, key = full.partition(".")
        if key:
            parts.setdefault(section, {})[key] = value
    made: dict[str, Any] = {}
    for section, chosen in parts.items():
        try:
            made["stop_rule" if section == "stop" else section] = SECTIONS[section](**chosen)
        except ValueError as error:
            raise UsageError(f"{path}, section [{section}]: {error}.") from None
    name = values.get("name") or path.stem
    return Recipe(name=name, kind=values["kind"], title=values.get("title", ""), path=path, **made)


_MASK_OF_STAGE: Mapping[str, MaskMode] = types.MappingProxyType(
    {
        "stage1": "causal",
        "stage2": "prompt_bidirectional",
        "stage3": "prompt_bidirectional",
        "stage4": "prompt_bidirectional",
        "stage5": "prompt_bidirectional",
        "demo": "prompt_bidirectional",
    }
)
"""What each stage of the study is defined by (docs: from zero to stage 5)."""


def _check(recipe: Recipe) -> None:
    """Refuse what contradicts itself, before anything is loaded."""
    if recipe.kind == "command":
        if not recipe.command:
            raise UsageError(f"{recipe.path}: a recipe of kind 'command' needs a command in [foreign].")
        return
    wanted = _MASK_OF_STAGE[recipe.kind]
    if recipe.mask != wanted:
        raise UsageError(
            f"{recipe.kind} is defined by the mask '{wanted}', the recipe says '{recipe.mask}'.",
            hint="Leave model.mask alone, or run the stage whose mask it is.",
        )
    if recipe.kind == "stage4" and not recipe.model.checkpoint:
        raise UsageError("stage4 evaluates fine-tuned weights: model.checkpoint is empty.", hint="--set checkpoint=DIR")
    if not recipe.model.base:
        raise UsageError(f"{recipe.path}: model.base is empty; it names the weights to start from.")
    if recipe.trains:
        for key in ("max_steps", "batch_size", "grad_accum", "eval_steps", "logging_steps", "save_steps", "keep_local"):
            if getattr(recipe.train, key) < 1:
                raise UsageError(f"train.{key} must be 1 or more.")
        if recipe.data.max_length < 2:
            raise UsageError("data.max_length must leave room for a prompt and an answer: 2 tokens or more.")


def with_settings(recipe: Recipe, **changes: Any) -> Recipe:
    """A copy with single settings changed by their short name, for code that derives one stage from another."""
    made: dict[str, Any] = {}
    for key, value in changes.items():
        full = _full_name(key, "recipe")
        section, _, name = full.partition(".")
        target = "stop_rule" if section == "stop" else section
        made[target] = replace(made.get(target, getattr(recipe, target)), **{name: value})
    return replace(recipe, **made)
