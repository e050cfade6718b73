"""Blocks, stacks, input embeddings and heads, shared by all model classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat

import mlx.core as mx
import mlx.nn as nn

from macllm.ops import decode_step
from macllm.ops.gate import activate
from macllm.ops.kv import KV, Dense

from . import routing
from .attention import CrossAttention
from .decode_step import DecodeStep
from .linear import Embedding, Linear
from .mask import GlobalTokens, Masks
from .mixer import make_mixer
from .moe import make_feed_forward
from .norm import ResidualNorm, make_norm
from .position import Span, make_bias, make_positions
from .recompute import recompute
from .spec import EmbeddingSpec, HeadSpec, LayerSpec, StackSpec, TransformSpec
from .state.layer import LayerState


class Block(nn.Module):
    """Attention, optional cross-attention, then feed-forward."""

    def __init__(self, dim: int, spec: LayerSpec):
        super().__init__()
        self.mixer = make_mixer(dim, spec.mixer)
        self.mixer_norm = ResidualNorm(dim, spec.norm, spec.placement)
        if spec.cross_attention is not None:
            self.cross = CrossAttention(dim, spec.cross_attention)
            self.cross_norm = ResidualNorm(dim, spec.norm, spec.placement)
        self.feed_forward = make_feed_forward(dim, spec.feed_forward)
        self.feed_forward_norm = ResidualNorm(dim, spec.norm, spec.placement)

    def __call__(self, x: mx.array, masks: Masks, state: LayerState | None, memory: KV | None) -> mx.array:
        """(B, L, D) -> (B, L, D). Appends to `state`; cross-attention reads `memory`."""
        x = self.attend(x, masks, state)  # (B, L, D)
        return self.feed(x if memory is None else self.cross_attend(x, masks, memory))

    def attend(self, x: mx.array, masks: Masks, state: LayerState | None) -> mx.array:
        """x + attention(x): (B, L, D) -> (B, L, D)."""
        return self.mixer_norm(x, partial(self.mixer, masks=masks, state=state))

    def cross_attend(self, x: mx.array, masks: Masks, memory: KV) -> mx.array:
        """x + attention of x over `memory`: (B, L, D) -> (B, L, D)."""
        return self.cross_norm(x, partial(self.cross, memory=memory, mask=masks.memory))

    def feed(self, x: mx.array) -> mx.array:
        """x + feed_forward(x): (B, L, D) -> (B, L, D)."""
        return self.feed_forward_norm(x, self.feed_forward)


class Stack(nn.Module):
    """Layers in a row, and the norm after the last."""

    def __init__(self, dim: int, spec: StackSpec):
        super().__init__()
        self.layers = [Block(dim, layer) for layer in spec.layers]
        self.norm = make_norm(dim, spec.final_norm)
        if spec.relative_bias is not None:
            self.bias = make_bias(spec.relative_bias)
        self.decode_step = DecodeStep()
        self.checkpoints_layers = False  # in training, compute layers again for the gradients

    def __call__(
        self,
        x: mx.array,
        span: Span,
        states: Sequence[LayerState] | None = None,
        lengths: mx.array | None = None,
        memory: Sequence[KV] | None = None,
        memory_mask: mx.array | None = None,
        global_tokens: GlobalTokens | None = None,
    ) -> mx.array:
        """(B, L, D) -> (B, L, D). Rows of `lengths` (B,) are padded on the right; `memory` is one a layer."""
        masks = Masks(span, lengths, self.get("bias"), memory_mask, global_tokens)
        if states is not None and span.offset > 0 and decode_step.supports(x):
            return self.norm(self.decode_step(self.layers, x, masks, states, memory))
        recomputes = self.checkpoints_layers and self.training and states is None
        for layer, state, kv in zip(self.layers, states or repeat(None), memory or repeat(None), strict=False):
            x = self._checkpointed(layer, x, masks, kv) if recomputes else layer(x, masks, state, kv)  # (B, L, D)
        return self.norm(x)

    def _checkpointed(self, layer: Block, x: mx.array, masks: Masks, memory: KV | None) -> mx.array:
        """`layer`, with only its inputs kept for the gradients: (B, L, D) -> (B, L, D)."""
        bias = self.get("bias")

        def run(x: mx.array, *parts: mx.array) -> mx.array:
            # A learned bias is computed inside, as gradients reach inputs only.
            own = masks if bias is None else Masks(masks.span, masks.lengths, bias, masks.memory, masks.global_tokens)
            return layer(x, own, None, Dense(*parts) if parts else None)

        parts = (memory.keys, memory.values) if isinstance(memory, Dense) else ()
        modules = [layer] if bias is None else [layer, bias]
        return _recomputed(modules, run, x, *parts)


def _recomputed(modules: Sequence[nn.Module], run: Callable[..., mx.array], *inputs: mx.array) -> mx.array:
    """run(*inputs), with only the inputs kept; collected router logits are further results of it."""
    if not routing.is_collecting():
        return recompute(modules, run, *inputs)
    numbers: list[int] = []

    def routed(*inputs: mx.array) -> tuple[mx.array, ...]:
        with routing.collecting() as found:
            y = run(*inputs)
        numbers[:] = [each.top_k for each in found]
        return y, *(each.logits for each in found)

    y, *logits = recompute(modules, routed, *inputs)
    for each, top_k in zip(logits, numbers, strict=True):
        routing.record(each, top_k)
    return y


class InputEmbedding(nn.Module):
    """Token embeddings plus optional positions and segments, with an optional norm."""

    def __init__(self, spec: EmbeddingSpec, *, table: bool = True):
        super().__init__()
        self.scale = spec.scale
        if table:
            self.tokens = Embedding(spec.vocab_size, spec.dim)
        self.positions = make_positions(spec.dim, spec.positions) if spec.positions else None
        if spec.token_types:
            self.token_types = Embedding(spec.token_types, spec.dim)
        self.norm = make_norm(spec.dim, spec.norm)

    def __call__(
        self, tokens: mx.array, span: Span, *, table: nn.Embedding | None = None, types: mx.array | None = None
    ) -> mx.array:
        """(B, L) -> (B, L, D). `table` replaces its token table; segments are 0 unless given."""
        x = (table or self.tokens)(tokens)  # (B, L, D)
        if self.scale != 1.0:
            x = x * mx.array(self.scale, x.dtype)  # (B, L, D)
        if self.positions is not None:
            x = x + self.positions(span).astype(x.dtype)  # (B, L, D)
        if "token_types" in self:
            x = x + self.token_types(mx.zeros_like(tokens) if types is None else types)  # (B, L, D)
        return self.norm(x)


class Transform(nn.Module):
    """Dense, activation and norm before the head of masked language models (arXiv:1810.04805)."""

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
        """(B, L, D) -> (B, L, V); `table` is the embedding of a tied head."""
        if self.spec.transform is not None:
            x = self.transform(x)  # (B, L, D)
        if self.spec.scale != 1.0:
            x = x * self.spec.scale  # (B, L, D)
        logits = table.as_linear(x) if self.spec.tied else self.proj(x)  # (B, L, V)
        if self.spec.bias:
            logits = logits + self.bias  # (B, L, V)
        cap = self.spec.softcap
        return logits if cap is None else cap * mx.tanh(logits / cap)


def head_modules(model: nn.Module, table: nn.Module) -> list[nn.Module]:
    """The head of `model`, and the `table` of embeddings if the head is tied to it."""
    head = model.get("head")
    if head is None:
        return []
    return [head, table] if head.spec.tied else [head]
