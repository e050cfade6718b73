"""Memory of keys and values, and the context that fits into what is left. Imports no MLX."""

from __future__ import annotations

from collections.abc import Sequence

from macllm.nn.info import KVLayer

from .contract import EngineInfo, MemoryUse


def kv_bytes(layers: Sequence[KVLayer], number_bytes: int, kv_bits: int | None = None) -> tuple[int, int]:
    """Bytes by which a cache grows with each token, and those of full windows.

    Rows are numbers of `number_bytes`, or packed into `kv_bits` in groups along the head, each with a scale and a bias.
    """
    growth = windows = 0
    for layer in layers:
        row = 2 * layer.num_kv_heads * _head_bytes(layer.head_dim, number_bytes, kv_bits)
        if layer.window is None:
            growth += row
        else:
            windows += row * layer.window
    return growth, windows


def fitting_tokens(info: EngineInfo, memory: MemoryUse, used_tokens: int = 0) -> int | None:
    """The context in tokens that the memory in use and free holds, if `used_tokens` of it are used now.

    None if the size of the cache or of the memory is unknown, or the cache does not grow. Memory that other branches
    hold counts as used.
    """
    if not info.kv_bytes_per_token or not memory.limit_bytes:
        return None
    free = memory.limit_bytes - memory.active_bytes
    if used_tokens < info.kv_window_tokens:
        free -= info.kv_window_bytes * (info.kv_window_tokens - used_tokens) // info.kv_window_tokens
    return used_tokens + max(0, free // info.kv_bytes_per_token)


def _head_bytes(head_dim: int, number_bytes: int, kv_bits: int | None) -> int:
    if kv_bits is None:
        return head_dim * number_bytes
    group = 64 if head_dim % 64 == 0 else 32
    groups = -(-head_dim // group)
    return groups * (group * kv_bits // 8 + 2 * number_bytes)
