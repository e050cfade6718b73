"""DoRA and rsLoRA: the forward pass and gradients against peft, the files against peft and mlx-lm."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from macllm import adapter, families
from macllm.checkpoint import load_model, save
from macllm.errors import CheckpointError, UsageError
from macllm.families.config import Config
from macllm.nn import lora, quantize
from macllm.ops.quantized import using_activations
from macllm.train.config import FinetuneConfig
from macllm.train.objectives.clm import CausalLM, collate
from macllm.weights.keymap import their_modules
from macllm.weights.safetensors import load_file, save_file
from tests.families import oracles
from tests.train.test_adapter import DETAILS, LLAMA, PHI3, TOKENS, close, make, randomize
from tests.train.test_adapter_experts import MIXTRAL
from tests.train.test_clm import DECODERS, rows


def magnify(model: nn.Module) -> None:
    """Give B and the magnitudes values that training could have given them."""
    randomize(model)
    for layer, key in zip(lora.adapters(model).values(), mx.random.split(mx.random.key(2), 999), strict=False):
        if isinstance(layer, lora.DoRALinear):
            layer.magnitude = layer.magnitude * mx.random.uniform(0.5, 1.5, layer.magnitude.shape, key=key)


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_a_dora_layer_equals_its_definition_in_float64(bits: int | None, bias: bool) -> None:
    linear: nn.Module = nn.Linear(64, 32, bias=bias)
    added = np.array(linear.bias) if bias else 0.0
    if bits:
        linear = nn.QuantizedLinear.from_linear(linear, 32, bits)
    a, b = mx.random.normal((64, 3)), mx.random.normal((3, 32))
    m, x = mx.random.uniform(0.5, 2.0, (32,)), mx.random.normal((2, 5, 64))
    weight, a64, b64, m64, x64 = (np.array(v).astype(np.float64) for v in (lora.unpacked_weight(linear), a, b, m, x))
    whole = weight + 0.7 * (a64 @ b64).T
    whole *= m64[:, None] / np.linalg.norm(whole, axis=1, keepdims=True)
    layer = lora.DoRALinear(linear, a, b, 0.7, magnitude=m)
    with using_activations("float"):
        for mode in (False, True):
            layer.train(mode)
            want = x64 @ whole.T + added
            np.testing.assert_allclose(np.array(layer(x)), want, rtol=0, atol=5e-6 * np.abs(want).max())
        fused: Any = layer.fused("unquantized")
        np.testing.assert_allclose(np.array(fused.weight), whole, rtol=0, atol=5e-6 * np.abs(whole).max())


@pytest.mark.parametrize("bits", [None, 4])
def test_a_new_dora_adapter_leaves_outputs_unchanged_and_trains_the_magnitudes_too(bits: int | None) -> None:
    model = make()
    if bits:
        quantize.apply(model, bits=bits, group_size=32)
    with using_activations("float"):
        before = model(TOKENS)
        names = lora.apply(model, rank=4, alpha=8.0, use_dora=True)
        assert close(model(TOKENS), before, 5e-6)
    trained = [name for name, _ in tree_flatten(model.trainable_parameters())]
    assert sorted(trained) == sorted(f"{name}.{leaf}" for name in names for leaf in ("lora_a", "lora_b", "magnitude"))


def test_the_norms_of_a_dora_layer_follow_its_weights_in_every_mode() -> None:
    model = make()
    lora.apply(model, rank=4, alpha=8.0, use_dora=True)
    model.eval()
    model(TOKENS)  # keeps the norms of B = 0
    magnify(model)
    evaluated = model(TOKENS)
    model.train()
    assert close(evaluated, model(TOKENS), 1e-6)
    model.eval()
    some: Any = next(iter(lora.adapters(model).values()))
    some.linear.weight = some.linear.weight * 3
    tripled = model(TOKENS)
    model.train()
    assert close(tripled, model(TOKENS), 1e-6)


def test_rows_of_zeros_stay_zeros_and_have_finite_gradients() -> None:
    linear = nn.Linear(16, 8, bias=False)
    linear.weight = mx.concatenate([linear.weight[:5], mx.zeros((3, 16))])
    x = mx.random.normal((2, 16))
    layer = lora.DoRALinear.initial(linear, 2, 1.0, 0.0, mx.random.key(0))
    for mode in (True, False):
        layer.train(mode)
        assert close(layer(x), linear(x), 5e-6)
        assert not mx.any(layer(x)[:, 5:])
    _, gradients = nn.value_and_grad(layer, lambda x: (layer(x) ** 2).sum())(x)
    assert all(bool(mx.isfinite(gradient).all()) for _, gradient in tree_flatten(gradients))
    fused: Any = layer.fused()
    assert bool(mx.isfinite(fused.weight).all())


@pytest.mark.parametrize("form", ["mlx", "peft"])
@pytest.mark.parametrize("config", [LLAMA, PHI3], ids=["separate", "fused"])
def test_a_saved_dora_adapter_gives_the_same_outputs_when_attached_again_and_when_merged(
    config: dict[str, Any], form: adapter.Form, tmp_path: Path
) -> None:
    model = make(config)
    lora.apply(model, rank=4, alpha=8.0, keys=("q_proj", "v_proj", "down_proj"), num_layers=2, use_dora=True)
    magnify(model)
    adapter.save(model, tmp_path, form=form)
    again = make(config)
    adapter.attach(again, tmp_path)
    assert close(again(TOKENS), model(TOKENS))
    assert not close(make(config)(TOKENS), model(TOKENS), 1e-2)
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


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    model = make()
    lora.apply(model, rank=4, alpha=6.0, use_rslora=True)
    assert {layer.scale for layer in lora.adapters(model).values()} == {3.0}


def test_dora_on_experts_is_refused_before_anything_is_changed() -> None:
    model = make(MIXTRAL)
    with pytest.raises(UsageError, match="experts") as caught:
        lora.apply(model, rank=2, alpha=4.0, use_dora=True)
    assert "keys" in (caught.value.remedy or "")
    assert not lora.adapters(model)
    assert lora.apply(model, rank=2, alpha=4.0, keys=("*.mixer.*",), use_dora=True)


def test_settings_without_an_effect_are_refused() -> None:
    with pytest.raises(UsageError, match="use_rslora has no effect"):
        FinetuneConfig(data="x", rank=1, use_rslora=True)
    with pytest.raises(UsageError, match="decay_all has no effect"):
        FinetuneConfig(data="x", weight_decay=0.1, decay_all=True)
    assert FinetuneConfig(data="x", weight_decay=0.1, decay_all=True, use_dora=True)


@pytest.mark.parametrize("form", ["mlx", "peft"])
def test_missing_and_misshapen_magnitudes_are_refused_by_name(form: adapter.Form, tmp_path: Path) -> None:
    model = make()
    lora.apply(model, rank=2, alpha=2.0, keys=("q_proj",), use_dora=True)
    adapter.save(model, tmp_path, form=form)
    path = next(tmp_path.glob("*.safetensors"))
    good = load_file(path)
    mx.eval(good)
    first = next(name for name in sorted(good) if name.endswith((".m", "magnitude_vector")))
    damages = {
        "has no magnitudes": {name: tensor for name, tensor in good.items() if name != first},
        "magnitudes of": {**good, first: good[first][:-1]},
    }
    for message, tensors in damages.items():
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=message):
            adapter.attach(make(), tmp_path)


VARIANTS = [{}, {"use_dora": True}, {"use_rslora": True}, {"use_dora": True, "use_rslora": True}]
LEAVES = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}


def of_peft(oracle: Any, batch: Any) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """Logits, loss and gradients of an oracle, in its own precision."""
    import torch

    oracle.zero_grad()
    logits = oracle(torch.from_numpy(batch.inputs).long(), use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(batch.targets).long().flatten(), reduction="none"
    )
    loss = (losses * torch.from_numpy(batch.weights).flatten()).sum()
    loss.backward()
    gradients = {
        key: parameter.grad.numpy().copy() for key, parameter in oracle.named_parameters() if parameter.requires_grad
    }
    return logits.detach().numpy(), loss.item(), gradients


def in_float64(oracle: Any, batch: Any) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """The same in float64 throughout, which norms, softmax and angles of transformers are not."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Wide(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            wide = [torch.float64 if arg is torch.float32 else arg for arg in args]
            named = {name: torch.float64 if arg is torch.float32 else arg for name, arg in (kwargs or {}).items()}
            return wide[0].double() if func is torch.Tensor.float else func(*wide, **named)

    with Wide():
        return of_peft(oracle.double(), batch)


