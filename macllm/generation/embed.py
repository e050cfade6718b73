"""Text embeddings: the pooled hidden states of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import mlx.core as mx

from macllm.errors import DoesNotFitError, UsageError
from macllm.nn.protocol import EncodingModel
from macllm.text.messages import kind_of
from macllm.text.tokenizer import Tokenizer

from .limits import not_finite
from .prompt import check_pair
from .sampling.ranges import shown

Pooling = Literal["mean", "first", "last"]


def embed(
    model: EncodingModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    pooling: Pooling = "mean",
    normalize: bool = True,
    batch_size: int = 32,
    global_tokens: Sequence[int] = (),
) -> mx.array:
    """One vector for each text, in order: (N, D) float32, of length 1 unless `normalize` is False.

    `pooling` is the mean of a text's tokens, its first token ([CLS]) or its last. Texts of similar length share a
    batch, padded on the right. `global_tokens` are positions with global attention in models with sliding windows, such
    as (0,) for the first token. Raises UsageError for an unsuitable model, an unknown pooling or an empty text,
    DoesNotFitError for a text longer than the context (texts are never truncated), CheckpointError for vectors that
    are not finite.
    """
    check_pair(model, tokenizer)
    if pooling not in _POOLS:
        raise UsageError(f"unknown pooling {pooling!r}", remedy=f"one of {', '.join(_POOLS)}")
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise UsageError(f"batch_size is {shown(batch_size)}; it must be a whole number from 1")
    if model.info.hidden_size is None:  # an encoder-decoder, or a class of mlx-lm, which gives logits only
        raise UsageError(
            "this model has no hidden states for a single text", remedy="an encoder, or a decoder-only model"
        )
    _check_global(model, global_tokens)
    if isinstance(texts, str):
        raise UsageError("texts is one string", remedy="embed(model, tokenizer, [text])")
    if not isinstance(texts, Iterable):
        raise UsageError(f"texts is {kind_of(texts)}, not a list of strings", remedy="embed(model, tokenizer, [text])")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UsageError(f"text {number} is {kind_of(text)}, not a string")
    rows = [tokenizer.encode(text) for text in texts]
    _check(rows, model.info.context_length)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    vectors: list[mx.array] = []
    for start in range(0, len(order), batch_size):
        batch = [rows[index] for index in order[start : start + batch_size]]
        vectors.append(_pooled(model, batch, pooling, global_tokens))
        mx.eval(vectors[-1])
    if not vectors:
        return mx.zeros((0, model.info.hidden_size))
    found = mx.concatenate(vectors)[mx.argsort(mx.array(order))]
    if not mx.isfinite(found).all().item():
        raise not_finite("vectors")
    return found / mx.maximum(mx.linalg.norm(found, axis=-1, keepdims=True), 1e-12) if normalize else found


def _check(rows: list[list[int]], limit: int | None) -> None:
    for number, row in enumerate(rows):
        if not row:
            raise UsageError(f"text {number} is empty")
        if limit is not None and len(row) > limit:
            raise DoesNotFitError(
                f"text {number} has {len(row)} tokens; the model's context holds {limit}",
                remedy="embed it in parts, or use a model with a longer context",
            )


def _check_global(model: EncodingModel, positions: Sequence[int]) -> None:
    if any(isinstance(position, bool) or not isinstance(position, int) or position < 0 for position in positions):
        raise UsageError(f"global_tokens are {list(positions)}, not positions from 0 on", remedy="global_tokens=(0,)")
    if len(positions) and not model.info.has_global_tokens:
        raise UsageError(
            "this model does not support global tokens",
            cause="its attention has no projections for them",
            remedy="leave global_tokens out",
        )


def _pooled(model: EncodingModel, rows: list[list[int]], pooling: Pooling, global_tokens: Sequence[int]) -> mx.array:
    longest = max(len(row) for row in rows)
    tokens = mx.array([row + [0] * (longest - len(row)) for row in rows], dtype=mx.int32)
    lengths = mx.array([len(row) for row in rows], dtype=mx.int32)
    more = {}
    if len(global_tokens):
        chosen = mx.any(mx.arange(longest) == mx.array(list(global_tokens))[:, None], axis=0)
        more["global_tokens"] = mx.broadcast_to(chosen, tokens.shape)
    return _POOLS[pooling](model.hidden(tokens, lengths=lengths, **more).astype(mx.float32), lengths)


def _mean(hidden: mx.array, lengths: mx.array) -> mx.array:
    inside = mx.arange(hidden.shape[1]) < lengths[:, None]
    return mx.where(inside[..., None], hidden, 0.0).sum(axis=1) / lengths[:, None]


_POOLS: dict[str, Callable[[mx.array, mx.array], mx.array]] = {
    "mean": _mean,
    "first": lambda hidden, lengths: hidden[:, 0],
    "last": lambda hidden, lengths: hidden[mx.arange(hidden.shape[0]), lengths - 1],
}
