"""Moving means of gradients, in 32 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from macllm.ops.eight_bits import EightBits, packed, unpacked

from ..contract import Arrays, OptimizerState

MEAN, SCALE = "mean", "mean_scale"  # slots


@dataclass(frozen=True)
class FirstMoment:
    """Storage of a first moment in slots: float32, or in 8 bits for matrices.

    Codes of matrices are in the slot `mean`, float32 scales of their blocks in `mean_scale`.
    """

    bits: int = 32

    def init(self, weights: Arrays) -> dict[str, Arrays]:
        """Slots with zeros."""
        return self.slots({name: mx.zeros(w.shape, mx.float32) for name, w in weights.items()})

    def slots(self, means: Arrays) -> dict[str, Arrays]:
        """Slots with these moments."""
        if self.bits == 32:
            return {MEAN: means}
        codes = {name: packed(mean) for name, mean in means.items() if mean.ndim > 1}
        kept = {name: codes[name].codes if name in codes else mean for name, mean in means.items()}
        return {MEAN: kept, SCALE: {name: one.scales for name, one in codes.items()}}

    def read(self, state: OptimizerState, name: str) -> mx.array:
        """The moment of one weight, float32."""
        scales = state.slots.get(SCALE, {})
        mean = state.slots[MEAN][name]
        return unpacked(EightBits(mean, scales[name])) if name in scales else mean