def gradients_of(model: nn.Module, batch: Any) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients, as peft names them."""
    total, tree = nn.value_and_grad(model, lambda b: CausalLM().loss(model, b))(batch)
    loss = float(total[0] if isinstance(total, tuple) else total)
    return loss, in_their_names(model, dict(tree_flatten(tree)))


def rms_norm_float64(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """MLX's own computes in float32."""
    return x * weight * mx.rsqrt(mx.mean(x * x, axis=-1, keepdims=True) + eps)


def in_their_names(model: Any, gradients: dict[str, mx.array]) -> dict[str, np.ndarray]:
    """Our gradients as peft names them: fused modules share A, and have rows of B each."""
    keymap = families.keys(Config(model.info.config, ()), "hf")
    joined: dict[str, list[mx.array]] = {}
    for ours, gradient in gradients.items():
        module, _, leaf = ours.rpartition(".")
        their_leaf = LEAVES.get(leaf, "lora_magnitude_vector.default.weight")
        joined.setdefault(f"base_model.model.{their_modules(module, keymap)[0][0]}.{their_leaf}", []).append(gradient)
    return {
        key: np.array(sum(parts[1:], parts[0]) if "lora_A" in key else mx.concatenate(parts, axis=-1)).T
        for key, parts in joined.items()
    }


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "phi3"])
@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: "-".join(settings) or "lora")
def test_logits_losses_and_gradients_equal_peft(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft
    import torch

    case = next(c for c in DECODERS if c.name == name)
    torch.manual_seed(0)
    chosen = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", lora_dropout=0.0, **settings)
    oracle = peft.get_peft_model(oracles.write(case, tmp_path / "base"), chosen)
    with torch.no_grad():
        for key, parameter in oracle.named_parameters():
            if "lora_B" in key:
                parameter.copy_(torch.randn_like(parameter) * 0.05)
            if "magnitude" in key:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    oracle.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "base")
    plain = model(TOKENS)
    adapter.attach(model, tmp_path / "theirs")
    model.train()
    assert not close(model(TOKENS), plain, 1e-2)
    batch = collate(rows(case.options["vocab_size"]))  # of unequal lengths
    (_, _, rounded), (want, loss, exact) = of_peft(oracle, batch), in_float64(oracle, batch)
    got = np.array(model(mx.array(batch.inputs)))
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 * np.abs(want).max())
    total, gradients = gradients_of(model, batch)
    assert abs(total - loss) <= 1e-6 * abs(loss)
    assert gradients.keys() == exact.keys()
    own, ours = (
        {key: np.abs(found[key] - exact[key]).max() / np.abs(exact[key]).max() for key in exact}
        for found in (rounded, gradients)
    )
    # In float32 peft's own gradients are up to 1e-5 from those in float64. MLX's operations (their exp is 2.5 times as
    # far from the exact one as torch's) round by other amounts, so there peft's error is only added once.
    lost = max(own.values())
    bound = 5e-6 + lost if os.environ.get("MACLLM_NATIVE") == "0" else max(5e-6, 2 * lost)
    assert max(ours.values()) <= bound
    adapter.save(model, tmp_path / "ours", form="peft")
    again = peft.PeftModel.from_pretrained(oracles.write(case, tmp_path / "base"), tmp_path / "ours").eval()
    back = again(torch.from_numpy(batch.inputs).long(), use_cache=False).logits.detach().numpy()
    np.testing.assert_allclose(back, want, rtol=0, atol=5e-6 * np.abs(back).max())
    # without the rounding of matrix products, the formulas alone
    monkeypatch.setattr("macllm.ops.norm.rms_norm", rms_norm_float64)
    model.update(tree_map(lambda array: array.astype(mx.float64), model.parameters()))
    _, gradients = gradients_of(model, batch)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, exact[key], rtol=0, atol=5e-6 * np.abs(exact[key]).max(), err_msg=key)


