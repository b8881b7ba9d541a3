"""Recipes: which layer decides a setting, and what a person reads when a file is wrong."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.autostop import StopRule
from runner.config import ENVIRONMENT, FIELDS, load_recipe, recipe_names, write_resolved
from runner.errors import NotFoundError, UsageError

NO_ENV: dict[str, str] = {}


def test_the_six_recipes_of_the_study_load_and_keep_their_masks():
    assert recipe_names() == ["demo", "stage1", "stage2", "stage3", "stage4", "stage5"]
    masks = {name: load_recipe(name, ["checkpoint=somewhere"], NO_ENV).mask for name in recipe_names()}
    assert masks.pop("stage1") == "causal"
    assert set(masks.values()) == {"prompt_bidirectional"}


def test_stage_5_is_the_seeds_run():
    recipe = load_recipe("stage5", env=NO_ENV)
    assert recipe.stop_rule == StopRule(patience=4, min_delta=0.003, min_steps=600, count_from="min_steps")
    assert (recipe.max_steps, recipe.eval_steps) == (6000, 100)
    assert (recipe.data.train_samples, recipe.data.eval_samples) == (50_000, 250)
    train = recipe.train
    assert (train.learning_rate, train.lr_scheduler, train.warmup_ratio) == (2e-5, "constant_with_warmup", 0.03)


def test_the_seeds_environment_names_decide_over_the_recipe():
    env = {"MAX_STEPS": "77", "LR": "3e-4", "AUTO_STOP_PATIENCE_EVALS": "9", "EVAL_SAMPLES": "", "PATH": "/bin"}
    recipe = load_recipe("stage5", env=env)
    assert recipe.max_steps == 77
    assert recipe.train.learning_rate == 3e-4
    assert recipe.stop_rule is not None
    assert recipe.stop_rule.patience == 9
    assert recipe.data.eval_samples == 250, "an empty variable decides nothing"


def test_set_wins_over_environment_over_config_over_recipe(tmp_path):
    config = tmp_path / "mine.toml"
    config.write_text("[train]\nmax_steps = 1\neval_steps = 2\nsave_steps = 3\n")
    env = {"EVAL_STEPS": "20", "SAVE_STEPS": "30"}
    recipe = load_recipe("stage5", ["save_steps=300"], env, config=config)
    assert (recipe.max_steps, recipe.eval_steps, recipe.train.save_steps) == (1, 20, 300)


@pytest.mark.parametrize("key", ["train.max_steps", "max_steps", "MAX_STEPS"])
def test_set_takes_the_full_name_the_short_name_and_the_seeds_name(key):
    assert load_recipe("demo", [f"{key}=12"], NO_ENV).max_steps == 12


def test_short_names_are_unique_so_that_set_is_never_ambiguous():
    short = [full.partition(".")[2] for full in FIELDS]
    assert len(short) == len(set(short))
    assert set(ENVIRONMENT.values()) <= set(FIELDS)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("max_step=3", "Did you mean 'max_steps'?"),
        ("LRR=3", "there is no setting 'LRR'"),
        ("max_steps=many", "train.max_steps wants a whole number, not 'many'"),
        ("max_steps=-1", "whole number of 0 or more"),
        ("learning_rate=nan", "a finite number"),
        ("attention=flash_attention_2", "one of sdpa, eager, flex_attention"),
        ("optimizer=adamw8bit", "Did you mean 'adamw_8bit'?"),
        ("lr_scheduler=linaer", "Did you mean 'linear'?"),
        ("activation_checkpointing=perhaps", "true or false"),
        ("max_steps", "--set wants KEY=VALUE"),
        ("patience=0", "patience must be at least 1"),
        ("batch_size=0", "train.batch_size must be 1 or more"),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_the_nearest_name(override, says):
    with pytest.raises(UsageError) as caught:
        load_recipe("stage5", [override], NO_ENV)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('kind = "stage1"\n[train]\nmax_steps = \n', "line 3, key 'max_steps'"),
        ('kind = "stage1"\n[train\nmax_steps = 1\n', "line 2, key 'train'"),
        ('kind = "stage1"\n[train]\nlearnin_rate = 1.0\n', "line 3: there is no setting 'train.learnin_rate'"),
        ('kind = "stage1"\n[trane]\nmax_steps = 1\n', "line 2: there is no section [trane]. Did you mean 'train'?"),
        ('kind = "stage1"\n[train]\nmax_steps = "six"\n', "line 3: train.max_steps wants a whole number, not 'six'"),
        ('kind = "stage1"\n[train]\nmax_steps = true\n', "wants a whole number, not True"),
        ("[train]\nmax_steps = 1\n", "the key 'kind' is missing"),
        ('kind = "stage9"\n', "line 1: kind wants one of"),
    ],
)
def test_broken_toml_names_line_and_key(tmp_path, text, says):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_recipe(path, env=NO_ENV)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_binary_file_and_a_missing_file_are_sentences(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a text file"):
        load_recipe(tmp_path / "x.toml", env=NO_ENV)
    with pytest.raises(NotFoundError, match="Did you mean 'stage5'"):
        load_recipe("stage55", env=NO_ENV)
    with pytest.raises(NotFoundError, match="There is no file"):
        load_recipe("demo", env=NO_ENV, config=tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "override", "says"),
    [
        ("stage1", "mask=prompt_bidirectional", "stage1 is defined by the mask 'causal'"),
        ("stage2", "mask=causal", "stage2 is defined by the mask 'prompt_bidirectional'"),
        ("stage4", "limit=3", "model.checkpoint is empty"),
    ],
)
def test_a_recipe_that_contradicts_its_stage_is_refused(name, override, says):
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        load_recipe(name, [override], NO_ENV)


@given(
    name=st.sampled_from(["demo", "stage1", "stage2", "stage3", "stage5"]),
    steps=st.integers(1, 10**6),
    rate=st.floats(1e-9, 1.0),
    title=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).map(str.strip),
    tasks=st.lists(st.from_regex(r"\A[a-z_]{1,8}\Z"), min_size=1, max_size=4),
)
def test_what_was_resolved_reads_back_as_the_same_recipe(tmp_path_factory, name, steps, rate, title, tasks):
    overrides = {"max_steps": steps, "learning_rate": rate, "title": title, "tasks": tasks}
    recipe = load_recipe(name, overrides, NO_ENV)
    path = tmp_path_factory.mktemp("resolved") / "config.toml"
    write_resolved(path, recipe)
    assert replace(load_recipe(path, env=NO_ENV), path=None) == replace(recipe, path=None)


def test_a_foreign_recipe_names_command_workdir_log_checkpoints_and_resume(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'kind = "command"\n[foreign]\ncommand = "python train.py --lr 1e-4"\nworkdir = "code"\nlog = "out/log.txt"\n'
        'checkpoints = "out"\nresume = ["--resume_from_checkpoint", "{checkpoint}"]\n[stop]\npatience = 3\n'
    )
    recipe = load_recipe(path, env=NO_ENV)
    assert recipe.command == ("python", "train.py", "--lr", "1e-4")
    assert recipe.workdir == tmp_path / "code"
    assert (recipe.log, recipe.checkpoints) == ("out/log.txt", "out")
    assert recipe.resume == ("--resume_from_checkpoint", "{checkpoint}")
    assert recipe.stop_rule is not None
    write_resolved(tmp_path / "config.toml", recipe)
    assert load_recipe(tmp_path / "config.toml", env=NO_ENV).command == recipe.command
    path.write_text('kind = "command"\n')
    with pytest.raises(UsageError, match="needs a command"):
        load_recipe(path, env=NO_ENV)


def test_reading_a_recipe_loads_nothing_heavy():
    code = "import runner.config as c, sys; c.load_recipe('stage5', env={}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
