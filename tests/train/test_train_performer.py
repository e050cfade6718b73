"""A decoder with Performer attention: trained from random weights, saved, loaded and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import macllm
from macllm import checkpoint
from macllm.nn.performer import PerformerAttention
from macllm.nn.spec import PerformerSpec
from macllm.ops.linear_attention import random_projection
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.events import Evaluated, TrainEvent
from macllm.train.finetune import finetune
from macllm.train.pretrain import train
from tests.train.recipes import write_recipe

CONFIG = {"model_type": "macllm", "attention_kind": "performer", "num_random_features": 24}
KINDS = {"performer": "performer", "mixed": ["softmax", "performer"], "softmax": "softmax"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    write_recipe(folder, **CONFIG)
    return folder


def run(recipe: Path, out: Path, kind: Any = "performer", **changes: Any) -> list[TrainEvent]:
    config = json.loads((recipe / "config.json").read_text()) | {"attention_kind": kind}
    path = out.parent / f"{out.name}.json"
    path.write_text(json.dumps(config))
    events: list[TrainEvent] = []
    settings = {"config": path, "output": out, "iters": 30, "init_std": 0.2, "steps_per_eval": 15} | changes
    train(PretrainConfig.load(recipe / "recipe.toml", **settings), on_event=events.append)
    return events


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint trained from random weights."""
    out = tmp_path_factory.mktemp("trained") / "run"
    run(recipe, out)
    return out / "model"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_training_lowers_the_loss(recipe: Path, tmp_path: Path, kind: Any) -> None:
    losses = [event.loss for event in run(recipe, tmp_path / "run", kind) if isinstance(event, Evaluated)]
    assert losses[-1] < 0.7 * losses[0]
    model, _ = checkpoint.load(tmp_path / "run" / "model")
    kinds = [isinstance(layer.mixer, PerformerAttention) for layer in model.decoder.layers]
    assert (
        kinds
        == {"performer": [True, True], "mixed": [False, True], "softmax": [False, False]}[
            kind if isinstance(kind, str) else "mixed"
        ]
    )


def test_a_checkpoint_names_its_attention_and_holds_its_features(trained: Path) -> None:
    stored = mx.load(str(trained / "model.safetensors"))
    config = json.loads((trained / "config.json").read_text())
    assert (config["model_type"], config["attention_kind"]) == ("macllm", "performer")
    for layer in range(2):
        features = stored[f"model.layers.{layer}.self_attn.features"]
        # As drawn: training does not change them, and every layer has its own seed.
        assert mx.array_equal(features, random_projection(24, 8, seed=layer))


def test_random_features_are_read_from_the_file(trained: Path) -> None:
    model = checkpoint.load_model(trained)
    stored = mx.load(str(trained / "model.safetensors"))
    changed = {**stored, "model.layers.0.self_attn.features": stored["model.layers.1.self_attn.features"]}
    config = json.loads((trained / "config.json").read_text())
    other = checkpoint.assemble(config, changed)
    for layer in range(2):
        assert mx.array_equal(other.decoder.layers[layer].mixer.features, stored["model.layers.1.self_attn.features"])
    tokens = mx.array([[5, 6, 7, 8, 9]])
    assert mx.abs(other(tokens) - model(tokens)).max().item() > 1e-3


def test_a_checkpoint_saved_again_is_the_same(trained: Path, tmp_path: Path) -> None:
    model, tokenizer = checkpoint.load(trained)
    checkpoint.save(model, tokenizer, tmp_path / "again")
    again = checkpoint.load_model(tmp_path / "again")
    assert again.spec == model.spec
    ours, theirs = (dict(tree_flatten(m.parameters())) for m in (model, again))
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[name], theirs[name]) for name in ours)


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens, each from a full pass over all tokens before it."""
    row = list(prompt)
    for _ in range(count):
        row.append(int(mx.argmax(model(mx.array([row]))[0, -1]).item()))
    return row[len(prompt) :]


def test_generation_gives_the_tokens_of_full_passes(trained: Path) -> None:
    model, tokenizer = checkpoint.load(trained)
    prompt = tokenizer.render([{"role": "user", "content": "3+2"}], add_generation_prompt=True)
    want = greedy(model, tokenizer.encode(prompt, add_special_tokens=False), 12)
    got = macllm.generate(model, tokenizer, "3+2", temperature=0.0, max_tokens=12)
    assert got.text == tokenizer.decode(want[: want.index(0)] if 0 in want else want)


def test_a_run_resumed_from_an_earlier_snapshot_ends_with_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    run(recipe, tmp_path / "whole", iters=6, save_every=2)
    run(recipe, tmp_path / "parts", iters=6, save_every=2)
    # Without the last snapshot, the run resumes from the one before it.
    newest = sorted((tmp_path / "parts" / "snapshots").iterdir())[-1]
    for file in sorted(newest.rglob("*"), reverse=True) if newest.is_dir() else ():
        file.unlink()
    newest.rmdir() if newest.is_dir() else newest.unlink()
    train(PretrainConfig.load(output=tmp_path / "parts", resume=True))
    first, second = (checkpoint.load_model(tmp_path / name / "model") for name in ("whole", "parts"))
    pairs = zip(tree_flatten(first.parameters()), tree_flatten(second.parameters()), strict=True)
    assert all(mx.array_equal(a, b) for (_, a), (_, b) in pairs)


def test_a_lora_adapter_of_a_performer_equals_merged_weights(recipe: Path, trained: Path, tmp_path: Path) -> None:
    settings = {"data": recipe / "train.jsonl", "model": trained, "adapter_path": tmp_path / "a", "iters": 4}
    finetune(FinetuneConfig.load(**settings, learning_rate=0.01, rank=2))
    adapted, _ = checkpoint.load(trained, tmp_path / "a")
    tokens = mx.array([[5, 6, 7, 8, 9]])
    assert mx.abs(adapted(tokens) - checkpoint.load_model(trained)(tokens)).max().item() > 1e-4
    merged = mx.load(str(trained / "model.safetensors"))
    factors = mx.load(str(tmp_path / "a" / "adapters.safetensors"))
    scale = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["lora_parameters"]["scale"]
    names = {name.rpartition(".")[0] for name in factors}
    assert len(names) == 2 * 7
    for name in names:
        a, b = (np.array(factors[f"{name}.lora_{letter}"]).astype(np.float64) for letter in "ab")
        weight = np.array(merged[f"{name}.weight"]).astype(np.float64) + scale * (a @ b).T
        merged[f"{name}.weight"] = mx.array(weight.astype(np.float32))
    config = json.loads((trained / "config.json").read_text())
    want = np.array(checkpoint.assemble(config, merged)(tokens))
    np.testing.assert_allclose(np.array(adapted(tokens)), want, atol=1e-5 * np.abs(want).max())


def test_the_spec_has_the_values_of_the_config(trained: Path) -> None:
    spec = checkpoint.load_model(trained).spec.decoder.layers[1].mixer
    assert isinstance(spec, PerformerSpec)
    assert (spec.num_features, spec.seed, spec.num_heads, spec.num_kv_heads) == (24, 1, 4, 2)
    assert np.isclose(spec.scale, 8**-0.5)
