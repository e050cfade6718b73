"""Speed of a model on this machine, in tokens per second and as a share of the machine's limits."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from macllm.errors import UsageError
from macllm.generation.decode import decode, prefill
from macllm.generation.request import SamplingParams
from macllm.generation.sampling.sampler import Sampler
from macllm.nn.models import DecoderLM
from macllm.nn.protocol import LanguageModel
from macllm.nn.spec import MoESpec
from macllm.ops.quantized import uses_int8_activations

from .machine import READ_BYTES, operations_per_second, read_bytes_per_second

_PREFILL_STEP = _PROMPT_TOKENS = 512


@dataclass(frozen=True)
class Workload:
    """A benchmark's sizes: prompt tokens, new tokens, repetitions.

    `prompt_tokens` None is 512, or less if the context is smaller.
    """

    prompt_tokens: int | None = None
    new_tokens: int = 64
    repeats: int = 5
    kv_bits: int | None = None


@dataclass(frozen=True)
class Figure:
    """The median of some measurements and half their interquartile range."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: list[float]) -> Figure:
        """The figure of at least one value."""
        if len(values) < 2:
            return cls(values[0], 0.0)
        low, _, high = statistics.quantiles(values, n=4)
        return cls(statistics.median(values), (high - low) / 2)


@dataclass(frozen=True)
class Speed:
    """Measurements. Shares are fractions of the machine's limits."""

    load_seconds: float
    first_token: Figure  # seconds from prompt to first token
    prefill: Figure  # tokens per second
    decode: Figure  # tokens per second
    prefill_share: float  # of the floating-point throughput
    decode_share: float  # of the memory bandwidth
    weights_bytes: int
    cache_bytes: int  # of the KV cache at the end
    peak_bytes: int
    read_bytes_per_second: float
    operations_per_second: float
    notes: tuple[str, ...] = ()  # on each share above 1


def measure(
    load: Callable[[], Any], workload: Workload, on_progress: Callable[[int, int], object] = lambda done, total: None
) -> Speed:
    """The speed of the model that `load` returns; `on_progress` gets the rounds done and their total.

    Raises UsageError for a model that is not a decoder, and for a workload beyond its context.
    """
    began = time.perf_counter()
    model = load()
    mx.eval(model.parameters())
    load_seconds = time.perf_counter() - began
    prompt = _prompt(model, workload)
    mx.reset_peak_memory()
    _round(model, prompt, workload)  # warm-up: compiles kernels and allocates buffers
    rounds: list[_Round] = []
    for done in range(workload.repeats):
        on_progress(done, workload.repeats)
        rounds.append(_round(model, prompt, workload))
    peak = mx.get_peak_memory()
    on_progress(workload.repeats, workload.repeats)
    matrices, weights = _read_per_token(model)
    bandwidth = read_bytes_per_second()
    operations = operations_per_second(_dtype(model))
    prefills = Figure.of([len(prompt) / each.prefill_seconds for each in rounds])
    decodes = Figure.of([(workload.new_tokens - 1) / each.decode_seconds for each in rounds])
    head = _head_weights(model)  # applied to the last token of the prompt only
    prefill_share = 2 * ((matrices - head) + head / len(prompt)) * prefills.median / operations
    decode_share = (weights + rounds[-1].cache_bytes) * decodes.median / bandwidth
    return Speed(
        load_seconds=load_seconds,
        first_token=Figure.of([each.prefill_seconds for each in rounds]),
        prefill=prefills,
        decode=decodes,
        prefill_share=prefill_share,
        decode_share=decode_share,
        weights_bytes=sum(array.nbytes for _, array in _arrays(model)),
        cache_bytes=rounds[-1].cache_bytes,
        peak_bytes=peak,
        read_bytes_per_second=bandwidth,
        operations_per_second=operations,
        notes=_notes(model, prefill_share, decode_share, weights + rounds[-1].cache_bytes),
    )


