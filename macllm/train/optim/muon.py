"""Muon for hidden matrices, AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import mlx.core as mx

from macllm.ops.polar import polar

from ..contract import Arrays, OptimizerState
from .adamw import AdamW
from .groups import decays, is_hidden

_RMS = 0.2  # of AdamW's updates


@dataclass(frozen=True)
class Muon:
    """Steps along the polar factor of a mean gradient (https://kellerjordan.github.io/posts/muon/).

    Hidden matrices alone, each expert of a stack and each factor of an adapter by itself; `others` (AdamW) updates
    embeddings, the head, norms and biases. Nesterov's momentum, decoupled weight decay. An update is scaled by
    0.2 sqrt(max(rows, columns)), which gives its elements the size of AdamW's (arXiv:2502.16982), so rates and weight
    decay of AdamW fit. The slot `momentum` is a moving mean of gradients, float32; the others are AdamW's.
    """

    momentum: float
    weight_decay: float
    others: AdamW
    decay_all: bool = False
    factors: Mapping[str, float] = field(default_factory=dict[str, float])

    def init(self, weights: Arrays) -> OptimizerState:
        """The initial state: zero moments."""
        hidden, rest = _divided(weights)
        means = {name: mx.zeros(w.shape, mx.float32) for name, w in hidden.items()}
        return OptimizerState({**self.others.init(rest).slots, "momentum": means}, 0)

    def update(
        self, weights: Arrays, gradients: Arrays, state: OptimizerState, rate: float, scale: mx.array
    ) -> tuple[Arrays, OptimizerState]:
        """Weights and state after one step along `scale` * gradients; the arguments are not modified."""
        hidden, rest = _divided(weights)
        new, after = self.others.update(rest, gradients, state, rate, scale)
        means: Arrays = {}
        for name, weight in hidden.items():
            own = rate * self.factors.get(name, 1.0)
            gradient = gradients[name].astype(mx.float32) * scale
            means[name] = self.momentum * state.slots["momentum"][name] + (1 - self.momentum) * gradient
            ahead = self.momentum * means[name] + (1 - self.momentum) * gradient
            decay = 1.0 - own * self.weight_decay * decays(name, weight, self.decay_all)
            length = own * _RMS * math.sqrt(max(weight.shape[-2:]))
            new[name] = (weight.astype(mx.float32) * decay - length * polar(ahead)).astype(weight.dtype)
        ordered = {name: new[name] for name in weights}
        return ordered, OptimizerState({**after.slots, "momentum": means}, after.count)


def _divided(weights: Arrays) -> tuple[Arrays, Arrays]:
    """The hidden matrices, and the rest."""
    hidden = {name: w for name, w in weights.items() if is_hidden(name, w)}
    return hidden, {name: w for name, w in weights.items() if name not in hidden}
