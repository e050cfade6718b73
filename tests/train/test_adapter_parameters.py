"""Adapters that PEFT stores otherwise than macllm: experts, routers, fused and transposed layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macllm import adapter
from macllm.adapter import parameters
from macllm.adapter import peft as form
from macllm.adapter.export import export
from macllm.adapter.names import Names, our_keys
from macllm.checkpoint import load_model
from macllm.errors import CheckpointError
from macllm.nn import lora
from macllm.weights.safetensors import load_file, save_file
from tests.families import foreign, oracles
from tests.families.test_parity import compared, our_logits, theirs_logits
from tests.train.test_adapter import LLAMA, TOKENS, close, make, randomize
from tests.train.test_adapter_experts import MIXTRAL, QWEN

CASES = {case.name: case for case in oracles.CASES}
OF_GPT2 = [
    {"keys": ("tokens", "q_proj")},
    {"keys": ("o_proj",), "modules_to_save": ("tokens", "q_proj", "k_proj", "v_proj", "up_proj")},
    {"use_dora": True},
]
FAMILIES = [c.name for c in oracles.CASES if c.main] + ["qwen3_moe-mixed", "bert-pooled"]


def equal(got: Any, want: Any, case: oracles.Case, rows: oracles.Batch) -> None:
    """Logits of a padded batch, but for its padding."""
    mask, wanted = compared(case, rows), want.detach().numpy()
    np.testing.assert_allclose(np.array(got)[mask], wanted[mask], rtol=0, atol=5e-6 * np.abs(wanted[mask]).max())


def change(model: Any) -> None:
    """Give all that an adapter trains values that training could have given it."""
    randomize(model)
    for layer in lora.adapters(model).values():
        if isinstance(layer, lora.LoRAEmbedding):  # its A is 0 at first
            layer.lora_a = mx.random.normal(layer.lora_a.shape) * 0.1
        if isinstance(layer, lora.DoRALinear):
            layer.magnitude = layer.magnitude * 1.25
    for module in lora.saved(model).values():
        module["weight"] = module["weight"] * 1.25
    model.eval()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "settings"), [*((name, {}) for name in FAMILIES), *(("gpt2", settings) for settings in OF_GPT2)], ids=str
)
def test_adapters_of_every_family_are_exchanged_with_peft(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    import peft

    case, rows = CASES[name], oracles.batch(CASES[name])
    base = oracles.write(case, tmp_path / "base")
    model = load_model(tmp_path / "base")
    plain = np.array(our_logits(case, model, rows))
    keys = ("*_proj", "router") if case.options.get("num_experts_per_tok") else ()
    lora.apply(model, **{"rank": 3, "alpha": 5.0, "keys": keys, **settings})
    change(model)
    got = np.array(our_logits(case, model, rows))
    assert np.abs(got - plain).max() > 1e-2 * np.abs(got).max()
    adapter.save(model, tmp_path / "ours", form="peft")
    oracle = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    want = theirs_logits(case, oracle, rows)
    equal(got, want, case, rows)
    oracle.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "base")
    adapter.attach(again, tmp_path / "theirs")
    equal(our_logits(case, again, rows), want, case, rows)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "llama4_text"])
def test_target_parameters_of_peft_give_its_logits(name: str, tmp_path: Path) -> None:
    import peft
    import torch

    case, rows = CASES[name], oracles.batch(CASES[name])
    router = "router.weight" if name == "llama4_text" else "mlp.gate.weight"
    settings: dict[str, Any] = {
        "target_modules": ["q_proj"],
        "target_parameters": ["experts.gate_up_proj", "1.mlp.experts.down_proj", "3.feed_forward.experts.down_proj"],
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"gate_up_proj": 9, router: 7},
        "use_rslora": name == "mixtral",
    }
    settings["target_parameters"].append(router)
    torch.manual_seed(0)
    oracle = peft.get_peft_model(oracles.write(case, tmp_path / "base"), peft.LoraConfig(r=3, lora_alpha=5, **settings))
    with torch.no_grad():
        for parameter in (p for n, p in oracle.named_parameters() if "lora_B" in n):
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    want = theirs_logits(case, oracle.eval(), rows)
    oracle.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "base")
    adapter.attach(model, tmp_path / "theirs")
    equal(our_logits(case, model, rows), want, case, rows)
    export(load_model(tmp_path / "base"), tmp_path / "theirs", tmp_path / "mlx", "mlx")
    export(load_model(tmp_path / "base"), tmp_path / "mlx", tmp_path / "ours", "peft")
    ranks = {config["r"] for config in (form.read_config(tmp_path / "theirs"), form.read_config(tmp_path / "ours"))}
    assert ranks == {3}  # gate and up, which share A, keep it
    again = peft.PeftModel.from_pretrained(oracles.write(case, tmp_path / "base"), tmp_path / "ours").eval()
    equal(our_logits(case, model, rows), theirs_logits(case, again, rows), case, rows)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_an_adapter_of_single_experts_gives_the_logits_of_peft(name: str, tmp_path: Path) -> None:
    import peft

    case, rows, random = CASES[name], oracles.batch(CASES[name]), np.random.default_rng(0)
    base, mixtral = oracles.write(case, tmp_path / "base"), name == "mixtral"
    wide = {"w1": (48, 80), "w3": (48, 80), "w2": (80, 48)}
    small = {"gate_proj": (48, 24), "up_proj": (48, 24), "down_proj": (24, 48)}
    tensors = {}
    for i, e in np.ndindex(4, 5 if mixtral else 6):
        for leaf, (inputs, outputs) in (wide if mixtral else small).items():
            module = f"model.layers.{i}.{'block_sparse_moe' if mixtral else 'mlp'}.experts.{e}.{leaf}"
            a, b = random.standard_normal((3, inputs)) / inputs**0.5, random.standard_normal((outputs, 3)) * 0.1
            for factor, array in (("A", a), ("B", b)):
                tensors[f"base_model.model.{module}.lora_{factor}.weight"] = mx.array(array.astype(np.float32))
    (tmp_path / "theirs").mkdir()
    save_file(tensors, tmp_path / "theirs/adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 5}
    targets = list(wide if mixtral else small)
    (tmp_path / "theirs/adapter_config.json").write_text(json.dumps(config | {"target_modules": targets}))
    model = load_model(tmp_path / "base")
    adapter.attach(model, tmp_path / "theirs")
    want = theirs_logits(case, peft.PeftModel.from_pretrained(base, tmp_path / "theirs").eval(), rows)
    equal(our_logits(case, model, rows), want, case, rows)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_experts_and_routers_that_are_stored_whole_are_exchanged_with_peft(tmp_path: Path) -> None:
    import peft

    case, rows = CASES["mixtral"], oracles.batch(CASES["mixtral"])
    base = oracles.write(case, tmp_path / "base")
    model: Any = load_model(tmp_path / "base")
    lora.apply(model, rank=2, alpha=2.0, keys=("q_proj",), modules_to_save=("experts.*", "router"))
    change(model)
    adapter.save(model, tmp_path / "ours", form="peft")
    oracle = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    want = theirs_logits(case, oracle, rows)
    equal(our_logits(case, model, rows), want, case, rows)
    oracle.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "base")
    adapter.attach(again, tmp_path / "theirs")
    equal(our_logits(case, again, rows), want, case, rows)


@pytest.mark.parametrize("keys", [("experts.down_proj",), ("experts.gate_proj",), ("experts.*", "router", "q_proj")])
@pytest.mark.parametrize("config", [MIXTRAL, QWEN], ids=["mixtral", "qwen3_moe"])
def test_some_or_all_stacks_give_the_same_outputs_when_attached_again(
    config: dict[str, Any], keys: tuple[str, ...], tmp_path: Path
) -> None:
    model = make(config)
    lora.apply(model, rank=2, alpha=3.0, keys=keys, dropout=0.1)
    randomize(model)
    adapter.save(model, tmp_path, form="peft")
    assert form.read_config(tmp_path)["lora_dropout"] == 0  # else PEFT refuses parameters
    again = make(config)
    adapter.attach(again, tmp_path)
    assert close(again(TOKENS), model.eval()(TOKENS))


def test_a_stack_whose_inputs_are_at_b_is_turned_by_its_shape(tmp_path: Path) -> None:
    model = make(MIXTRAL)
    lora.apply(model, rank=2, alpha=2.0, keys=("experts.down_proj",))
    randomize(model)
    adapter.save(model, tmp_path, form="peft")
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if "lora_A" in name]:  # as versions of peft before 0.19 did
        other = name.replace("lora_A", "lora_B")
        a, b = tensors[name].reshape(4, 2, -1), tensors[other].reshape(-1, 2, 4)  # (E, r, D), (F, r, E)
        tensors[name], tensors[other] = b.transpose(2, 1, 0).flatten(0, 1), a.transpose(2, 1, 0).flatten(1)
    mx.eval(tensors)
    save_file(tensors, path)
    again = make(MIXTRAL)
    adapter.attach(again, tmp_path)
    assert close(again(TOKENS), model(TOKENS))
    square = MIXTRAL | {"intermediate_size": MIXTRAL["hidden_size"]}
    model = make(square)
    lora.apply(model, rank=2, alpha=2.0, keys=("experts.down_proj",))
    adapter.save(model, tmp_path / "square", form="peft")
    adapter.attach(make(square), tmp_path / "square")
    config = tmp_path / "square/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_version": "0.18.1"}))
    with pytest.raises(CheckpointError, match="is ambiguous"):
        adapter.attach(make(square), tmp_path / "square")


def test_names_of_wrapped_parameters_follow_the_order_of_their_definition() -> None:
    both = {"target_parameters": ["gate_up_proj", "x.experts.down_proj"]}
    inner, outer = "x.experts.base_layer", "x.experts"
    assert [parameters.named(name, both) for name in (inner, outer)] == [
        "x.experts.gate_up_proj",
        "x.experts.down_proj",
    ]
    assert parameters.named("y.experts", both) == "y.experts.gate_up_proj"
    names = {"x.experts.gate_up_proj", "x.experts.down_proj"}
    assert [parameters.module_of(name, names) for name in sorted(names)] == [outer, inner]
    assert parameters.module_of("x.experts.gate_up_proj", {"x.experts.gate_up_proj"}) == outer


def test_changes_that_peft_cannot_hold_are_refused_with_one_reason(tmp_path: Path) -> None:
    model = make(QWEN)
    lora.apply(model, rank=2, alpha=2.0, keys=("router",), use_dora=True)
    with pytest.raises(CheckpointError, match=r"gate.weight beside DoRA"):
        adapter.save(model, tmp_path, form="peft")
    model = make(QWEN)
    lora.apply(model, rank=2, alpha=2.0, keys=("q_proj",), modules_to_save=("experts.gate_proj",))
    with pytest.raises(CheckpointError, match=r"whole without .*up_proj"):
        adapter.save(model, tmp_path, form="peft")
    model = make({"model_type": "bart", **oracles.SEQ2SEQ})
    lora.apply(model, rank=2, alpha=2.0, keys=("q_proj", "tokens"))
    with pytest.raises(CheckpointError, match="encoder and decoder share"):
        adapter.save(model, tmp_path, form="peft")
    stack = lora.Update(mx.zeros((4, 2, 8)), mx.zeros((4, 8, 2)))
    with pytest.raises(CheckpointError, match="is a stack of experts"):
        form.save({"model.layers.0.mlp.switch_mlp.up_proj": stack}, {"lora_dropout": 0.0}, tmp_path)
    model = make(MIXTRAL)
    lora.apply(model, rank=2, alpha=2.0, keys=("experts.*",))
    adapter.save(model, tmp_path, form="peft")
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 3, "rank_pattern": {}}))
    with pytest.raises(CheckpointError, match="do not match"):
        adapter.attach(make(MIXTRAL), tmp_path)
    adapter.save(model, tmp_path / "moe", form="peft")
    with pytest.raises(CheckpointError, match="does not have"):
        adapter.attach(make(LLAMA), tmp_path / "moe")


def test_keys_may_name_the_stacks_of_transformers() -> None:
    model = make(MIXTRAL)
    stacks = [name.rpartition(".")[2] for name in our_keys(model, ("experts.gate_up_proj",))]
    assert sorted(set(stacks)) == ["gate_proj", "up_proj"]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_routers_and_shared_experts_of_a_class_of_mlx_lm_give_the_logits_of_peft(tmp_path: Path) -> None:
    import peft
    import torch

    base = foreign.write("qwen3_next", tmp_path / "base")
    model: Any = load_model(tmp_path / "base")
    plain = np.array(model(TOKENS))
    lora.apply(model, rank=2, alpha=4.0, keys=("q_proj", "mlp.gate", "*.shared_expert.*"))
    change(model)
    got = np.array(model(TOKENS))
    adapter.save(model, tmp_path / "ours", form="peft")
    oracle = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    want = oracle(torch.tensor(np.array(TOKENS)), use_cache=False).logits.detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(got - plain).max())
    again = load_model(tmp_path / "base")
    adapter.attach(again, tmp_path / "ours")
    assert close(again(TOKENS), mx.array(got))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(form._OTHER))
def test_exactly_the_names_that_transformers_does_not_have_are_refused(kind: str, tmp_path: Path) -> None:
    base = foreign.write(kind, tmp_path)
    known = dict(base.named_modules()).keys() | dict(base.named_parameters()).keys()
    model: Any = load_model(tmp_path)
    names = Names.of(model, "modules")
    for name in (each for ours in lora.targets(model, ("*",)) for each in names.theirs(ours) if "switch_" not in each):
        if name in known:
            form.refuse_names([name], model.info.config)
            continue
        with pytest.raises(CheckpointError, match="cannot be written"):
            form.refuse_names([name], model.info.config)


@pytest.mark.parametrize(
    ("name", "config", "cause"),
    [
        ("model.layers.0.self_attn.k_proj", {"model_type": "falcon_h1"}, "multiplies by factors"),
        ("model.layers.0.mamba.dt_proj", {"model_type": "jamba"}, "has no effect in PEFT"),
        ("model.language_model.layers.0.mlp.up_proj", {"model_type": "gemma3n_text"}, "under another one"),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", {"model_type": "laguna"}, "under another one"),
    ],
)
def test_layers_that_peft_would_not_find_or_adapt_are_refused(name: str, config: dict[str, Any], cause: str) -> None:
    form.refuse_names([name], {"text_config": {}, "model_type": "gemma3n"})
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        form.refuse_names([name], config)
    assert cause in (caught.value.cause or "")
