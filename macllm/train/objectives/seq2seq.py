"""Text to text: the likelihood of a target given its source (arXiv:1706.03762), with label smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import mlx.core as mx
import numpy as np

from macllm.errors import UsageError
from macllm.nn.info import ModelInfo
from macllm.nn.loss import token_losses
from macllm.train.alignment import TextTokenizer
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.contract import Loss
from macllm.train.rows import Row

from .parts import Parts
from .texts import Text, padded, source_and_target, within


class TextToTextModel(Protocol):
    """An encoder-decoder."""

    info: ModelInfo
    training: bool

    def hidden(self, tokens: mx.array, *, source: mx.array, source_lengths: mx.array) -> mx.array:
        """The decoder's tokens (B, T), given a source (B, S) padded on the right -> (B, T, D)."""
        ...

    def logits(self, hidden: mx.array) -> mx.array:
        """(N, D) -> (N, V)."""
        ...


@dataclass(frozen=True)
class TextPair:
    """A source and its target, each with its special tokens; the length is that of the longer one."""

    source: Text
    target: Text

    splittable = False  # the half of a target is not the target of half a source

    @property
    def where(self) -> str:
        """File and line of the row."""
        return self.source.where

    @property
    def sequences(self) -> tuple[np.ndarray, ...]:
        """The tokens of both."""
        return self.source.tokens, self.target.tokens

    @property
    def num_target_tokens(self) -> int:
        """Number of tokens of the target, its special ones included."""
        return len(self.target)

    @property
    def ends(self) -> bool:
        """True if the end of the target is learned."""
        return self.target.ends

    def __len__(self) -> int:
        return max(len(self.source), len(self.target))

    def cut(self, start: int, stop: int) -> TextPair:
        """The beginnings of both, of at most `stop` tokens; a target that is cut has no end."""
        source, target = self.source, self.target
        source = source.cut(start, stop) if len(source) > stop else source
        if len(target) > stop:
            target = replace(target, after=(), ends=False).cut(start, stop)
        return TextPair(source, target)

    def fingerprint(self) -> bytes:
        """The fingerprints of source and target."""
        return self.source.fingerprint() + self.target.fingerprint()


@dataclass(frozen=True)
class TextToTextBatch:
    """Sources (B, S), targets (B, T), int32, right-padded to `source_lengths`, `target_lengths` (B,)."""

    sources: np.ndarray
    source_lengths: np.ndarray
    targets: np.ndarray
    target_lengths: np.ndarray

    @property
    def num_target_tokens(self) -> int:
        """Number of predicted tokens."""
        return int(self.target_lengths.sum())

    @classmethod
    def of(cls, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> TextToTextBatch:
        """The batch of rows of tokens."""
        return cls(*padded(sources), *padded(targets))


@dataclass(frozen=True)
class TextToText:
    """The objective; `smoothing` of the probability goes to all tokens of the vocabulary alike."""

    smoothing: float = 0.0

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[TextPair]:
        """The prompt of a row as the source, the completion as the target. Raises DataError for other rows."""
        return [TextPair(*source_and_target(row, tokenizer))]

    def collate(self, examples: Sequence[TextPair], random: np.random.Generator) -> TextToTextBatch:
        """One batch; nothing in it is random."""
        return TextToTextBatch.of([one.source.tokens for one in examples], [one.target.tokens for one in examples])

    def loss(self, model: TextToTextModel, batch: TextToTextBatch) -> Loss:
        """The loss of `text_to_text_loss`; that of evaluation is without smoothing."""
        return text_to_text_loss(model, batch, self.smoothing if model.training else 0.0)


def of(config: FinetuneConfig | PretrainConfig, parts: Parts) -> TextToText:
    """The objective of a run."""
    return TextToText(config.label_smoothing_factor)


def text_to_text_loss(model: TextToTextModel, batch: TextToTextBatch, smoothing: float = 0.0) -> Loss:
    """Sum over target tokens of -log p(token | source, tokens before it), and their number.

    The decoder reads the targets shifted right by one, after its start token. With `smoothing` e, the loss is the
    cross-entropy with (1 - e) of the token and e / V of each of the V tokens (arXiv:1512.00567, 7).
    """
    start = model.info.decoder_start
    if start is None:
        raise UsageError(
            "the decoder has no token to begin with", remedy='"decoder_start_token_id": 0, for example, in config.json'
        )
    count = model.info.position_count
    sources, targets = within(count, batch.sources)[0], within(count, batch.targets)[0]
    inputs = np.concatenate([np.full((len(targets), 1), start, np.int32), targets[:, :-1]], axis=1)
    hidden = model.hidden(
        mx.array(inputs), source=mx.array(sources), source_lengths=mx.array(batch.source_lengths)
    )  # (B, T, D)
    places = np.flatnonzero(np.arange(targets.shape[1]) < batch.target_lengths[:, None])
    picked = hidden.reshape(-1, hidden.shape[-1])[mx.array(places)]
    losses = token_losses(model, picked, mx.array(targets.reshape(-1)[places]), smoothing)
    return Loss(losses.sum(), float(len(places)))
