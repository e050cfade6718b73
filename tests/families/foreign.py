"""Tiny random models of families that only mlx-lm's classes run, as transformers writes them."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

SMALL = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Families that once had wrong logits or did not load as transformers 5 writes them.
FIRST = (
    "qwen3_5_text", "qwen3_next", "gemma4_text", "gemma4_text-moe", "gpt_oss", "deepseek_v3", "glm4_moe_lite",
    "glm4_moe", "minimax_m2", "ministral3", "lfm2", "lfm2_moe", "nemotron_h", "granitemoehybrid", "olmo3", "smollm3",
    "kimi_linear", "qwen3_moe", "laguna", "cohere2", "glm4", "exaone4",
)  # fmt: skip
# Refused types -> a phrase of the reason.
REFUSED = {
    "bailing_hybrid": "Lightning attention",
    "bitnet": "weight_scale",
    "minimax": "MiniMax M2",
    "nanochat": "always uses 1e-05",
    "olmo": "ai2-olmo",
    "olmo_hybrid": "wrong logits",
}
# Name (the model type before "-") -> options of its config besides SMALL.
CASES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("foreign.json").read_text(encoding="utf-8"))


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Deterministic random float32 weights for a name and a shape."""
    values = np.random.default_rng(zlib.crc32(f"{name} {shape}".encode())).standard_normal(shape)
    if "A_log" in name:
        values = np.log(np.abs(values) + 0.5)
    elif len(shape) == 0 or name.endswith(("per_expert_scale", "layer_scalar")):
        values = 1.0 + 0.1 * values
    elif len(shape) == 1 or "norm" in ".".join(name.split(".")[-2:]).lower():
        values = (0.0 if name.endswith("bias") else 1.0) + 0.2 * values
    else:
        values *= 1.2 / math.sqrt(shape[-1])
    return np.asarray(values, np.float32)


def write(name: str, folder: Path) -> Any:
    """A checkpoint in `folder` as transformers writes it, and the transformers model."""
    import torch
    import transformers

    kind, options = name.partition("-")[0], CASES[name]
    config = transformers.CONFIG_MAPPING[kind](**(options if "text_config" in options else SMALL | options))
    config.dtype = torch.float32
    kinds = (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText)
    found = next((auto for auto in kinds if type(config) in auto._model_mapping), None)
    if found is not None:
        model = found.from_config(config, attn_implementation="eager")
    else:
        wanted = f"{kind.replace('_', '').removesuffix('text')}forcausallm"
        name = next(cls for cls in dir(transformers) if cls.lower() == wanted)
        model = getattr(transformers, name)._from_config(config, attn_implementation="eager")
    model = model.float().eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point() and "decay" not in key and "slope" not in key:
                centred = (
                    value.ndim == 1 and not value.any() and "bias" not in key
                )  # a norm's weight, stored as its difference from 1
                value.copy_(torch.from_numpy(np.asarray(tensor(key, tuple(value.shape)) - np.float32(centred))))
    model.save_pretrained(folder)
    return model
