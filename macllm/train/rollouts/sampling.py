"""Several answers to one prompt, sampled side by side."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np

from macllm.generation.decode import prefill
from macllm.generation.limits import not_finite
from macllm.generation.request import SamplingParams
from macllm.generation.sampling.sampler import Sampler
from macllm.nn.protocol import LanguageModel
from macllm.nn.state.cache import Cache
from macllm.ops.cross_entropy import cross_entropy
from macllm.train.inference import evaluating

_STEP = 512  # tokens of a prompt in one forward pass
_MODEL_ITSELF = SamplingParams()  # other distributions would need their own log-probabilities in the loss


@dataclass(frozen=True)
class SampledCompletion:
    """Sampled tokens (C,) int32, and the log-probability of each when it was drawn, (C,) float32.

    `truncated` says that the limit ended it, not a stop token; a stop token is the last one.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    truncated: bool

    def __len__(self) -> int:
        return len(self.tokens)


def sample_group(
    model: LanguageModel, prompt: np.ndarray, seeds: Sequence[int], *, max_tokens: int, ends: Collection[int]
) -> list[SampledCompletion]:
    """One completion of `prompt` (P,) for each seed, from the model's own distribution.

    The prompt is read once for all. A completion is a function of the weights, the prompt, the number of seeds, its
    place among them, and its own seed. Raises CheckpointError for logits that are not numbers.
    """
    count = len(seeds)
    with evaluating(model):
        cache, logits = _read(model, prompt, count)
        samplers = [Sampler(_MODEL_ITSELF, seed, prompt.tolist(), logits.shape[-1]) for seed in seeds]
        drawn, likely = np.zeros((max_tokens, count), np.int32), np.zeros((max_tokens, count), np.float32)
        lengths = np.zeros(count, np.int64)
        ended, stops = np.zeros(count, bool), np.array(sorted(ends), np.int64)
        for step in range(max_tokens):
            tokens = mx.stack([draw(logits[i], step) for i, draw in enumerate(samplers)]).astype(mx.int32)
            log_probs = -cross_entropy(logits, tokens)
            if step + 1 < max_tokens:
                logits = model.logits(model.hidden(tokens[:, None], cache=cache))[:, -1]
            mx.async_eval(logits)
            drawn[step], likely[step] = np.array(tokens), np.array(log_probs)
            if not np.isfinite(likely[step][~ended]).all():
                raise not_finite("logits")
            lengths[~ended] += 1
            ended |= np.isin(drawn[step], stops)
            if ended.all():
                break
        mx.eval(logits)  # the step in flight holds the cache
    return [
        SampledCompletion(drawn[:length, i].copy(), likely[:length, i].copy(), not done)
        for i, (length, done) in enumerate(zip(lengths, ended, strict=True))
    ]


def _read(model: LanguageModel, prompt: np.ndarray, count: int) -> tuple[Any, mx.array]:
    """A cache of `count` rows that have read the prompt, and the logits (count, V) of the next token."""
    cache = model.make_cache()
    if not isinstance(cache, Cache):  # of a class of mlx-lm's: every row reads the prompt
        tokens = mx.broadcast_to(mx.array(prompt)[None], (count, len(prompt)))
        return cache, model.logits(model.hidden(tokens, cache=cache)[:, -1:])[:, -1]
    reading = prefill(model, cache, prompt.tolist(), _STEP)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            logits = end.value
            break
    rows = [tuple(mx.repeat(array, count, axis=0) for array in layer.filled()) for layer in cache.layers]
    repeated = cast("Cache", model.make_cache())
    repeated.restore(rows, cache.length, [layer.head_dim for layer in cache.layers])
    return repeated, mx.broadcast_to(logits[None], (count, logits.shape[-1]))
