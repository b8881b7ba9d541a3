"""Every package that any part of a run imports is known from its recipe, before a box is paid for."""

import importlib.util

import pytest
import tomli

from runner import needs
from runner.config import load_recipe
from runner.errors import UsageError
from tests.test_runner_main import ROOT


def modules(name, *overrides):
    return [package.module for package in needs.of(load_recipe(name, overrides, env={}))]


@pytest.mark.parametrize(
    ("name", "overrides", "wanted"),
    [
        ("stage1", [], ["lm_eval"]),
        ("stage2", [], ["lm_eval"]),
        ("stage3", [], ["datasets", "bitsandbytes"]),
        ("stage4", ["checkpoint=somewhere"], ["lm_eval"]),
        ("stage5", [], ["datasets", "lm_eval", "bitsandbytes"]),
        ("stage5", ["dataset=mine.jsonl", "tasks=", "optimizer=adafactor"], []),
        ("stage5", ["lora_rank=16", "optimizer=adamw"], ["datasets", "lm_eval", "peft"]),
        ("demo", [], []),
    ],
)
def test_a_recipe_says_what_it_needs_beside_torch_and_the_trainer(name, overrides, wanted):
    assert modules(name, *overrides) == wanted


def test_an_adapter_to_be_evaluated_needs_what_merges_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert modules("stage4", f"checkpoint={tmp_path}") == ["lm_eval", "peft"]


def test_the_same_versions_are_asked_for_here_and_on_a_box():
    from remote.bootstrap import REQUIREMENTS

    extras = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package in (*needs.BASE, needs.DATASETS, needs.LM_EVAL, needs.PEFT, needs.BITSANDBYTES):
        assert package.spec in extras[package.extra]
    assert {package.spec for package in needs.BASE} <= set(REQUIREMENTS["study"])


def test_what_is_missing_is_one_sentence_with_its_extras(monkeypatch):
    there = importlib.util.find_spec
    gone = {"lm_eval", "bitsandbytes"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else there(name))
    with pytest.raises(UsageError, match=r"^The evaluation needs lm-eval, which this Python does not have\.") as told:
        needs.check(load_recipe("stage1", env={}))
    assert told.value.hint == "pip install 'tunewatch[eval]'"
    with pytest.raises(UsageError, match=r"^Training needs lm-eval and bitsandbytes, ") as told:
        needs.check(load_recipe("stage5", env={}))
    assert told.value.hint == "pip install 'tunewatch[eval,gpu]'"
    with pytest.raises(UsageError) as told:
        needs.check(load_recipe("stage3", env={}))
    assert told.value.hint == "pip install 'tunewatch[gpu]', or --set optimizer=adamw"
    needs.check(load_recipe("demo", env={}))
