"""Models of mlx-lm's classes: transformers' logits, or a refusal by name."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macllm import checkpoint
from macllm.errors import CheckpointError, UsageError
from macllm.families import foreign
from macllm.generation.limits import check
from macllm.generation.request import Request, SamplingParams
from tests.families.foreign import CASES, REFUSED, write
from tests.families.foreign_table import row

pytestmark = pytest.mark.parity
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 2.5, 3.0],
}  # fmt: skip
TOKENS = np.random.default_rng(1).integers(3, 90, (1, 60))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED])
def test_a_class_of_mlx_lm_gives_transformers_logits_past_1024_positions_and_through_caches(name: str) -> None:
    found = row(name)
    assert found.right, found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_a_class_with_wrong_logits_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load_model(tmp_path)
    assert REFUSED[name] in (raised.value.cause or "")


def edit(folder: Path, **changes: object) -> None:
    """Change values of config.json; None removes."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def relative_error(folder: Path, want: np.ndarray) -> float:
    got = np.array(checkpoint.load_model(folder)(mx.array(TOKENS)).astype(mx.float32))[0]
    return float(np.abs(got - want).max() / np.abs(want).max())


def logits(model) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits[0].float().numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["glm", "phi", "stablelm", "cohere2", "granite-yarn", "starcoder2-yarn-untruncated"])
def test_flat_and_absent_rope_keys_give_the_same_logits(name: str, tmp_path: Path) -> None:
    want = logits(write(name, tmp_path))
    given = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    flat = {key: given[key] for key in ("rope_theta", "partial_rotary_factor") if key in given}
    scaling = {key: value for key, value in given.items() if key not in flat and key != "rope_type"}
    scaling = {**scaling, "type": given["rope_type"]} if given["rope_type"] != "default" else None
    edit(tmp_path, rope_parameters=None, rope_scaling=scaling, **flat)
    assert relative_error(tmp_path, want) < 1e-4
    if name == "glm":  # transformers' class rotates half of a head by default, mlx-lm's all of it
        edit(tmp_path, partial_rotary_factor=None)
        assert relative_error(tmp_path, want) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_missing_config_values_are_the_defaults_of_transformers(tmp_path: Path) -> None:
    model = write("starcoder2", tmp_path)
    edit(tmp_path, norm_epsilon=None, hidden_act=None, tie_word_embeddings=None, rope_parameters=None)
    assert relative_error(tmp_path, logits(model)) < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("cohere2", {"hidden_act": "gelu"}, "hidden_act"),
        ("olmoe", {"clip_qkv": 1.0}, "clip_qkv"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm"),
        ("phimoe", {"num_experts_per_tok": 4}, "num_experts_per_tok"),
        ("mamba2", {"hidden_act": "relu"}, "hidden_act"),
        ("nemotron_h", {"time_step_min": 0.5}, "time_step_min"),
        ("kimi_linear", {"num_experts_per_token": 1}, "num_experts_per_tok"),
        ("phi", {"layer_norm_eps": float("nan")}, "layer_norm_eps of config.json is nan"),
        ("afmoe", {"num_experts_per_tok": 1}, "num_experts_per_tok"),
        ("granite", {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "spiral"),
        ("qwen3_next", {"layer_types": ["full_attention", "linear_attention"] * 2}, "layer_types"),
    ],
)
def test_options_that_a_class_does_not_implement_are_refused_by_name(
    name: str, changes: dict, named: str, tmp_path: Path
) -> None:
    write(name, tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=named):
        checkpoint.load_model(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_separate_head_is_refused_for_a_class_that_ties_it(tmp_path: Path) -> None:
    write("cohere", tmp_path)
    path = tmp_path / "model.safetensors"
    weights = mx.load(str(path))
    mx.save_safetensors(str(path), weights | {"lm_head.weight": weights["model.embed_tokens.weight"] * 2})
    with pytest.raises(CheckpointError, match="lm_head"):
        checkpoint.load_model(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_requests_are_checked_against_vocabulary_and_context_of_the_config(tmp_path: Path) -> None:
    write("stablelm", tmp_path)
    model = checkpoint.load_model(tmp_path)
    assert (model.info.vocab_size, model.info.context_length) == (96, 2048)
    with pytest.raises(UsageError, match="96"):
        check(model.info, Request(prompt=(5, 96)), (5, 96))
    with pytest.raises(UsageError, match="96"):
        check(model.info, Request(prompt=(5,), sampling=SamplingParams(logit_bias=((96, 1.0),))), (5,))
    edit(tmp_path, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0})
    assert checkpoint.load_model(tmp_path).info.context_length == 8192


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["starcoder2", "ministral3"])
def test_a_class_without_windows_is_limited_to_the_window_length(name: str, tmp_path: Path) -> None:
    want = logits(write(name, tmp_path))
    edit(tmp_path, sliding_window=TOKENS.shape[1])
    assert relative_error(tmp_path, want) < 1e-4
    assert checkpoint.load_model(tmp_path).info.context_length == TOKENS.shape[1]


