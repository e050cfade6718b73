"""Objectives, one per file; each implements `macllm.train.contract.Objective`."""

from __future__ import annotations

from typing import Any

from macllm.errors import UsageError
from macllm.nn.info import ModelInfo, ModelKind
from macllm.train.config import FinetuneConfig
from macllm.train.contract import Objective

from .value_head import drop_value_head

__all__ = ["check_kind", "chosen", "drop_value_head"]

_KINDS: dict[str, tuple[ModelKind, str]] = {
    "sft": ("decoder", "a causal language model"),
    "dpo": ("decoder", "a causal language model"),
    "kto": ("decoder", "a causal language model"),
    "orpo": ("decoder", "a causal language model"),
    "simpo": ("decoder", "a causal language model"),
    "distil": ("decoder", "a causal language model"),
    "grpo": ("decoder", "a causal language model"),
    "ppo": ("decoder", "a causal language model"),
}


def chosen(config: FinetuneConfig, labels: tuple[str, ...] = ()) -> Objective[Any, Any, Any]:
    """The objective of a run of fine-tuning; `labels` are those of the model's head, in order."""
    match config.objective:
        case "sft":
            from .clm import CausalLM

            return CausalLM(config.mask_prompt, config.now)
        case "dpo":
            from .dpo import DPO

            return DPO(config, config.now)
        case "kto":
            from .kto import KTO

            return KTO(config, config.now)
        case "orpo":
            from .orpo import ORPO

            return ORPO(config.beta or 0.1, config.now)
        case "simpo":
            from .simpo import SimPO

            return SimPO(config.beta or 2.0, config.gamma, config.now)
        case "distil":
            from .distil import Distil

            return Distil.of(config)
        case "classify":
            from .classify import Classify

            return Classify(labels)
        case "tag":
            from .tag import Tag

            return Tag(labels)
        case "reward":
            from .reward import Reward

            return Reward(config.centering, config.now)
        case "grpo":
            from .grpo import GRPO

            return GRPO(config)
        case "ppo":
            from .ppo import PPO

            return PPO(config)


def check_kind(config: FinetuneConfig, info: ModelInfo) -> None:
    """Raise UsageError for a model of a kind that the objective does not train."""
    if config.objective not in _KINDS:  # which train heads: `heads.prepare` checks the family
        return
    kind, what = _KINDS[config.objective]
    if info.kind != kind:
        raise UsageError(
            f"{config.model} is not {what}",
            cause=f"it is of kind {info.kind}, and objective is {config.objective}",
            remedy=f"a model of kind {kind}",
        )
