"""Causal language modelling: cross-entropy of supervised next tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macllm.nn.info import Described
from macllm.nn.loss import token_losses
from macllm.nn.protocol import LanguageModel, PackingModel
from macllm.nn.routing import collecting
from macllm.nn.segments import Segments
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.contract import Loss
from macllm.train.render import Example, TextTokenizer, to_examples
from macllm.train.rows import Row

from .experts import ExpertLosses, expert_losses
from .parts import Parts

# Few distinct shapes let MLX reuse its buffers, at a cost of at most seven padding positions.
_PAD_TO = 8


@dataclass(frozen=True)
class Batch:
    """Inputs and targets (B, L) int32, right-padded, and the loss weight of each target, (B, L) float32.

    `segments` are the examples in rows that have several, one after another; `lengths` (B,) count the tokens that are
    no padding, where that is known.
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    segments: Segments | None = None
    lengths: np.ndarray | None = None

    @property
    def num_target_tokens(self) -> int:
        """Number of supervised tokens."""
        return int(np.count_nonzero(self.weights))


def collate(examples: Sequence[Example]) -> Batch:
    """One right-padded batch. Padding is token 0 with weight 0."""
    return _laid_out([[example] for example in examples])


def collate_packed(bins: Sequence[Sequence[Example]]) -> Batch:
    """One batch with a row for each bin, whose examples lie one after another.

    Each example ends before its last token, which is a target only, so that none predicts the first token of the next.
    """
    batch = _laid_out(bins)
    lengths = tuple(tuple(len(example) - 1 for example in each if len(example) > 1) for each in bins)
    return replace(batch, segments=Segments(lengths, batch.inputs.shape[1]))


def _laid_out(rows: Sequence[Sequence[Example]]) -> Batch:
    longest = max([1, *(sum(len(example) - 1 for example in row) for row in rows)])
    length = -(-longest // _PAD_TO) * _PAD_TO
    inputs = np.zeros((len(rows), length), dtype=np.int32)
    targets, weights = np.zeros_like(inputs), np.zeros(inputs.shape, dtype=np.float32)
    lengths = np.zeros(len(rows), dtype=np.int32)
    for i, row in enumerate(rows):
        start = 0
        for example in row:
            own = slice(start, start + len(example) - 1)
            inputs[i, own], targets[i, own] = example.tokens[:-1], example.tokens[1:]
            weights[i, own] = example.loss_weights[1:]
            start = lengths[i] = own.stop
    return Batch(inputs, targets, weights, lengths=lengths)


@dataclass(frozen=True)
class CausalLM:
    """The objective; `mask_prompt` limits the loss to assistant turns and completions.

    Chat templates write the date of `now`, or of the clock. `experts` are losses on the routers of the model.
    """

    mask_prompt: bool = True
    now: datetime | None = None
    experts: ExpertLosses | None = None

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[Example]:
        """The tokens of a row: one example, or one per turn if the template rewrites old turns."""
        return to_examples(row, tokenizer, self.mask_prompt, self.now)

    def collate(self, examples: Sequence[Example], random: np.random.Generator) -> Batch:
        """One right-padded batch; nothing in it is random."""
        return collate(examples)

    def pack(self, bins: Sequence[Sequence[Example]], random: np.random.Generator) -> Batch:
        """One batch with a row for each bin of examples, which see only themselves."""
        return collate_packed(bins)

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        """Sum over targets of weight * -log p(target), and the sum of the weights.

        Only positions with a weight go through the head. In training, the losses on routers are added to the mean; they
        are those of a micro-batch.
        """
        with collecting() as routed:
            losses, weights, _ = target_losses(model, batch)
        total, count = (losses * weights).sum(), float(batch.weights.sum(dtype=np.float64))
        if self.experts is None or batch.lengths is None or not routed or not cast("nn.Module", model).training:
            return Loss(total, count)
        real = np.arange(routed[0].logits.shape[1]) < batch.lengths[:, None]
        added, metrics = self.experts.loss(routed, mx.array(real.astype(np.float32)))
        return Loss(total + count * added, count, {name: count * metric for name, metric in metrics.items()})


def of(config: FinetuneConfig | PretrainConfig, parts: Parts) -> CausalLM:
    """The objective of a run. Raises UsageError for losses on experts that the model has none of."""
    return CausalLM(config.mask_prompt, config.now, expert_losses(config, parts.model))


def target_losses(model: LanguageModel, batch: Batch) -> tuple[mx.array, mx.array, mx.array]:
    """-log p(target), weight and row of each target with a weight: (N,) float32, (N,) float32, (N,) int32.

    Right padding needs no attention mask in a causal model.
    """
    hidden, targets, weights, rows = supervised(model, batch)
    return token_losses(model, hidden, targets), weights, rows


def supervised(model: LanguageModel, batch: Batch) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Hidden state (N, D), target, weight and row (N,) of each target with a weight, row by row."""
    batch = _within_positions(batch, model)
    inputs, segments = mx.array(batch.inputs), batch.segments
    packed = {} if segments is None else {"segments": segments}
    hidden = cast("PackingModel", model).hidden(inputs, **packed)
    chosen = np.flatnonzero(batch.weights)
    picked = hidden.reshape(-1, hidden.shape[-1])[mx.array(chosen)]
    targets = mx.array(batch.targets.reshape(-1)[chosen])
    rows = mx.array((chosen // batch.inputs.shape[1]).astype(np.int32))
    return picked, targets, mx.array(batch.weights.reshape(-1)[chosen]), rows


def _within_positions(batch: Batch, model: object) -> Batch:
    """The batch without padding that the model's table of positions has no rows for."""
    count = model.info.position_count if isinstance(model, Described) else None
    if count is None or batch.segments is not None or batch.weights[:, count:].any():
        return batch
    cut = {name: getattr(batch, name)[:, :count] for name in ("inputs", "targets", "weights")}
    return replace(batch, **cut)
