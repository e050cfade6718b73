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
from macllm.train.optim.groups import decays, is_embedding, is_hidden
from tests.train.toy import LLAMA, random_llama


def llama(adapts: bool = False, **choice: Any) -> DecoderLM:
    model = random_llama()
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


def adapted_rates(**values: Any) -> dict[str, float]:
    """The rates of an adapter of all linear layers, or with DoRA, and of the embedding."""
    dora = values.pop("dora", False)
    model = llama(adapts=True, use_dora=True) if dora else llama(adapts=True, keys=("*_proj", "embedding.tokens"))
    return lengths_of_a_step(FinetuneConfig(data="x", learning_rate=0.001, lora_plus_ratio=16.0, **values), model)


def test_lora_plus_raises_b_alone_and_no_rate_that_is_given() -> None:
    for name, length in adapted_rates(embedding_rate=0.003).items():
        rate = 0.003 if "embedding" in name else 0.016 if name.endswith("lora_b") else 0.001
        assert length == pytest.approx(rate, rel=2e-3), name
    for name, length in adapted_rates(optimizer="muon", adamw_rate=0.002, dora=True).items():
        if name.endswith("magnitude"):
            assert length == pytest.approx(0.002, rel=2e-3), name


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("dora", [False, True])
def test_lora_plus_has_the_rates_of_peft(dora: bool) -> None:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    kinds += [] if dora else ["embed_tokens"]
    chosen = LoraConfig(r=2, target_modules=kinds, task_type="CAUSAL_LM", use_dora=dora)
    adapted: Any = get_peft_model(theirs, chosen)
    options = {"loraplus_lr_ratio": 16.0, "loraplus_lr_embedding": 0.003}
    optimizer = create_loraplus_optimizer(adapted, torch.optim.AdamW, lr=0.001, **options)
    names = {id(weight): name for name, weight in adapted.named_parameters()}
    rates = {names[id(w)]: group["lr"] for group in optimizer.param_groups for w in group["params"]}
    kinds_of = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "magnitude"}
    kinds_of |= {"lora_embedding_A": "embedding", "lora_embedding_B": "embedding"}
    expected = {ours: {rates[n] for n in rates if f".{kind}." in n} for kind, ours in kinds_of.items()}
    for name, length in adapted_rates(dora=dora, **({} if dora else {"embedding_rate": 0.003})).items():
        (rate,) = expected["embedding" if "embedding" in name else name.rsplit(".", 1)[-1]]
        assert length == pytest.approx(rate, rel=2e-3), name


@pytest.mark.parametrize(
    ("name", "embeds"),
    [
        ("embedding.tokens.weight", True),
        ("target_embedding.positions.table.weight", True),
        ("model.embed_tokens.lora_b", True),
        ("model.embed_tokens_per_layer.weight", True),
        ("transformer.wte.weight", True),
        ("model.layers.0.self_attn.embed_q.weight", False),  # a projection of DeepSeek's attention
        ("gpt_neox.embed_out.weight", False),  # a head
    ],
)
def test_rates_and_decay_agree_on_embeddings(name: str, embeds: bool) -> None:
    weight = mx.zeros((2, 2))
    assert is_embedding(name) == embeds == (not decays(name, weight, everything=False))


@pytest.mark.parametrize(
    ("name", "shape", "hidden", "decayed"),
    [
        ("model.layers.0.mlp.experts.up_proj.bias", (4, 8), False, False),  # gpt-oss: one for each expert
        ("model.layers.0.rg_lru.input_gate_bias", (4, 8), False, False),
        ("model.layers.0.self_attn.q_norm.weight", (4, 8), False, False),  # Cohere: one for each head
        ("backbone.layers.0.mixer.A_log", (8, 4), False, False),
        ("backbone.layers.0.mixer.conv1d.weight", (8, 4, 1), False, True),
        ("model.layers.0.conv.in_proj.weight", (8, 4), True, True),  # LFM2: a projection before a convolution
        ("transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight", (8, 4), True, True),  # DBRX
        ("decoder.layers.0.mixer.q_proj.lora_a", (8, 2), True, True),
    ],
)
def test_vectors_of_heads_and_experts_neither_decay_nor_have_a_polar_factor(
    name: str, shape: tuple[int, ...], hidden: bool, decayed: bool
) -> None:
    weight = mx.zeros(shape)
    assert (is_hidden(name, weight), decays(name, weight, everything=False)) == (hidden, decayed)


def test_decay_all_reaches_the_adapter_of_an_embedding() -> None:
    config = FinetuneConfig(data="x", learning_rate=0.1, weight_decay=0.5, decay_all=True, keys=("embedding.tokens",))
    model = llama(adapts=True, keys=config.keys)
    weights: Any = dict(tree_flatten(model.trainable_parameters()))
    optimizer, still = optim.configured(config, model), {name: mx.zeros(w.shape) for name, w in weights.items()}
    moved, _ = optimizer.update(weights, still, optimizer.init(weights), 0.1, mx.array(1.0))
    for name, weight in weights.items():
        np.testing.assert_allclose(np.array(moved[name]), np.array(weight) * 0.95, rtol=1e-6)


USELESS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"embedding_rate": 0.1}, {}),
    ({"adamw_rate": 0.1, "optimizer": "muon"}, {}),
    ({"layer_decay": 0.9}, {"num_layers": 1}),
    ({"lora_plus_ratio": 4.0}, {"keys": ("embedding.tokens",)}),
    ({"decay_all": True, "weight_decay": 0.1, "keys": ("*.q_proj",)}, {"keys": ("*.q_proj",)}),
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
