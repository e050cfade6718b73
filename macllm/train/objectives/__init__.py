"""Objectives, one per file; each implements `macllm.train.contract.Objective`."""

from __future__ import annotations

from typing import Any, Literal

import mlx.nn as nn

from macllm.errors import UsageError
from macllm.nn.info import ModelInfo, ModelKind
from macllm.text.tokenizer import Tokenizer
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.contract import Objective

from .value_head import drop_value_head

__all__ = ["check_kind", "chosen", "drop_value_head", "of_pretraining"]

_KINDS: dict[str, tuple[ModelKind, str]] = {
    "sft": ("decoder", "a causal language model"),
    "dpo": ("decoder", "a causal language model"),
    "kto": ("decoder", "a causal language model"),
    "orpo": ("decoder", "a causal language model"),
    "simpo": ("decoder", "a causal language model"),
    "distil": ("decoder", "a causal language model"),
    "grpo": ("decoder", "a causal language model"),
    "ppo": ("decoder", "a causal language model"),
    "clm": ("decoder", "a causal language model"),
    "mlm": ("encoder", "an encoder"),
    "span": ("encoder-decoder", "an encoder-decoder"),
    "infill": ("encoder-decoder", "an encoder-decoder"),
    "seq2seq": ("encoder-decoder", "an encoder-decoder"),
}


def chosen(config: FinetuneConfig, model: nn.Module, labels: tuple[str, ...] = ()) -> Objective[Any, Any, Any]:
    """The objective of a run of fine-tuning `model`; `labels` are those of its head, in order."""
    match config.objective:
        case "sft":
            from .clm import CausalLM
            from .experts import expert_losses

            return CausalLM(config.mask_prompt, config.now, expert_losses(config, model))
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
        case "classify" | "tag":
            return _of_labels(config.objective, labels)
        case "reward":
            from .reward import Reward

            return Reward(config.centering, config.now)
        case "grpo":
            from .grpo import GRPO

            return GRPO(config)
        case "ppo":
            from .ppo import PPO

            return PPO(config)
        case "seq2seq":
            from .seq2seq import TextToText

            return TextToText(config.label_smoothing_factor)


def _of_labels(objective: Literal["classify", "tag"], labels: tuple[str, ...]) -> Objective[Any, Any, Any]:
    """The objective that learns labels of texts or of words."""
    if objective == "tag":
        from .tag import Tag

        return Tag(labels)
    from .classify import Classify

    return Classify(labels)


def of_pretraining(config: PretrainConfig, tokenizer: Tokenizer, model: nn.Module) -> Objective[Any, Any, Any]:
    """The objective of a run from random weights. Raises UsageError for a tokenizer without its tokens."""
    from . import tokens

    match config.objective:
        case "clm":
            from .clm import CausalLM
            from .experts import expert_losses

            return CausalLM(config.mask_prompt, config.now, expert_losses(config, model))
        case "mlm":
            from .mlm import MaskedLM

            special = tuple(sorted(tokenizer.special_ids))
            return MaskedLM(tokens.mask(tokenizer), tokenizer.vocab_size, special, config.mask_ratio or 0.15)
        case "span":
            from .span import SpanCorruption

            return SpanCorruption(tokens.sentinels(tokenizer), config.mask_ratio or 0.15, config.span_length)
        case "infill":
            from .infill import TextInfilling

            stops = tokens.full_stops(tokenizer) if config.permute_sentences else ()
            return TextInfilling(tokens.mask(tokenizer), stops, config.mask_ratio or 0.3, config.span_length)
        case "seq2seq":
            from .seq2seq import TextToText

            return TextToText(config.label_smoothing_factor)


def check_kind(config: FinetuneConfig | PretrainConfig, info: ModelInfo) -> None:
    """Raise UsageError for a model of a kind that the objective does not train."""
    if config.objective not in _KINDS:  # which train heads: `heads.prepare` checks the family
        return
    kind, what = _KINDS[config.objective]
    if info.kind != kind:
        name = config.model if isinstance(config, FinetuneConfig) else config.config
        raise UsageError(
            f"{name} is not {what}",
            cause=f"it is of kind {info.kind}, and objective is {config.objective}",
            remedy=f"a model of kind {kind}",
        )
