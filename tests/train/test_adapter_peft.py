"""Adapters in PEFT's format: read, written, and refused by name; logits against peft."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macllm import adapter
from macllm.adapter import peft as form
from macllm.checkpoint import load_model
from macllm.errors import CheckpointError
from macllm.nn import lora
from macllm.weights.safetensors import load_file, save_file
from tests.families import oracles
from tests.train.test_adapter import LLAMA, PHI3, TOKENS, close, make, randomize
from tests.train.test_clm import DECODERS


def written(folder: Path, config: dict[str, Any] = LLAMA, **changes: Any) -> Any:
    """A model whose adapter is in `folder`."""
    model = make(config)
    lora.apply(model, rank=4, alpha=6.0, keys=("q_proj", "v_proj", "down_proj"), num_layers=2)
    randomize(model)
    adapter.save(model, folder, {"model": "org/base"}, "peft")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return model


@pytest.mark.parametrize("config", [LLAMA, PHI3], ids=["separate", "fused"])
def test_an_adapter_in_the_format_of_peft_gives_the_same_outputs(config: dict[str, Any], tmp_path: Path) -> None:
    model = written(tmp_path, config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert adapter.read_config(tmp_path)["model"] == "org/base"
    again = make(config)
    adapter.attach(again, tmp_path)
    assert close(again(TOKENS), model(TOKENS))


def test_scales_follow_rank_alpha_and_their_patterns(tmp_path: Path) -> None:
    tensors = {}
    for name, rank in (("self_attn.q_proj", 4), ("mlp.down_proj", 2)):
        tensors[f"base_model.model.model.layers.0.{name}.lora_A.weight"] = mx.ones((rank, 8))
        tensors[f"base_model.model.model.layers.0.{name}.lora_B.weight"] = mx.ones((8, rank))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"lora_alpha": 6, "alpha_pattern": {"layers.0.mlp.*": 5, "proj": 99}}
    scales = {name: update.scale for name, update in form.read(tmp_path, config).items()}
    assert scales == {"model.layers.0.self_attn.q_proj": 1.5, "model.layers.0.mlp.down_proj": 2.5}
    root = {name: update.scale for name, update in form.read(tmp_path, config | {"use_rslora": True}).items()}
    assert root["model.layers.0.self_attn.q_proj"] == 3.0
    ranks = {"r": 4, "rank_pattern": {"down_proj": 2}}
    assert {name: update.scale for name, update in form.read(tmp_path, config | ranks).items()} == scales
    with pytest.raises(CheckpointError, match=r"q_proj has rank 4, not 8"):
        form.read(tmp_path, config | {"r": 8})


def test_layers_of_several_scales_are_written_in_both_formats(tmp_path: Path) -> None:
    model = make()
    lora.apply(model, rank=2, alpha=2.0)
    randomize(model)
    for number, layer in enumerate(lora.adapters(model).values()):
        layer.scale = 1.0 + number % 3
    for name, kind in (("a", "mlx"), ("b", "peft")):
        adapter.save(model, tmp_path / name, form=kind)  # type: ignore[arg-type]
        again = make()
        adapter.attach(again, tmp_path / name)
        assert close(again(TOKENS), model(TOKENS))


@pytest.mark.parametrize("config", [LLAMA, PHI3], ids=["separate", "fused"])
@pytest.mark.parametrize("form", ["mlx", "peft"])
@pytest.mark.parametrize("zeros", [1, 999], ids=["first", "all"])
def test_scales_of_zero_and_factors_of_16_bits_are_written(
    config: dict[str, Any], form: adapter.Form, zeros: int, tmp_path: Path
) -> None:
    model = make(config)
    lora.apply(model, rank=2, alpha=2.0)
    randomize(model)
    for number, layer in enumerate(lora.adapters(model).values()):
        layer.scale = 0.0 if number < zeros else 0.1 + 0.3 * (number % 3)
        layer.lora_a, layer.lora_b = layer.lora_a.astype(mx.bfloat16), layer.lora_b.astype(mx.bfloat16)
    adapter.save(model, tmp_path, form=form)
    again = make(config)
    adapter.attach(again, tmp_path)
    found = lora.adapters(again)
    for name, layer in lora.adapters(model).items():
        assert close(found[name].delta(), layer.delta(), 1e-6) or not layer.scale
        assert layer.scale or not mx.any(found[name].delta())


@pytest.mark.parametrize(
    "change",
    [
        {"lora_bias": True},
        {"bias": "all"},
        {"target_parameters": ["experts.gate_up_proj_bias"]},
        {"peft_type": "IA3"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_adapter_of_peft_that_is_more_than_low_rank_updates_is_refused_by_name(
    change: dict[str, Any], tmp_path: Path
) -> None:
    written(tmp_path, **change)
    with pytest.raises(CheckpointError, match="cannot apply") as caught:
        adapter.attach(make(), tmp_path)
    assert f"{next(iter(change))} is " in (caught.value.cause or "")
    assert "merge_and_unload" in (caught.value.remedy or "")


def test_unknown_fields_and_layers_without_weights_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    targets = ["q_proj", "v_proj", "mlp.down_proj"]
    written(tmp_path, target_modules=targets, layers_to_transform=[2, 3], new_size=0, new_list=[])
    model = make()
    adapter.attach(model, tmp_path)
    written(tmp_path, target_modules=r".*layers\.[23]\..*(q_proj|v_proj|down_proj)", exclude_modules=["o_proj"])
    adapter.attach(model, tmp_path)
    assert caplog.messages == []
    written(tmp_path, target_modules=targets, newer={"rate": 2})
    adapter.attach(model, tmp_path)
    fields, layers = caplog.messages
    assert fields.endswith("macllm does not know: newer")
    assert "no weights for 6 layers that its config names, such as model.layers.0.mlp.down_proj;" in layers


def test_the_revision_of_the_base_is_read_and_written(tmp_path: Path) -> None:
    model = written(tmp_path, revision="v1")
    assert adapter.read_config(tmp_path)["model"] == "org/base@v1"
    adapter.save(model, tmp_path, {"model": "org/base@v2"}, "peft")
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (stored["base_model_name_or_path"], stored["revision"]) == ("org/base", "v2")
    assert adapter.read_config(tmp_path)["model"] == "org/base@v2"
    adapter.save(model, tmp_path, {"model": "/a@b/base"}, "peft")
    assert adapter.read_config(tmp_path)["model"] == "/a@b/base"


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga", "newer"])
def test_an_adapter_that_took_its_start_out_of_the_base_is_refused(start: str, tmp_path: Path) -> None:
    written(tmp_path, init_lora_weights=start)
    with pytest.raises(CheckpointError, match="changed base") as caught:
        adapter.attach(make(), tmp_path)
    assert start in (caught.value.cause or "")
    assert "path_initial_model_for_weight_conversion" in (caught.value.remedy or "")


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_a_start_beside_the_base_is_accepted(start: object, tmp_path: Path) -> None:
    written(tmp_path, init_lora_weights=start)
    adapter.attach(make(), tmp_path)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_a_pissa_adapter_that_peft_converted_gives_its_logits(tmp_path: Path) -> None:
    import peft
    import torch

    case = next(c for c in DECODERS if c.name == "llama")
    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights="pissa")
    oracle = peft.get_peft_model(oracles.write(case, tmp_path / "base"), settings).eval()
    oracle.peft_config["default"].init_lora_weights = True
    oracle.save_pretrained(tmp_path / "start")
    oracle.peft_config["default"].init_lora_weights = "pissa"
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in (p for n, p in oracle.named_parameters() if "lora_" in n):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    want = oracle(torch.tensor(np.array(TOKENS)), use_cache=False).logits.detach().numpy()
    oracle.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    model = load_model(tmp_path / "base")
    adapter.attach(model, tmp_path / "theirs")
    np.testing.assert_allclose(np.array(model(TOKENS)), want, rtol=0, atol=5e-6 * np.abs(want).max())


def test_tensors_of_other_kinds_and_invalid_configs_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    good = load_file(tmp_path / "adapter_model.safetensors")
    mx.eval(good)
    first, second = sorted(good)[:2]
    damages = {
        "is not a factor": {**good, "base_model.model.model.norm.weight": good[first]},
        "another lm_head": {**good, "base_model.model.lm_head.weight": good[first]},
        "stores wte, which": {**good, "base_model.model.wte.weight": good[first]},
        "has one factor only": {name: tensor for name, tensor in good.items() if name != second},
        "changes nothing": {},
        "does not have": {name.replace("q_proj", "z_proj"): tensor for name, tensor in good.items()},
    }
    for message, tensors in damages.items():
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            adapter.attach(make(), tmp_path)
    for alpha in (None, True, float("nan"), "6"):
        written(tmp_path, lora_alpha=alpha)
        with pytest.raises(CheckpointError, match="not a LoRA config of PEFT"):
            adapter.attach(make(), tmp_path)


@pytest.mark.parametrize("use_dora", [False, True])
def test_names_of_a_state_dict_are_read_as_those_of_a_file(use_dora: bool, tmp_path: Path) -> None:
    model = make()
    lora.apply(model, rank=2, alpha=2.0, keys=("q_proj",) if use_dora else ("q_proj", "tokens"), use_dora=use_dora)
    randomize(model)
    adapter.save(model, tmp_path, form="peft")
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    mx.eval(tensors)
    short, long = (re.compile(rf"(lora_\w+?){end}(\.weight)?$") for end in ("", r"(\.default)?"))
    for pattern, other in ((short, r"\1.default\2"), (long, r"\1.default.weight"), (short, r"\1.weight")):
        named = {
            pattern.sub(other, n) if "embedding" not in n else short.sub(r"\1.default", n): tensors[n] for n in tensors
        }
        assert named.keys() != tensors.keys() or not use_dora
        save_file(named, path)
        again = make()
        adapter.attach(again, tmp_path)
        assert close(again(TOKENS), model(TOKENS), 1e-6)


def test_magnitudes_of_an_embedding_and_pickled_adapters_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(CheckpointError, match="magnitudes of embedding"):
        lora.check(make(), {"embedding.tokens": lora.Update(mx.zeros((97, 2)), mx.zeros((2, 64)), 1.0, mx.ones((97,)))})
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        adapter.attach(make(), tmp_path)


SETTINGS = [
    {},
    {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.mlp.down_proj": 9, "q_proj": 3}},
]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "patterns"])
@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2"])
def test_logits_equal_those_of_peft_in_both_directions(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    import peft
    import torch

    case = next(c for c in DECODERS if c.name == name)
    base = oracles.write(case, tmp_path / "base")
    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", **settings)
    torch.manual_seed(0)
    oracle = peft.get_peft_model(base, settings).eval()
    with torch.no_grad():
        for parameter in (p for n, p in oracle.named_parameters() if "lora_B" in n):
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    oracle.save_pretrained(tmp_path / "theirs")
    tokens = torch.tensor(np.array(TOKENS))
    want = oracle(tokens, use_cache=False).logits.detach().numpy()
    model = load_model(tmp_path / "base")
    plain = np.array(model(TOKENS))
    adapter.attach(model, tmp_path / "theirs")
    assert np.abs(plain - want).max() > 1e-2 * np.abs(want).max()
    np.testing.assert_allclose(np.array(model(TOKENS)), want, rtol=0, atol=5e-6 * np.abs(want).max())
    adapter.save(model, tmp_path / "ours", form="peft")
    base = oracles.write(case, tmp_path / "base")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    got = again(tokens, use_cache=False).logits.detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 * np.abs(want).max())
