"""Answers to several prompts, sampled side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from macllm.generation.limits import not_finite
from macllm.generation.request import SamplingParams
from macllm.generation.sampling.constraints import Bounds
from macllm.generation.sampling.sampler import Sampler
from macllm.nn.protocol import LanguageModel, SelectingCache
from macllm.ops.cross_entropy import cross_entropy
from macllm.train.inference import evaluating

ROWS = 32  # answers sampled side by side, unless more are to one prompt
_STEP = 512  # tokens of the prompts in one forward pass
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


@dataclass(frozen=True)
class SamplingTask:
    """A prompt (P,) int32, a seed for each of its completions, and the most tokens of one."""

    prompt: np.ndarray
    seeds: Sequence[int]
    max_tokens: int


def sample(
    model: LanguageModel,
    asked: Sequence[SamplingTask],
    *,
    ends: Collection[int],
    params: SamplingParams = _MODEL_ITSELF,
) -> list[list[SampledCompletion]]:
    """One completion for each seed of each prompt, from the model's own distribution, or as `params` say.

    Log-probabilities are the model's own. A prompt is read once for all its completions; prompts of like length are
    read together. A completion is a function of the weights, its own seed, and all prompts with the numbers of their
    seeds. Raises CheckpointError for logits that are not numbers.
    """
    found: list[list[SampledCompletion]] = [[] for _ in asked]
    with evaluating(model):
        for part in _parts(asked, batched=isinstance(model.make_cache(), SelectingCache)):
            completions = iter(_sampled(model, [asked[i] for i in part], frozenset(ends), params))
            for i in part:
                found[i] = [next(completions) for _ in asked[i].seeds]
    return found


def _parts(asked: Sequence[SamplingTask], *, batched: bool) -> Iterator[list[int]]:
    """The prompts that are answered side by side, the longest first; one at a time unless `batched`."""
    part: list[int] = []
    rows = 0
    for i in sorted(range(len(asked)), key=lambda i: -len(asked[i].prompt)):
        if part and (not batched or rows + len(asked[i].seeds) > ROWS):
            yield part
            part, rows = [], 0
        part.append(i)
        rows += len(asked[i].seeds)
    if part:
        yield part


def _sampled(
    model: LanguageModel, asked: Sequence[SamplingTask], ends: frozenset[int], params: SamplingParams
) -> list[SampledCompletion]:
    """The completions of these prompts, one prompt after another."""
    owners = [each for each in asked for _ in each.seeds]
    cache, logits = _read(model, asked)
    samplers = [Sampler(params, seed, each.prompt.tolist(), logits.shape[-1],
                        Bounds(prompt=each.prompt.tolist(), ends=ends, max_tokens=each.max_tokens))
                for each in asked for seed in each.seeds]  # fmt: skip
    limits, stops = np.array([each.max_tokens for each in owners]), np.array(sorted(ends), np.int64)
    drawn, likely = (np.zeros((limits.max(), len(owners)), kind) for kind in (np.int32, np.float32))
    lengths, stopped = np.zeros(len(owners), np.int64), np.zeros(len(owners), bool)
    rows = np.arange(len(owners))  # of the completions that the cache still holds
    for step in range(limits.max()):
        tokens = mx.stack([samplers[row](logits[i], step) for i, row in enumerate(rows)]).astype(mx.int32)
        log_probs = -cross_entropy(logits, tokens)
        held, within, fed = rows, np.flatnonzero(step + 1 < limits[rows]), tokens
        if 0 < len(within) < len(rows):  # the context of the others may be full
            cache.select(within.tolist())
            rows, fed = rows[within], tokens[mx.array(within)]
        if len(within):
            logits = model.logits(model.hidden(fed[:, None], cache=cache))[:, -1]
        mx.async_eval(logits)
        drawn[step, held], likely[step, held] = np.array(tokens), np.array(log_probs)
        open_ = held[~stopped[held]]
        if not np.isfinite(likely[step, open_]).all():
            raise not_finite("logits")
        lengths[open_] += 1
        stopped[open_] = np.isin(drawn[step, open_], stops)
        going = ~stopped[rows]
        if not len(within) or not going.any():
            break
        if 2 * going.sum() <= len(rows) and isinstance(cache, SelectingCache):
            kept = np.flatnonzero(going).tolist()
            cache.select(kept)
            logits, rows = logits[mx.array(kept)], rows[going]
    mx.eval(logits)  # the step in flight holds the cache
    return [SampledCompletion(drawn[:length, i].copy(), likely[:length, i].copy(), not done)
            for i, (length, done) in enumerate(zip(lengths, stopped, strict=True))]  # fmt: skip


def _read(model: LanguageModel, asked: Sequence[SamplingTask]) -> tuple[Any, mx.array]:
    """A cache with a row for each seed that has read its prompt, and the logits (N, V) of the next tokens."""
    count, longest = [len(each.seeds) for each in asked], max(len(each.prompt) for each in asked)
    padding = [longest - len(each.prompt) for each in asked]
    prompts = np.stack([np.pad(each.prompt, (pads, 0)) for each, pads in zip(asked, padding, strict=True)])
    rows = np.repeat(np.arange(len(asked)), count)
    cache = model.make_cache(left_padding=padding) if any(padding) else model.make_cache()
    repeats = isinstance(cache, SelectingCache)
    if not repeats:  # of a class of mlx-lm's: every row reads the prompt
        prompts = prompts[rows]
    hidden = None
    for start in range(0, longest, _STEP):
        hidden = model.hidden(mx.array(prompts[:, start : start + _STEP]), cache=cache)
        mx.eval(cache.state)
    assert hidden is not None
    logits = model.logits(hidden[:, -1:])[:, -1]
    if repeats:
        cache.select(rows.tolist())
        logits = logits[mx.array(rows)]
    return cache, logits
