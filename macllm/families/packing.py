"""Quantized checkpoints: MLX's recipe, or another tool's method, which is refused by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from macllm.errors import CheckpointError

from .defaults import whole

log = logging.getLogger("macllm")

# Endings of names that only one method writes, the more telling first.
_SIGNS = (
    (re.compile(r"\.(absmax|quant_map|nested_absmax|SCB|quant_state\.bitsandbytes__\w+)$"), "bitsandbytes"),
    (re.compile(r"\.g_idx$"), "gptq"),
    (re.compile(r"\.qzeros$"), "awq"),
    (re.compile(r"\.(W_q|W_q\.\w+)$"), "hqq"),
    (re.compile(r"\.codebooks$"), "aqlm"),
    (re.compile(r"\.weight_scale_inv$"), "fp8"),
    (re.compile(r"\.(weight_packed|weight_zero_point|weight_shape)$"), "compressed-tensors"),
    (re.compile(r"\.weight_scale_2$"), "modelopt"),
    (re.compile(r"\.weight_scale$"), "compressed-tensors"),
    (re.compile(r"_proj_blocks$"), "mxfp4"),
)
# Scales of a quantized key-value cache, which leave the weights as they are.
_CACHE_SCALE = re.compile(r"\.(self_attn|attn|attention|[kv]_proj)\.(k|v|kv|q|prob|output)_scale$")
# Methods that mlx-lm's loader reads.
OF_MLX_LM = frozenset(("bitnet", "mxfp4", "mxfp8", "fp8", "compressed-tensors", "modelopt", "awq", "gptq"))


def recipe(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """MLX's recipe of the checkpoint and of single modules; None where MLX did not quantize it."""
    for half in _halves(config):
        for key in ("quantization", "quantization_config"):
            said = half.get(key)
            if isinstance(said, Mapping) and not _named(said) and {"bits", "group_size", "mode"} & said.keys():
                return {name: _whole(name, value) for name, value in said.items()}
    return None


def refuse(config: Mapping[str, Any], readable: frozenset[str] = frozenset()) -> None:
    """Raise CheckpointError for a checkpoint quantized by another tool, unless `readable`."""
    for method in _methods(config):
        if method not in readable:
            raise _packed(method)


def explain(config: Mapping[str, Any], names: Iterable[str], cause: str) -> None:
    """Raise CheckpointError naming the tool's method after a loader failed because of `cause`."""
    held = list(names)
    signs = (method for sign, method in _SIGNS if any(sign.search(name) for name in held))
    method = next(iter(_methods(config)), None) or next(signs, None)
    if method is not None:
        raise CheckpointError(
            f"this checkpoint is quantized by {method!r}, in a form that nothing here reads",
            cause=cause,
            remedy="use the unquantized or the MLX-quantized copy of this model",
        )


def refuse_names(names: Iterable[str]) -> None:
    """The same for a checkpoint whose tensors have the names that another tool gives."""
    held = list(names)
    for sign, method in _SIGNS:
        if any(sign.search(name) for name in held):
            raise _packed(method)


def drop_cache_scales(tensors: MutableMapping[str, Any]) -> None:
    """Leave out the scales of a quantized key-value cache, with a note; the weights do not depend on them."""
    found = [name for name in tensors if _CACHE_SCALE.search(name)]
    for name in found:
        del tensors[name]
    if found:
        log.warning("%d scales for a quantized cache are left out, the first is %s", len(found), found[0])


def _halves(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, Mapping) else [config]


def _methods(config: Mapping[str, Any]) -> list[str]:
    """The methods of other tools that a config names."""
    if recipe(config) is not None:
        return []
    found: list[str] = []
    for half in _halves(config):
        for key in ("quantization_config", "quantization", "compression_config"):
            said = half.get(key)
            if said and not (isinstance(said, Mapping) and not any(said.values())):
                found.append(str((_named(said) or "unknown") if isinstance(said, Mapping) else said))
    return found


def _named(said: Mapping[str, Any]) -> str | None:
    """The method that a quantization_config names, or that its keys give away."""
    if said.get("quant_method"):
        return str(said["quant_method"])
    if said.get("quant_algo") or "producer" in said:
        return "modelopt"
    if "load_in_4bit" in said or "load_in_8bit" in said:
        return "bitsandbytes"
    if "desc_act" in said or "damp_percent" in said:
        return "gptq"
    if "w_bit" in said or "zero_point" in said:
        return "awq"
    return "compressed-tensors" if "config_groups" in said else None


def _whole(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _whole(key, inner) for key, inner in value.items()}
    return whole(name, value) if name in ("bits", "group_size") else value


def _packed(method: str) -> CheckpointError:
    return CheckpointError(
        f"this checkpoint is quantized by {method!r}, which macllm does not read",
        remedy="use the unquantized or the MLX-quantized copy of this model",
    )
