"""Full fine-tuning: every weight of a float model is trained, and the result is a model folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import checkpoint
from macllm.errors import UsageError
from macllm.nn import quantize
from macllm.train import finetune as finetuning
from macllm.train import pretrain as pretraining
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.events import Prepared, Step
from macllm.train.finetune import finetune
from macllm.weights.safetensors import load_folder, save_folder
from tests.train.recipes import chat, write_recipe
from tests.train.torch_run import followed, train_beside


def write_base(folder: Path, *, tied: bool) -> Path:
    """A checkpoint of random weights in float32, with rows beside it."""
    folder.mkdir(exist_ok=True)
    write_recipe(folder, tie_word_embeddings=tied)
    rows = [chat("a" * (1 + 7 * i % 10), "b" * (1 + 3 * i % 8)) for i in range(16)]
    (folder / "train.jsonl").write_text("".join(rows))
    config = PretrainConfig.load(folder / "recipe.toml", init_std=0.2)
    raw = json.loads((folder / "config.json").read_text())
    tokenizer = pretraining.Tokenizer.from_folder(folder)
    checkpoint.save(pretraining.new_model(raw, config), tokenizer, folder / "model")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), tied=True)


def settings(base: Path, out: Path, **changes: Any) -> FinetuneConfig:
    given = {
        "data": base / "train.jsonl", "model": base / "model", "adapter_path": out, "method": "full", "iters": 4,
        "learning_rate": 0.01, "weight_decay": 0.1, "steps_per_report": 1, "save_every": 2,
    }  # fmt: skip
    return FinetuneConfig.load(**(given | changes))


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_weights_of_a_run_equal_those_of_torch(tied: bool, tmp_path: Path) -> None:
    import mlx_lm
    import torch
    import transformers

    base = write_base(tmp_path / "base", tied=tied)
    config = settings(base, tmp_path / "run", epsilon=1e-4, warmup=0.0, schedule="constant")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(base / "model")
    oracle.get_input_embeddings().padding_idx = None
    assert ("lm_head.weight" in dict(oracle.named_parameters())) != tied
    path, steps, batches = followed(config)
    train_beside(oracle, config, steps, batches, lambda name, weight: weight.ndim > 1 and "embed" not in name)
    assert path == tmp_path / "run" / "model"
    again = transformers.AutoModelForCausalLM.from_pretrained(path)
    start = load_folder(base / "model")
    for (name, want), got in zip(oracle.named_parameters(), again.parameters(), strict=True):
        assert (got - want).abs().max() <= 2e-5 * want.abs().max(), name
        moved = np.abs(np.array(start[name]) - want.detach().numpy())
        assert moved.max() > 0, name
    tokens = np.array([[3, 4, 5, 6]])
    want = again(torch.tensor(tokens)).logits.detach().numpy()
    for model in (checkpoint.load(path)[0], mlx_lm.load(str(path))[0]):
        assert np.abs(np.array(model(mx.array(tokens))) - want).max() <= 1e-5 * np.abs(want).max()


def test_the_model_has_the_types_of_its_base(base: Path, tmp_path: Path) -> None:
    halves = tmp_path / "halves"
    model, tokenizer = checkpoint.load(base / "model")
    checkpoint.save(model, tokenizer, halves)
    types = {n: mx.float32 if "norm" in n else mx.bfloat16 for n in load_folder(halves)}
    save_folder({n: a.astype(types[n]) for n, a in load_folder(halves).items()}, halves, {"format": "pt"})
    path = finetune(settings(base, tmp_path / "run", model=halves))
    assert {n: a.dtype for n, a in load_folder(path).items()} == types
    assert "lm_head.weight" not in types


def test_the_last_layers_alone_are_trained(base: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    path = finetune(settings(base, tmp_path / "run", num_layers=1), on_event=events.append)
    before, after = load_folder(base / "model"), load_folder(path)
    changed = {name for name in before if not mx.array_equal(before[name], after[name])}
    assert changed == {name for name in before if ".layers.1." in name}
    prepared = next(event for event in events if isinstance(event, Prepared))
    assert prepared.trained_parameters == sum(before[name].size for name in changed) < prepared.parameters


def test_a_stopped_run_leaves_a_model_and_resumed_ends_as_one_that_was_not(base: Path, tmp_path: Path) -> None:
    valid = {"valid": base / "valid.jsonl", "steps_per_eval": 1, "select": "best", "learning_rate": 0.03}
    whole = finetune(settings(base, tmp_path / "whole", **valid, first_moment_bits=8))
    stopped = settings(base, tmp_path / "stopped", **valid, first_moment_bits=8)
    with closing(finetuning.events(stopped)) as events:
        next(event for event in events if isinstance(event, Step) and event.step == 3)
    assert checkpoint.load(stopped.result)
    again = finetune(adapter_path=stopped.adapter_path, resume=True)
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_quantized_model_is_refused(base: Path, tmp_path: Path) -> None:
    model, tokenizer = checkpoint.load(base / "model")
    quantize.apply(model, bits=4, group_size=32)
    checkpoint.save(model, tokenizer, tmp_path / "packed")
    with pytest.raises(UsageError, match="quantized model cannot be fine-tuned in full") as error:
        finetune(settings(base, tmp_path / "run", model=tmp_path / "packed"))
    assert "--lora" in str(error.value.remedy)


@pytest.mark.parametrize("name", ["rank", "alpha", "dropout", "use_dora", "keys", "lora_plus_ratio"])
def test_settings_of_adapters_are_refused(name: str) -> None:
    value = {"rank": 4, "alpha": 3.0, "dropout": 0.1, "use_dora": True, "keys": ["q_proj"], "lora_plus_ratio": 16.0}
    with pytest.raises(UsageError, match=f"{name} has no effect"):
        FinetuneConfig.load(data="rows.jsonl", method="full", **{name: value[name]})


def test_all_weights_decay_if_wanted(base: Path, tmp_path: Path) -> None:
    one, other = (
        load_folder(finetune(settings(base, tmp_path / str(everything), decay_all=everything)))
        for everything in (False, True)
    )
    changed = {name for name in one if not mx.array_equal(one[name], other[name])}
    assert {"model.norm.weight", "model.embed_tokens.weight"} <= changed


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(base: Path, tmp_path: Path, repository: Path) -> None:
    random = np.random.default_rng(7)
    whole = finetune(settings(base, tmp_path / "whole", iters=8))
    config = settings(base, tmp_path / "killed", iters=8)
    command = [sys.executable, "-m", "macllm", "finetune", "--restarts", "0", "--json"]
    flags = ["--full", "--data", config.data, "--model", config.model, "--adapter-path", config.adapter_path]
    flags += ["--iters", "8", "--learning-rate", "0.01", "--weight-decay", "0.1", "--steps-per-report", "1"]
    environment = {**os.environ, "MACLLM_HOME": str(tmp_path / "home")}
    with subprocess.Popen(
        [*command, *flags, "--save-every", "2"], cwd=repository, env=environment, stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        for _ in range(int(random.integers(3, 10))):
            run.stdout.readline()
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    again = finetune(adapter_path=config.adapter_path, resume=True)
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_every_weight_is_trained(base: Path, tmp_path: Path) -> None:
    model, _ = checkpoint.load(base / "model")
    names = finetuning._trainable(model, settings(base, tmp_path / "run"))
    assert names == [name for name, _ in tree_flatten(model.parameters())]
