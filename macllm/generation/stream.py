"""A request becomes events: the whole of one completion."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, TypedDict, Unpack

import mlx.core as mx

from macllm.errors import UsageError
from macllm.text.parts import PartSplitter
from macllm.text.tokenizer import Tokenizer

from .assemble import Assembler
from .decode import KeyValueCache, LanguageModel, decode, prefill
from .defaults import defaults, new_seed, stop_tokens
from .limits import check, generation_config, is_encoder_decoder, length_class, room
from .prefix import Prefix
from .request import (
    Delta,
    Done,
    Event,
    Events,
    FinishReason,
    Prefill,
    Request,
    SamplingParams,
    Timing,
    TokenLogprob,
    Usage,
)
from .sampler import Sampler

_TAG_TOKENS = 32  # more than any tag at the end of a prompt has

Prompt = str | Sequence[Mapping[str, Any]] | Request


class Options(TypedDict, total=False):
    """The keywords of `stream` and `generate`: fields of Request and SamplingParams, and what a chat template takes."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    xtc_probability: float
    xtc_threshold: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_window: int
    dry_breakers: Sequence[int]
    logit_bias: Mapping[int, float]
    seed: int
    stop: str | Sequence[str]
    stop_tokens: Sequence[int]
    logprobs: int
    kv_bits: int
    max_context: int
    prefill_step: int
    tools: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any]


@dataclass(frozen=True)
class Completion:
    """All of one completion; as a string, its answer."""

    text: str
    reasoning: str
    tool_calls: tuple[str, ...]
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    seed: int
    tokens: tuple[int, ...]  # those that were shown: without the one that ended it
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.text


def generate(model: Any, tokenizer: Tokenizer, prompt: Prompt, **options: Unpack[Options]) -> Completion:
    """The completion of a text, or the answer to messages. Takes the options of `stream`."""
    texts: dict[str, list[str]] = {"content": [], "reasoning": [], "tool_call": []}
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    done: Done | None = None
    for event in stream(model, tokenizer, prompt, **options):
        if isinstance(event, Delta):
            texts[event.kind].append(event.text)
            tokens += event.tokens
            logprobs += event.logprobs
        elif isinstance(event, Done):
            done = event
    assert done is not None
    calls: list[str] = []
    if texts["tool_call"]:  # deltas do not say where one call ends and the next begins; the whole text does
        splitter = PartSplitter.for_template(tokenizer.chat_template)
        parts = [*splitter.add(tokenizer.decode(tokens)), *splitter.finish()]
        calls = [text.strip() for kind, text in parts if kind == "tool_call"]
    return Completion(
        text="".join(texts["content"]),
        reasoning="".join(texts["reasoning"]),
        tool_calls=tuple(calls),
        finish_reason=done.finish_reason,
        usage=done.usage,
        timing=done.timing,
        seed=done.seed,
        tokens=tuple(tokens),
        logprobs=tuple(logprobs),
    )


def stream(model: Any, tokenizer: Tokenizer, prompt: Prompt, **options: Unpack[Options]) -> Events:
    """Events of a completion: Prefill as the prompt goes in, Delta as text becomes certain, Done at the end.

    A text is continued; messages are answered, through the model's chat template (`tools` and `variables` are
    for that). Options that are not given come from the checkpoint's generation_config.json, then from macllm.
    Closing the iterator stops after the current step. Raises UsageError for options that cannot be taken and
    DoesNotFitError for a prompt longer than the context.
    """
    if isinstance(prompt, Request):
        if options:
            raise UsageError("a Request already says everything; options go into it", cause=", ".join(options))
        return run(model, tokenizer, prompt)
    return run(model, tokenizer, make_request(model, tokenizer, prompt, options))