@pytest.mark.parity
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("config", [LLAMA, PHI3], ids=["llama", "phi3"])
def test_a_dora_adapter_gives_the_same_logits_in_mlx_lm_in_both_directions(
    config: dict[str, Any], bits: int | None, tmp_path: Path
) -> None:
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model as load_theirs

    model = make(DETAILS | config)
    if bits:
        quantize.apply(model, bits=bits, group_size=32)
    save(model, None, tmp_path / "model")
    lora.apply(model, rank=3, alpha=6.0, use_dora=True)
    magnify(model)
    adapter.save(model, tmp_path)
    theirs, _ = load_theirs(tmp_path / "model")
    plain = theirs(TOKENS)
    load_adapters(theirs, str(tmp_path))
    theirs.eval()
    with using_activations("float"):
        assert not close(theirs(TOKENS), plain, 1e-2)
        assert close(model(TOKENS), theirs(TOKENS), 1e-4 if bits is None else 1e-3)
        leaves = {k: v for k, v in tree_flatten(theirs.parameters()) if k.endswith((".lora_a", ".lora_b", ".m"))}
        (tmp_path / "theirs").mkdir()
        mx.save_safetensors(str(tmp_path / "theirs/adapters.safetensors"), leaves)
        # of a joined q, k and v the rank is 9
        rank = max(array.shape[1] for key, array in leaves.items() if key.endswith(".lora_a"))
        parameters = {"rank": rank, "scale": 2.0, "dropout": 0.0}
        written = {"fine_tune_type": "dora", "num_layers": 4, "lora_parameters": parameters}
        (tmp_path / "theirs/adapter_config.json").write_text(json.dumps(written))
        again = load_model(tmp_path / "model")
        adapter.attach(again, tmp_path / "theirs")
        assert close(again(TOKENS), theirs(TOKENS), 1e-4 if bits is None else 1e-3)
