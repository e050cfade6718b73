"""Parameters of QK norm, RoPE and packing, between the projections and attention."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .weights import NormWeight


class HeadParams(NamedTuple):
    """Norms of query and key heads, and their rotation (see `rope`).

    The rotated dims are scaled by `magnitude` first. Without wavelengths nothing rotates.
    """

    head_dim: int
    q_norm: NormWeight = None
    k_norm: NormWeight = None
    wavelengths: mx.array | None = None
    magnitude: float = 1.0
    interleaved: bool = False


class Packing(NamedTuple):
    """Bits and group size of rows that `mx.quantize` packs."""

    bits: int
    group_size: int