def make_request(
    model: Any, tokenizer: Tokenizer, prompt: str | Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> Request:
    """The request that `prompt` and `options` make for this model."""
    options = dict(options)
    tools, variables = options.pop("tools", None), options.pop("variables", None) or {}
    if isinstance(prompt, str):
        if tools or variables:
            raise UsageError("tools and variables are for messages, not for a text")
        tokens = tokenizer.encode(prompt) if prompt else []
    else:
        if not prompt:
            raise UsageError("there are no messages to answer", remedy="send at least one user message")
        tokens = tokenizer.encode_chat(list(prompt), tools=tools, **variables)
    if isinstance(options.get("logit_bias"), Mapping):
        options["logit_bias"] = tuple(options["logit_bias"].items())
    if isinstance(options.get("stop"), str):
        options["stop"] = (options["stop"],)
    for name, kind in (("stop", tuple), ("dry_breakers", tuple), ("stop_tokens", frozenset)):
        if name in options:
            options[name] = kind(options[name])
    sampling_names = {each.name for each in fields(SamplingParams)}
    request_names = {each.name for each in fields(Request)} - {"prompt", "sampling"}
    for name in options:
        if name not in sampling_names | request_names:
            close = get_close_matches(name, sampling_names | request_names, n=1)
            raise UsageError(f"there is no option {name}", remedy=close[0] if close else None)
    sampling = replace(
        default_sampling(model), **{name: value for name, value in options.items() if name in sampling_names}
    )
    return Request(
        prompt=tuple(tokens),
        sampling=sampling,
        **{name: value for name, value in options.items() if name in request_names},
    )


def default_sampling(model: Any) -> SamplingParams:
    """How this model is sampled when nobody says."""
    return defaults(generation_config(model), encoder_decoder=is_encoder_decoder(model))


def run(
    model: LanguageModel,
    tokenizer: Tokenizer,
    request: Request,
    *,
    prefix: Prefix | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Events:
    """Events of `request`, beginning with what `prefix` still knows of the prompt and leaving it all of this one.

    `cancelled` is asked after every step; once it says so, what was made so far is kept and Done follows. However
    it ends, the cache that stays in `prefix` holds tokens that were shown and no others.
    """
    check(model, request)
    return _Run(model, tokenizer, request, prefix or Prefix(), cancelled).events()


class _Run:
    """One completion while it is made."""

    def __init__(
        self, model: Any, tokenizer: Tokenizer, request: Request, prefix: Prefix, cancelled: Callable[[], bool]
    ) -> None:
        self._model, self._request, self._prefix, self._cancelled = model, request, prefix, cancelled
        self._seed = new_seed() if request.sampling.seed is None else request.sampling.seed
        self._ends = request.stop_tokens | stop_tokens(generation_config(model))
        if tokenizer.eos_token_id is not None:
            self._ends |= {tokenizer.eos_token_id}
        named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        unseen = frozenset(token for token in named if token is not None)
        splitter = part_splitter(tokenizer, request.prompt)
        self._assembler = Assembler(tokenizer.detokenizer(), splitter, request.stop, unseen)
        self._drawn: list[int] = []

    def events(self) -> Generator[Event, None, None]:
        """Prefill, Delta, Done."""
        mx.reset_peak_memory()
        self._began = self._first = self._last = time.perf_counter()
        cache, inputs, cached = self._begin()
        total = len(self._request.prompt)
        try:
            yield Prefill(cached, total)
            reason = yield from self._complete(cache, inputs, cached)
            yield from self._assembler.finish()
        except GeneratorExit:  # closed between two steps; after any other exception the cache may be half a step ahead
            self._settle(cache, inputs)
            raise
        self._settle(cache, inputs)
        if not self._drawn:
            self._first = self._last = time.perf_counter()
        if reason == "stop" and "tool_call" in self._assembler.kinds:
            reason = "tool_calls"
        usage = Usage(total, len(self._drawn), cached)
        timing = Timing(self._first - self._began, self._last - self._first, mx.get_peak_memory())
        yield Done(reason, usage, timing, self._seed)

    def _begin(self) -> tuple[KeyValueCache, Sequence[int], int]:
        """A cache, the decoder's input, and how much of that the cache already holds."""
        model, request = self._model, self._request
        limits: dict[str, Any] = {"max_context": request.max_context, "kv_bits": request.kv_bits}
        if not is_encoder_decoder(model):
            rotation = length_class(model, request)
            if rotation is not None and request.max_context is None:
                limits["max_context"] = len(request.prompt) + room(model, request)
            kind = (request.max_context, request.kv_bits, rotation)
            cache, cached = self._prefix.take(request.prompt, kind, lambda: model.make_cache(**limits))
            if cached and rotation is not None:
                cache.max_context = limits["max_context"]
            return cache, request.prompt, cached
        forced = generation_config(model).get("forced_bos_token_id")
        inputs = [model.decoder_start_token_id] + ([] if forced is None else [forced])
        return model.start(mx.array([request.prompt], dtype=mx.int32), **limits), inputs, 0

    def _complete(
        self, cache: KeyValueCache, inputs: Sequence[int], cached: int
    ) -> Generator[Event, None, FinishReason]:
        """Everything between the first Prefill and the last of the text; says why it ended."""
        model, request = self._model, self._request
        # a decoder's one or two first tokens are no part of the prompt, and not worth a word
        step = len(inputs) if is_encoder_decoder(model) else request.prefill_step
        reading = prefill(model, cache, inputs[cached:], step)
        while True:
            if self._cancelled():
                return "cancelled"
            try:
                yield next(reading)
            except StopIteration as end:
                logits = end.value
                break
        sampler = Sampler(request.sampling, self._seed, inputs, logits.shape[-1])
        most = room(model, request)
        tokens = decode(model, cache, logits, sampler, max_tokens=most, alternatives=request.logprobs)
        for sampled in tokens:
            self._last = time.perf_counter()
            self._drawn.append(sampled.token)
            if len(self._drawn) == 1:
                self._first = self._last
                yield Prefill(len(request.prompt), len(request.prompt))
            if sampled.token in self._ends:
                return "stop"
            yield from self._assembler.add(sampled)
            if self._assembler.stopped:
                return "stop"
            if self._cancelled():
                return "cancelled"
        return "length"

    def _settle(self, cache: KeyValueCache, inputs: Sequence[int]) -> None:
        """Take back what was computed and not shown, and leave the cache for the next turn."""
        if is_encoder_decoder(self._model):
            return
        surplus = cache.offset - len(inputs) - self._assembler.shown
        if 0 < surplus <= cache.trimmable:
            cache.trim(surplus)
        self._prefix.keep([*inputs, *self._drawn], cache)


def part_splitter(tokenizer: Tokenizer, prompt: Sequence[int]) -> PartSplitter:
    """Sorts what follows `prompt`; a prompt may end inside a part, as templates that open the reasoning do."""
    return PartSplitter.for_template(tokenizer.chat_template, prompt=tokenizer.decode(prompt[-_TAG_TOKENS:]))
