"""AdamW, schedules and clipping as pure functions over flat dicts of arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import mlx.core as mx

from macllm.ops.adamw import Scalars, adamw
from macllm.ops.norm import norm

from .config import TrainConfig
from .contract import Arrays, OptimizerState


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, then the schedule down to `min_lr_ratio`.

    The first step after warm-up has the peak, the last step of a falling schedule the lowest rate.
    """
    warm, last = share(config.warmup, steps), steps - 1
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    match config.schedule:
        case "constant":
            part = 1.0
        case "linear":
            part = 1.0 - _progress(step, warm, last)
        case "cosine":
            part = 0.5 * (1.0 + math.cos(math.pi * _progress(step, warm, last)))
        case "wsd":
            peak = max(warm, last - share(config.decay, steps))  # the last step at the peak
            part = 1.0 - _progress(max(step, peak), peak, last)
    return config.learning_rate * (part + config.min_lr_ratio * (1.0 - part))


def share(part: float, steps: float) -> int:
    """`part` * `steps` rounded up, in exact decimal arithmetic: 0.07 of 100 is 7."""
    return math.ceil(Fraction(str(part)) * Fraction(steps))


def _progress(step: int, start: int, stop: int) -> float:
    return min(1.0, (step - start) / max(1, stop - start))


def global_norm(gradients: Arrays) -> mx.array:
    """The Euclidean norm of all gradients together, in float32."""
    return norm(list(gradients.values()))


def clip_factor(gradient_norm: mx.array, most: float) -> mx.array:
    """Factor that scales gradients of this norm down to norm `most`; 1 for `most` = 0."""
    return mx.minimum(1.0, most / (gradient_norm + 1e-6)) if most > 0 else mx.array(1.0)


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
