"""Loading and saving checkpoints: casts, refusals, memory, and lossless round trips."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import checkpoint
from macllm.errors import CheckpointError, ModelNotFoundError, UsageError
from macllm.nn import lora, quantize
from tests.families.golden import golden

TOKENS = mx.array([[5, 6, 7, 8]])


def weights(model) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def test_saving_and_loading_gives_the_same_bits(tmp_path: Path) -> None:
    model = checkpoint.load_model(golden("gemma3_text").write(tmp_path / "a"))
    checkpoint.save(model, None, tmp_path / "b")
    before, after = weights(model), weights(checkpoint.load_model(tmp_path / "b"))
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) for name in before)


def test_saving_over_the_folder_that_was_loaded_is_safe(tmp_path: Path) -> None:
    folder = golden("llama").write(tmp_path)
    want = np.array(checkpoint.load_model(folder)(TOKENS))
    checkpoint.save(checkpoint.load_model(folder), None, folder)
    np.testing.assert_array_equal(np.array(checkpoint.load_model(folder)(TOKENS)), want)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_config_keys_that_macllm_does_not_read_are_saved_again(tmp_path: Path) -> None:
    folder = golden("llama").write(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text()) | {"another_tools_key": [1, {"x": None}]}
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"temperature": 0.3, "eos_token_id": [2, 7]}')
    checkpoint.save(checkpoint.load_model(folder), None, tmp_path / "b")
    saved = json.loads((tmp_path / "b" / "config.json").read_text())
    assert saved["another_tools_key"] == [1, {"x": None}]
    assert "auto_map" not in saved  # names a file of code that is not saved
    kept = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert (kept["temperature"], kept["eos_token_id"]) == (0.3, [2, 7])


@pytest.mark.parametrize(
    ("generation", "ends"),
    [(None, {2}), ({"eos_token_id": 7}, {7}), ({"eos_token_id": [2, 7]}, {2, 7}), ({"temperature": 1.0}, {2})],
)
def test_end_tokens_come_from_generation_config_and_else_from_config(
    generation: dict | None, ends: set[int], tmp_path: Path
) -> None:
    folder = golden("llama").write(tmp_path)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert checkpoint.load_model(folder).info.eos == ends


@pytest.mark.parametrize(
    ("chip", "model_type", "expected"),
    [
        ("applegpu_g13s", "llama", {mx.bfloat16: mx.float16}),  # M1
        ("applegpu_g14d", "qwen3", {mx.bfloat16: mx.float16}),  # M2
        ("applegpu_g15s", "llama", {}),  # M3 has bfloat16
        ("applegpu_g13s", "gemma3_text", {}),  # outgrows float16
        ("applegpu_g14g", "t5", {}),
    ],
)
def test_bfloat16_becomes_float16_where_the_chip_emulates_it(
    chip: str, model_type: str, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": chip})
    assert checkpoint.default_casts(model_type) == expected


def test_the_default_cast_leaves_float32_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = golden("llama").tensors()
    mixed = {name: array.astype(mx.bfloat16 if "mlp" in name else mx.float32) for name, array in stored.items()}
    monkeypatch.setattr(checkpoint, "default_casts", lambda model_type: {mx.bfloat16: mx.float16})
    kinds = {name: array.dtype for name, array in weights(checkpoint.assemble(golden("llama").config, mixed)).items()}
    assert kinds["decoder.layers.0.feed_forward.up_proj.weight"] == mx.float16
    assert kinds["decoder.norm.weight"] == mx.float32


def test_a_given_dtype_wins_over_the_stored_one(tmp_path: Path) -> None:
    folder = golden("llama").write(tmp_path)
    assert {array.dtype for array in weights(checkpoint.load_model(folder, mx.float16)).values()} == {mx.float16}
    assert {array.dtype for array in weights(checkpoint.load_model(folder)).values()} == {mx.float32}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{" * 100_000, '{"a": 1}x'])
def test_a_broken_config_is_one_clear_error(text: str, tmp_path: Path) -> None:
    folder = golden("llama").write(tmp_path)
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is not (JSON|a JSON object)"):
        checkpoint.load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "no model_type"),
        ({"model_type": ["llama"]}, "not a name"),
        ({"quantization": [4]}, "quantized by"),
        ({"quantization_config": "q4"}, "quantized by 'q4'"),
        ({"hidden_size": 10**30}, "hidden_size"),
        ({"vocab_size": 1e30}, "vocab_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"head_dim": 10**9}, "head_dim"),
        ({"num_attention_heads": 10**9, "num_key_value_heads": 10**9}, "does not describe a valid"),
        ({"intermediate_size": -3}, "does not describe a valid"),
        ({"rms_norm_eps": [1]}, "rms_norm_eps"),
    ],
    ids=str,
)
def test_a_config_with_impossible_values_is_one_clear_error(changes: dict, message: str, tmp_path: Path) -> None:
    folder = golden("llama").write(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_model(folder)
    assert message in str(error.value)


@pytest.mark.parametrize("length", [-5, 0, 10**25])
def test_an_impossible_context_length_is_read_as_no_limit(length: int, tmp_path: Path) -> None:
    folder = golden("llama").write(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": length}
    (folder / "config.json").write_text(json.dumps(config))
    assert checkpoint.load_model(folder).info.context_length is None


def test_an_unknown_model_type_is_refused_without_a_note_that_mlx_lm_runs_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = golden("llama").write(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "frobnicate"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'frobnicate' is not supported"):
        checkpoint.load_model(folder)
    assert "runs it" not in caplog.text


def test_a_folder_without_a_config_is_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is not a model"):
        checkpoint.load_model(tmp_path)


def test_another_tools_quantization_is_refused(tmp_path: Path) -> None:
    folder = golden("llama").write(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="quantized by 'gptq'"):
        checkpoint.load_model(folder)


@pytest.mark.parametrize(
    "recipe",
    [{"bits": 7, "group_size": 64}, {"bits": 4, "group_size": 48}, {"mode": "magic"}, {"mode": "mxfp4", "bits": 8}],
)
def test_a_quantization_that_mlx_does_not_support_is_refused(recipe: dict) -> None:
    stored = golden("llama")
    with pytest.raises(CheckpointError, match=r"not supported|is not one of|has 4 bits"):
        checkpoint.assemble(stored.config | {"quantization": recipe}, stored.tensors())


def test_saving_a_model_with_an_unfused_adapter_is_refused(tmp_path: Path) -> None:
    model = checkpoint.load_model(golden("llama").write(tmp_path / "a"))
    lora.apply(model, rank=2, alpha=4)
    with pytest.raises(UsageError, match="has an adapter applied"):
        checkpoint.save(model, None, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_save_names_a_model_and_a_tokenizer_that_are_swapped(tmp_path: Path) -> None:
    model, tokenizer = checkpoint.load()
    with pytest.raises(UsageError, match="are swapped"):
        checkpoint.save(tokenizer, model, tmp_path / "b")  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()


def test_rows_that_are_no_whole_groups_are_not_quantized() -> None:
    model = golden("mixtral").model()
    quantize.apply(model, bits=4, group_size=32)
    assert quantize.describe(model) is None  # rows of 48 and 80 are no whole groups of 32


MEMORY = """
    import json, resource, sys
    from pathlib import Path
    import macllm.ops
    import mlx.core as mx
    from macllm import checkpoint

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    folder = Path(sys.argv[1])
    before = resident()
    model = checkpoint.load_model(folder, mx.float16)
    high = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps([mx.get_peak_memory(), int(high.split()[1]) * 1024 - before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_at_most_a_tenth_more_memory_than_the_weights(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen3_moe", "hidden_size": 512, "num_hidden_layers": 6, "intermediate_size": 1024,
        "vocab_size": 20000, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "num_experts": 16,
        "num_experts_per_tok": 2, "moe_intermediate_size": 768, "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    from macllm import families
    from macllm.families.config import Config
    from macllm.nn.models import build

    model = build(families.spec(Config(config, ())))
    model.set_dtype(mx.float16)
    model.info = replace(model.info, config=config)
    checkpoint.save(model, None, tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path)], capture_output=True, text=True, check=True
    )
    allocated, resident = json.loads(out.stdout)
    print(f"\nload: {allocated / size:.3f}x allocated, {resident / size:.3f}x resident, of {size / 1e6:.0f} MB")
    assert allocated <= 1.1 * size
    assert resident <= 1.1 * size + 60e6  # and what MLX itself maps


@pytest.mark.parametrize(
    "wrong",
    [{"name": 5}, {"name": b"maclet"}, {"name": ["maclet"]}, {"adapter": 5}, {"adapter": b"x"}, {"dtype": "float16"}],
    ids=str,
)
def test_load_refuses_arguments_of_wrong_types_by_name(wrong: dict) -> None:
    with pytest.raises(UsageError, match=f"The {next(iter(wrong))} is"):
        checkpoint.load(**wrong)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        (None, "model's family"),
        (["llama"], "model's family"),
        ("spiral", "'spiral' is not supported"),
        ("cache", "'cache' is not supported"),
    ],
)
def test_a_missing_or_unknown_model_type_is_an_error_with_its_cause(
    model_type: object, message: str, tmp_path: Path
) -> None:
    folder = golden("llama").write(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": model_type}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as raised:
        checkpoint.load_model(folder)
    assert raised.value.cause


@pytest.mark.parametrize(
    ("tokenizer", "place", "message"),
    [("x", "new", "The tokenizer is a string"), (None, 5, "The folder is a number"), (None, "file", "is a file")],
)
def test_save_refuses_arguments_of_wrong_types_by_name(
    tokenizer: str | None, place: object, message: str, tmp_path: Path
) -> None:
    model = checkpoint.load_model(golden("llama").write(tmp_path / "a"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=message):
        checkpoint.save(model, tokenizer, tmp_path / place if isinstance(place, str) else place)


@pytest.mark.parametrize("odd", [5, [], [5], {"class": "LlamaForCausalLM"}], ids=str)
def test_architectures_that_are_not_a_list_of_names_are_ignored(odd: object, tmp_path: Path) -> None:
    stored = golden("llama")
    folder = stored.write(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": odd}
    (folder / "config.json").write_text(json.dumps(config))
    assert checkpoint.load_model(folder).info.vocab_size == config["vocab_size"]
