"""Config keys of three generations, read and rewritten for the keys that a class reads."""

from __future__ import annotations

import pytest

from macllm.errors import CheckpointError
from macllm.families import spellings
from macllm.families.config import Config, rope_parameters
from macllm.families.foreign_rope import context_length

FLAT = {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_scaling": {"type": "linear", "factor": 4.0}}
NEW = {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "partial_rotary_factor": 0.5, "factor": 4.0}}


@pytest.mark.parametrize("config", [FLAT, NEW])
def test_rope_parameters_are_read_from_either_spelling(config: dict) -> None:
    assert spellings.rotations(config) == {None: NEW["rope_parameters"]}


@pytest.mark.parametrize("config", [FLAT, NEW])
def test_rope_parameters_are_written_under_the_keys_that_a_class_reads(config: dict) -> None:
    made = spellings.respell(config, {"rope_theta", "rope_scaling", "rotary_pct"})
    assert (made["rope_theta"], made["rotary_pct"]) == (5e5, 0.5)
    assert made["rope_scaling"] == {"type": "linear", "rope_type": "linear", "factor": 4.0}
    assert spellings.respell(config, {"rope_parameters"})["rope_parameters"]["rope_type"] == "linear"


def test_rope_parameters_of_each_layer_type_stay_separate() -> None:
    nested = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    for config in ({"rope_parameters": nested}, {"rope_theta": 1e6, "rope_local_base_freq": 1e4}):
        made = spellings.respell(config, {"rope_theta", "swa_rope_theta"})
        assert (made["rope_theta"], made["swa_rope_theta"]) == (1e6, 1e4)


def test_a_missing_partial_rotary_factor_is_the_default_of_the_class() -> None:
    for config in ({"rope_theta": 1e4}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, {}):
        assert spellings.rotations({"model_type": "glm", **config})[None]["partial_rotary_factor"] == 0.5


def test_layer_types_are_read_from_lists_periods_and_letters() -> None:
    want = ["sliding_attention"] * 3 + ["full_attention"]
    assert spellings.layer_kinds({"layer_types": want}) == want
    assert spellings.layer_kinds({"sliding_window_pattern": 4, "num_hidden_layers": 4}) == want
    assert spellings.layer_kinds({"sliding_window_pattern": "LLLG", "num_hidden_layers": 4}) == want
    hybrid = {"full_attention_interval": 2, "num_hidden_layers": 2}
    assert spellings.layer_kinds(hybrid) == ["linear_attention", "full_attention"]
    assert spellings.layer_kinds({"layer_types": ["mamba", "attention"]}) == ["linear_attention", "full_attention"]


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        ({"layer_types": ["linear_attention", "full_attention"] * 2}, "full_attention_interval", 2),
        ({"layer_types": ["conv", "full_attention"] * 2}, "full_attn_idxs", [1, 3]),
        ({"mlp_layer_types": ["dense", "sparse", "sparse"]}, "first_k_dense_replace", 1),
        ({"mlp_layer_types": ["sparse", "dense", "sparse"]}, "mlp_only_layers", [1]),
        ({"mlp_layer_types": ["dense", "sparse"]}, "is_moe_layer", [0, 1]),
        ({"num_local_experts": 4}, "num_experts", 4),
        ({"n_routed_experts": 4}, "num_local_experts", 4),
        ({"per_layer_config": {"1": {"head_dim": 32}}}, "global_head_dim", 32),
        ({"per_layer_config": {"1": {"num_key_value_heads": 1}}}, "num_global_key_value_heads", 1),
        ({"layer_types": ["linear_attention", "full_attention"], "linear_num_heads": 4, "linear_head_dim": 8,
          "linear_conv_kernel_dim": 4}, "linear_attn_config",
         {"kda_layers": [1], "full_attn_layers": [2], "num_heads": 4, "head_dim": 8, "short_conv_kernel_size": 4}),
        ({"no_rope_layer_interval": 2, "num_hidden_layers": 4}, "no_rope_layers", [1, 0, 1, 0]),
    ],
)  # fmt: skip
def test_a_missing_key_is_derived_from_equivalent_keys(config: dict, key: str, value: object) -> None:
    assert spellings.respell(config, {key})[key] == value


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"layer_types": ["full_attention", "linear_attention"] * 2}, "full_attention_interval"),
        ({"mlp_layer_types": ["sparse", "dense"]}, "first_k_dense_replace"),
        ({"per_layer_config": {"0": {"head_dim": 32}, "1": {"head_dim": 16}}}, "global_head_dim"),
    ],
)
def test_a_value_that_the_key_cannot_express_is_refused(config: dict, key: str) -> None:
    with pytest.raises(CheckpointError, match="is not supported"):
        spellings.respell(config, {key})


def test_native_families_and_spellings_agree_on_rope_types() -> None:
    scaling = {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}
    config = Config({"model_type": "llama", "rope_scaling": scaling, "max_position_embeddings": 8})
    assert rope_parameters(config)["rope_type"] == spellings.rotations({"rope_scaling": scaling})[None]["rope_type"]


def test_infinity_is_read_from_its_json_encoding() -> None:
    made = spellings.completed({"time_step_limit": [0.0, {"__float__": "Infinity"}]})
    assert made["time_step_limit"] == [0.0, float("inf")]


@pytest.mark.parametrize(
    ("parameters", "length"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "linear", "factor": 2.0}, 2000),
        ({"rope_type": "dynamic", "factor": 2.0}, 2000),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256}, 1000),
        ({"rope_type": "default"}, 1000),
    ],
)
def test_the_context_length_of_scaled_rope_is_that_of_vllm(parameters: dict, length: int) -> None:
    assert context_length({"max_position_embeddings": 1000, "rope_parameters": parameters}) == length


def test_an_active_window_that_a_class_ignores_is_reported() -> None:
    known, unknown = {"sliding_window"}, {"hidden_size"}
    assert spellings.unread_window({"sliding_window": 8}, unknown) == 8
    assert spellings.unread_window({"sliding_window": 8}, known) is None
    assert spellings.unread_window({"sliding_window": 8, "use_sliding_window": False}, unknown) is None
    assert spellings.unread_window({"sliding_window": 8, "layer_types": ["full_attention"]}, unknown) is None
    spellings.respell(
        {"model_type": "qwen2_moe", "sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 21},
        known,
    )
