"""Lion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import mlx.core as mx

from macllm.ops.lion import LionScalars, lion

from ..contract import Arrays, OptimizerState
from .groups import decays
from .moment import FirstMoment


@dataclass(frozen=True)
class Lion:
    """Steps along the sign of a mean gradient, decoupled weight decay (arXiv:2302.06675).

    Its slot `mean` is a moving mean of gradients, float32, or 8 bits for matrices.
    """

    beta1: float
    beta2: float
    weight_decay: float
    decay_all: bool = False
    factors: Mapping[str, float] = field(default_factory=dict[str, float])
    first_moment: FirstMoment = field(default_factory=FirstMoment)

    def init(self, weights: Arrays) -> OptimizerState:
        """The initial state: zero means."""
        return OptimizerState(self.first_moment.init(weights), 0)

    def update(
        self, weights: Arrays, gradients: Arrays, state: OptimizerState, rate: float, scale: mx.array
    ) -> tuple[Arrays, OptimizerState]:
        """Weights and state after one step along `scale` * gradients; the arguments are not modified."""
        new, mean = {}, {}
        for name, weight in weights.items():
            own = rate * self.factors.get(name, 1.0)
            decay = self.weight_decay * decays(name, weight, self.decay_all)
            by = LionScalars(scale, mx.array(own, mx.float32), mx.array(1.0 - own * decay, mx.float32))
            old = self.first_moment.read(state, name)
            new[name], mean[name] = lion(weight, gradients[name], old, by, (self.beta1, self.beta2))
        return new, OptimizerState(self.first_moment.slots(mean), state.count + 1)
