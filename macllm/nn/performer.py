"""Performer (arXiv:2009.14794): attention in linear time by random features of the softmax kernel."""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from macllm.ops.linear_attention import linear_attention, random_projection, softmax_features
from macllm.ops.norm import normalize
from macllm.ops.weights import NormWeight

from .attention import Projections
from .mask import Masks
from .position import RoPE
from .spec import PerformerSpec
from .state.feature_sums import FeatureSums


class PerformerAttention(Projections):
    """Causal attention by positive orthogonal random features, which are saved but not trained."""

    spec: PerformerSpec

    def __init__(self, dim: int, spec: PerformerSpec):
        super().__init__(dim, spec)
        self.rotate = RoPE(spec.rope) if spec.rope else None
        self.features = random_projection(spec.num_features, spec.head_dim, seed=spec.seed)
        self.freeze(recurse=False, keys=["features"])

    def __call__(
        self,
        x: mx.array,
        masks: Masks,
        state: FeatureSums | None = None,
        *,
        norm: NormWeight = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """residual + attention(norm(x)): (B, L, D) -> (B, L, D). Advances `state`."""
        x = normalize(x, norm)
        run = partial(self._heads, state=state)
        y = masks.of_each_sequence(run, self.q_proj(x), self.k_proj(x), self.v_proj(x))  # (B, L, H * Dh)
        return self.output(y, residual)

    def _heads(self, q: mx.array, k: mx.array, v: mx.array, masks: Masks, state: FeatureSums | None) -> mx.array:
        """Attention of projected (B, L, H * Dh) and (B, L, K * Dh) twice: (B, L, H * Dh). Advances `state`."""
        span, groups = masks.span, self.spec.num_heads // self.spec.num_kv_heads
        q = self.queries(q)  # (B, H, L, Dh)
        k, v = self.keys_and_values(k, v)  # (B, K, L, Dh) twice
        if self.rotate is not None:
            q, k = self.rotate(q, span), self.rotate(k, span)  # (B, H, L, Dh), (B, K, L, Dh)
        k, v = (mx.repeat(x, groups, axis=1) if groups > 1 else x for x in (k, v))  # (B, H, L, Dh) twice
        seen = None
        if span.left_padding is not None:
            seen = (mx.arange(span.offset, span.end) >= mx.array(span.left_padding)[:, None])[:, None, :, None]
        q, k = softmax_features(q, k, self.features, scale=self.spec.scale, seen=seen)  # (B, H, L, M) twice
        y, after = linear_attention(q, k, v, state=None if state is None else state.sums)  # (B, H, L, Dh)
        if state is not None:
            state.advance(after, span.length)
        return y.transpose(0, 2, 1, 3).flatten(2)
