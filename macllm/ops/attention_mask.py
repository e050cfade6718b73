"""A structured attention mask: causal, window, chunk, padding; `dense` builds the array."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import mlx.core as mx

MaskArray = mx.array | Literal["causal"] | None


@dataclass(frozen=True)
class AttentionMask:
    """A structured attention mask, which kernels read as numbers; `build` makes the equal dense mask.

    The last query is at the position of the last key. Queries see no later key if `causal`, no key `window` or more
    positions away, no key of another `chunk`; 0 means no window or no chunks. `first` (one entry per row, or one for
    all) is a row's first key after its left padding, where its chunks begin; it is negative once the cache has dropped
    the first keys. For rows padded on the right, the first `lengths` (B,) keys are real. The keys that a padded query
    sees are unspecified.
    """

    causal: bool
    build: Callable[[], MaskArray]
    window: int = 0
    chunk: int = 0
    first: tuple[int, ...] = (0,)
    lengths: mx.array | None = None
    is_cached: bool = False
    """True where keys come from a cache, and so need no gradients."""

    @classmethod
    def of(cls, mask: MaskArray | AttentionMask) -> AttentionMask | None:
        """The structured form of a mask; None for an array, which has none."""
        if isinstance(mask, mx.array):
            return None
        return mask if isinstance(mask, AttentionMask) else cls(mask == "causal", lambda: mask)

    @property
    def is_masked(self) -> bool:
        """True if the mask needs more than `causal`: a window, chunks or padding."""
        return bool(self.window or self.chunk) or self.lengths is not None or max(self.first) > 0

    def dense(self) -> MaskArray:
        """The dense mask, built once: bool, broadcasting to (B, H, L, S), or "causal", or None."""
        return self._dense

    @cached_property
    def _dense(self) -> MaskArray:
        return self.build()

    @cached_property
    def firsts(self) -> mx.array:
        """`first` as an int32 array, built once."""
        return mx.array(self.first, dtype=mx.int32)

    def segment_ids(self, count: int) -> mx.array | None:
        """(B, count) int32: 0 for real keys, 1 for padding on the right; None without right padding."""
        return None if self.lengths is None else (mx.arange(count) >= self.lengths[:, None]).astype(mx.int32)
