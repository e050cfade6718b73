"""Positions in training: full fine-tuning for a longer context, and new decoders with ALiBi."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macllm import checkpoint
from macllm.errors import UsageError
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.events import Evaluated, TrainEvent
from macllm.train.finetune import finetune
from macllm.train.pretrain import train
from tests.train.recipes import write_recipe


def trained(folder: Path, **changes: Any) -> Path:
    """A model of a few steps from random weights, with its recipe beside it."""
    write_recipe(folder, **changes)
    tokenizer = folder / "tokenizer_config.json"
    values = json.loads(tokenizer.read_text()) if tokenizer.exists() else {}
    tokenizer.write_text(json.dumps(values | {"model_max_length": 64}))
    return train(PretrainConfig.load(folder / "recipe.toml", output=folder / "run", iters=1)) / "model"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("base"), max_position_embeddings=64)


def longer(base: Path, out: Path, **changes: Any) -> Path:
    given = {"context_length": 192, "rope_scaling": "yarn", "method": "full", "iters": 2, "data": base.parents[1]}
    return finetune(model=base, adapter_path=out, **(given | changes))


def test_the_new_model_has_the_context_and_the_base_keeps_its_own(base: Path, tmp_path: Path) -> None:
    model, tokenizer = checkpoint.load(longer(base, tmp_path / "run", rope_theta=5e4))
    assert (model.info.context_length, tokenizer.max_length) == (192, 192)
    rope = model.spec.decoder.layers[0].mixer.rope
    assert (rope.base, rope.scaling.factor, rope.scaling.trained) == (5e4, 3.0, 64)
    before, tokenizer = checkpoint.load(base)
    assert (before.info.context_length, tokenizer.max_length) == (64, 64)
    again, _ = checkpoint.load(
        longer(tmp_path / "run" / "model", tmp_path / "more", context_length=256, data=base.parents[1])
    )
    assert again.spec.decoder.layers[0].mixer.rope.scaling.factor == 4.0


def test_training_runs_on_the_new_positions(base: Path, tmp_path: Path) -> None:
    found: dict[str, list[float]] = {}
    for scaling in ("keep", "yarn"):
        events: list[TrainEvent] = []
        config = FinetuneConfig.load(
            data=base.parents[1], model=base, adapter_path=tmp_path / scaling, method="full", iters=1,
            context_length=192, rope_scaling=scaling,
        )  # fmt: skip
        finetune(config, on_event=events.append)
        found[scaling] = [event.loss for event in events if isinstance(event, Evaluated)]
    assert found["keep"][0] != found["yarn"][0]


def test_an_adapter_and_a_missing_length_are_refused(base: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"method": "lora"}, "context_length has no effect"),
        ({"context_length": 0}, "rope_scaling cannot be yarn"),
        ({"context_length": 64}, "context_length cannot be 64"),
    ):
        with pytest.raises(UsageError, match=message):
            longer(base, tmp_path / "run", **changes)


@pytest.mark.parity
def test_transformers_opens_the_longer_model_with_equal_logits(base: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    folder = longer(base, tmp_path / "run")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    model, _ = checkpoint.load(folder)
    tokens = np.random.default_rng(0).integers(3, model.info.vocab_size, (2, 190))
    with torch.no_grad():
        want = oracle(torch.tensor(tokens)).logits.numpy()
    assert np.abs(np.array(model(mx.array(tokens))) - want).max() <= 5e-6 * np.abs(want).max()


def test_a_decoder_with_alibi_is_trained_from_a_config_and_saved(tmp_path: Path) -> None:
    write_recipe(tmp_path, model_type="macllm", position_kind="alibi")
    events: list[TrainEvent] = []
    config = PretrainConfig.load(
        tmp_path / "recipe.toml", output=tmp_path / "run", iters=16, init_std=0.2, steps_per_eval=8
    )
    model, tokenizer = checkpoint.load(train(config, on_event=events.append) / "model")
    losses = [event.loss for event in events if isinstance(event, Evaluated)]
    assert losses[-1] < 0.8 * losses[0]
    assert model.info.config["position_kind"] == "alibi"
    assert model.spec.decoder.relative_bias is not None
    ids = mx.array([tokenizer.encode("abc abc")])
    cache = model.make_cache()
    parts = [model(ids[:, at : at + 1], cache=cache) for at in range(ids.shape[1])]
    whole = model(ids)
    assert mx.abs(mx.concatenate(parts, axis=1) - whole).max() <= 1e-5 * mx.abs(whole).max()
