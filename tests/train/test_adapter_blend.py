"""Several adapters of one loaded model: exchanged in place, blended, and taken off without a trace."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import macllm
from macllm import adapter
from macllm.adapter.attached import checked, exchange
from macllm.checkpoint import load_model
from macllm.errors import CheckpointError, ModelNotFoundError, UsageError
from macllm.hub import blend
from macllm.nn import lora, quantize
from macllm.ops.quantized import using_activations
from macllm.weights.safetensors import load_file, save_file
from tests.families import oracles
from tests.train.test_adapter import LLAMA, TOKENS, close, make
from tests.train.test_adapter_experts import MIXTRAL
from tests.train.test_clm import DECODERS


def written(folder: Path, seed: int, config: dict[str, Any] = LLAMA, **settings: Any) -> Path:
    """A folder with an adapter whose B is random."""
    model = make(config)
    lora.apply(model, **{"rank": 3, "alpha": 6.0, "seed": seed} | settings)  # type: ignore[arg-type]
    for layer, key in zip(lora.adapters(model).values(), mx.random.split(mx.random.key(seed), 999), strict=False):
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=key) * 0.1
    adapter.save(model, folder)
    return folder


def equal(a: mx.array, b: mx.array) -> bool:
    return bool(mx.array_equal(a, b))


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("config", [LLAMA, MIXTRAL], ids=["dense", "experts"])
def test_swaps_leave_no_trace(config: dict[str, Any], bits: int | None, tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", 1, config), written(tmp_path / "b", 2, config, keys=("q_proj",), rank=5)

    def fresh(*folders: Path) -> Any:
        model = make(config)
        if bits:
            quantize.apply(model, bits=bits, group_size=32)
        for folder in folders:
            adapter.attach(model, folder)
        return model

    base, first, second = fresh()(TOKENS), fresh(a)(TOKENS), fresh(b)(TOKENS)
    assert not equal(first, second)
    model = fresh(a, b)
    assert adapter.attached(model) == {str(a): 0.0, str(b): 1.0}
    assert equal(model(TOKENS), second)
    adapter.activate(model, str(a))
    assert equal(model(TOKENS), first)
    adapter.activate(model, {str(a): 0.5, str(b): 2.0})
    assert not equal(model(TOKENS), first)
    with lora.disabled(model):
        assert equal(model(TOKENS), base)
    adapter.activate(model, str(b))
    assert equal(model(TOKENS), second)
    adapter.activate(model, None)
    assert equal(model(TOKENS), base)
    adapter.activate(model, str(a))
    adapter.detach(model, str(a))
    assert equal(model(TOKENS), base)
    assert adapter.attached(model) == {str(b): 0.0}
    assert not lora.adapters(model)


def test_an_adapter_that_is_exchanged_while_another_is_disabled_stays(tmp_path: Path) -> None:
    a, b = (written(tmp_path / name, seed) for seed, name in enumerate("ab"))
    model = make()
    base = model(TOKENS)
    adapter.attach(model, a)
    first = model(TOKENS)
    adapter.attach(model, b)
    second = model(TOKENS)
    outer, inner = lora.disabled(model), lora.disabled(model)
    adapter.activate(model, str(a))  # after a context was made
    with outer:
        assert equal(model(TOKENS), base)
    assert equal(model(TOKENS), first)
    outer.__enter__()
    adapter.activate(model, str(b))  # within it
    inner.__enter__()
    outer.__exit__()  # interleaved
    assert equal(model(TOKENS), base)
    inner.__exit__()
    assert equal(model(TOKENS), second)
    assert not any(layer.training for layer in lora.adapters(model).values())
    with outer:
        adapter.activate(model, None)
    assert equal(model(TOKENS), base)
    assert not lora.adapters(model)


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL], ids=["dense", "experts"])
def test_a_blend_equals_the_base_with_the_weighted_updates_in_its_weights(
    config: dict[str, Any], tmp_path: Path
) -> None:
    folders = written(tmp_path / "a", 1, config), written(tmp_path / "b", 2, config, keys=("q_proj", "up_proj"), rank=5)
    weights = {str(folders[0]): 0.7, str(folders[1]): -1.5}
    merged = make(config)
    sums: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        one = make(config)
        adapter.attach(one, Path(name))
        for layer, wrap in lora.adapters(one).items():
            stack = wrap.lora_a.ndim == 3
            a, b = (np.array(array).astype(np.float64) for array in (wrap.lora_a, wrap.lora_b))
            delta = wrap.scale * (b @ a if stack else (a @ b).T)
            sums[layer] = sums.get(layer, 0.0) + weight * delta
    modules = dict(merged.named_modules())
    for layer, delta in sums.items():
        modules[layer].weight = mx.array(
            (np.array(modules[layer].weight).astype(np.float64) + delta).astype(np.float32)
        )
    model = make(config)
    for folder in folders:
        adapter.attach(model, folder)
    adapter.activate(model, weights)
    assert close(model(TOKENS), merged(TOKENS), 5e-6)
    lora.fuse(model)
    assert close(model(TOKENS), merged(TOKENS), 5e-6)


def test_unknown_and_unfit_adapters_are_refused_by_name(tmp_path: Path) -> None:
    a, dora = written(tmp_path / "a", 1), written(tmp_path / "d", 2, use_dora=True)
    model = make()
    adapter.attach(model, a)
    before = model(TOKENS)
    with pytest.raises(UsageError, match="no adapter zzz is attached"):
        adapter.activate(model, "zzz")
    with pytest.raises(UsageError, match="no adapter zzz is attached"):
        adapter.detach(model, "zzz")
    with pytest.raises(ModelNotFoundError):
        adapter.attach(model, tmp_path / "absent")
    for change in ({"hidden_size": 32}, {"num_hidden_layers": 5}):
        unfit = written(tmp_path / "unfit", 3, {**LLAMA, **change})
        config = json.loads((unfit / "adapter_config.json").read_text()) | {"model": "org/base"}
        (unfit / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"unfit does not fit the model[^/]*layers[^/]*org/base"):
            adapter.attach(model, unfit)
    assert equal(model(TOKENS), before)
    adapter.attach(model, dora)
    alone = model(TOKENS)
    for weights in ({str(a): 1.0, str(dora): 1.0}, {str(dora): 0.5}):
        with pytest.raises(UsageError, match="DoRA adapter cannot be blended"):
            adapter.activate(model, weights)
    damaged = load_file(written(tmp_path / "nan", 5) / "adapters.safetensors")
    first = next(iter(damaged))
    save_file(damaged | {first: damaged[first] * float("nan")}, tmp_path / "nan/adapters.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        adapter.attach(model, tmp_path / "nan")
    other = written(tmp_path / "other", 4)
    with pytest.raises(UsageError, match="DoRA adapter cannot be blended"):
        adapter.attach_blend(model, {str(dora): 0.5, str(other): 1.0})
    assert equal(model(TOKENS), alone)
    assert str(other) not in adapter.attached(model)
    trained = make()
    lora.apply(trained, rank=2, alpha=2.0)
    for context in (contextlib.nullcontext(), lora.disabled(trained)):
        with pytest.raises(UsageError, match="in training"), context:
            adapter.attach(trained, a)
    assert not adapter.attached(trained)


def test_an_activation_that_fails_midway_keeps_the_former_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    for seed, name in enumerate("ab"):
        adapter.attach(model, written(tmp_path / name, seed), name=name)
    before = model(TOKENS)

    def fail(linear: object, update: object) -> None:
        raise CheckpointError("too large")

    monkeypatch.setattr("macllm.nn.lora.tree.adapted_layer", fail)
    with pytest.raises(CheckpointError, match="too large"):
        adapter.activate(model, "a")
    assert adapter.attached(model) == {"a": 0.0, "b": 1.0}
    assert equal(model(TOKENS), before)


def test_names_with_weights_are_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x + y:2").mkdir()
    assert blend.parse("a") == {"a": 1.0}
    assert blend.parse("a + runs/b:0.5 + c:-1") == {"a": 1.0, "runs/b": 0.5, "c": -1.0}
    assert blend.parse("x + y:2") == {"x + y:2": 1.0}
    assert blend.parse("C:folder") == {"C:folder": 1.0}
    assert blend.joined(()) is None
    assert blend.joined(["a", "b:0.5"]) == "a + b:0.5" == blend.written({"a": 1, "b": 0.5})
    assert blend.renamed("a + b:0.5", str.upper) == "A + B:0.5"
    weights = {"a": 0.1 + 0.2, "b": 1 / 3, "c": 2.0, "d": 1e-30, "e": -1234567.0}
    assert blend.parse(blend.written(weights)) == weights
    assert blend.written({"a": 2.0}) == "a:2"
    assert blend.parse_all(["x + y:2", "a + b:0.5"]) == {"x + y:2": 1.0, "a": 1.0, "b": 0.5}
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for other in ("a:2", "./a", str(tmp_path / "a"), "link:0.5"):
        with pytest.raises(UsageError, match="twice"):
            blend.parse_all(["a", other])
    with pytest.raises(UsageError, match="twice"):
        macllm.load(adapter={"a": 1, "./a": 1})
    for text in ("a + a", "a:nan", "a:inf", ":2"):
        with pytest.raises(UsageError):
            blend.parse(text)


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL], ids=["dense", "experts"])
def test_factors_of_16_bits_are_blended_in_float32(config: dict[str, Any]) -> None:
    model = make(config)
    lora.apply(model, rank=2, alpha=2.0)
    halves: dict[str, dict[str, lora.Update]] = {"a": {}, "b": {}}
    for n, (layer, wrap) in enumerate(lora.adapters(model).items()):
        for m, updates in enumerate(halves.values()):
            b = mx.random.normal(wrap.lora_b.shape, key=mx.random.key(2 * n + m)).astype(mx.bfloat16)
            updates[layer] = lora.Update(wrap.lora_a.astype(mx.bfloat16), b, 0.3)
    model = make(config)
    exchange(model, {"a": 0.7, "b": 0.9}, lambda name, _: checked(model, halves[name]))
    for layer, wrap in lora.adapters(model).items():
        want = 0.0
        for weight, updates in zip((0.7, 0.9), halves.values(), strict=True):
            a, b = (np.array(x.astype(mx.float32)).astype(np.float64) for x in updates[layer][:2])
            want = want + 0.3 * weight * (b @ a if a.ndim == 3 else (a @ b).T)
        np.testing.assert_allclose(np.array(wrap.delta()), want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_load_takes_several_adapters_and_weights(tmp_path: Path) -> None:
    model, _ = macllm.load()
    lora.apply(model, rank=2, alpha=2.0, keys=("q_proj",))
    for number, layer in enumerate(lora.adapters(model).values()):
        layer.lora_b = mx.full(layer.lora_b.shape, 0.01 * (number + 1))
    for name in ("a", "b"):
        adapter.save(model, tmp_path / name)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    outputs = []
    for chosen in ([a, f"{b}:0.5"], f"{a} + {b}:0.5", {a: 1, b: 0.5}, [a, Path(b)]):
        blended, _ = macllm.load(adapter=chosen)  # type: ignore[arg-type]
        assert adapter.attached(blended).keys() == {a, b}
        outputs.append(blended(TOKENS))
    assert equal(outputs[0], outputs[1])
    assert equal(outputs[0], outputs[2])
    assert not equal(outputs[0], outputs[3])
    for wrong in ([], {a: "x"}, {a: float("nan")}, [3]):
        with pytest.raises(UsageError):
            macllm.load(adapter=wrong)  # type: ignore[arg-type]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_a_blend_equals_the_weighted_adapter_of_peft(kind: str, tmp_path: Path) -> None:
    import peft
    import torch

    case = next(c for c in DECODERS if c.name == "llama")
    torch.manual_seed(0)
    settings = [
        peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear"),
        peft.LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", use_rslora=True),
    ]
    oracle = peft.get_peft_model(oracles.write(case, tmp_path / "base"), settings[0], "a")
    oracle.add_adapter("b", settings[1])
    with torch.no_grad():
        for key, parameter in oracle.named_parameters():
            if "lora_B" in key:
                parameter.copy_(torch.randn_like(parameter) * 0.05)
    oracle.save_pretrained(tmp_path / "theirs")
    weights = {"a": 0.75, "b": 0.5}
    ranks = {"svd_rank": 6} if kind == "svd" else {}
    oracle.double().add_weighted_adapter(list(weights), list(weights.values()), "blend", kind, **ranks)
    oracle.set_adapter("blend")
    want = oracle.eval()(torch.tensor(np.array(TOKENS)), use_cache=False).logits.detach().numpy()
    model = load_model(tmp_path / "base")
    adapter.attach_blend(model, {str(tmp_path / "theirs/b"): 1.0})  # exchanged for the blend
    adapter.attach_blend(model, {str(tmp_path / "theirs" / name): weight for name, weight in weights.items()})
    with using_activations("float"):
        np.testing.assert_allclose(np.array(model(TOKENS)), want, rtol=0, atol=5e-6 * np.abs(want).max())
