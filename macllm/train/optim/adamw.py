"""AdamW."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx

from macllm.ops.adamw import Scalars, adamw

from ..config import TrainConfig
from ..contract import Arrays, OptimizerState


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay and bias correction (arXiv:1711.05101, algorithm 2).

    Its slots `mean` and `square` are moving means of gradients and squared gradients, float32.
    """

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    decay_all: bool = False

    @classmethod
    def of(cls, config: TrainConfig) -> AdamW:
        """The optimizer that a config describes."""
        return cls(config.beta1, config.beta2, config.epsilon, config.weight_decay, config.decay_all)

    def init(self, weights: Arrays) -> OptimizerState:
        """The initial state: zero moments."""
        zeros = {k: mx.zeros(w.shape, mx.float32) for k, w in weights.items()}
        return OptimizerState({"mean": zeros, "square": dict(zeros)}, 0)

    def decays(self, name: str, weight: mx.array) -> bool:
        """True for weights with weight decay: matrices other than embeddings, or all."""
        return self.decay_all or (weight.ndim > 1 and "embedding" not in name)

    def update(
        self, weights: Arrays, gradients: Arrays, state: OptimizerState, rate: float, scale: mx.array
    ) -> tuple[Arrays, OptimizerState]:
        """Weights and state after one step along `scale` * gradients; the arguments are not modified."""
        count = state.count + 1
        corrected = mx.array(rate / (1 - self.beta1**count), mx.float32)
        root = mx.array(1 / math.sqrt(1 - self.beta2**count), mx.float32)
        new, mean, square = {}, {}, {}
        for name, weight in weights.items():
            decay = mx.array(1.0 - rate * self.weight_decay * self.decays(name, weight), mx.float32)
            new[name], mean[name], square[name] = adamw(
                weight,
                gradients[name],
                (state.slots["mean"][name], state.slots["square"][name]),
                Scalars(scale, corrected, root, decay),
                (self.beta1, self.beta2),
                self.epsilon,
            )
        return new, OptimizerState({"mean": mean, "square": square}, count)
