"""Objectives, one per file; each implements `macllm.train.contract.Objective`.

This module imports none of them, and no mlx: checks of rows read some of their files.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from macllm.errors import UsageError
from macllm.nn.info import ModelInfo
from macllm.text.tokenizer import Tokenizer
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.config.objective import OBJECTIVES
from macllm.train.contract import Objective

from .parts import Parts

if TYPE_CHECKING:
    import mlx.nn as nn

_KINDS = {"decoder": "a causal language model", "encoder": "an encoder", "encoder-decoder": "an encoder-decoder"}


def chosen(
    config: FinetuneConfig | PretrainConfig, model: nn.Module, tokenizer: Tokenizer, labels: tuple[str, ...] = ()
) -> Objective[Any, Any, Any]:
    """The objective of a run that trains `model`; `labels` are those of its head, in order.

    Raises UsageError for a tokenizer without the tokens that it needs, and for a model without experts whose losses
    are asked for.
    """
    module = import_module(f".{OBJECTIVES[config.objective].module}", __name__)
    return module.of(config, Parts(model, tokenizer, labels))


def check_kind(config: FinetuneConfig | PretrainConfig, info: ModelInfo) -> None:
    """Raise UsageError for a model of a kind that the objective does not train."""
    ours = OBJECTIVES[config.objective]
    if ours.head is None and info.kind != ours.kind:  # of those with a head `heads.prepare` checks the family
        name = config.model if isinstance(config, FinetuneConfig) else config.config
        raise UsageError(
            f"{name} is not {_KINDS[ours.kind]}",
            cause=f"it is of kind {info.kind}, and objective is {config.objective}",
            remedy=f"a model of kind {ours.kind}",
        )
