"""Attention in linear time: Performer, whose random features estimate the weights of softmax. arXiv:2009.14794."""

from __future__ import annotations

import mlx.core as mx

from macllm.ops.linear_attention import State, linear_attention, random_projection, softmax_features
from macllm.ops.norm import normalize
from macllm.ops.weights import NormWeight

from .attention import Projections
from .cache import DenseCodec, LayerCache
from .mask import Masks
from .position import RoPE
from .spec import Causal, PerformerSpec


class FeatureSums(LayerCache):
    """One layer's past as sums over its keys: as large after a million tokens as after one."""

    def __init__(self) -> None:
        super().__init__(Causal(), DenseCodec())

    @property
    def sums(self) -> State | None:
        """The sums; None before the first token."""
        return State(*self._parts) if self._parts else None

    def advance(self, state: State, length: int) -> None:
        """Become `state`, `length` tokens later."""
        self._parts, self.offset = tuple(state), self.offset + length

    def slot(self) -> None:
        """None: no row is written into a state."""

    def held(self) -> tuple[mx.array, ...]:
        """The sums."""
        return self._parts

    def restore(self, parts: tuple[mx.array, ...], offset: int, head_dim: int) -> None:
        """Become the cache that `held()` these parts at `offset`."""
        self._parts, self.offset, self.head_dim = parts, offset, head_dim

    @property
    def trimmable(self) -> int:
        """0: a sum does not tell what was added last."""
        return 0


class PerformerAttention(Projections):
    """Causal attention by positive orthogonal random features, drawn once: they are saved, and not trained."""

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
        cache: LayerCache | None = None,
        *,
        norm: NormWeight = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """residual + attention(norm(x)): (B, L, D) -> (B, L, D). Advances `cache`."""
        assert cache is None or isinstance(cache, FeatureSums)
        x, span, groups = normalize(x, norm), masks.span, self.spec.num_heads // self.spec.num_kv_heads
        q = self.queries(self.q_proj(x))  # (B, H, L, Dh)
        k, v = self.keys_and_values(self.k_proj(x), self.v_proj(x))  # (B, K, L, Dh) twice
        if self.rotate is not None:
            q, k = self.rotate(q, span), self.rotate(k, span)
        k, v = (mx.repeat(x, groups, axis=1) if groups > 1 else x for x in (k, v))  # (B, H, L, Dh) twice
        seen = None
        if span.left_padding is not None:
            seen = (mx.arange(span.offset, span.end) >= mx.array(span.left_padding)[:, None])[:, None, :, None]
        q, k = softmax_features(q, k, self.features, scale=self.spec.scale, seen=seen)  # (B, H, L, M) twice
        y, after = linear_attention(q, k, v, state=None if cache is None else cache.sums)  # (B, H, L, Dh)
        if cache is not None:
            cache.advance(after, span.length)
        return self.output(y.transpose(0, 2, 1, 3).flatten(2), residual)
