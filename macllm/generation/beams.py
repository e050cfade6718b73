"""Beam search: the likeliest whole answers, as far as a few beams find them (arXiv:1211.3711).

Candidates, stopping rules and scores are those of transformers' beam search, so that both return the same sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np

from macllm.errors import UsageError
from macllm.nn.protocol import LanguageModel, ModelCache, SelectingCache

from .decode import is_broken
from .limits import not_finite
from .request import Request

_NONE = np.float32(-1e9)  # the score of a beam that is none


@dataclass(frozen=True)
class Ended:
    """An answer with its end, if it has one, and its score."""

    tokens: tuple[int, ...]
    score: float


class Beams:
    """The beams of one completion: those that go on, and the best that have ended.

    `ends` are the tokens that end an answer. `given` counts the decoder's forced first tokens, which belong to the
    length of an answer.
    """

    def __init__(self, request: Request, ends: frozenset[int], max_tokens: int, given: int = 0) -> None:
        self._request, self._ends, self._most, self._given = request, ends, max_tokens, given
        self._count = request.num_beams
        self._scores = np.full(self._count, _NONE, dtype=np.float32)
        self._scores[0] = 0  # the first step has one beam
        self._ended = [(_NONE, (), False)] * self._count
        self._can_improve = True
        self.answers: list[tuple[int, ...]] = [()] * self._count
        self.over = False

    def step(self, log_p: mx.array) -> tuple[list[int], list[int]]:
        """Lengthen the beams by their likeliest tokens, from log-probabilities (num_beams, V).

        Returns the beam that each new one continues, and its new token.
        """
        rows, size = log_p.shape
        scores, order = _largest((log_p + mx.array(self._scores)[:, None]).reshape(-1), self._candidates(rows * size))
        parents, tokens = order // size, order % size
        made = [(*self.answers[parent], int(token)) for parent, token in zip(parents, tokens, strict=True)]
        length = len(made[0])
        hits = np.array([length == self._most or token in self._ends for token in tokens.tolist()])
        self._end(made, scores, hits, length)
        going = np.argsort(-(scores + np.where(hits, _NONE, np.float32(0))), kind="stable")[: self._count]
        self._scores = (scores + np.where(hits, _NONE, np.float32(0)))[going]
        self.answers = [made[n] for n in going]
        self._stop(hits, length)
        return parents[going].tolist(), tokens[going].tolist()

    def best(self) -> list[Ended]:
        """The answers to report, the best first."""
        found = [Ended(tokens, float(score)) for score, tokens, is_ended in self._ended if is_ended]
        return found[: self._request.num_return_sequences]

    def _candidates(self, most: int) -> int:
        """Enough that `num_beams` of them go on, if all others end."""
        return min(most, max(2, 1 + len(self._ends)) * self._count)

    def _end(self, made: Sequence[tuple[int, ...]], scores: np.ndarray, hits: np.ndarray, length: int) -> None:
        """Take up those of the first `num_beams` candidates that end and are better than the ended ones."""
        is_full = self._request.early_stopping is True and all(is_ended for *_, is_ended in self._ended)
        counts = hits & (np.arange(len(hits)) < self._count)
        normed = scores / np.float32((length + self._given) ** self._request.length_penalty)
        normed = normed + np.where(counts, np.float32(0), _NONE)
        normed = normed + (_NONE if is_full else 0) + (0 if self._can_improve else _NONE)
        new = list(zip(normed.astype(np.float32), made, counts.tolist(), strict=True))
        self._ended = sorted([*self._ended, *new], key=lambda each: -each[0])[: self._count]

    def _stop(self, hits: np.ndarray, length: int) -> None:
        """End the search once no beam goes on, can be better than the ended ones, or is waited for."""
        request = self._request
        longest = self._most if request.early_stopping == "never" and request.length_penalty > 0 else length
        possible = self._scores[0] / np.float32((longest + self._given) ** request.length_penalty)
        worst = min(score for score, *_ in self._ended)
        bounds = [worst if is_ended else _NONE for *_, is_ended in self._ended]
        self._can_improve = self._can_improve and any(possible > bound for bound in bounds)
        is_full = request.early_stopping is True and all(is_ended for *_, is_ended in self._ended)
        self.over = not self._can_improve or is_full or bool(hits.all())


def search(
    model: LanguageModel,
    cache: ModelCache,
    logits: mx.array,
    beams: Beams,
    adjust: Callable[[mx.array, tuple[int, ...]], mx.array],
) -> Generator[None, None, None]:
    """Search from the logits (V,) of the first token, one step after another.

    `adjust` changes the log-probabilities (V,) that follow the tokens of a beam. Raises UsageError for a model whose
    cache cannot be put into the order of the beams.
    """
    if not isinstance(cache, SelectingCache):
        raise UsageError("this model cannot search with beams", cause="mlx-lm's class runs it", remedy="num_beams = 1")
    count = len(beams.answers)
    cache.select([0] * count)
    if is_broken(logits).item():
        raise not_finite("logits")
    log_p = mx.broadcast_to(_log_softmax(logits), (count, logits.size))
    while True:
        rows = [adjust(row, answer) for row, answer in zip(log_p, beams.answers, strict=True)]
        parents, tokens = beams.step(mx.stack(rows))
        yield
        if beams.over:
            return
        cache.select(parents, same_source=True)
        hidden = model.hidden(mx.array(tokens, dtype=mx.int32)[:, None], cache=cast("ModelCache", cache))
        log_p = _log_softmax(model.logits(hidden)[:, -1])


def _log_softmax(logits: mx.array) -> mx.array:
    wide = logits.astype(mx.float32)
    return wide - mx.logsumexp(wide, axis=-1, keepdims=True)


def _largest(values: mx.array, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest of values (N,), in order, and their places."""
    first = values.size - count
    places = mx.argpartition(values, first)[first:] if first else mx.arange(count)
    found, at = np.array(values[places]), np.array(places).astype(np.int64)
    order = np.lexsort((at, -found))
    return found[order], at[order]
