"""The interfaces of models and caches that the rest of macllm uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

import mlx.core as mx

from .info import ModelInfo
from .segments import Segments


class ModelCache(Protocol):
    """A model's state over the tokens that it has read."""

    max_context: int | None

    @property
    def length(self) -> int:
        """Slots filled."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        ...

    @property
    def state(self) -> list[mx.array]:
        """The arrays to evaluate so that nothing is pending."""
        ...

    def nearest(self, length: int) -> int:
        """The longest length, at most `length`, that `cut` can go back to."""
        ...

    def cut(self, length: int) -> None:
        """Go back to the first `length` slots."""
        ...

    def fork(self) -> Self:
        """An independent copy; arrays may be shared until one of the two writes."""
        ...


@runtime_checkable
class SelectingCache(Protocol):
    """A cache whose sequences can be put into another order, left out and repeated."""

    def select(self, rows: Sequence[int], *, same_source: bool = False) -> None:
        """Hold the sequences `rows` of the batch; with `same_source`, all come from one encoded source."""
        ...


class EncodingModel(Protocol):
    """A model with hidden states for texts."""

    info: ModelInfo

    def hidden(self, tokens: mx.array, *, lengths: mx.array | None = None) -> mx.array:
        """(B, L), with rows of `lengths` (B,) padded on the right -> (B, L, D)."""
        ...


class LabelingModel(Protocol):
    """A model with a head that classifies texts or tokens; `info.labels` is not None."""

    info: ModelInfo

    def label_logits(self, tokens: mx.array, lengths: mx.array | None = None) -> mx.array:
        """(B, L), right-padded to `lengths` (B,) -> (B, C), or (B, L, C) of a head over all tokens."""
        ...


class SourceModel(Protocol):
    """An encoder-decoder, which generates from a source."""

    def start(self, source: mx.array, *, max_context: int | None = None, kv_bits: int | None = None) -> ModelCache:
        """A cache with the encoder run once over `source` (B, S)."""
        ...


class LanguageModel(Protocol):
    """A causal language model: of one of our families, or a class of mlx-lm's."""

    info: ModelInfo

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Logits of the next token: (B, L) -> (B, L, V). Advances `cache`."""
        ...

    def make_cache(
        self,
        max_context: int | None = None,
        kv_bits: int | None = None,
        left_padding: Sequence[int] | None = None,
    ) -> ModelCache:
        """An empty cache. `left_padding` counts each row's pad tokens at the front."""
        ...

    def hidden(self, tokens: mx.array, cache: Any = None) -> mx.array:
        """Hidden states after the last norm: (B, L) -> (B, L, D). Advances `cache`."""
        ...

    def logits(self, hidden: mx.array) -> mx.array:
        """(B, L, D) -> (B, L, V)."""
        ...

    def parameters(self) -> dict[str, Any]:
        """All weights, as a tree."""
        ...


class PackingModel(LanguageModel, Protocol):
    """A causal language model that keeps sequences in one row apart; `info.packs` is True."""

    def hidden(self, tokens: mx.array, cache: Any = None, *, segments: Segments | None = None) -> mx.array:
        """Hidden states after the last norm: (B, L) -> (B, L, D). Advances `cache`."""
        ...
