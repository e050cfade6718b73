"""Learning rates of kinds of weights: layers, embeddings, factors of adapters."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.errors import UsageError
from macllm.nn import lora
from macllm.nn.models import DecoderLM
from macllm.train import optim
from macllm.train.config import FinetuneConfig, TrainConfig
from macllm.train.pretrain import new_model

LLAMA = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


class _Recipe:
    config, init_std, seed = "config.json", 0.3, 0


def llama(adapts: bool = False, **choice: Any) -> DecoderLM:
    model = new_model(LLAMA, _Recipe)  # type: ignore[arg-type]
    if adapts:
        lora.apply(model, rank=2, alpha=4, **choice)
    return model


def settings(**values: Any) -> TrainConfig:
    return TrainConfig(data="x", learning_rate=0.01, **values)


def lengths_of_a_step(config: TrainConfig, model: DecoderLM) -> dict[str, float]:
    """Mean change of the elements of each weight in a first step; of AdamW, that is their rate."""
    weights: Any = dict(tree_flatten(model.trainable_parameters()))
    optimizer = optim.configured(config, model)
    gradients = {name: mx.ones(w.shape) for name, w in weights.items()}
    moved, _ = optimizer.update(weights, gradients, optimizer.init(weights), config.learning_rate, mx.array(1.0))
    return {name: float(np.abs(np.array(moved[name] - w)).mean()) for name, w in weights.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_a_layer_learns_slower_the_farther_it_is_from_the_head(optimizer: Any) -> None:
    for name, length in lengths_of_a_step(settings(layer_decay=0.5, optimizer=optimizer), llama()).items():
        parts = name.split(".")
        distance = 3 - int(parts[2]) if "layers" in parts else 4 if parts[0] == "embedding" else 0
        assert length == pytest.approx(0.01 * 0.5**distance, rel=1e-3), name


def test_a_layer_under_muon_moves_and_decays_by_its_own_rate() -> None:
    model = llama()
    model.decoder.layers[0].feed_forward.up_proj.weight = model.decoder.layers[1].feed_forward.up_proj.weight
    found = lengths_of_a_step(settings(layer_decay=0.5, optimizer="muon", weight_decay=0.1), model)
    first, second = (found[f"decoder.layers.{i}.feed_forward.up_proj.weight"] for i in (0, 1))
    assert second == pytest.approx(2 * first, rel=1e-3)


def test_the_depth_of_a_layer_counts_the_layers_that_are_not_trained() -> None:
    model = llama(adapts=True, keys=("*.layers.0.*.q_proj", "*.layers.1.*.q_proj"))
    config = FinetuneConfig(data="x", learning_rate=0.01, layer_decay=0.5)
    for name, length in lengths_of_a_step(config, model).items():
        assert length == pytest.approx(0.01 * 0.5 ** (3 - int(name.split(".")[2])), rel=1e-3), name


def test_embeddings_have_a_rate_of_their_own_at_any_depth() -> None:
    for name, length in lengths_of_a_step(settings(embedding_rate=0.03, layer_decay=0.9), llama()).items():
        assert (length == pytest.approx(0.03, rel=1e-3)) == ("embedding" in name), name


def test_muons_adamw_has_a_rate_of_its_own() -> None:
    found = lengths_of_a_step(settings(optimizer="muon", adamw_rate=0.002, embedding_rate=0.05), llama())
    for name, length in found.items():
        if "norm" in name or "head" in name:
            assert length == pytest.approx(0.002, rel=1e-3), name
        if "embedding" in name:
            assert length == pytest.approx(0.05, rel=1e-3), name


def test_b_learns_faster_than_a_by_the_ratio_of_lora_plus() -> None:
    config = FinetuneConfig(data="x", learning_rate=0.001, lora_plus_ratio=16.0)
    for name, length in lengths_of_a_step(config, llama(adapts=True)).items():
        assert length == pytest.approx(0.016 if name.endswith("lora_b") else 0.001, rel=2e-3), name


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_lora_plus_has_the_rates_of_peft() -> None:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted: Any = get_peft_model(theirs, LoraConfig(r=2, target_modules=kinds, task_type="CAUSAL_LM"))
    optimizer = create_loraplus_optimizer(adapted, torch.optim.AdamW, lr=0.001, loraplus_lr_ratio=16.0)
    names = {id(weight): name for name, weight in adapted.named_parameters()}
    rates: dict[str, set[float]] = {"lora_a": set(), "lora_b": set()}
    for group in optimizer.param_groups:
        for weight in group["params"]:
            rates["lora_b" if "lora_B" in names[id(weight)] else "lora_a"].add(group["lr"])
    config = FinetuneConfig(data="x", learning_rate=0.001, lora_plus_ratio=16.0)
    for name, length in lengths_of_a_step(config, llama(adapts=True)).items():
        (rate,) = rates[name.rsplit(".", 1)[-1]]
        assert length == pytest.approx(rate, rel=2e-3), name


USELESS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"embedding_rate": 0.1}, {}),
    ({"adamw_rate": 0.1, "optimizer": "muon"}, {}),
    ({"layer_decay": 0.9}, {"num_layers": 1}),
]


@pytest.mark.parametrize(("values", "choice"), USELESS, ids=str)
def test_a_rate_of_weights_that_are_not_trained_is_refused(values: dict[str, Any], choice: dict[str, Any]) -> None:
    config = FinetuneConfig(data="x", learning_rate=0.01, **values)
    with pytest.raises(UsageError, match=f"{next(iter(values))} has no effect"):
        optim.configured(config, llama(adapts=True, **choice))


def test_muon_without_a_hidden_matrix_is_refused() -> None:
    model = llama()
    model.freeze()
    model.embedding.unfreeze()
    with pytest.raises(UsageError, match="muon has no effect"):
        optim.configured(settings(optimizer="muon"), model)


@pytest.mark.parametrize(
    "values",
    [
        {"momentum": 0.9},
        {"adamw_rate": 0.1},
        {"adamw_rate": 0.1, "optimizer": "lion"},
        {"beta2": 0.9, "optimizer": "lion"},
        {"epsilon": 1e-6, "optimizer": "lion"},
        {"first_moment_bits": 8, "optimizer": "muon"},
    ],
    ids=str,
)
def test_a_setting_that_the_optimizer_does_not_read_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(values))} has no effect"):
        settings(**values)


@pytest.mark.parametrize(
    "values", [{"first_moment_bits": 4}, {"optimizer": "sgd"}, {"layer_decay": 0}, {"layer_decay": 1.1}], ids=str
)
def test_an_invalid_setting_of_an_optimizer_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(values))} cannot be"):
        settings(**values)


def test_a_default_rate_is_lower_for_lion() -> None:
    fitted = [
        FinetuneConfig(data="x", optimizer=name).fitted(10**9).learning_rate for name in ("adamw", "muon", "lion")
    ]
    assert fitted == pytest.approx([2e-4, 2e-4, 4e-5])
