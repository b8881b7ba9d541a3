"""One model divided over several processes: when, what is refused, and what its checkpoints are made of."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from runner import rundir
from runner.__main__ import main
from runner.config import load_recipe
from runner.errors import UsageError
from runner.study.launch import launch
from runner.study.load import load_model
from runner.study.memory import Shape, shards_of, verdict
from runner.study.shard import by_index, by_name, read_weights
from runner.study.train import training_arguments
from tests.support.study import history, save_checkpoint, stock_model, tiny_model, trainer_environment

pytestmark = pytest.mark.study

MINISTRAL_3B = Shape(parameters=3_429_006_336, hidden=3072, layers=26, heads=32, vocab=131072)
MINISTRAL_8B = replace(MINISTRAL_3B, parameters=8_490_000_000, hidden=4096, layers=34)


def recipe(*settings):
    return load_recipe("stage5", settings, env={})


@pytest.mark.parametrize(
    ("settings", "card", "processes", "shards"),
    [
        (["optimizer=adamw"], 39.4, 4, 4),  # 16 bytes per parameter: 51 GiB do not fit
        (["optimizer=adamw"], 79.3, 4, 1),  # they do
        (["optimizer=adamw"], 39.4, 1, 1),  # nothing to divide over
        (["optimizer=adamw", "parallel=ddp"], 39.4, 4, 1),  # as was asked for
        (["optimizer=adamw", "parallel=fsdp"], 139.0, 2, 2),
        (["optimizer=adamw_8bit"], 20.0, 2, 1),  # its states cannot be divided
        (["optimizer=adamw"], None, 2, 1),  # no card, no verdict
    ],
)
def test_a_model_is_divided_when_a_copy_does_not_fit_or_when_asked(settings, card, processes, shards):
    assert shards_of(MINISTRAL_3B, recipe(*settings), card, processes) == shards


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "adafactor"])
def test_an_optimizer_whose_states_cannot_be_divided_is_refused_with_what_to_set(optimizer):
    with pytest.raises(UsageError, match=f"those of {optimizer} cannot be divided.*optimizer=adamw"):
        shards_of(MINISTRAL_3B, recipe("parallel=fsdp", f"optimizer={optimizer}"), 80.0, 2)


def test_what_divided_needs_falls_with_the_cards_but_never_below_what_stands_whole():
    chosen = recipe("optimizer=adamw", "parallel=fsdp")
    needs = [verdict(MINISTRAL_8B, chosen, 80.0, shards=n).need_gib for n in (1, 2, 4, 8, 64)]
    assert needs == sorted(needs, reverse=True)
    eight = verdict(MINISTRAL_8B, chosen, 80.0, shards=8)
    assert eight.terms["weights"] * 8 == pytest.approx(4 * MINISTRAL_8B.parameters / 2**30)
    assert eight.terms["gathered layers"] > 131072 * 4096 * 2 / 2**30, "the embedding stands whole"
    assert verdict(MINISTRAL_8B, chosen, 80.0).state == "no"
    assert eight.state == "fits"


def test_the_trainer_is_asked_for_shards_and_gradients_are_divided_at_every_micro_step(tmp_path):
    from runner.rundir import RunDir

    chosen = load_recipe("demo", ["activation_checkpointing=true", "lora_rank=0"], env={})
    arguments = training_arguments(chosen, RunDir(tmp_path), sharded=True)
    assert arguments.fsdp_plugin_args["fsdp_version"] == 2
    assert arguments.fsdp_plugin_args["activation_checkpointing"] is True
    assert arguments.accelerator_config.gradient_accumulation_kwargs == {"sync_each_batch": True}


def stepped(model):
    """An AdamW with two groups, as the Trainer makes it, after one step."""
    thick = [p for p in model.parameters() if p.dim() > 1]
    thin = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": thick, "weight_decay": 0.1}, {"params": thin, "weight_decay": 0.0}])
    model(input_ids=torch.tensor([[5, 6, 7]]), prompt_ids=torch.tensor([[0, -1, -1]])).logits.sum().backward()
    optimizer.step()
    return optimizer


def test_states_under_names_and_under_numbers_are_the_same_states():
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    model = tiny_model()
    optimizer = stepped(model)
    plain = optimizer.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    named = get_optimizer_state_dict(model, optimizer, options=options)
    numbered = by_index(named)
    assert numbered["state"].keys() == plain["state"].keys()
    for n, state in plain["state"].items():
        assert all(torch.equal(state[key], numbered["state"][n][key]) for key in state), n
    assert [g["params"] for g in numbered["param_groups"]] == [g["params"] for g in plain["param_groups"]]
    names = [list(group["params"]) for group in named["param_groups"]]
    again = by_name(plain, names)
    assert again["state"].keys() == named["state"].keys()
    with pytest.raises(UsageError, match="other parameters than the model"):
        by_name(plain, [names[0][:-1], names[1]])


def test_weights_are_read_from_one_file_or_several_and_an_adapter_by_the_models_names(tmp_path):
    from runner.study.load import with_adapter

    model = stock_model()
    save_checkpoint(model, tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())["weight_map"]) > 5
    one, many = read_weights(tmp_path / "one"), read_weights(tmp_path / "many")
    assert one.keys() == many.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    tuned = with_adapter(tiny_model(), 4)
    tuned.save_pretrained(tmp_path / "lora")
    trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert read_weights(tmp_path / "lora").keys() == trained


def test_more_processes_than_cards_and_none_at_all_are_sentences(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="--nproc 3, and this machine has 2 GPUs: one process each"):
        launch(["demo"], 3)
    assert main(["demo", "--run-dir", str(tmp_path / "run"), "--nproc", "0"]) == 2
    assert "--nproc wants 1 or more, not 0." in capsys.readouterr().err


@pytest.mark.slow
def test_a_divided_adapter_in_bf16_saves_what_loads_and_keeps_its_losses_exact(tmp_path):
    """Everything at once on two gloo processes: LoRA, activation checkpointing, sliced loss, bf16 over float32."""
    base = save_checkpoint(stock_model(), tmp_path / "base")
    rows = [{"prompt": f"what is {n} plus {n}?", "answer": str(2 * n)} for n in range(40)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = [
        f"base={base}", f"dataset={tmp_path / 'sums.jsonl'}", "prompt_field=prompt", "answer_field=answer",
        "train_samples=30", "eval_samples=8", "max_length=64", "max_steps=4", "eval_steps=2", "save_steps=2",
        "grad_accum=2", "logging_steps=1", "optimizer=adamw", "learning_rate=1e-2", "lora_rank=4", "parallel=fsdp",
        "activation_checkpointing=true", "loss_chunk=16", "precision=bf16_autocast",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "runner", "stage3", "--run-dir", str(tmp_path / "run"), "--nproc", "2", *words]
    done = subprocess.run(command, env=trainer_environment(), capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = rundir.newest_whole_checkpoint(tmp_path / "run" / "checkpoints")
    loaded = load_model(checkpoint, mask="prompt_bidirectional")
    before = load_model(base, mask="prompt_bidirectional").model
    moved = [not torch.equal(a, b) for a, b in zip(loaded.model.parameters(), before.parameters(), strict=True)]
    assert sum(moved) == 14, "every projection of two layers was trained and merged, nothing else was"
    evals = [point.eval_loss for point in history(tmp_path / "run").evals]
    assert len(evals) == 2
    assert evals[1] < evals[0]
    assert all(float(torch.tensor(value).bfloat16()) != value for value in evals), "no loss was rounded to bfloat16"
