"""Attention masks: structured, dense, with relative bias, with global tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from macllm.ops.attention_mask import AttentionMask, MaskArray

from .position import LinearBias, RelativeBias, Span
from .spec import Bidirectional, Causal, Chunked, Local, MaskSpec, Sliding


def first_visible(spec: MaskSpec, span: Span) -> int:
    """The first slot that a query at or after `span` attends to."""
    match spec:
        case Sliding(window):
            return max(0, span.offset - window + 1)
        case Chunked(size):
            shifts = set(span.left_padding or (0,))
            return max(0, min((span.offset - n) // size * size + n for n in shifts))
    return 0


def first_visible_slot(spec: MaskSpec, slot: int, padding: int) -> int:
    """The first slot that a causal query in `slot` attends to, after `padding`; in padding, its own."""
    oldest = padding
    match spec:
        case Sliding(window):
            oldest = max(padding, slot - window + 1)
        case Chunked(size):
            oldest = max(padding, (slot - padding) // size * size + padding)
    return min(oldest, slot)


def dense_mask(spec: MaskSpec, span: Span, start: int, lengths: mx.array | None = None) -> MaskArray:
    """The boolean mask: queries are the slots of `span`, keys the slots `start` .. span.end.

    None if all keys are seen, "causal" for a plain causal mask, else bool (1 or B, 1, 1 or L, S). `lengths` (B,)
    counts the real keys of rows padded on the right; a causal mask hides the padding already. A padded query sees at
    least itself, so that no row of scores is empty.
    """
    if not isinstance(spec, Bidirectional | Local):
        lengths = None
    plain = lengths is None and span.left_padding is None
    if plain and _needs_no_array(spec, span, start):
        return None if span.length == 1 or isinstance(spec, Bidirectional | Local) else "causal"
    if isinstance(spec, Bidirectional) and lengths is not None and span.left_padding is None:
        # Equal for all queries, so its size is not quadratic in the length.
        return (mx.arange(start, span.end) < mx.maximum(lengths, 1)[:, None])[:, None, None]
    q = mx.arange(span.offset, span.end)[:, None]
    k = mx.arange(start, span.end)[None, :]
    seen = _rule(spec, q, k, span)
    if span.left_padding is not None:
        real = k >= mx.array(span.left_padding)[:, None, None, None]
        seen = (seen & real) | (k == q)
    if lengths is not None:
        seen = (seen & (k < lengths[:, None, None, None])) | (k == q)
    return seen if seen.ndim == 4 else seen[None, None]


def attention_mask(
    spec: MaskSpec, span: Span, start: int, lengths: mx.array | None = None, *, is_cached: bool = False
) -> AttentionMask:
    """The structured mask of `spec` over `span`; its dense form is `dense_mask`."""
    looks_ahead = isinstance(spec, Bidirectional | Local)
    padding, window, chunk = span.left_padding or (0,), 0, 0
    match spec:
        case Sliding(width) | Local(width):
            window = width
        case Chunked(size):
            chunk = size
    if span.length == 1 and not looks_ahead:  # the first visible key describes one query's mask
        window = chunk = 0
        padding = tuple(first_visible_slot(spec, span.offset, n) for n in padding)
    elif span.left_padding is None and _needs_no_array(spec, span, start):
        window = chunk = 0
    return AttentionMask(
        not looks_ahead,
        lambda: dense_mask(spec, span, start, lengths),
        window,
        chunk,
        tuple(slot - start for slot in padding),
        lengths if looks_ahead else None,
        is_cached,
    )


def _needs_no_array(spec: MaskSpec, span: Span, start: int) -> bool:
    """True where a causal mask, or no mask, is enough for the keys from `start` on."""
    match spec:
        case Sliding(window):
            return span.end - 1 - start < window
        case Chunked(size):
            return start % size == 0 and (span.end - 1) // size * size == start
        case Local(window):
            return span.end - start <= window
    return True


def _rule(spec: MaskSpec, q: mx.array, k: mx.array, span: Span) -> mx.array:
    """bool (L, S), or (B, 1, L, S) where padding moves the rows apart."""
    match spec:
        case Causal():
            return k <= q
        case Sliding(window):
            return (k <= q) & (k > q - window)
        case Chunked(size):
            if span.left_padding is not None:
                shift = mx.array(span.left_padding)[:, None, None, None]
                # Floor division puts the negative slots of padding before the first block.
                return (k <= q) & (mx.floor((k - shift) / size) == mx.floor((q - shift) / size))
            return (k <= q) & (k // size == q // size)
        case Local(window):
            return mx.abs(k - q) < window
        case Bidirectional():
            return mx.ones((q.shape[0], k.shape[1]), dtype=mx.bool_)
    raise TypeError(spec)


class GlobalTokens(NamedTuple):
    """Positions of each row's global tokens, which attend to all tokens and to which all attend."""

    at: mx.array  # (B, G) int; unspecified where not `there`
    there: mx.array  # (B, G) bool; False for the padding of rows with fewer tokens
    mask: mx.array  # (B, L) bool

    @classmethod
    def of(cls, mask: mx.array, lengths: mx.array | None = None) -> GlobalTokens | None:
        """From a mask (B, L) bool, whose rows have `lengths` (B,) real positions; None if it marks none."""
        mask = mask.astype(mx.bool_)
        if lengths is not None:
            mask = mask & (mx.arange(mask.shape[1]) < lengths[:, None])
        most = int(mask.sum(axis=-1).max())
        if not most:
            return None
        # A stable order puts the named positions first.
        at = mx.argsort(mx.where(mask, mx.arange(mask.shape[1]), mask.shape[1]), axis=-1)[:, :most]
        return cls(at, mx.take_along_axis(mask, at, axis=1), mask)

    def take(self, x: mx.array) -> mx.array:
        """Rows at these positions: (B, L, D) -> (B, G, D)."""
        return mx.take_along_axis(x, self.at[..., None], axis=1)

    def put(self, y: mx.array, into: mx.array) -> mx.array:
        """Rows y (B, G, D) in place of those at these positions: (B, L, D) -> (B, L, D)."""
        slots = mx.maximum(mx.cumsum(self.mask.astype(mx.int32), axis=1) - 1, 0)
        return mx.where(self.mask[..., None], mx.take_along_axis(y, slots[..., None], axis=1), into)


