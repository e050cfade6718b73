"""`model_type` in a checkpoint's config.json -> the family that reads it.

A family is a module with `spec(config) -> ModelSpec` and `keys(config) -> KeyMap`, and `mlx_keys(config)`
if mlx-lm's tensor names differ from transformers', `module_keys(config)` if those of transformers' own modules do.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Literal

from macllm.errors import CheckpointError
from macllm.nn.spec import ModelSpec
from macllm.weights.keymap import KeyMap

from . import labels
from .config import Config, architecture

__all__ = [
    "FAMILIES",
    "OUTGROWS_FLOAT16",
    "Layout",
    "architecture",
    "is_known",
    "keys",
    "labels",
    "spec",
    "text_config",
]

# model_type -> (module, key of the nested text config of a multimodal checkpoint)
FAMILIES: dict[str, tuple[str, str | None]] = {
    "bart": ("bart", None),
    "bert": ("bert", None),
    "big_bird": ("big_bird", None),
    "gemma2": ("gemma2", None),
    "gemma3": ("gemma3", "text_config"),
    "gemma3_text": ("gemma3", None),
    "gpt2": ("gpt2", None),
    "llama": ("llama", None),
    "llama4": ("llama4", "text_config"),
    "llama4_text": ("llama4", None),
    "longformer": ("longformer", None),
    "macllm": ("own", None),
    "marian": ("marian", None),
    "mistral": ("mistral", None),
    "mixtral": ("mixtral", None),
    "mpt": ("mpt", None),
    "olmo2": ("olmo2", None),
    "phi3": ("phi3", None),
    "qwen2": ("qwen2", None),
    "qwen3": ("qwen3", None),
    "qwen3_moe": ("qwen3_moe", None),
    "roberta": ("roberta", None),
    "t5": ("t5", None),
}

# Families whose activations can exceed 65504, the largest float16.
OUTGROWS_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text", "t5"})

Layout = Literal["hf", "mlx", "modules"]
_MAKERS = {"hf": "keys", "mlx": "mlx_keys", "modules": "module_keys"}


def is_known(config: dict) -> bool:
    """True for a `model_type` that one of our families reads."""
    return str(config.get("model_type")) in FAMILIES


def text_config(config: dict) -> dict:
    """The part of a config.json that describes the language model."""
    nested = FAMILIES[config["model_type"]][1]
    if nested is None:
        return config
    inner = config.get(nested) or {}
    if not isinstance(inner, dict):
        raise CheckpointError(f"{nested} of config.json is {inner!r}, not an object", remedy="download it again")
    # transformers 4 reads the flag from the text config, transformers 5 from the whole config.
    flags = [part["tie_word_embeddings"] for part in (config, inner) if part.get("tie_word_embeddings") is not None]
    tied = {"tie_word_embeddings": any(flags)} if flags else {}
    return {"model_type": f"{config['model_type']}_text", **inner, **tied}


def with_text_config(config: dict, change: Callable[[dict], dict]) -> dict:
    """A config.json whose part for the language model is `change` of it."""
    nested = FAMILIES[config["model_type"]][1] if is_known(config) else None
    return change(config) if nested is None else {**config, nested: change(text_config(config))}


def spec(config: Config) -> ModelSpec:
    """The spec that a text config describes. Raises CheckpointError for invalid values."""
    try:
        return labels.with_head(config, _family(config).spec(config))
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(
            f"config.json does not describe a valid {config['model_type']} model",
            cause=f"{type(error).__name__}: {error}",
            remedy="download the checkpoint again",
        ) from error


def keys(config: Config, layout: Layout = "hf") -> KeyMap:
    """Tensor names of a text config's checkpoint, as transformers ("hf") or mlx-lm ("mlx") writes them.

    "modules" are those of transformers' modules in memory. There a rule without `*` names a parameter that is no linear
    layer to PEFT: of experts, routers, and what PEFT takes for them.
    """
    family = _family(config)
    make: Callable[[Config], KeyMap] = getattr(family, _MAKERS[layout], family.keys)
    return labels.with_names(config, make(config), layout)


def _family(config: Config) -> ModuleType:
    return import_module(f".{FAMILIES[config['model_type']][0]}", __name__)
