"""AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import mlx.core as mx

from macllm.ops.adamw import Scalars, adamw

from ..contract import Arrays, OptimizerState
from .groups import decays
from .moment import FirstMoment


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay and bias correction (arXiv:1711.05101, algorithm 2).

    Its slots `mean` and `square` are moving means of gradients and squared gradients, float32; `mean` of matrices may
    be in 8 bits. `factors` are the rates of weights relative to the common one, 1 by default.
    """

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    decay_all: bool = False
    factors: Mapping[str, float] = field(default_factory=dict[str, float])
    first_moment: FirstMoment = field(default_factory=FirstMoment)

    def init(self, weights: Arrays) -> OptimizerState:
        """The initial state: zero moments."""
        squares = {k: mx.zeros(w.shape, mx.float32) for k, w in weights.items()}
        return OptimizerState({**self.first_moment.init(weights), "square": squares}, 0)

    def update(
        self, weights: Arrays, gradients: Arrays, state: OptimizerState, rate: float, scale: mx.array
    ) -> tuple[Arrays, OptimizerState]:
        """Weights and state after one step along `scale` * gradients; the arguments are not modified."""
        count = state.count + 1
        bias, root = 1 - self.beta1**count, mx.array(1 / math.sqrt(1 - self.beta2**count), mx.float32)
        new, mean, square = {}, {}, {}
        for name, weight in weights.items():
            own = rate * self.factors.get(name, 1.0)
            decay = self.weight_decay * decays(name, weight, self.decay_all)
            new[name], mean[name], square[name] = adamw(
                weight,
                gradients[name],
                (self.first_moment.read(state, name), state.slots["square"][name]),
                Scalars(scale, mx.array(own / bias, mx.float32), root, mx.array(1.0 - own * decay, mx.float32)),
                (self.beta1, self.beta2),
                self.epsilon,
            )
        return new, OptimizerState({**self.first_moment.slots(mean), "square": square}, count)
