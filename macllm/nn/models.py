"""The three assemblies: decoder-only, encoder-only, encoder-decoder."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from macllm.errors import UsageError
from macllm.ops.kv import Dense

from .info import describe
from .labels import LabelHead, label_head
from .linear import Linear
from .mask import GlobalTokens
from .position import Span
from .segments import Segments
from .spec import (
    DecoderSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    ModelSpec,
)
from .state.cache import Cache, make_cache
from .transformer import Head, InputEmbedding, Stack, head_modules


class DecoderLM(nn.Module):
    """A causal language model."""

    def __init__(self, spec: DecoderSpec):
        super().__init__()
        self.spec = spec
        self.info = describe(spec)
        self.embedding = InputEmbedding(spec.embedding)
        self.decoder = Stack(spec.embedding.dim, spec.decoder)
        if spec.head is not None:
            self.head = Head(spec.head, spec.embedding)
        if spec.labels is not None:
            self.labels = LabelHead(spec.embedding.dim, spec.labels)

    def __call__(self, tokens: mx.array, cache: Cache | None = None, lengths: mx.array | None = None) -> mx.array:
        """Logits of the next token: (B, L) -> (B, L, V). Advances `cache`."""
        return self.logits(self.hidden(tokens, cache, lengths))

    def hidden(
        self,
        tokens: mx.array,
        cache: Cache | None = None,
        lengths: mx.array | None = None,
        segments: Segments | None = None,
    ) -> mx.array:
        """Hidden states after the last norm: (B, L) -> (B, L, D).

        `lengths` (B,) of rows padded on the right matter only for layers that look ahead; a causal mask hides the
        padding already. `segments` are sequences that lie one after another in the rows, without a cache; the states
        of each are those of the sequence alone (`info.packs` is True for models that can do so).
        """
        length = tokens.shape[1]
        span = Span(0, length, segments=segments) if cache is None else cache.span(length)
        return self.transform(self.embed(tokens, span), span, cache, lengths)

    def embed(self, tokens: mx.array, span: Span) -> mx.array:
        """Input embeddings: (B, L) -> (B, L, D)."""
        return self.embedding(tokens, span)

    def transform(
        self, x: mx.array, span: Span, cache: Cache | None = None, lengths: mx.array | None = None
    ) -> mx.array:
        """Embeddings through all layers: (B, L, D) -> (B, L, D). Advances `cache`."""
        x = self.decoder(x, span, cache.layers if cache else None, lengths)
        if cache is not None:
            cache.advance(span.length)
        return x

    def logits(self, hidden: mx.array) -> mx.array:
        """(B, L, D) -> (B, L, V). Raises UsageError on a model without a head."""
        if self.spec.head is None:
            raise UsageError(
                "this model has no head and cannot generate text",
                cause="its checkpoint holds none",
                remedy="macllm.embed(model, tokenizer, texts)",
            )
        return self.head(hidden, self.embedding.tokens)

    def label_logits(self, tokens: mx.array, lengths: mx.array | None = None) -> mx.array:
        """Logits of labels: (B, L), right-padded to `lengths` (B,) -> (B, C), or (B, L, C) over all tokens.

        Raises UsageError on a model without such a head.
        """
        return label_head(self)(self.hidden(tokens, lengths=lengths), tokens, lengths)

    def head_modules(self) -> list[nn.Module]:
        """The modules whose weights `logits` uses."""
        return head_modules(self, self.embedding.tokens)

    def make_cache(
        self,
        max_context: int | None = None,
        kv_bits: int | None = None,
        left_padding: Sequence[int] | None = None,
    ) -> Cache:
        """An empty cache. `left_padding` counts each row's pad tokens at the front.

        `max_context` is the largest length, and the one that length-dependent rotations are chosen for.
        """
        return make_cache(self.spec.decoder, max_context, kv_bits, left_padding)

    empty_cache = make_cache


class EncoderLM(nn.Module):
    """A bidirectional encoder."""

    def __init__(self, spec: EncoderSpec):
        super().__init__()
        self.spec = spec
        self.info = describe(spec)
        self.embedding = InputEmbedding(spec.embedding)
        self.encoder = Stack(spec.embedding.dim, spec.encoder)
        if spec.pooler:
            self.pooler = Linear(spec.embedding.dim, spec.embedding.dim)
        if spec.head is not None:
            self.head = Head(spec.head, spec.embedding)
        if spec.labels is not None:
            self.labels = LabelHead(spec.embedding.dim, spec.labels)

    def __call__(
        self,
        tokens: mx.array,
        lengths: mx.array | None = None,
        types: mx.array | None = None,
        global_tokens: mx.array | None = None,
    ) -> mx.array:
        """Hidden states: tokens (B, L), right-padded to `lengths` (B,), segments (B, L) -> (B, L, D).

        `global_tokens` (B, L) bool marks the tokens that see all tokens and are seen by all, despite the window.
        Raises UsageError for them on a model without global attention.
        """
        if global_tokens is not None and not self.info.has_global_tokens:
            raise UsageError(
                "this model does not support global tokens",
                cause="its attention has no projections for them",
                remedy="leave global_tokens out",
            )
        span = Span(0, tokens.shape[1])
        chosen = None if global_tokens is None else GlobalTokens.of(global_tokens, lengths)
        return self.encoder(self.embedding(tokens, span, types=types), span, None, lengths, global_tokens=chosen)

    hidden = __call__

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits of masked tokens: (B, L, D) -> (B, L, V). Raises UsageError on a model without that head."""
        if self.spec.head is None:
            raise UsageError("this encoder has no masked-language-model head", cause="its checkpoint holds none")
        return self.head(hidden, self.embedding.tokens)

    def head_modules(self) -> list[nn.Module]:
        """The modules whose weights `logits` uses."""
        return head_modules(self, self.embedding.tokens)

    def label_logits(
        self, tokens: mx.array, lengths: mx.array | None = None, types: mx.array | None = None
    ) -> mx.array:
        """Logits of labels: (B, L), right-padded to `lengths` (B,) -> (B, C), or (B, L, C) over all tokens.

        The first token, if its state is read, is global where there are global tokens. Raises UsageError on a model
        without such a head.
        """
        head = label_head(self)
        first = mx.broadcast_to(mx.arange(tokens.shape[1]) == 0, tokens.shape)
        is_global = self.info.has_global_tokens and head.spec.reads == "first"
        hidden = self.hidden(tokens, lengths, types, first if is_global else None)
        return head(self.pooled(hidden) if head.spec.reads == "pooled" else hidden, tokens, lengths)

    def pooled(self, hidden: mx.array) -> mx.array:
        """tanh(dense(first token)): (B, L, D) -> (B, D). Raises UsageError on a model without a pooler."""
        if not self.spec.pooler:
            raise UsageError("this encoder has no pooler", cause="its checkpoint holds none")
        return mx.tanh(self.pooler(hidden[:, 0]))


