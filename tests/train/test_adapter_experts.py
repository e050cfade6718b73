"""Adapters of experts and of the head, and patterns that match nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import adapter
from macllm.checkpoint import save
from macllm.errors import CheckpointError, UsageError
from macllm.nn import lora, quantize
from macllm.nn.moe import ExpertLinear
from macllm.ops.experts import gather_linear
from macllm.ops.linear import adapted
from macllm.ops.quantized import using_activations
from macllm.ops.weights import AdaptedWeight, DenseWeight
from macllm.train.objectives.clm import CausalLM, collate
from macllm.train.parameters import tell_of_experts
from macllm.weights.safetensors import load_file, save_file
from tests.families import oracles
from tests.train.test_adapter import DETAILS, TOKENS, close, make, randomize
from tests.train.test_clm import rows

MIXTRAL = {"model_type": "mixtral", **oracles.SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN = {
    "model_type": "qwen3_moe",
    **oracles.SMALL,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "head_dim": 8,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_adapted_experts_equal_their_definition_in_float64(bits: int | None) -> None:
    layer: Any = ExpertLinear(3, 64, 32)
    if bits:
        layer = layer.to_quantized(group_size=32, bits=bits)
    a, b = mx.random.normal((3, 5, 64)), mx.random.normal((3, 32, 5))
    x, chosen = mx.random.normal((2, 4, 1, 1, 64)), mx.random.randint(0, 3, (2, 4, 2))
    weight = np.array(lora.unpacked_weight(layer)).astype(np.float64)
    weight += 0.7 * np.array(b).astype(np.float64) @ np.array(a).astype(np.float64)
    wrap = lora.LoRAExperts(layer, a, b, 0.7)
    assert sorted(name for name, _ in tree_flatten(wrap.trainable_parameters())) == ["lora_a", "lora_b"]
    with using_activations("float"):
        got = np.array(gather_linear(x, wrap.weights, chosen))[..., 0, :]
    want = np.einsum("blfd,bld->blf", weight[np.array(chosen)[..., 0]], np.array(x, np.float64)[:, :, 0, 0])
    np.testing.assert_allclose(got[:, :, 0], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_factors_of_16_bits_are_multiplied_in_float32() -> None:
    x = mx.random.normal((2, 1, 1, 64)) * 100
    a, b = mx.random.normal((3, 5, 64)) * 1000, mx.random.normal((3, 32, 5)) * 1e-4
    zeros = mx.zeros((3, 32, 64))
    chosen = mx.array([[2], [0]])

    def update(stack: bool, x: mx.array, a: mx.array, b: mx.array) -> np.ndarray:
        if stack:
            weights = AdaptedWeight(DenseWeight(zeros), a.swapaxes(-1, -2), b.swapaxes(-1, -2), 0.5)
            return np.array(gather_linear(x, weights, chosen))[:, 0, 0]
        y = mx.zeros((2, 32), x.dtype)
        return np.array(adapted(y, x[:, 0, 0], AdaptedWeight(DenseWeight(zeros[0]), a[0].T, b[0].T, 0.5)))

    for stack, numbers in ((True, [2, 0]), (False, [0, 0])):
        for kind in (mx.float16, mx.bfloat16):  # x A does not fit into float16
            a16, b16 = a.astype(kind), b.astype(kind)
            a64, b64 = (np.array(each.astype(mx.float32), np.float64) for each in (a16, b16))
            x64 = np.array(x, np.float64)[:, 0, 0]
            want = 0.5 * np.stack([b64[e] @ (a64[e] @ row) for e, row in zip(numbers, x64, strict=True)])
            np.testing.assert_allclose(update(stack, x, a16, b16), want, rtol=0, atol=1e-5 * np.abs(want).max())
            half = update(stack, x.astype(mx.float16), a16, b16).astype(np.float64)
            np.testing.assert_allclose(half, want, rtol=0, atol=4e-3 * np.abs(want).max())


@pytest.mark.parametrize("config", [MIXTRAL, QWEN], ids=["mixtral", "qwen3_moe"])
def test_every_expert_that_is_chosen_is_trained(config: dict[str, Any]) -> None:
    model = make(config)
    before = model(TOKENS)
    lora.apply(model, rank=2, alpha=4.0, keys=("experts.*",))
    assert close(model(TOKENS), before, 1e-6)
    randomize(model)
    assert not close(model(TOKENS), before, 1e-2)
    batch = collate(rows(oracles.SMALL["vocab_size"]))
    _, tree = nn.value_and_grad(model, lambda b: CausalLM().loss(model, b))(batch)
    gradients = dict(tree_flatten(tree))
    assert len(gradients) == 2 * 3 * 4
    assert all(float(mx.abs(gradient).max()) > 0 for gradient in gradients.values())


@pytest.mark.parametrize("config", [MIXTRAL, QWEN], ids=["mixtral", "qwen3_moe"])
def test_saved_experts_give_the_same_outputs_when_attached_again_and_when_merged(
    config: dict[str, Any], tmp_path: Path
) -> None:
    model = make(config)
    lora.apply(model, rank=3, alpha=6.0)
    randomize(model)
    adapter.save(model, tmp_path)
    again = make(config)
    adapter.attach(again, tmp_path)
    assert close(again(TOKENS), model(TOKENS))
    lora.fuse(again)
    assert not lora.adapters(again)
    assert close(again(TOKENS), model(TOKENS))
    packed = make(config)
    quantize.apply(packed, bits=8, group_size=32)
    adapter.attach(packed, tmp_path)
    with using_activations("float"):
        adapted = packed(TOKENS)
        lora.fuse(packed, dequantize=True)
        assert close(packed(TOKENS), adapted)


def test_experts_of_another_number_are_refused(tmp_path: Path) -> None:
    model = make(MIXTRAL)
    lora.apply(model, rank=2, alpha=4.0, keys=("experts.up_proj",))
    adapter.save(model, tmp_path)
    with pytest.raises(CheckpointError, match="has 4 experts, the model's 3"):
        adapter.attach(make({**MIXTRAL, "num_local_experts": 3}), tmp_path)
    tensors = {name: array[0] for name, array in load_file(tmp_path / "adapters.safetensors").items()}
    save_file(tensors, tmp_path / "adapters.safetensors")
    with pytest.raises(CheckpointError, match="do not match"):
        adapter.attach(make(MIXTRAL), tmp_path)


def test_the_head_is_adapted_only_when_a_pattern_names_it(tmp_path: Path) -> None:
    model = make(MIXTRAL)
    assert not any("head" in name for name in lora.targets(model))
    assert list(lora.targets(model, ("q_proj", "head.proj"), num_layers=1)) == [
        "decoder.layers.3.mixer.q_proj",
        "head.proj",
    ]
    lora.apply(model, rank=2, alpha=4.0, keys=("head.*",))
    randomize(model)
    adapter.save(model, tmp_path)
    again = make(MIXTRAL)
    adapter.attach(again, tmp_path)
    assert close(again(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    ("keys", "named", "near"),
    [
        (("q_proj", "experts.gate"), "experts.gate", "*.feed_forward.experts.gate_proj"),
        (("q_porj", "k_proj"), "q_porj", "*.mixer.q_proj"),
        (("embedding.norm",), "embedding.norm", "embedding.tokens"),
    ],
)
def test_every_pattern_matches_or_is_refused_by_name(keys: tuple[str, ...], named: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"pattern {named!r}") as caught:
        lora.apply(make(MIXTRAL), rank=2, alpha=4.0, keys=keys)
    assert near in (caught.value.remedy or "")


@pytest.mark.parity
@pytest.mark.parametrize("config", [MIXTRAL, QWEN], ids=["mixtral", "qwen3_moe"])
def test_experts_give_the_same_logits_in_mlx_lm(config: dict[str, Any], tmp_path: Path) -> None:
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model as load_theirs

    more = {"decoder_sparse_step": 1, "mlp_only_layers": []} if config is QWEN else {}
    model = make(DETAILS | config | more)
    save(model, None, tmp_path / "model")
    lora.apply(model, rank=3, alpha=6.0, keys=("q_proj", "experts.*", "head.proj"))
    randomize(model)
    adapter.save(model, tmp_path)
    theirs, _ = load_theirs(tmp_path / "model")
    plain = theirs(TOKENS)
    load_adapters(theirs, str(tmp_path))
    theirs.eval()
    assert not close(theirs(TOKENS), plain, 1e-2)
    assert close(model(TOKENS), theirs(TOKENS), 1e-4)


def test_a_run_tells_what_it_leaves_out_of_experts(caplog: pytest.LogCaptureFixture) -> None:
    from mlx_lm.models.switch_layers import SwitchGLU

    tell_of_experts(make(QWEN))
    assert not caplog.text
    tell_of_experts(SwitchGLU(4, 8, 2))
    assert "experts of this model are not adapted" in caplog.text