def _notes(model: LanguageModel, prefill_share: float, decode_share: float, read_bytes: int) -> tuple[str, ...]:
    """The reason for each share above 1."""
    notes: list[str] = []
    busy = "other work slowed the machine while its limit was measured"
    if prefill_share > 1:
        packed = any(array.dtype == mx.uint32 for _, array in _arrays(model))
        by_integers = packed and mx.default_device() == mx.cpu and uses_int8_activations()
        reason = (
            "quantized weights are multiplied as 8-bit integers, and the limit is of float32" if by_integers else busy
        )
        notes.append(f"prompt: above 100%, because {reason}")
    if decode_share > 1:
        cached = read_bytes < READ_BYTES  # the limit is measured on more bytes than any cache holds
        reason = "the processor's caches hold part of the model, and the limit is of main memory" if cached else busy
        notes.append(f"decode: above 100%, because {reason}")
    return tuple(notes)


@dataclass(frozen=True)
class _Round:
    prefill_seconds: float
    decode_seconds: float
    cache_bytes: int


def _prompt(model: LanguageModel, workload: Workload) -> list[int]:
    """Random tokens, the same every time."""
    if model.info.kind != "decoder":
        raise UsageError("this model is not a decoder", remedy="a decoder-only model")
    most = model.info.context_length
    left = most - workload.new_tokens if most else _PROMPT_TOKENS
    length = workload.prompt_tokens or min(_PROMPT_TOKENS, left)
    if length < 1 or (most and length + workload.new_tokens > most):
        raise UsageError(
            f"{max(length, 1)} + {workload.new_tokens} tokens are more than the model's context of {most}",
            remedy="a smaller --prompt or --new",
        )
    return np.random.default_rng(0).integers(0, model.info.vocab_size or 256, length).tolist()


def _round(model: LanguageModel, prompt: list[int], workload: Workload) -> _Round:
    """One prompt and one completion, greedily."""
    cache = model.make_cache(kv_bits=workload.kv_bits)
    greedy = Sampler(SamplingParams(temperature=0.0), 0, prompt, model.info.vocab_size or 256)
    began = time.perf_counter()
    logits = _last(prefill(model, cache, prompt, _PREFILL_STEP))
    tokens = decode(model, cache, logits, greedy, max_tokens=workload.new_tokens, alternatives=None)
    next(tokens)
    first = time.perf_counter()
    for _ in tokens:
        pass
    return _Round(first - began, time.perf_counter() - first, cache.nbytes)


def _last(steps: Any) -> mx.array:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _arrays(model: LanguageModel) -> list[tuple[str, mx.array]]:
    return tree_flatten(model.parameters())  # type: ignore[return-value]


def _read_per_token(model: LanguageModel) -> tuple[int, int]:
    """Weights read per token, and their bytes; of stacked experts only the active share.

    An embedding counts only if it is also the head.
    """
    arrays = _arrays(model)
    tied = not any(name.startswith("head.proj") for name, _ in arrays)
    count = size = 0.0
    for name, array in arrays:
        if name.startswith("embedding.") and not (tied and name.startswith("embedding.tokens.")):
            continue
        share = _active_share(model, name)
        size += array.nbytes * share
        if array.ndim > 1 and not name.endswith((".scales", ".biases")):
            packed = 32 // _bits(model, name) if array.dtype == mx.uint32 else 1
            count += array.size * packed * share
    return round(count), round(size)


def _head_weights(model: LanguageModel) -> int:
    """Weights of the matrix that gives logits."""
    arrays = dict(_arrays(model))
    name = next((name for name in ("head.proj.weight", "embedding.tokens.weight") if name in arrays), None)
    if name is None:
        return 0
    packed = 32 // _bits(model, name) if arrays[name].dtype == mx.uint32 else 1
    return arrays[name].size * packed


def _active_share(model: LanguageModel, name: str) -> float:
    found = re.match(r"decoder\.layers\.(\d+)\..*\bexperts\.", name)
    if not found:
        return 1.0
    assert isinstance(model, DecoderLM)  # stacked experts under our names
    spec = model.spec.decoder.layers[int(found[1])].feed_forward
    assert isinstance(spec, MoESpec)
    return spec.top_k / spec.num_experts


def _bits(model: LanguageModel, name: str) -> int:
    module: Any = model
    for part in name.split(".")[:-1]:
        module = module[int(part)] if part.isdigit() else module[part]
    return module.bits


def _dtype(model: LanguageModel) -> mx.Dtype:
    floats = [array.dtype for _, array in _arrays(model) if mx.issubdtype(array.dtype, mx.floating)]
    return max(floats, key=floats.count) if floats else mx.float32