class EncoderDecoderLM(nn.Module):
    """An encoder-decoder. A call's `tokens` are the decoder's, its `source` the encoder's."""

    def __init__(self, spec: EncoderDecoderSpec):
        super().__init__()
        self.spec = spec
        self.info = describe(spec)
        self.embedding = InputEmbedding(spec.source)
        self.target_embedding = InputEmbedding(spec.target, table=not spec.shared)
        self.encoder = Stack(spec.source.dim, spec.encoder)
        self.decoder = Stack(spec.target.dim, spec.decoder)
        self.head = Head(spec.head, spec.target)

    def __call__(
        self,
        tokens: mx.array,
        cache: Cache | None = None,
        *,
        source: mx.array | None = None,
        source_lengths: mx.array | None = None,
    ) -> mx.array:
        """Logits of the next token: (B, L) -> (B, L, V), given a `cache` from `start` or a `source` (B, S)."""
        return self.logits(self.hidden(tokens, cache, source=source, source_lengths=source_lengths))

    def hidden(
        self,
        tokens: mx.array,
        cache: Cache | None = None,
        *,
        source: mx.array | None = None,
        source_lengths: mx.array | None = None,
    ) -> mx.array:
        """Hidden states after the last norm: (B, L) -> (B, L, D)."""
        if cache is not None:
            span, memory, lengths, layers = cache.span(tokens.shape[1]), cache.cross, cache.source_lengths, cache.layers
        elif source is not None:
            span, lengths, layers = Span(0, tokens.shape[1]), source_lengths, None
            memory = self._remember(self.encode(source, source_lengths))
        else:
            raise UsageError("an encoder-decoder needs a source, or a cache from model.start(source)")
        x = self.target_embedding(tokens, span, table=self._target_table())
        x = self.decoder(x, span, layers, memory=memory, memory_mask=_key_mask(lengths, memory))
        if cache is not None:
            cache.advance(span.length)
        return x

    def encode(self, source: mx.array, source_lengths: mx.array | None = None) -> mx.array:
        """The encoder's hidden states: (B, S) -> (B, S, D)."""
        span = Span(0, source.shape[1])
        return self.encoder(self.embedding(source, span), span, None, source_lengths)

    def start(
        self,
        source: mx.array,
        source_lengths: mx.array | None = None,
        *,
        max_context: int | None = None,
        kv_bits: int | None = None,
    ) -> Cache:
        """A cache with the encoder run once over `source` (B, S), ready for `model(tokens, cache)`."""
        cache = self.empty_cache(max_context, kv_bits)
        cache.cross = self._remember(self.encode(source, source_lengths))
        cache.source_lengths = source_lengths
        return cache

    def empty_cache(
        self,
        max_context: int | None = None,
        kv_bits: int | None = None,
        left_padding: Sequence[int] | None = None,
    ) -> Cache:
        """A cache without a source; `start` makes one with a source."""
        return make_cache(self.spec.decoder, max_context, kv_bits, left_padding)

    def logits(self, hidden: mx.array) -> mx.array:
        """(B, L, D) -> (B, L, V)."""
        return self.head(hidden, self._target_table())

    def head_modules(self) -> list[nn.Module]:
        """The modules whose weights `logits` uses."""
        return head_modules(self, self._target_table())

    def _remember(self, memory: mx.array) -> list[Dense]:
        return [layer.cross.remember(memory) for layer in self.decoder.layers]

    def _target_table(self) -> nn.Embedding:
        return self.embedding.tokens if self.spec.shared else self.target_embedding.tokens


Model = DecoderLM | EncoderLM | EncoderDecoderLM


def build(spec: ModelSpec) -> Model:
    """A model with random weights for any spec."""
    match spec:
        case DecoderSpec():
            return DecoderLM(spec)
        case EncoderSpec():
            return EncoderLM(spec)
        case EncoderDecoderSpec():
            return EncoderDecoderLM(spec)
    raise TypeError(spec)


def _key_mask(lengths: mx.array | None, memory: Sequence[Dense]) -> mx.array | None:
    """(B, 1, 1, S) bool: the real tokens of the encoder's rows."""
    if lengths is None:
        return None
    return (mx.arange(memory[0].keys.shape[2]) < lengths[:, None])[:, None, None]
