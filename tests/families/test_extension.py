"""Longer contexts by YaRN, linear scaling and another base, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macllm import checkpoint, families
from macllm.errors import UsageError
from macllm.families.config import Config, context_length
from macllm.families.extension import extended
from macllm.hub.shape import read_shape

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 24, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "transformers 4": LLAMA | {"rope_theta": 5000.0},
    "transformers 5": LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    "yarn before": LLAMA | {"max_position_embeddings": 48, "rope_theta": 5000.0, "rope_scaling": {
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 24}},
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "yarn": {"length": 100, "scaling": "yarn"},
    "yarn and base": {"length": 72, "scaling": "yarn", "base": 80_000.0},
    "linear": {"length": 100, "scaling": "linear"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", CHANGES)
def test_the_context_is_the_length_asked_for(form: str, change: str) -> None:
    changed = extended(FORMS[form], **CHANGES[change])
    length = CHANGES[change]["length"]
    assert context_length(changed) == read_shape(changed).context_tokens == length
    assert families.spec(Config(changed)).context_length == length
    assert ("rope_parameters" in changed) == (form == "transformers 5")
    again = extended(changed, 2 * length, "yarn")
    assert context_length(again) == 2 * length
    rope = again.get("rope_parameters") or again["rope_scaling"]
    assert (rope["original_max_position_embeddings"], rope["factor"]) == (24, 2 * length / 24)


def test_another_base_keeps_the_length_and_the_scaling() -> None:
    for form, config in FORMS.items():
        changed = extended(config, base=1e6)
        assert context_length(changed) == context_length(config)
        before, after = (families.spec(Config(each)).decoder.layers[0].mixer.rope for each in (config, changed))
        assert (after.base, after.scaling) == (1e6, before.scaling), form
    longer = extended(FORMS["transformers 4"], 96, base=1e6)
    assert (longer["max_position_embeddings"], longer["rope_theta"], longer["rope_scaling"]) == (96, 1e6, None)


def test_models_without_one_plain_rotation_are_refused() -> None:
    def refused(config: dict[str, Any], match: str, *change: Any) -> None:
        with pytest.raises(UsageError) as error:
            extended(config, *change)
        assert match in str(error.value)

    refused(FORMS["transformers 4"], "24 tokens already", 24, "yarn")
    refused(FORMS["yarn before"], "reaches 48 tokens", 96)
    refused({**LLAMA, "model_type": "gpt2", "n_positions": 24}, "no rotary positions", 96, "yarn")
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    refused({**LLAMA, "rope_scaling": llama3}, "llama3 already", 96, "yarn")
    kinds = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}
    refused({**LLAMA, "rope_parameters": kinds}, "several kinds", 96, "yarn")


@pytest.mark.parity
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", [*CHANGES, "base"])
def test_a_changed_model_equals_transformers_on_lengths_beyond_the_former(
    form: str, change: str, tmp_path: Path
) -> None:
    import torch
    import transformers

    torch.manual_seed(3)
    changed = extended(FORMS[form], **CHANGES.get(change, {"base": 60_000.0}))
    oracle = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).eval()
    for weight in oracle.parameters():
        torch.nn.init.normal_(weight, 0.0 if weight.ndim > 1 else 1.0, 0.2)
    oracle.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(changed))
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    model = checkpoint.load_model(tmp_path)
    before = checkpoint.load_model(tmp_path, config=FORMS[form])
    tokens = np.random.default_rng(0).integers(3, 40, (2, 90))
    with torch.no_grad():
        want = oracle(torch.tensor(tokens)).logits.numpy()
    got = np.array(model(mx.array(tokens)))
    assert np.abs(got - want).max() <= 5e-6 * np.abs(want).max()
    assert np.abs(np.array(before(mx.array(tokens))) - want).max() > 0.01 * np.abs(want).max()
