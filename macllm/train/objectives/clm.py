"""Causal language modelling: cross-entropy of supervised next tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import mlx.core as mx
import numpy as np

from macllm.nn.loss import token_losses
from macllm.nn.protocol import LanguageModel
from macllm.train.contract import Loss
from macllm.train.render import Example, TextTokenizer, to_examples
from macllm.train.rows import Row

# Few distinct shapes let MLX reuse its buffers, at a cost of at most seven padding positions.
_PAD_TO = 8


@dataclass(frozen=True)
class Batch:
    """Inputs and targets (B, L) int32, right-padded, and the loss weight of each target, (B, L) float32."""

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    @property
    def num_target_tokens(self) -> int:
        """Number of supervised tokens."""
        return int(np.count_nonzero(self.weights))


def collate(examples: Sequence[Example]) -> Batch:
    """One right-padded batch. Padding is token 0 with weight 0."""
    longest = max(2, *map(len, examples)) - 1
    length = -(-longest // _PAD_TO) * _PAD_TO
    inputs = np.zeros((len(examples), length), dtype=np.int32)
    targets, weights = np.zeros_like(inputs), np.zeros(inputs.shape, dtype=np.float32)
    for i, example in enumerate(examples):
        n = len(example) - 1
        inputs[i, :n], targets[i, :n] = example.tokens[:-1], example.tokens[1:]
        weights[i, :n] = example.loss_weights[1:]
    return Batch(inputs, targets, weights)


@dataclass(frozen=True)
class CausalLM:
    """The objective; `mask_prompt` limits the loss to assistant turns and completions.

    Chat templates write the date of `now`, or of the clock.
    """

    mask_prompt: bool = True
    now: datetime | None = None

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[Example]:
        """The tokens of a row: one example, or one per turn if the template rewrites old turns."""
        return to_examples(row, tokenizer, self.mask_prompt, self.now)

    def collate(self, examples: Sequence[Example], random: np.random.Generator) -> Batch:
        """One right-padded batch; nothing in it is random."""
        return collate(examples)

    def loss(self, model: LanguageModel, batch: Batch) -> Loss:
        """Sum over targets of weight * -log p(target), and the sum of the weights.

        Only positions with a weight go through the head. Right padding needs no attention mask in a causal model.
        """
        hidden = model.hidden(mx.array(batch.inputs))
        chosen = np.flatnonzero(batch.weights)
        picked = hidden.reshape(-1, hidden.shape[-1])[mx.array(chosen)]
        targets = mx.array(batch.targets.reshape(-1)[chosen])
        weights = batch.weights.reshape(-1)[chosen]
        losses = token_losses(model, picked, targets)
        return Loss((losses * mx.array(weights)).sum(), float(weights.sum(dtype=np.float64)))
