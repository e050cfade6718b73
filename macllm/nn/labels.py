"""Heads that classify texts or tokens."""

from __future__ import annotations

from typing import cast

import mlx.core as mx
import mlx.nn as nn

from macllm.errors import UsageError
from macllm.ops.gate import activate

from .linear import Linear
from .spec import LabelSpec


class LabelHead(nn.Module):
    """A state for each text or token to logits of labels."""

    def __init__(self, dim: int, spec: LabelSpec):
        super().__init__()
        self.spec = spec
        if spec.dense is not None:
            self.dense = Linear(dim, dim)
        self.proj = Linear(dim, spec.count, bias=spec.bias)

    def __call__(self, x: mx.array, tokens: mx.array, lengths: mx.array | None) -> mx.array:
        """Hidden states (B, L, D), or the pooler's output (B, D) -> (B, C), or (B, L, C) over all tokens."""
        match self.spec.reads:
            case "first":
                x = x[:, 0]  # (B, D)
            case "last":
                x = x[mx.arange(x.shape[0]), last_tokens(tokens, lengths, self.spec.padding)]  # (B, D)
        if self.spec.dense is not None:
            x = activate(self.dense(x), self.spec.dense)
        return self.proj(x)


def last_tokens(tokens: mx.array, lengths: mx.array | None, padding: int | None) -> mx.array:
    """The place of each row's last token that is not `padding`, 0 if there is none: (B, L) -> (B,) int32.

    As in transformers, a text that ends with the padding token, such as an end token that pads too, is read before it.
    """
    places = mx.arange(tokens.shape[1])
    real = mx.ones(tokens.shape, dtype=mx.bool_) if lengths is None else places < lengths[:, None]
    if padding is not None:
        real = real & (tokens != padding)
    return mx.where(real, places, 0).max(axis=1)


def label_head(model: nn.Module) -> LabelHead:
    """The head that classifies. Raises UsageError on a model without one."""
    if "labels" not in model:
        raise UsageError(
            "this model has no head that classifies",
            cause="its checkpoint holds none",
            remedy="macllm finetune --objective classify (or tag, or reward)",
        )
    return cast(LabelHead, model["labels"])
