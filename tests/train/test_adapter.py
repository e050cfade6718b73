"""Adapters: the forward pass and gradients against peft, the files against mlx-lm."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from macllm import adapter, families
from macllm.checkpoint import load_model, save
from macllm.errors import CheckpointError, ModelNotFoundError, UsageError
from macllm.families.config import Config
from macllm.nn import lora, quantize
from macllm.nn.models import build
from macllm.ops.quantized import using_activations
from macllm.weights.safetensors import load_file, save_file
from tests.families import oracles

LLAMA = {"model_type": "llama", "head_dim": 8, "tie_word_embeddings": True, **oracles.SMALL, "hidden_size": 64}
PHI3 = {"model_type": "phi3", **oracles.SMALL, "hidden_size": 96, "num_attention_heads": 6}
TOKENS = mx.array([[5, 9, 0, 44, 3, 17], [1, 2, 3, 4, 5, 6]])


def make(config: dict[str, Any] = LLAMA) -> Any:
    mx.random.seed(0)
    model = build(families.spec(Config(config)))
    model.info = replace(model.info, config=config)
    return model


def randomize(model: nn.Module) -> None:
    """Give every B random values: with B = 0 an adapter changes nothing, and mistakes stay hidden."""
    for wrap, key in zip(lora.adapters(model).values(), mx.random.split(mx.random.key(1), 999), strict=False):
        wrap.lora_b = mx.random.normal(wrap.lora_b.shape, key=key) * 0.1


def close(a: mx.array, b: mx.array, tolerance: float = 1e-5) -> bool:
    return float(mx.abs(a - b).max()) <= tolerance * float(mx.abs(b).max())


def test_a_new_adapter_leaves_outputs_unchanged_and_is_all_that_trains() -> None:
    model = make()
    before = model(TOKENS)
    wrapped = lora.apply(model, rank=4, alpha=8.0)
    assert len(wrapped) == 4 * 7
    assert bool(mx.array_equal(model(TOKENS), before))
    trained = [name for name, _ in tree_flatten(model.trainable_parameters())]
    assert sorted(trained) == sorted(f"{name}.{leaf}" for name in wrapped for leaf in ("lora_a", "lora_b"))


def test_a_new_adapter_drops_inputs_only_in_a_model_that_trains() -> None:
    model = make()
    model.eval()
    lora.apply(model, rank=4, alpha=8.0, dropout=0.9)
    randomize(model)
    assert bool(mx.array_equal(model(TOKENS), model(TOKENS)))
    model.train()
    assert not bool(mx.array_equal(model(TOKENS), model(TOKENS)))


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_an_adapter_equals_its_definition_in_float64(bits: int | None) -> None:
    linear: nn.Module = nn.Linear(64, 32)
    dense = linear
    if bits:
        linear = nn.QuantizedLinear.from_linear(linear, 32, bits)
    a, b = mx.random.normal((64, 3)), mx.random.normal((3, 32))
    x = mx.random.normal((2, 5, 64))
    weight = np.array(lora.unpacked_weight(linear)).astype(np.float64)
    wrap = lora.LoRALinear(linear, a, b, 0.7)
    assert sorted(name for name, _ in tree_flatten(wrap.trainable_parameters())) == ["lora_a", "lora_b"]
    got = wrap(x)
    x64, a64, b64 = (np.array(v).astype(np.float64) for v in (x, a, b))
    want = x64 @ weight.T + np.array(dense.bias) + 0.7 * x64 @ a64 @ b64
    np.testing.assert_allclose(np.array(got), want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_keys_and_num_layers_choose_the_adapted_layers() -> None:
    model = make()
    names = lora.targets(model, ("q_proj", "*.0.feed_forward.up_proj"))
    assert len(names) == 5
    assert list(lora.targets(model, ("v_proj",), num_layers=1)) == ["decoder.layers.3.mixer.v_proj"]
    assert len(lora.targets(model, num_layers=2)) == 14
    with pytest.raises(UsageError, match=r"\*\.mixer\.q_proj"):
        lora.apply(model, rank=2, alpha=2.0, keys=("query",))


def test_a_router_is_adapted_only_when_it_is_named() -> None:
    config = {"model_type": "mixtral", **oracles.SMALL, "num_local_experts": 3, "num_experts_per_tok": 2}
    model = make(config)
    names = list(lora.targets(model))
    assert not any("router" in name for name in names)
    assert sum("experts" in name for name in names) == 3 * 4
    assert len(lora.targets(model, ("router",))) == 4


def test_the_last_layers_are_those_of_the_outermost_list() -> None:
    names = [
        f"{stack}.{layer}.mlp.layers.{n}.up" for stack in ("layers", "model.h") for layer in (2, 3) for n in (0, 1)
    ]
    assert lora.in_last_layers(names, 1) == [name for name in names if ".3." in name]


@pytest.mark.parametrize("bits", [None, 4])
def test_removing_restores_the_model_and_fusing_keeps_the_adapted_outputs(bits: int | None) -> None:
    model = make()
    if bits:
        quantize.apply(model, bits=bits, group_size=32)
    before = model(TOKENS)
    lora.apply(model, rank=4, alpha=8.0)
    randomize(model)
    with using_activations("float"):  # as for the fused weights, which are dense
        adapted = model(TOKENS)
    assert not close(adapted, before, 1e-2)
    lora.fuse(model, dequantize=True)
    assert not lora.adapters(model)
    with using_activations("float"):
        assert close(model(TOKENS), adapted)
    model = make()
    before = model(TOKENS)
    lora.apply(model, rank=4, alpha=8.0)
    randomize(model)
    lora.remove(model)
    assert bool(mx.array_equal(model(TOKENS), before))


BIASED = {**oracles.SMALL, "model_type": "qwen2", "tie_word_embeddings": False, "hidden_size": 64}


@pytest.mark.parametrize("bits", [None, 8])
def test_fusing_keeps_the_biases(bits: int | None) -> None:
    model = make(BIASED)
    biases = {name: bias + 1.5 for name, bias in tree_flatten(model.parameters()) if name.endswith("_proj.bias")}
    assert biases
    model.update(tree_unflatten(list(biases.items())))
    if bits:
        quantize.apply(model, bits=bits, group_size=32)
    lora.apply(model, rank=4, alpha=8.0, keys=("q_proj", "v_proj"))
    randomize(model)
    with using_activations("float"):
        adapted = model(TOKENS)
        lora.fuse(model, dequantize=True)
        assert close(model(TOKENS), adapted)
    fused = dict(tree_flatten(model.parameters()))
    assert all(bool(mx.array_equal(fused[name], bias)) for name, bias in biases.items())


def test_a_fused_weight_is_rounded_once() -> None:
    linear = nn.Linear(64, 48, bias=False)
    linear.weight = linear.weight.astype(mx.bfloat16)
    a, b = mx.random.normal((64, 3), key=mx.random.key(2)), mx.random.normal((3, 48), key=mx.random.key(3))
    weight, a64, b64 = (np.array(v.astype(mx.float32)).astype(np.float64) for v in (linear.weight, a, b))
    fused: Any = lora.LoRALinear(linear, a, b, 0.01).fused()
    want = mx.array((weight + 0.01 * (a64 @ b64).T).astype(np.float32)).astype(mx.bfloat16)
    assert fused.weight.dtype == mx.bfloat16
    # float32 on the way to bfloat16 may tip a tie; a second rounding moves every tenth weight
    assert float((fused.weight != want).astype(mx.float32).mean()) < 0.005


@pytest.mark.parametrize("config", [LLAMA, PHI3], ids=["separate", "fused"])
def test_a_saved_adapter_gives_the_same_outputs_when_attached_again(config: dict[str, Any], tmp_path: Path) -> None:
    model = make(config)
    lora.apply(model, rank=4, alpha=8.0, keys=("q_proj", "v_proj", "down_proj"), num_layers=2)
    randomize(model)
    adapter.save(model, tmp_path, {"model": "m"})
    assert json.loads((tmp_path / "adapter_config.json").read_text())["model"] == "m"
    again = make(config)
    adapter.attach(again, tmp_path)
    assert close(again(TOKENS), model(TOKENS))
    assert not close(make(config)(TOKENS), model(TOKENS), 1e-3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"lora_parameters": {}}, "not a LoRA config"),
        ({"lora_parameters": {"scale": "x"}}, "not a LoRA config"),
        ({"lora_parameters": {"scale": True}}, "not a LoRA config"),
        ({"lora_parameters": {"scale": float("nan")}}, "not a LoRA config"),
        ({"lora_parameters": {"scale": float("inf")}}, "not a LoRA config"),
        ({"lora_parameters": {"scale": 10**400}}, "not a LoRA config"),
        ({"fine_tune_type": "full"}, "not a LoRA or DoRA adapter"),
        ({"fine_tune_type": "dora"}, "has no magnitudes"),
    ],
)
def test_an_invalid_lora_config_is_refused(tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    model = make()
    lora.apply(model, rank=2, alpha=2.0)
    adapter.save(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(CheckpointError, match=message):
        adapter.attach(make(), tmp_path)


def test_loading_an_adapter_as_a_model_is_an_error_that_says_so(tmp_path: Path) -> None:
    model = make()
    lora.apply(model, rank=2, alpha=2.0)
    adapter.save(model, tmp_path)
    with pytest.raises(ModelNotFoundError, match="is an adapter, not a model") as error:
        load_model(tmp_path)
    assert f"--adapter {tmp_path}" in str(error.value.remedy)


def test_a_git_lfs_pointer_in_place_of_an_adapter_is_named(tmp_path: Path) -> None:
    model = make()
    lora.apply(model, rank=2, alpha=2.0)
    adapter.save(model, tmp_path)
    (tmp_path / "adapters.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 10\n")
    with pytest.raises(ModelNotFoundError, match="pointer of Git LFS"):
        adapter.attach(make(), tmp_path)


def test_tensors_that_are_no_adapter_are_refused_by_name(tmp_path: Path) -> None:
    model = make(PHI3)
    lora.apply(model, rank=2, alpha=2.0, keys=("q_proj", "k_proj", "v_proj"))
    adapter.save(model, tmp_path)
    good = load_file(tmp_path / "adapters.safetensors")
    mx.eval(good)
    first, second = sorted(good)[:2]
    assert (first[-7:], second[-7:]) == (".lora_a", ".lora_b")
    stem = first.removesuffix(".lora_a")
    damages = {
        "is not part of a LoRA adapter": {**good, f"{stem}.magnitude": good[first]},
        "has one factor only": {name: tensor for name, tensor in good.items() if name != second},
        "outputs, the model's": {**good, second: good[second][:, :-8]},
        "factors of": {**good, second: good[second][:-1]},
    }
    for message, tensors in damages.items():
        save_file(tensors, tmp_path / "adapters.safetensors")
        with pytest.raises(CheckpointError, match=message) as caught:
            adapter.attach(make(PHI3), tmp_path)
        assert message == "factors of" or stem in str(caught.value)


def test_a_rank_other_than_that_of_the_config_is_refused(tmp_path: Path) -> None:
    model = make()
    lora.apply(model, rank=4, alpha=8.0)
    adapter.save(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_parameters": {**config["lora_parameters"], "rank": 8}}))
    with pytest.raises(CheckpointError, match=r"has rank 4, not 8"):
        adapter.attach(make(), tmp_path)


def test_an_adapter_without_tensors_is_refused(tmp_path: Path) -> None:
    model = make()
    lora.apply(model, rank=2, alpha=2.0)
    adapter.save(model, tmp_path)
    save_file({}, tmp_path / "adapters.safetensors")
    with pytest.raises(CheckpointError, match="changes nothing"):
        adapter.attach(make(), tmp_path)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    model = make()
    lora.apply(model, rank=2, alpha=2.0)
    adapter.save(model, tmp_path)
    with pytest.raises(CheckpointError, match="the model's 32 to"):
        adapter.attach(make({**LLAMA, "hidden_size": 32}), tmp_path)
    with pytest.raises(CheckpointError, match="does not have"):
        adapter.attach(make({**LLAMA, "num_hidden_layers": 2}), tmp_path)
    with pytest.raises(ModelNotFoundError, match="no adapter in"):
        adapter.attach(make(), tmp_path / "absent")


CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
# With mlx-lm's keys; windows are longer than the input, since mlx-lm does not mask them everywhere.
READABLE: list[dict[str, Any]] = [
    LLAMA,
    PHI3,
    {**LLAMA, "model_type": "mistral", "tie_word_embeddings": False},
    {**oracles.SMALL, "model_type": "qwen2", "tie_word_embeddings": False},
    {**LLAMA, "model_type": "qwen3"},
    {**LLAMA, "model_type": "olmo2"},
    {**oracles.GEMMA, "model_type": "gemma2", "sliding_window": 32, **CAPS},
    # mlx-lm rounds the root of the hidden size to bfloat16; that of 64 is 8 in both
    {
        **oracles.GEMMA,
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "sliding_window": 32,
        "sliding_window_pattern": 2,
    },
    {**oracles.GPT2, "model_type": "gpt2", "n_ctx": 64},
    {**oracles.SMALL, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
]
DETAILS = {
    "rms_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "rope_local_base_freq": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_traditional": False,
}


@pytest.mark.parity
@pytest.mark.parametrize("config", READABLE, ids=lambda c: c["model_type"])
def test_an_adapter_gives_the_same_logits_in_mlx_lm(config: dict[str, Any], tmp_path: Path) -> None:
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model as load_theirs

    model = make(DETAILS | config)
    save(model, None, tmp_path / "model")
    lora.apply(model, rank=3, alpha=6.0)
    randomize(model)
    adapter.save(model, tmp_path)
    theirs, _ = load_theirs(tmp_path / "model")
    plain = theirs(TOKENS)
    load_adapters(theirs, str(tmp_path))
    theirs.eval()
    assert not close(theirs(TOKENS), plain, 1e-2)
    assert close(model(TOKENS), theirs(TOKENS), 1e-4)


STABLELM = {"use_qkv_bias": False, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5, "rope_theta": 1e4}
# its layers are named transformer.h
EXAONE = {"num_layers": 4, "num_hidden_layers": None, "layer_norm_epsilon": 1e-5, "rope_theta": 1e4, "head_dim": 8}


@pytest.mark.parity
@pytest.mark.parametrize(("kind", "settings"), [("stablelm", STABLELM), ("exaone", EXAONE)])
def test_a_model_of_an_mlx_lm_class_shares_adapters_with_mlx_lm(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model as load_theirs
    from mlx_lm.utils import save_model

    merged = {**oracles.SMALL, "model_type": kind, **settings}
    config = {name: value for name, value in merged.items() if value is not None}
    theirs = importlib.import_module(f"mlx_lm.models.{kind}")
    save_model(tmp_path / "model", theirs.Model(theirs.ModelArgs.from_dict(config)))
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    model = load_model(tmp_path / "model")
    assert len(lora.targets(model)) == 4 * 7
    assert len(lora.apply(model, rank=4, alpha=8.0, num_layers=3)) == 3 * 7
    randomize(model)
    adapter.save(model, tmp_path)
    theirs, _ = load_theirs(tmp_path / "model")
    load_adapters(theirs, str(tmp_path))
    again = load_model(tmp_path / "model")
    adapter.attach(again, tmp_path)
    assert close(theirs(TOKENS), model(TOKENS))
    assert close(again(TOKENS), model(TOKENS))
