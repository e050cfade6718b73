"""Logits of every case against recorded transformers logits, and key maps in both directions."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import families
from macllm.errors import CheckpointError
from macllm.families.config import Config
from macllm.weights.keymap import Drop, to_ours, to_theirs
from tests.families.golden import EVERY, golden, shared_model
from tests.families.oracles import CASES, Case, batch

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
def test_logits_equal_recorded_transformers_logits(case: Case) -> None:
    stored, b = golden(case.name), batch(case)
    model, tokens, lengths = shared_model(case.name), mx.array(b.tokens), mx.array(b.lengths)
    real = b.real
    if case.kind == "text-to-text":
        got = model(mx.array(b.targets), source=tokens, source_lengths=lengths)
        real = np.ones(b.targets.shape, bool)
    elif case.kind == "encoder":
        hidden = model(tokens, lengths=lengths)
        got = model.logits(hidden) if model.spec.head else hidden
    else:
        got = model(tokens, lengths=lengths)
    want = stored.logits[real]
    error = np.abs(np.array(got)[..., ::EVERY][real] - want).max()
    assert error <= 2e-5 * np.abs(want).max()


def test_every_family_has_recorded_logits() -> None:
    covered = {golden(case.name).config["model_type"] for case in CASES}
    wrappers = {"gemma3", "llama4"}  # multimodal shells around a text config
    assert covered == set(families.FAMILIES) - wrappers - {"macllm"}  # which transformers lacks


@every_case
def test_tensors_round_trip_through_our_names(case: Case) -> None:
    stored = golden(case.name)
    config = Config(stored.config, stored.tensors())
    keymap = families.keys(config)
    tensors = stored.tensors()
    back = to_theirs(to_ours(tensors, keymap), keymap)
    # Names of a bare encoder return with the prefix of a model with a head, GPT-2's as on the hub.
    stem = case.name.split("-")[0].replace("big_bird", "bert")
    prefix = f"{stem}." if case.name.endswith("pooled") else ""
    gone = "transformer." if stem == "gpt2" else ""
    renamed = {prefix + name.removeprefix(gone): array for name, array in tensors.items()}
    assert back.keys() == renamed.keys()
    assert all(mx.array_equal(back[name], renamed[name]) for name in back)


@every_case
def test_our_tensors_round_trip_through_mlx_lms_names(case: Case) -> None:
    stored = golden(case.name)
    config = Config(stored.config, stored.tensors())
    keymap = families.keys(config, "mlx")
    ours = dict(tree_flatten(shared_model(case.name).parameters()))
    again = to_ours(to_theirs(ours, keymap), keymap)
    assert again.keys() == ours.keys()
    assert all(mx.array_equal(again[name], ours[name]) for name in ours)


def test_the_text_model_of_a_multimodal_checkpoint_loads_alone() -> None:
    stored = golden("gemma3_text")
    plain = stored.tensors()
    want = np.array(shared_model("gemma3_text")(mx.array([[5, 6, 7, 8, 9, 10, 11]])))
    for head, body in (("language_model.", "language_model."), ("", "model.language_model.")):
        whole = {"vision_tower.encoder.layers.0.weight": mx.zeros(3), "multi_modal_projector.norm.weight": mx.zeros(2)}
        for name, array in plain.items():
            bare = name.removeprefix("model.")
            whole[f"{body}{'model.' if head else ''}{bare}" if name.startswith("model.") else head + name] = array
        config = {"model_type": "gemma3", "text_config": stored.config, "vision_config": {}}
        from macllm.checkpoint import assemble

        got = np.array(assemble(config, whole)(mx.array([[5, 6, 7, 8, 9, 10, 11]])))
        np.testing.assert_array_equal(got, want)


@every_case
def test_a_missing_tensor_is_named(case: Case) -> None:
    from macllm.checkpoint import assemble

    stored = golden(case.name)
    tensors = stored.tensors()
    config = Config(stored.config, stored.tensors())
    needed = [n for n in tensors if not any(isinstance(r, Drop) and r.theirs == n for r in families.keys(config).rules)]
    gone = needed[len(needed) // 2]
    del tensors[gone]
    with pytest.raises(CheckpointError, match=r"missing|experts") as raised:
        assemble(stored.config, tensors)
    assert gone.removeprefix("transformer.") in str(raised.value)


def test_an_unknown_tensor_is_named() -> None:
    from macllm.checkpoint import assemble

    stored = golden("llama")
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.surprise\.weight"):
        assemble(stored.config, stored.tensors() | {"model.layers.0.surprise.weight": mx.zeros(3)})


def test_a_head_for_another_task_is_named_with_the_class_that_wrote_it() -> None:
    from macllm.checkpoint import assemble

    stored = golden("bert")
    config = stored.config | {"architectures": ["BertForQuestionAnswering"]}
    with pytest.raises(CheckpointError, match=r"qa_outputs\.weight") as raised:
        assemble(config, stored.tensors() | {"qa_outputs.weight": mx.zeros((2, 48))})
    assert "BertForQuestionAnswering wrote it" in raised.value.cause


def test_a_wrong_shape_is_named() -> None:
    from macllm.checkpoint import assemble

    stored = golden("llama")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \(47,\); config\.json implies \(48,\)"):
        assemble(stored.config, stored.tensors() | {"model.norm.weight": mx.zeros(47)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, r"rope_type 'spiral' is not one of default"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "have no 'low_freq_factor'"),
        ({"hidden_act": "sine"}, "activation 'sine' is not one of"),
        ({"hidden_size": 48.5}, r"hidden_size of config.json is 48.5, not a whole number"),
        ({"hidden_size": "wide"}, r"hidden_size of config.json is 'wide', not a whole number"),
    ],
)
def test_an_unsupported_config_value_is_named(change: dict, message: str) -> None:
    config = {**golden("llama").config, **change}
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        families.spec(Config(config))
