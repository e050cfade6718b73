"""Rotary positions (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

import mlx.core as mx

from .dispatch import choice, native


def rope(x: mx.array, wavelengths: mx.array, offset: int | mx.array, *, interleaved: bool = False) -> mx.array:
    """Rotate the first 2n dims of every head: (B, H, L, Dh) with wavelengths (n,) -> (B, H, L, Dh).

    Pair i of the token at position p turns by p / wavelengths[i] radians. `offset` is the position of
    the first token, one for all rows or (B,). Pairs are neighbours when `interleaved`, else n apart.
    """
    if choice() == "reference":
        return rope_reference(x, wavelengths, offset, interleaved=interleaved)
    kernels = native(x, wavelengths)
    if kernels is not None:
        return kernels.rope(x, wavelengths, mx.array(offset), interleaved)
    dims = 2 * wavelengths.shape[0]
    return mx.fast.rope(x, dims, traditional=interleaved, base=None, scale=1.0, offset=offset, freqs=wavelengths)


def rope_reference(
    x: mx.array, wavelengths: mx.array, offset: int | mx.array, *, interleaved: bool = False
) -> mx.array:
    """The same from its definition, in float32."""
    n = wavelengths.shape[0]
    turned, rest = x[..., : 2 * n].astype(mx.float32), x[..., 2 * n :]
    position = mx.array(offset).reshape(-1, 1, 1, 1) + mx.arange(x.shape[2])[:, None]
    angle = position / wavelengths
    cos, sin = mx.cos(angle), mx.sin(angle)
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else (turned[..., :n], turned[..., n:])
    pair = [a * cos - b * sin, a * sin + b * cos]
    y = mx.stack(pair, axis=-1).reshape(turned.shape) if interleaved else mx.concatenate(pair, axis=-1)
    return mx.concatenate([y.astype(x.dtype), rest], axis=-1)
