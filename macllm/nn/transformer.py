"""The parts that every assembly shares: blocks, stacks of them, embeddings and heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.gate import activate
from macllm.ops.kv import KV

from . import fused
from .attention import CrossAttention, SelfAttention
from .cache import LayerCache
from .linear import Linear, Table
from .mask import GlobalTokens, Masks
from .mixer import make_mixer
from .mlp import MLP
from .moe import make_feed_forward
from .norm import ResidualNorm, make_norm
from .position import RelativeBias, Span, make_positions
from .spec import EmbeddingSpec, HeadSpec, LayerSpec, StackSpec, TransformSpec
from .step import AttentionStep, MLPStep, Part, through


class Block(nn.Module):
    """Attention, then cross-attention where a layer has it, then feed-forward."""

    def __init__(self, dim: int, spec: LayerSpec):
        super().__init__()
        self.attention = make_mixer(dim, spec.attention)
        self.attention_norm = ResidualNorm(dim, spec.norm, spec.placement)
        if spec.cross_attention is not None:
            self.cross = CrossAttention(dim, spec.cross_attention)
            self.cross_norm = ResidualNorm(dim, spec.norm, spec.placement)
        self.feed_forward = make_feed_forward(dim, spec.feed_forward)
        self.feed_forward_norm = ResidualNorm(dim, spec.norm, spec.placement)
        plain = self.attention if isinstance(self.attention, SelfAttention) else None
        self.attention_step = None if plain is None else AttentionStep(plain, self.attention_norm)
        self.mlp_step = MLPStep(self.feed_forward) if type(self.feed_forward) is MLP else None

    def parts(
        self,
        masks: Masks,
        cache: LayerCache | None = None,
        memory: KV | None = None,
        memory_mask: mx.array | None = None,
    ) -> Iterator[Part]:
        """Its residual branches in turn."""
        norm, step, mlp = self.attention_norm, self.attention_step, self.mlp_step
        plain = self.attention if isinstance(self.attention, SelfAttention) else None

        def attend(x: mx.array) -> mx.array:
            y = None if plain is None else fused.attention(plain, norm, x, masks, cache)
            return norm.join(x, self.attention(norm.pre(x), masks, cache)) if y is None else y

        def cross(x: mx.array, kv: KV) -> mx.array:
            return self.cross_norm.join(x, self.cross(self.cross_norm.pre(x), kv, memory_mask))

        def feed(x: mx.array) -> mx.array:
            layer, norm = self.feed_forward, self.feed_forward_norm
            y = None if cache is None else fused.feed_forward(layer, norm, x)
            return norm.join(x, layer(norm.pre(x))) if y is None else y

        if plain is None or step is None:
            yield Part(attend)
        else:
            yield Part(attend, lambda kernels: step.branch(kernels, plain, norm, masks, cache), cache)
        if memory is not None:
            yield Part(partial(cross, kv=memory))
        yield Part(feed, mlp and (lambda kernels: mlp.branch(kernels, self.feed_forward, self.feed_forward_norm)))


class Stack(nn.Module):
    """Layers in a row, and the norm after the last."""

    def __init__(self, dim: int, spec: StackSpec):
        super().__init__()
        self.layers = [Block(dim, layer) for layer in spec.layers]
        self.norm = make_norm(dim, spec.final_norm)
        if spec.relative_bias is not None:
            self.bias = RelativeBias(spec.relative_bias)

    def __call__(
        self,
        x: mx.array,
        span: Span,
        caches: Sequence[LayerCache] | None = None,
        lengths: mx.array | None = None,
        global_tokens: GlobalTokens | None = None,
    ) -> mx.array:
        """(B, L, D) -> (B, L, D)."""
        masks = Masks(span, lengths, self.get("bias"), global_tokens)
        return self._through(x, masks, caches or repeat(None), repeat(None))

    def decode(
        self,
        x: mx.array,
        span: Span,
        memory: Sequence[KV],
        memory_mask: mx.array | None,
        caches: Sequence[LayerCache] | None = None,
    ) -> mx.array:
        """The same with each layer reading its `memory`: (B, L, D) -> (B, L, D)."""
        return self._through(x, Masks(span, None, self.get("bias")), caches or repeat(None), memory, memory_mask)

    def _through(
        self,
        x: mx.array,
        masks: Masks,
        caches: Iterable[LayerCache | None],
        memory: Iterable[KV | None],
        memory_mask: mx.array | None = None,
    ) -> mx.array:
        layers = zip(self.layers, caches, memory, strict=False)
        parts = (part for layer, cache, kv in layers for part in layer.parts(masks, cache, kv, memory_mask))
        return self.norm(through(parts, x))


class Embedding(nn.Module):
    """Tokens to vectors, with positions and segments where a model has them."""

    def __init__(self, spec: EmbeddingSpec, *, table: bool = True):
        super().__init__()
        self.scale = spec.scale
        if table:
            self.tokens = Table(spec.vocab_size, spec.dim)
        self.positions = make_positions(spec.dim, spec.positions) if spec.positions else None
        if spec.token_types:
            self.token_types = Table(spec.token_types, spec.dim)
        self.norm = make_norm(spec.dim, spec.norm)

    def __call__(
        self, tokens: mx.array, span: Span, *, table: nn.Embedding | None = None, types: mx.array | None = None
    ) -> mx.array:
        """(B, L) -> (B, L, D). `table` stands in for a token table of its own; segments are 0 unless given."""
        x = (table or self.tokens)(tokens)
        if self.scale != 1.0:
            x = x * mx.array(self.scale, x.dtype)
        if self.positions is not None:
            x = x + self.positions(span).astype(x.dtype)
        if "token_types" in self:
            x = x + self.token_types(mx.zeros_like(tokens) if types is None else types)
        return self.norm(x)


class Transform(nn.Module):
    """Dense, activation, norm: what masked language models do before the vocabulary (arXiv:1810.04805)."""

    def __init__(self, dim: int, spec: TransformSpec):
        super().__init__()
        self.activation = spec.activation
        self.dense = Linear(dim, dim)
        self.norm = make_norm(dim, spec.norm)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, L, D) -> (B, L, D)."""
        return self.norm(activate(self.dense(x), self.activation))


class Head(nn.Module):
    """Hidden states to logits: (B, L, D) -> (B, L, V)."""

    def __init__(self, spec: HeadSpec, embedding: EmbeddingSpec):
        super().__init__()
        self.spec = spec
        if not spec.tied:
            self.proj = Linear(embedding.dim, embedding.vocab_size, bias=False)
        if spec.bias:
            self.bias = mx.zeros(embedding.vocab_size)
        if spec.transform is not None:
            self.transform = Transform(embedding.dim, spec.transform)

    def __call__(self, x: mx.array, table: nn.Embedding) -> mx.array:
        """(B, L, D) -> (B, L, V); `table` is the embedding that a tied head reads backwards."""
        if self.spec.transform is not None:
            x = self.transform(x)
        if self.spec.scale != 1.0:
            x = x * self.spec.scale
        logits = table.as_linear(x) if self.spec.tied else self.proj(x)
        if self.spec.bias:
            logits = logits + self.bias
        cap = self.spec.softcap
        return logits if cap is None else cap * mx.tanh(logits / cap)
