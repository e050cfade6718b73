"""Corrections of RoPE in mlx-lm's classes that do not follow the config.

They always round YaRN's range, use LongRoPE's long factors at any length and ignore attention factors, and some
ignore RoPE scaling altogether.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from macllm.errors import CheckpointError
from macllm.nn.position import rotation
from macllm.nn.spec import DynamicScaling, LongScaling, RoPESpec

from . import spellings
from .config import Config, own_limit, rope, scaled_length

# mlx-lm's classes of scaled RoPE, and their attribute with the number of dimensions.
_SCALED = {
    "DeepseekV2YarnRotaryEmbedding": "",
    "DynamicNTKScalingRoPE": "dims",
    "Llama3RoPE": "dims",
    "SuScaledRoPE": "dim",
    "YarnRoPE": "dims",
}
# Types whose RoPE pairs neighbouring dimensions.
_NEIGHBOURS = frozenset({
    "deepseek_v2", "deepseek_v3", "deepseek_v32", "ernie4_5", "ernie4_5_moe", "glm4_moe_lite", "glm_moe_dsa",
    "longcat_flash", "mistral4", "youtu",
})  # fmt: skip
_TYPES = frozenset({"default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional"})


class Rotation(nn.Module):
    """RoPE of one `RoPESpec`, with the interface of mlx-lm's classes."""

    def __init__(self, spec: RoPESpec, magnitudes: tuple[float, float] | None = None):
        """`magnitudes`: scales of the rotated dims within and past the trained length, if a config has them."""
        super().__init__()
        self._magnitudes = magnitudes
        self.dims, self.traditional = spec.dims, spec.interleaved
        self._spec = spec
        self._made: tuple[int, mx.array, float] | None = None

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        """Rotate (B, H, L, Dh) from position `offset` on."""
        wavelengths, magnitude = self._table(x.shape[-2], offset)
        if magnitude != 1.0:
            x = mx.concatenate([x[..., : self.dims] * magnitude, x[..., self.dims :]], axis=-1)
        return mx.fast.rope(
            x, self.dims, traditional=self.traditional, base=None, scale=1.0, offset=offset, freqs=wavelengths
        )

    def _table(self, length: int, offset: int | mx.array) -> tuple[mx.array, float]:
        """The wavelengths for a sequence that ends `length` after `offset`; cached if independent of it."""
        kind = 0
        if isinstance(scaling := self._spec.scaling, DynamicScaling | LongScaling):
            end = length + (offset if isinstance(offset, int) else int(cast(int, mx.max(offset).item())))
            kind = max(end, scaling.trained) if isinstance(scaling, DynamicScaling) else end
        if self._made is None or self._made[0] != kind:
            wavelengths, magnitude = rotation(self._spec, kind)
            if self._magnitudes and isinstance(scaling, LongScaling):
                magnitude = self._magnitudes[kind > scaling.trained]
            self._made = kind, mx.array(wavelengths), magnitude
        return self._made[1:]


def set_rotations(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Replace the RoPE modules of an mlx-lm model that do not follow `config`.

    Raises CheckpointError for an unsupported rope_type.
    """
    found = spellings.rotations(config)
    for parameters in found.values():
        if parameters["rope_type"] not in _TYPES:
            raise CheckpointError(
                f"rope_type {parameters['rope_type']!r} of config.json is not supported",
                cause=f"supported are {', '.join(sorted(_TYPES))}",
                remedy="a checkpoint of another family",
            )
    kinds = spellings.layer_kinds(config) or []
    modules = [(path, parent, name, child) for path, parent in model.named_modules() for name, child in _ropes(parent)]
    any_scaled = any(type(child).__name__ in _SCALED for *_, child in modules)
    for path, parent, name, child in modules:
        layer = re.search(r"layers\.(\d+)", f"{path}.{name}")
        kind = kinds[int(layer[1])] if layer and int(layer[1]) < len(kinds) else None
        parameters = found.get(kind, found.get(None))
        if parameters is None or (isinstance(child, nn.RoPE) and any_scaled and None in found):
            continue  # the class itself scales RoPE in some layers only
        setattr(parent, name, _corrected(child, config, parameters, f"{path}.{name}"))


def _ropes(parent: nn.Module) -> list[tuple[str, nn.Module]]:
    children: dict[str, Any] = parent.children() if isinstance(parent, nn.Module) else {}
    return [(n, c) for n, c in children.items() if isinstance(c, nn.RoPE) or type(c).__name__ in _SCALED]


def _corrected(module: Any, config: Mapping[str, Any], parameters: dict[str, Any], path: str) -> nn.Module:
    """The module itself if it follows `parameters`, else a `Rotation`."""
    plain = isinstance(module, nn.RoPE)
    dims = module.dims if plain else getattr(module, _SCALED[type(module).__name__], 0) or 2 * module._freqs.size
    share, head = parameters.get("partial_rotary_factor"), config.get("head_dim")
    if share and head and dims == head:
        dims = int(head * share)
    if parameters["rope_type"] in ("default", "proportional") and plain:
        module.dims = dims
        return module
    reader = Config(config)
    trained = reader.get("original_max_position_embeddings") or parameters.get("original_max_position_embeddings")
    given = {**parameters, "original_max_position_embeddings": trained or reader.get("max_position_embeddings")}
    spec = rope(reader, dims, given)
    interleaved = getattr(module, "traditional", _interleaved(config, path))
    short, long = parameters.get("short_mscale"), parameters.get("long_mscale")
    magnitudes = None if short is None or long is None else (short, long)
    return Rotation(RoPESpec(dims=dims, base=spec.base, interleaved=interleaved, scaling=spec.scaling), magnitudes)


def _interleaved(config: Mapping[str, Any], path: str) -> bool:
    """True if a scaled RoPE without this attribute pairs neighbouring dimensions instead of halves."""
    kind = config.get("model_type")
    if ".indexer." in path:
        return bool(config.get("indexer_rope_interleave", kind == "glm_moe_dsa"))
    return kind in _NEIGHBOURS and config.get("rope_interleave") is not False


def context_length(config: Mapping[str, Any]) -> int | None:
    """The context length of an mlx-lm model under any key, including RoPE scaling."""
    names = next(names for names in spellings.ALIASES if "max_position_embeddings" in names)
    before = {"original_max_position_embeddings": config.get("original_max_position_embeddings")}
    scaled = [before | parameters for parameters in spellings.rotations(config).values()]
    full = spellings.completed(config)
    return scaled_length(own_limit(full) or spellings.first(full, names), scaled)
