"""Adapters of the token embedding and of the head, tied and untied, alone and in both formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import adapter
from macllm.adapter.names import our_keys
from macllm.checkpoint import load_model, save
from macllm.errors import CheckpointError, UsageError
from macllm.nn import lora, quantize
from macllm.ops.quantized import using_activations
from macllm.train.objectives.clm import CausalLM, collate
from macllm.weights.safetensors import load_file, save_file
from tests.families import oracles
from tests.train.test_adapter import DETAILS, LLAMA, TOKENS, close, make
from tests.train.test_clm import DECODERS, rows

UNTIED = {**LLAMA, "tie_word_embeddings": False}
KEYS = ("embedding.tokens", "q_proj")


def adapted(config: dict[str, Any] = LLAMA, bits: int | None = None, keys: tuple[str, ...] = KEYS) -> Any:
    """A model with random factors in its adapted layers."""
    model = make(config)
    if bits:
        quantize.apply(model, bits=bits, group_size=32)
    lora.apply(model, rank=3, alpha=6.0, keys=keys)
    for layer, key in zip(lora.adapters(model).values(), mx.random.split(mx.random.key(1), 99), strict=False):
        layer.lora_a = mx.random.normal(layer.lora_a.shape, key=key) * 0.1
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=key) * 0.1
    return model


@pytest.mark.parametrize("config", [LLAMA, UNTIED], ids=["tied", "untied"])
def test_a_new_adapter_of_the_embedding_changes_nothing_and_trains(config: dict[str, Any]) -> None:
    model = make(config)
    before = model(TOKENS)
    assert not any("embedding" in name for name in lora.targets(model))
    assert lora.apply(model, rank=4, alpha=8.0, keys=("*embed*",)) == ["embedding.tokens"]
    assert bool(mx.array_equal(model(TOKENS), before))
    _, tree = nn.value_and_grad(model, lambda b: CausalLM().loss(model, b))(collate(rows(97)))
    gradients = dict(tree_flatten(tree))
    assert sorted(gradients) == ["embedding.tokens.lora_a", "embedding.tokens.lora_b"]
    assert float(mx.abs(gradients["embedding.tokens.lora_a"]).max()) > 0


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("config", [LLAMA, UNTIED], ids=["tied", "untied"])
def test_an_adapted_embedding_equals_a_changed_matrix_for_input_and_tied_head(
    config: dict[str, Any], bits: int | None
) -> None:
    model, merged = adapted(config, bits, ("embedding.tokens",)), make(config)
    layer = lora.adapters(model)["embedding.tokens"]
    table = np.array(lora.unpacked_weight(layer.linear)).astype(np.float64)
    a, b = np.array(layer.lora_a).astype(np.float64), np.array(layer.lora_b).astype(np.float64)
    if bits:
        quantize.apply(merged, bits=bits, group_size=32)
        quantize.remove(merged)
    merged.embedding.tokens.weight = mx.array((table + 2.0 * a @ b).astype(np.float32))
    with using_activations("float"):
        assert close(model(TOKENS), merged(TOKENS), 1e-5)
        lora.fuse(model, dequantize=True)
        assert close(model(TOKENS), merged(TOKENS), 1e-5)


@pytest.mark.parametrize("form", ["mlx", "peft"])
@pytest.mark.parametrize("config", [LLAMA, UNTIED], ids=["tied", "untied"])
def test_a_saved_embedding_gives_the_same_outputs_when_attached_again(
    config: dict[str, Any], form: adapter.Form, tmp_path: Path
) -> None:
    model = adapted(config)
    adapter.save(model, tmp_path, form=form)
    again = make(config)
    base = again(TOKENS)
    adapter.attach(again, tmp_path)
    assert close(again(TOKENS), model(TOKENS))
    with lora.disabled(again):
        assert bool(mx.array_equal(again(TOKENS), base))
    adapter.activate(again, None)
    assert bool(mx.array_equal(again(TOKENS), base))
    with pytest.raises(CheckpointError, match=r"embedding\.tokens"):
        adapter.attach(make({**config, "vocab_size": 90}), tmp_path)


def test_an_adapter_that_spares_the_tied_head_is_neither_merged_nor_mixed(tmp_path: Path) -> None:
    model = adapted(keys=("embedding.tokens",))
    adapter.save(model, tmp_path / "both", form="peft")
    lora.adapters(model)["embedding.tokens"].head = False  # type: ignore[attr-defined]
    adapter.save(model, tmp_path / "alone", form="peft")
    again = make()
    adapter.attach(again, tmp_path / "alone")
    assert close(again(TOKENS), model(TOKENS))
    with pytest.raises(UsageError, match="cannot be merged"):
        lora.fuse(again)
    with pytest.raises(CheckpointError, match="tied head"):
        adapter.save(again, tmp_path / "mlx")
    with pytest.raises(UsageError, match="blended"):
        adapter.attach_blend(again, {str(tmp_path / name): 1.0 for name in ("both", "alone")})


def test_dora_on_embeddings_is_refused() -> None:
    with pytest.raises(UsageError, match="DoRA cannot adapt embeddings"):
        lora.apply(make(), rank=2, alpha=4.0, keys=("embedding.tokens",), use_dora=True)


def test_an_embedding_that_was_resized_or_trained_is_refused(tmp_path: Path) -> None:
    model = adapted(keys=("embedding.tokens",))
    adapter.save(model, tmp_path, form="peft")
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    mx.eval(tensors)
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    table = lora.adapters(model)["embedding.tokens"].linear.weight
    save_file({**tensors, name: table}, path)
    adapter.attach(make(), tmp_path)
    for other in (table * 1.5, table[:-1]):
        save_file({**tensors, name: other}, path)
        with pytest.raises(CheckpointError, match=r"another model\.embed_tokens"):
            adapter.attach(make(), tmp_path)


@pytest.mark.parametrize("table", ["model.embed_tokens", "lm_head"])
def test_tables_beside_an_adapter_of_other_layers_are_those_of_the_base_or_refused(table: str, tmp_path: Path) -> None:
    model = adapted(UNTIED, keys=("*.mixer.q_proj",))
    adapter.save(model, tmp_path, form="peft")
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    mx.eval(tensors)
    module = model.head.proj if table == "lm_head" else model.embedding.tokens
    name = f"base_model.model.{table}.weight"
    save_file({**tensors, name: module.weight}, path)
    again = make(UNTIED)
    adapter.attach(again, tmp_path)
    assert close(again(TOKENS), model(TOKENS))
    save_file({**tensors, name: mx.pad(module.weight, [(0, 2), (0, 0)])}, path)
    with pytest.raises(CheckpointError, match=f"another {table} than the model has"):
        adapter.attach(make(UNTIED), tmp_path)


def test_targets_of_embeddings_may_have_the_names_of_mlx_lm() -> None:
    assert our_keys(make(), ("embed_tokens",)) == ("embedding.tokens",)


@pytest.mark.parity
@pytest.mark.parametrize("config", [LLAMA, UNTIED], ids=["tied", "untied"])
def test_an_adapted_embedding_gives_the_same_logits_in_mlx_lm(config: dict[str, Any], tmp_path: Path) -> None:
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model as load_theirs

    save(make(DETAILS | config), None, tmp_path / "model")
    heads = ("head.proj",) if config is UNTIED else ()
    model = adapted(DETAILS | config, keys=(*KEYS, *heads))
    adapter.save(model, tmp_path)
    theirs, _ = load_theirs(tmp_path / "model")
    plain = theirs(TOKENS)
    load_adapters(theirs, str(tmp_path))
    theirs.eval()
    assert not close(theirs(TOKENS), plain, 1e-2)
    assert close(model(TOKENS), theirs(TOKENS), 1e-4)


CASES = [(False, {}), (True, {}), (True, {"ensure_weight_tying": True})]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("tied", "settings"), CASES, ids=["untied", "tied-alone", "tied-both"])
def test_embeddings_are_exchanged_with_peft(tied: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    import peft
    import torch
    import transformers

    case = next(c for c in DECODERS if c.name == "llama")
    config = oracles.write(case, tmp_path / "plain").config
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")

    def fresh() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")

    targets = ["embed_tokens", "q_proj", *([] if tied else ["lm_head"])]
    oracle = peft.get_peft_model(fresh(), peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, **settings))
    with torch.no_grad():
        for key, parameter in oracle.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    oracle.save_pretrained(tmp_path / "theirs")
    tokens = torch.tensor(np.array(TOKENS))
    want = oracle.eval()(tokens, use_cache=False).logits.detach().numpy()
    model = load_model(tmp_path / "base")
    adapter.attach(model, tmp_path / "theirs")
    np.testing.assert_allclose(np.array(model(TOKENS)), want, rtol=0, atol=5e-6 * np.abs(want).max())
    adapter.save(model, tmp_path / "ours", form="peft")
    again = peft.PeftModel.from_pretrained(fresh(), tmp_path / "ours").eval()
    got = again(tokens, use_cache=False).logits.detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 * np.abs(want).max())