@pytest.mark.filterwarnings("ignore")
def test_exceptions_of_a_class_become_checkpoint_errors(tmp_path: Path) -> None:
    write("stablelm", tmp_path)
    model = checkpoint.load_model(tmp_path)
    for error in (SystemExit(2), AssertionError(), AttributeError("no such thing"), RuntimeError("x")):

        def fail(*args: object, error: BaseException = error, **kwargs: object) -> None:
            raise error

        model.model = fail
        with pytest.raises(CheckpointError, match="stablelm"):
            model(mx.array(TOKENS))


# Classes that need no correction, since mlx-lm itself runs them uncorrected.
QUANTIZED = ["stablelm", "glm4_moe", "qwen3_next", "smollm3", "lfm2"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUANTIZED)
def test_a_checkpoint_quantized_by_mlx_lm_gives_the_logits_of_mlx_lm(name: str, tmp_path: Path) -> None:
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    write(name, tmp_path / "a")
    ours = checkpoint.load_model(tmp_path / "a")
    text = foreign.text_config(checkpoint.read_config(tmp_path / "a"))
    config = foreign.translated(text, text)
    theirs, config = quantize_model(ours.model, config, 32, 4)
    save_model(tmp_path / "b", theirs)
    save_config({key: value for key, value in config.items() if key != "rope_parameters"}, tmp_path / "b/config.json")
    there, _ = load_model(tmp_path / "b")
    here = checkpoint.load_model(tmp_path / "b")
    got, want = np.array(here(mx.array(TOKENS))), np.array(there(mx.array(TOKENS)))
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.filterwarnings("ignore")
def test_class_defaults_json_matches_transformers() -> None:
    import transformers

    from tests.families.foreign_defaults import PATH, all_unread, table

    kept = json.loads(PATH.read_text(encoding="utf-8"))
    if kept["transformers"] != transformers.__version__:
        pytest.skip(f"made from transformers {kept['transformers']}")
    assert kept["types"] == json.loads(json.dumps(table()))
    assert kept["unread"] == all_unread()


ROUTERS = ["deepseek_v3", "glm4_moe", "glm4_moe_lite", "dots1", "exaone_moe", "nemotron_h", "mimo_v2_flash"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        # All experts of the kept groups, some with negative scores, which the 0 of the masked groups would beat.
        ("deepseek_v3", {"num_experts_per_tok": 4}),
        # One expert, whose weight is renormalized to 1.
        *[(name, {"num_experts_per_tok": 1}) for name in ROUTERS],
        ("gemma", {"hidden_act": "silu"}),
        ("nemotron", {"hidden_act": "gelu"}),
        ("mamba2", {"layer_norm_epsilon": 1e-3}),
        ("gpt_bigcode", {"multi_query": False}),
        ("granitemoehybrid", {"mamba_n_groups": 2}),
        ("deepseek_v3", {"rope_parameters": LONG}),
        ("glm4_moe_lite", {"rope_parameters": LONG}),
    ],
)
def test_options_that_a_class_ignores_are_applied(
    name: str, options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, name, CASES[name] | options)
    want = logits(write(name, tmp_path))
    assert relative_error(tmp_path, want) < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["apertus"])
def test_missing_rope_scaling_is_the_default_of_the_class(name: str, tmp_path: Path) -> None:
    import transformers

    write(name, tmp_path)
    edit(tmp_path, rope_parameters=None, rope_theta=1e4)
    want = logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager"))
    assert relative_error(tmp_path, want) < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["smollm3", "gpt_oss", "lfm2", "nemotron_h", "qwen3_next", "deepseek_v3", "cohere2"])
def test_a_fork_of_a_cache_of_mlx_lm_and_its_origin_are_independent(name: str, tmp_path: Path) -> None:
    """Caches that grow, rotate, hold states and latent keys."""
    write(name, tmp_path)
    model = checkpoint.load_model(tmp_path)
    row, other = mx.array(TOKENS[:, :40]), mx.array(TOKENS[:, 5:15])
    cache = model.make_cache()
    model(row[:, :30], cache=cache)
    fork = cache.fork()
    for n in range(10):
        model(row[:, 30 + n : 31 + n], cache=cache)
        found = model(other[:, n : n + 1], cache=fork)
    want = model(mx.concatenate([row[:, :30], other], axis=1))[:, -1]
    assert np.abs(np.array(found[:, -1]) - np.array(want)).max() < 1e-3 * np.abs(np.array(want)).max()
    last = model(row[:, :1], cache=cache)
    want = model(mx.concatenate([row, row[:, :1]], axis=1))[:, -1:]
    assert np.abs(np.array(last) - np.array(want)).max() < 1e-3 * np.abs(np.array(want)).max()
