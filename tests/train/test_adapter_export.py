"""`macllm adapters` shows and translates adapters; targets under the names of other libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

import macllm
from macllm import adapter
from macllm.adapter.export import describe, export
from macllm.adapter.names import our_keys
from macllm.checkpoint import load_model
from macllm.cli import main
from macllm.errors import UsageError
from macllm.nn import lora
from macllm.weights.safetensors import load_file
from tests.families import oracles
from tests.train.test_adapter import LLAMA, PHI3, TOKENS, close, make, randomize
from tests.train.test_adapter_experts import MIXTRAL
from tests.train.test_clm import DECODERS


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("config", [LLAMA, PHI3], ids=["separate", "fused"])
def test_a_round_trip_through_the_other_format_gives_the_same_bytes(
    config: dict[str, Any], use_dora: bool, tmp_path: Path
) -> None:
    model = make(config)
    lora.apply(model, rank=4, alpha=6.0, dropout=0.1, num_layers=2, use_dora=use_dora)
    randomize(model)
    model.eval()
    adapter.save(model, tmp_path / "a", {"model": "org/base", "learning_rate": 1e-3})
    export(make(config), tmp_path / "a", tmp_path / "b", "peft")
    export(make(config), tmp_path / "b", tmp_path / "c", "mlx")
    export(make(config), tmp_path / "c", tmp_path / "d", "peft")
    first, second = tmp_path / "a", tmp_path / "c"
    assert (first / "adapters.safetensors").read_bytes() == (second / "adapters.safetensors").read_bytes()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()
    again = make(config)
    adapter.attach(again, second)
    assert close(again(TOKENS), model(TOKENS))
    ours, back = describe(first), describe(second)
    assert (ours.kind, ours.base, ours.dropout, ours.targets) == (back.kind, back.base, back.dropout, back.targets)


@pytest.mark.parametrize("kind", [mx.float16, mx.bfloat16])
def test_an_exported_adapter_keeps_the_16_bits_of_its_factors(kind: mx.Dtype, tmp_path: Path) -> None:
    model = make()
    lora.apply(model, rank=3, alpha=6.0)
    randomize(model)
    model.update(tree_map(lambda array: array.astype(kind), model.trainable_parameters()))
    adapter.save(model, tmp_path / "a")
    export(make(), tmp_path / "a", tmp_path / "b", "peft")
    export(make(), tmp_path / "b", tmp_path / "c", "mlx")
    first, second = (load_file(tmp_path / name / "adapters.safetensors") for name in "ac")
    assert {array.dtype for array in (*first.values(), *second.values())} == {kind}
    assert first.keys() == second.keys()
    assert all(bool(mx.array_equal(array, second[name])) for name, array in first.items())


def test_an_adapter_is_described_from_its_files(tmp_path: Path) -> None:
    model = make()
    lora.apply(model, rank=4, alpha=6.0, keys=("q_proj", "down_proj"), dropout=0.25)
    for form in ("mlx", "peft"):
        adapter.save(model, tmp_path / form, {"model": "org/base"}, form)  # type: ignore[arg-type]
        found = describe(tmp_path / form)
        assert (found.form, found.kind, found.base) == (form, "LoRA", "org/base")
        assert (found.ranks, found.scales, found.dropout) == ([4], [1.5], 0.25)
        assert found.targets == {"mlp.down_proj": 4, "self_attn.q_proj": 4}
        assert found.parameters == sum(
            a.size for a in load_file(next((tmp_path / form).glob("*.safetensors"))).values()
        )


def test_the_command_shows_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = macllm.load()
    lora.apply(model, rank=2, alpha=4.0, keys=("q_proj",))
    randomize(model)
    adapter.save(model, tmp_path / "a", {"model": "maclet"})
    folder = str(tmp_path / "a")
    assert main(["adapters", "export", folder, "--form", "peft"]) == 0
    assert capsys.readouterr().out.strip() == f"{folder}-peft"
    again, _ = macllm.load(adapter=f"{folder}-peft")
    assert close(again(TOKENS), model(TOKENS))
    assert main(["adapters", "show", f"{folder}-peft"]) == 0
    shown = capsys.readouterr().out
    assert "LoRA in the format of peft, of maclet" in shown
    assert "self_attn.q_proj" in shown
    assert main(["adapters", "show", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"] == [2]
    assert main(["adapters", "export", folder, "--form", "peft"]) != 0
    assert "already has a model or an adapter" in capsys.readouterr().err
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    assert main(["adapters", "export", folder, "--form", "peft", "-o", str(tmp_path / "m")]) == 2


def test_targets_may_have_the_names_of_mlx_lm_and_transformers() -> None:
    model = make()
    keys = our_keys(model, ("self_attn.q_proj", "v_proj", "*.layers.0.mlp.*"))
    assert len(lora.targets(model, keys)) == 4 + 4 + 3
    fused = make(PHI3)
    parts = lora.targets(fused, our_keys(fused, ("self_attn.qkv_proj",)), num_layers=1)
    assert [name.rsplit(".", 1)[-1] for name in parts] == ["k_proj", "q_proj", "v_proj"]
    experts = make(MIXTRAL)
    assert len(lora.targets(experts, our_keys(experts, ("switch_mlp.up_proj", "lm_head")))) == 4 + 1
    with pytest.raises(UsageError, match=r"pattern 'self_attn\.z_proj'"):
        lora.targets(model, our_keys(model, ("self_attn.z_proj",)))


def test_an_output_with_an_adapter_is_refused(tmp_path: Path) -> None:
    model = make()
    lora.apply(model, rank=2, alpha=2.0)
    adapter.save(model, tmp_path / "a")
    with pytest.raises(UsageError, match="already has"):
        export(make(), tmp_path / "a", tmp_path / "a", "peft")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_attention_of_a_mixture_of_experts_is_exchanged_with_peft(tmp_path: Path) -> None:
    import peft
    import torch

    case = next(c for c in DECODERS if c.name == "mixtral")
    base = oracles.write(case, tmp_path / "base")
    model = load_model(tmp_path / "base")
    lora.apply(model, rank=3, alpha=6.0, keys=our_keys(model, ("self_attn.*",)), use_rslora=True)
    randomize(model)
    adapter.save(model, tmp_path / "mlx")
    export(load_model(tmp_path / "base"), tmp_path / "mlx", tmp_path / "peft", "peft")
    oracle = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    want = oracle(torch.tensor(np.array(TOKENS)), use_cache=False).logits.detach().numpy()
    got = np.array(model(mx.array(TOKENS)))
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 * np.abs(want).max())
