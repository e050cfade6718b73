"""Modules that are trained whole beside an adapter, PEFT's modules_to_save."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import adapter, checkpoint
from macllm.adapter.export import describe, export
from macllm.adapter.merge import merge
from macllm.adapter.names import our_modules_to_save
from macllm.errors import CheckpointError, UsageError
from macllm.nn import lora, quantize
from macllm.train import finetune as finetuning
from macllm.train.config import FinetuneConfig
from macllm.train.events import Step
from macllm.train.finetune import finetune
from macllm.weights.safetensors import load_file, save_file
from tests.train.test_adapter import LLAMA, PHI3, TOKENS, close, make, randomize
from tests.train.test_full import write_base
from tests.train.torch_run import followed, train_beside

UNTIED = {**LLAMA, "tie_word_embeddings": False}
SAVED = {True: ("embed_tokens", "norm"), False: ("lm_head", "layers.1.input_layernorm")}


def adapted(
    config: dict[str, Any] = LLAMA, modules: tuple[str, ...] = ("embed_tokens", "norm"), **settings: Any
) -> Any:
    """A model with an adapter whose factors and modules are not those of the beginning."""
    model = make(config)
    lora.apply(model, rank=2, alpha=4.0, modules_to_save=our_modules_to_save(model, modules), **settings)
    randomize(model)
    for number, module in enumerate(lora.saved(model).values()):
        module.weight = module.weight + 0.1 * mx.random.normal(module.weight.shape, key=mx.random.key(number))
    return model


def settings(base: Path, out: Path, **changes: Any) -> FinetuneConfig:
    given = {
        "data": base / "train.jsonl", "model": base / "model", "adapter_path": out, "iters": 4, "rank": 2, "alpha": 4.0,
        "learning_rate": 0.01, "weight_decay": 0.1, "steps_per_report": 1, "save_every": 2,
    }  # fmt: skip
    return FinetuneConfig.load(**(given | changes))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_run_has_the_weights_of_peft(tied: bool, tmp_path: Path) -> None:
    import peft
    import torch
    import transformers

    base = write_base(tmp_path / "base", tied=tied)
    given = {"keys": ["q_proj", "down_proj"], "modules_to_save": SAVED[tied], "warmup": 0.0, "schedule": "constant"}
    config = settings(base, tmp_path / "run", epsilon=1e-4, **given)
    model, _ = checkpoint.load(base / "model")
    finetuning._trainable(model, config)
    adapter.save(model, tmp_path / "start", form="peft")
    start = load_file(tmp_path / "start" / "adapter_model.safetensors")
    mx.eval(start)

    def oracle(folder: Path, **settings: Any) -> Any:
        plain = transformers.AutoModelForCausalLM.from_pretrained(base / "model")
        plain.get_input_embeddings().padding_idx = None
        return peft.PeftModel.from_pretrained(plain, folder, **settings)

    trained = oracle(tmp_path / "start", is_trainable=True)
    assert {name.endswith("default.weight") for name, weight in trained.named_parameters() if weight.requires_grad} == {
        True
    }
    path, steps, batches = followed(config)
    train_beside(trained, config, steps, batches, lambda name, weight: weight.ndim > 1 and "embed" not in name)
    trained.save_pretrained(tmp_path / "theirs")
    model, _ = checkpoint.load(base / "model")
    export(model, path, tmp_path / "ours", "peft")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() == start.keys()
    assert any(name.endswith(".lm_head.weight") for name in ours)
    for name, want in theirs.items():
        assert mx.abs(ours[name] - want).max() <= 2e-5 * mx.abs(want).max(), name
        assert not mx.array_equal(want, start[name]), name
    tokens = np.array([[3, 4, 5, 6, 7]])
    want = trained.eval()(torch.tensor(tokens)).logits.detach().numpy()
    again = oracle(tmp_path / "ours").eval()(torch.tensor(tokens)).logits.detach().numpy()
    assert np.abs(again - want).max() <= 1e-4 * np.abs(want).max()
    for folder in (path, tmp_path / "theirs"):
        loaded, _ = checkpoint.load(base / "model", adapter=folder)
        assert np.abs(np.array(loaded(mx.array(tokens))) - again).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]], ids=" ".join)
def test_an_adapter_of_peft_that_unties_the_head_is_refused(modules: list[str], tmp_path: Path) -> None:
    import peft
    import torch
    import transformers

    base = write_base(tmp_path / "base", tied=True)
    for tying in (False, True):
        plain = transformers.AutoModelForCausalLM.from_pretrained(base / "model")
        given = peft.LoraConfig(
            r=2, target_modules=["q_proj"], modules_to_save=list(modules), ensure_weight_tying=tying
        )
        oracle = peft.get_peft_model(plain, given).eval()
        with torch.no_grad():
            for weight in (p for n, p in oracle.named_parameters() if p.requires_grad):
                weight.add_(torch.randn_like(weight) * 0.1)
        oracle.save_pretrained(tmp_path / str(tying))
        model, _ = checkpoint.load(base / "model")
        if not tying:
            with pytest.raises(CheckpointError, match="unties"):
                adapter.attach(model, tmp_path / str(tying))
            continue
        adapter.attach(model, tmp_path / str(tying))
        want = oracle(torch.tensor([[3, 4, 5]])).logits.detach().numpy()
        assert np.abs(np.array(model(mx.array([[3, 4, 5]]))) - want).max() <= 1e-5 * np.abs(want).max()


def test_a_head_that_is_adapted_without_its_tied_embedding_is_refused(tmp_path: Path) -> None:
    model = make(UNTIED)
    lora.apply(model, rank=2, alpha=2.0, keys=("q_proj", "head.proj"))
    adapter.save(model, tmp_path, form="peft")
    with pytest.raises(CheckpointError, match="unties lm_head from the token embedding") as caught:
        adapter.attach(make(LLAMA), tmp_path)
    assert "save the model untied" in (caught.value.remedy or "")


@pytest.mark.parametrize("form", ["mlx", "peft"])
@pytest.mark.parametrize("config", [LLAMA, UNTIED], ids=["tied", "untied"])
def test_modules_are_stored_whole_and_come_back(config: dict[str, Any], form: Any, tmp_path: Path) -> None:
    model = adapted(config, SAVED[config is LLAMA])
    adapter.save(model, tmp_path / "a", form=form)
    other = adapted(config, keys=("q_proj",))
    adapter.save(other, tmp_path / "b", form=form)
    again = make(config)
    base = again(TOKENS)
    adapter.attach(again, tmp_path / "a", name="a")
    adapter.attach(again, tmp_path / "b", name="b")
    assert close(again(TOKENS), other(TOKENS))
    adapter.activate(again, "a")
    assert close(again(TOKENS), model(TOKENS))
    with lora.disabled(again):
        assert mx.array_equal(again(TOKENS), base)
    adapter.activate(again, None)
    assert mx.array_equal(again(TOKENS), base)


def test_tokens_one_by_one_are_those_of_the_active_adapter(tmp_path: Path) -> None:
    """The plan of a decoding step knows norms too."""
    model = adapted(modules=("post_attention_layernorm", "norm"), keys=("embedding.tokens",))
    adapter.save(model, tmp_path)
    again = make(LLAMA)

    def stepwise(model: Any) -> mx.array:
        cache = model.make_cache()
        return mx.concatenate([model(TOKENS[:, i : i + 1], cache=cache) for i in range(TOKENS.shape[1])], axis=1)

    base = stepwise(again)
    adapter.attach(again, tmp_path, name="a")
    assert close(stepwise(again), model(TOKENS))
    adapter.activate(again, None)
    assert mx.array_equal(stepwise(again), base)


def test_an_exported_adapter_has_the_numbers_that_were_read(tmp_path: Path) -> None:
    adapter.save(adapted(), tmp_path / "one")
    model = make()
    model.set_dtype(mx.bfloat16)
    export(model, tmp_path / "one", tmp_path / "two", "mlx")
    assert model.decoder.norm.weight.dtype == mx.bfloat16
    one, two = (load_file(tmp_path / name / "adapters.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(bool(mx.array_equal(one[name], two[name])) for name in one)


def test_gradients_reach_modules_whole_and_the_base_comes_back_in_between() -> None:
    model = adapted()
    names = {name for name, _ in tree_flatten(model.trainable_parameters()) if ".lora_" not in name}
    assert names == {"embedding.tokens.weight", "decoder.norm.weight"}
    with lora.disabled(model), lora.disabled(model):
        assert not lora.saved(model)
    assert lora.saved(model).keys() == {"embedding.tokens", "decoder.norm"}


@pytest.mark.parametrize("bits", [None, 4])
def test_merging_keeps_modules_that_are_stored_whole(bits: int | None, tmp_path: Path) -> None:
    adapter.save(adapted(), tmp_path / "adapter")
    model = make()
    if bits:
        quantize.apply(model, bits=bits, group_size=32)
    adapter.attach(model, tmp_path / "adapter")
    want = model(TOKENS)
    with pytest.raises(UsageError, match="has an adapter applied"):
        checkpoint.save(model, None, tmp_path / "model")
    assert merge(model, [TOKENS[:1]]).within_budget
    assert not lora.changed(model)
    checkpoint.save(model, None, tmp_path / "model")
    again = checkpoint.load_model(tmp_path / "model")
    assert bool(mx.abs(again(TOKENS) - want).max() < (0.05 if bits else 1e-5) * mx.abs(want).max())


def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=False)
    given = {"modules_to_save": SAVED[False], "dropout": 0.1, "decay_all": True}
    whole = finetune(settings(base, tmp_path / "whole", **given))
    stopped = settings(base, tmp_path / "stopped", **given)
    with closing(finetuning.events(stopped)) as events:
        next(event for event in events if isinstance(event, Step) and event.step == 3)
    again = finetune(adapter_path=stopped.adapter_path, resume=True)
    name = "adapters.safetensors"
    assert (again / name).read_bytes() == (whole / name).read_bytes()
    about = describe(again)
    assert about.whole == {"input_layernorm": 1, "lm_head": 1}
    assert about.parameters == sum(array.size for array in load_file(again / name).values())


def test_a_blend_has_a_module_of_one_adapter_only(tmp_path: Path) -> None:
    one, other, third = adapted(), adapted(keys=("q_proj",)), adapted(modules=())
    for name, model in (("one", one), ("other", other), ("third", third)):
        adapter.save(model, tmp_path / name)
    model = make(LLAMA)
    for name in ("one", "other", "third"):
        adapter.attach(model, tmp_path / name, name=name)
    with pytest.raises(UsageError, match="two adapters change embedding"):
        adapter.activate(model, {"one": 1.0, "other": 1.0})
    with pytest.raises(UsageError, match="no weight but 1"):
        adapter.activate(model, {"one": 0.5, "third": 1.0})
    adapter.activate(model, {"one": 1.0, "third": 0.5})
    assert mx.array_equal(model.embedding.tokens.weight, one.embedding.tokens.weight)
    adapted_embedding = adapted(modules=("norm",), keys=("embedding.tokens",))
    adapter.save(adapted_embedding, tmp_path / "fourth")
    adapter.attach(model, tmp_path / "fourth", name="fourth")
    for order in (("one", "fourth"), ("fourth", "one")):
        with pytest.raises(UsageError, match="two adapters change"):
            adapter.activate(model, dict.fromkeys(order, 1.0))


def test_modules_that_cannot_be_saved_are_refused() -> None:
    with pytest.raises(UsageError, match="lm_head is tied"):
        our_modules_to_save(make(LLAMA), ("lm_head",))
    with pytest.raises(UsageError, match="no module for the pattern 'lm_hed'"):
        our_modules_to_save(make(UNTIED), ("lm_hed",))
    with pytest.raises(UsageError, match="q_proj cannot be saved without"):
        our_modules_to_save(make(PHI3), ("*.mixer.q_proj",))
    assert len(our_modules_to_save(make(PHI3), ("qkv_proj",))) % 3 == 0
    model = make(LLAMA)
    with pytest.raises(UsageError, match="no layer to adapt"):
        lora.apply(model, rank=2, alpha=2.0, keys=("q_proj",), modules_to_save=("q_proj",))


def test_modules_of_another_shape_or_name_are_refused(tmp_path: Path) -> None:
    adapter.save(adapted(), tmp_path)
    good = load_file(tmp_path / "adapters.safetensors")
    mx.eval(good)
    for name, array, message in (
        ("model.norm.weight", mx.ones(3), "another decoder.norm"),
        ("model.norm.scale", mx.ones(3), "unknown|another decoder.norm"),
    ):
        save_file({**good, name: array}, tmp_path / "adapters.safetensors")
        with pytest.raises(CheckpointError, match=message):
            adapter.attach(make(LLAMA), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["model.norm"]}))
    save_file(good, tmp_path / "adapters.safetensors")
    with pytest.raises(CheckpointError, match="is not part of a LoRA adapter"):
        adapter.attach(make(LLAMA), tmp_path)
