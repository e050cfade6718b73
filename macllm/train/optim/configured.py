"""The optimizer that a config describes."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from macllm.errors import UsageError

from ..config import TrainConfig
from ..contract import Optimizer
from .adamw import AdamW
from .groups import decays, is_hidden, rate_factors
from .lion import Lion
from .moment import FirstMoment
from .muon import Muon


def configured(config: TrainConfig, model: nn.Module) -> Optimizer:
    """The optimizer of `config` for the trained weights of `model`.

    Raises UsageError for a setting that would change nothing.
    """
    weights: dict[str, mx.array] = dict(tree_flatten(model.trainable_parameters()))  # type: ignore[arg-type]
    factors = rate_factors(config, weights, (name for name, _ in tree_flatten(model.parameters())))
    if config.decay_all and all(decays(name, weight, everything=False) for name, weight in weights.items()):
        cause = "only matrices are trained, none of an embedding"
        raise UsageError("decay_all has no effect", cause=cause, remedy="weight_decay alone")
    c, moment = config, FirstMoment(config.first_moment_bits)
    if c.optimizer == "lion":
        return Lion(c.beta1, c.momentum or 0.99, c.weight_decay, c.decay_all, factors, moment)
    adamw = AdamW(c.beta1, c.beta2, c.epsilon, c.weight_decay, c.decay_all, factors, moment)
    if c.optimizer == "adamw":
        return adamw
    if not any(is_hidden(name, weight) for name, weight in weights.items()):
        raise UsageError("muon has no effect", cause="no hidden matrix is trained", remedy="optimizer = adamw")
    return Muon(c.momentum or 0.95, c.weight_decay, adamw, c.decay_all, factors)