class Masks:
    """The masks of one forward pass, each made once, with the stack's relative bias added."""

    def __init__(
        self,
        span: Span,
        lengths: mx.array | None = None,
        bias: RelativeBias | LinearBias | None = None,
        memory: mx.array | None = None,
        global_tokens: GlobalTokens | None = None,
    ):
        self.span, self.lengths, self.bias, self.global_tokens = span, lengths, bias, global_tokens
        self.memory = memory  # (B, 1, 1, S) bool: the encoder's tokens that cross-attention sees
        self._made: dict[tuple[MaskSpec, int], MaskArray | AttentionMask] = {}
        self._rows: dict[MaskSpec, tuple[list[int], list[int]]] = {}
        self._groups: list[Masks] = []  # of the groups of the span's segments

    def get(self, spec: MaskSpec, start: int, dtype: mx.Dtype, *, is_cached: bool = False) -> MaskArray | AttentionMask:
        """The mask of `spec` for attention when the first key, cached or not, is in slot `start`."""
        key = (spec, start)
        if key not in self._made:
            if self.bias is None:
                self._made[key] = attention_mask(spec, self.span, start, self.lengths, is_cached=is_cached)
            else:
                self._made[key] = self._biased(dense_mask(spec, self.span, start, self.lengths), start, dtype)
        return self._made[key]

    def of_each_sequence(self, run: Callable[..., mx.array], *arrays: mx.array) -> mx.array:
        """`run(*arrays, masks)` on the segments of the span, each a row: (B, L, N) each -> (B, L, M).

        A causal mask hides the padding on the right of these rows.
        """
        segments = self.span.segments
        if segments is None:
            return run(*arrays, self)
        if not self._groups:
            self._groups = [Masks(Span(0, longest), bias=self.bias) for _, longest in segments.groups]
        parts = zip(*map(segments.apart, arrays), self._groups, strict=True)
        return segments.joined([run(*part) for part in parts])

    def rows(self, spec: MaskSpec, count: int) -> tuple[list[int], list[int]]:
        """For `count` rows with one new query each: first visible slots, and positions."""
        made = self._rows.get(spec)
        if made is None:
            slot, padding = self.span.offset, self.span.left_padding or (0,) * count
            made = self._rows[spec] = [first_visible_slot(spec, slot, n) for n in padding], [slot - n for n in padding]
        return made

    def _biased(self, seen: MaskArray, start: int, dtype: mx.Dtype) -> mx.array:
        assert self.bias is not None
        q, k = mx.arange(self.span.offset, self.span.end), mx.arange(start, self.span.end)
        bias = self.bias(q, k)
        if isinstance(seen, str):
            seen = k[None, :] <= q[:, None]
        return (bias if seen is None else mx.where(seen, bias, -mx.inf)).astype(dtype)
