"""Losses on the routers of experts: balance (arXiv:2101.03961, 2.2), z-loss (arXiv:2202.08906, 3.3)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macllm import families
from macllm.errors import UsageError
from macllm.families.defaults import complete
from macllm.nn.info import Described
from macllm.nn.moe import MoE
from macllm.nn.routing import Routed
from macllm.train.config.expert import ExpertSettings

log = logging.getLogger("macllm")


@dataclass(frozen=True)
class ExpertLosses:
    """The weights of both losses in the loss of a language model."""

    balance: float
    z: float

    def loss(self, routed: Sequence[Routed], real: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        """The weighted sum of both, and each alone, over the tokens that are `real` (B, L) float32.

        Of E experts, E * sum_i f_i P_i, where f_i is the mean number of choices of expert i by a token, and P_i its
        mean probability, both over the tokens of all layers together, as in transformers (the paper takes each layer
        alone). The z-loss is the mean square of log sum exp of the logits. `unused_experts` are those of all layers
        that no token chose; none drops a token, as experts have no capacity.
        """
        experts = routed[0].logits.shape[-1]
        chosen, probable, square, unused = mx.zeros(experts), mx.zeros(experts), mx.zeros(()), mx.zeros(())
        for logits, top_k in routed:
            wide = logits.astype(mx.float32)  # (B, L, E)
            sums = mx.logsumexp(wide, axis=-1, keepdims=True)  # (B, L, 1)
            probable = probable + (mx.exp(wide - sums) * real[..., None]).sum((0, 1))
            square = square + (mx.square(sums.squeeze(-1)) * real).sum()
            best = mx.argpartition(mx.stop_gradient(wide), kth=-top_k, axis=-1)[..., -top_k:]  # (B, L, T)
            ones = mx.broadcast_to(real[..., None], best.shape)
            counts = mx.put_along_axis(mx.zeros(wide.shape), best, ones, axis=-1).sum((0, 1))
            chosen, unused = chosen + counts, unused + (counts == 0).sum()
        tokens = real.sum() * len(routed)
        balance = experts * (mx.stop_gradient(chosen) * probable).sum() / mx.square(tokens)
        z = square / tokens
        metrics = {"balance": balance, "router_z": z, "unused_experts": unused}
        return self.balance * balance + self.z * z, {name: mx.stop_gradient(m) for name, m in metrics.items()}


def expert_losses(config: ExpertSettings, model: nn.Module) -> ExpertLosses | None:
    """The losses that the settings, or the model's config.json, ask for.

    Raises UsageError for settings of a model without experts, or with experts of mlx-lm's classes.
    """
    stated = _stated(dict(model.info.config)) if isinstance(model, Described) else 0.0
    balance = max(0.0, config.router_aux_loss_coef or stated)
    if any(isinstance(module, MoE) for module in model.modules()):
        return ExpertLosses(balance, config.router_z_loss_coef) if balance or config.router_z_loss_coef else None
    for name in ("router_aux_loss_coef", "router_z_loss_coef"):
        if getattr(config, name) > 0:
            cause = "the model has no mixture of experts of a supported family"
            raise UsageError(f"{name} has no effect", cause=cause, remedy=f"leave {name} out")
    if balance:
        log.warning("no loss of load balance is added: the model is one of mlx-lm's classes")
    return None


def _stated(raw: dict[str, Any]) -> float:
    """The weight of the balance loss that config.json asks for."""
    if families.is_known(raw):
        text = dict(complete(families.text_config(raw)))
        raw = {**text, **{key: raw[key] for key in ("output_router_logits",) if key in raw}}
    return float(raw.get("router_aux_loss_coef") or 0.0) if raw.get("output_router_logits") else 0.0
