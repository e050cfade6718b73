"""Which keys a query sees: as a mask, or in numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import mlx.core as mx

Mask = mx.array | Literal["causal"] | None


@dataclass(frozen=True)
class Sight:
    """Who sees whom, in the numbers that kernels go by; `mask` makes the mask that says the same.

    The last query stands at the last key. Queries see no later key if `causal`, none that is `window` or more away,
    none of another `chunk`; 0 is no window and no chunk. `first` (rows, or one for all) is a row's first key that is no
    padding, where its chunks begin, too: negative where the cache has let the first keys go. Of rows padded on the
    right, `lengths` (B,) keys count. What padding sees is left open.
    """

    causal: bool
    mask: Callable[[], Mask]
    window: int = 0
    chunk: int = 0
    first: tuple[int, ...] = (0,)
    lengths: mx.array | None = None
    is_cached: bool = False
    """Whether keys come from a cache: nobody asks for their gradients."""

    @classmethod
    def of(cls, mask: Mask | Sight) -> Sight | None:
        """What a mask says; None for one that only an array can say."""
        if isinstance(mask, mx.array):
            return None
        return mask if isinstance(mask, Sight) else cls(mask == "causal", lambda: mask)

    @property
    def is_masked(self) -> bool:
        """Whether it takes more than causality, or nothing, to say who sees whom."""
        return bool(self.window or self.chunk) or self.lengths is not None or max(self.first) > 0

    @cached_property
    def as_mask(self) -> Mask:
        """The mask, made once."""
        return self.mask()

    @cached_property
    def firsts(self) -> mx.array:
        """`first` as an array, made once."""
        return mx.array(self.first, dtype=mx.int32)

    def segments(self, count: int) -> mx.array | None:
        """(B, count) int32 that part keys that count from padding on the right; None where there is none."""
        return None if self.lengths is None else (mx.arange(count) >= self.lengths[:, None]).astype(mx.int32)
