"""Quantized checkpoints: MLX's parameters, or another tool's method, which is an error that names it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from macllm.errors import CheckpointError

from .defaults import whole

log = logging.getLogger("macllm")

# Endings of tensor names that identify a method, the more specific first.
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
# Scales of a quantized KV cache, which do not affect the weights.
_CACHE_SCALE = re.compile(r"\.(self_attn|attn|attention|[kv]_proj)\.(k|v|kv|q|prob|output)_scale$")
# Methods that mlx-lm's loader reads.
OF_MLX_LM = frozenset(("bitnet", "mxfp4", "mxfp8", "fp8", "compressed-tensors", "modelopt", "awq", "gptq"))


def mlx_parameters(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """MLX's quantization parameters of a checkpoint and its modules; None if MLX did not quantize it."""
    for half in _halves(config):
        for key in ("quantization", "quantization_config"):
            found = half.get(key)
            if isinstance(found, Mapping) and not _named(found) and {"bits", "group_size", "mode"} & found.keys():
                return {name: _whole(name, value) for name, value in found.items()}
    return None


def refuse(config: Mapping[str, Any], readable: frozenset[str] = frozenset()) -> None:
    """Raise CheckpointError for a checkpoint quantized by another tool, unless `readable`."""
    for method in _methods(config):
        if method not in readable:
            raise _packed(method)


def explain(config: Mapping[str, Any], names: Iterable[str], cause: str) -> None:
    """Raise CheckpointError if another tool quantized the checkpoint that a loader failed on with `cause`."""
    held = list(names)
    signs = (method for sign, method in _SIGNS if any(sign.search(name) for name in held))
    method = next(iter(_methods(config)), None) or next(signs, None)
    if method is not None:
        raise CheckpointError(
            f"this checkpoint is quantized by {method!r}, in a form that neither macllm nor mlx-lm supports",
            cause=cause,
            remedy="use the unquantized or the MLX-quantized copy of this model",
        )


def refuse_names(names: Iterable[str]) -> None:
    """Raise CheckpointError for a checkpoint with tensor names of another quantization tool."""
    held = list(names)
    for sign, method in _SIGNS:
        if any(sign.search(name) for name in held):
            raise _packed(method)


def drop_cache_scales(tensors: MutableMapping[str, Any]) -> None:
    """Drop the scales of a quantized KV cache, with a warning; the weights do not depend on them."""
    found = [name for name in tensors if _CACHE_SCALE.search(name)]
    for name in found:
        del tensors[name]
    if found:
        log.warning("%d scales for a quantized KV cache are ignored, the first is %s", len(found), found[0])


def _halves(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, Mapping) else [config]


def _methods(config: Mapping[str, Any]) -> list[str]:
    """The quantization methods of other tools in a config."""
    if mlx_parameters(config) is not None:
        return []
    found: list[str] = []
    for half in _halves(config):
        for key in ("quantization_config", "quantization", "compression_config"):
            value = half.get(key)
            if value and not (isinstance(value, Mapping) and not any(value.values())):
                found.append(str((_named(value) or "unknown") if isinstance(value, Mapping) else value))
    return found


def _named(config: Mapping[str, Any]) -> str | None:
    """The method of a quantization_config, by its name or its keys."""
    if config.get("quant_method"):
        return str(config["quant_method"])
    if config.get("quant_algo") or "producer" in config:
        return "modelopt"
    if "load_in_4bit" in config or "load_in_8bit" in config:
        return "bitsandbytes"
    if "desc_act" in config or "damp_percent" in config:
        return "gptq"
    if "w_bit" in config or "zero_point" in config:
        return "awq"
    return "compressed-tensors" if "config_groups" in config else None


def _whole(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _whole(key, inner) for key, inner in value.items()}
    return whole(name, value) if name in ("bits", "group_size") else value


def _packed(method: str) -> CheckpointError:
    return CheckpointError(
        f"this checkpoint is quantized by {method!r}, which macllm does not support",
        remedy="use the unquantized or the MLX-quantized copy of this model",
    )
