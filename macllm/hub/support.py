"""Model types and quantizations that this installation reads, judged without importing a model class."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Kept equal to `macllm.families.FAMILIES` by a test: importing the families would import MLX.
OWN = frozenset(
    ("bart", "bert", "big_bird", "gemma2", "gemma3", "gemma3_text", "gpt2", "llama", "llama4", "llama4_text",
     "longformer", "macllm", "marian", "mistral", "mixtral", "mpt", "olmo2", "phi3", "qwen2", "qwen3",
     "qwen3_moe", "roberta", "t5")
)  # fmt: skip
ENCODERS = frozenset(("bert", "big_bird", "longformer", "roberta"))
# The same for `macllm.families.foreign`: types under another name in mlx-lm, and those that it computes wrongly.
RENAMED = frozenset(("gemma3n_text", "muse_glimmer_text", "qwen3_5_moe_text", "qwen3_5_text", "youtu"))
WRONG = frozenset(("bailing_hybrid", "minimax", "olmo_hybrid", "olmo"))
_FOREIGN_METHODS = frozenset(("bitnet", "mxfp4", "mxfp8", "fp8", "compressed-tensors", "modelopt", "awq", "gptq"))


def unsupported(config: Mapping[str, Any]) -> str | None:
    """The reason why macllm does not read a model with this config.json; None if it may."""
    family = config.get("model_type")
    if not isinstance(family, str) or not family:
        return "config.json has no model_type"
    if family in WRONG or (family not in OWN and not _foreign(family)):
        return f"the family {family} is not supported"
    found = config.get("quantization_config")
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if method and not isinstance(config.get("quantization"), Mapping):
        readable = frozenset[str]() if family in OWN else _FOREIGN_METHODS
        if str(method) not in readable:
            return f"quantized by {method}, which macllm does not read"
    return None


def _foreign(family: str) -> bool:
    modules = _mlx_lm_types()
    return family in RENAMED or family in modules or family.replace("-", "_") in modules


@cache
def _mlx_lm_types() -> frozenset[str]:
    """The model types of the installed mlx-lm, from the names of its files and its table of other names."""
    package = find_spec("mlx_lm")
    places = list(package.submodule_search_locations or ()) if package else []
    if not places:
        return frozenset()
    folder = Path(places[0])
    found = {path.stem for path in (folder / "models").glob("*.py")}
    try:
        tree = ast.parse((folder / "utils.py").read_text("utf-8"))
    except (OSError, ValueError, SyntaxError):
        return frozenset(found)
    for node in tree.body:
        if isinstance(node, ast.Assign) and "MODEL_REMAPPING" in [getattr(t, "id", "") for t in node.targets]:
            found |= {str(key) for key in ast.literal_eval(node.value)}
    return frozenset(found)
