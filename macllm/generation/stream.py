"""A request becomes events: the whole of one completion."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import mlx.core as mx

from macllm.errors import UsageError
from macllm.nn.info import ModelInfo
from macllm.nn.protocol import LanguageModel, ModelCache, SourceModel
from macllm.ops import cpu
from macllm.text.parts import part_splitter
from macllm.text.tokenizer import Tokenizer

from .assemble import Assembler
from .decode import decode, prefill
from .limits import check, room
from .options import SAMPLING_NAMES
from .options import read as read_options
from .prefix import Prefix
from .prompt import check_pair, continues, encode_prompt, read_prompt
from .request import (
    Delta,
    Done,
    Event,
    Events,
    FinishReason,
    Prefill,
    Request,
    Timing,
    TokenLogprob,
    Usage,
)
from .sampling import wishes
from .sampling.constraints import Bounds
from .sampling.defaults import default_max_tokens, default_sampling, new_seed
from .sampling.sampler import Sampler

Prompt = str | Sequence[Mapping[str, Any]] | Request


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


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    raw: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    xtc_probability: float | None = None,
    xtc_threshold: float | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    penalty_window: int | None = None,
    dry_multiplier: float | None = None,
    dry_base: float | None = None,
    dry_allowed_length: int | None = None,
    dry_window: int | None = None,
    dry_breakers: Sequence[int | str] | None = None,
    logit_bias: Mapping[int, float] | None = None,
    sequence_bias: Sequence[tuple[Sequence[int], float]] | None = None,
    bad_words_ids: Sequence[Sequence[int]] | None = None,
    suppress_tokens: Sequence[int | str] | None = None,
    begin_suppress_tokens: Sequence[int | str] | None = None,
    no_repeat_ngram_size: int | None = None,
    encoder_no_repeat_ngram_size: int | None = None,
    min_length: int | None = None,
    min_new_tokens: int | None = None,
    forced_bos_token_id: int | str | None = None,
    forced_eos_token_id: int | str | Sequence[int | str] | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_tokens: int | str | Sequence[int | str] | None = None,
    logprobs: int | None = None,
    kv_bits: int | None = None,
    max_context: int | None = None,
    prefill_step: int | None = None,
) -> Completion:
    """The whole completion: the answer to a text or to messages. Takes and raises what `stream` does."""
    return _collected(stream(**locals()))


def stream(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    raw: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    xtc_probability: float | None = None,
    xtc_threshold: float | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    penalty_window: int | None = None,
    dry_multiplier: float | None = None,
    dry_base: float | None = None,
    dry_allowed_length: int | None = None,
    dry_window: int | None = None,
    dry_breakers: Sequence[int | str] | None = None,
    logit_bias: Mapping[int, float] | None = None,
    sequence_bias: Sequence[tuple[Sequence[int], float]] | None = None,
    bad_words_ids: Sequence[Sequence[int]] | None = None,
    suppress_tokens: Sequence[int | str] | None = None,
    begin_suppress_tokens: Sequence[int | str] | None = None,
    no_repeat_ngram_size: int | None = None,
    encoder_no_repeat_ngram_size: int | None = None,
    min_length: int | None = None,
    min_new_tokens: int | None = None,
    forced_bos_token_id: int | str | None = None,
    forced_eos_token_id: int | str | Sequence[int | str] | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_tokens: int | str | Sequence[int | str] | None = None,
    logprobs: int | None = None,
    kv_bits: int | None = None,
    max_context: int | None = None,
    prefill_step: int | None = None,
) -> Events:
    """Events of a completion: Prefill as the prompt goes in, Delta as text becomes certain, Done at the end.

    A text is one user message, answered through the model's chat template where there is one; `raw` continues it
    instead. Messages are answered; `tools` and `variables` are for their template. What is None comes from the
    checkpoint's generation_config.json, then from `Request` and `SamplingParams`. Closing the iterator stops after
    the current step. Raises UsageError for options that cannot be taken and DoesNotFitError for a prompt longer
    than the context.
    """
    given = _given(locals())
    check_pair(model, tokenizer)
    if isinstance(prompt, Request):
        if given:
            raise UsageError("a Request already says everything; options go into it", cause=", ".join(given))
        return run(model, tokenizer, prompt)
    return run(model, tokenizer, make_request(model, tokenizer, prompt, given))


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options among the arguments of `stream` that were given."""
    options = {name: value for name, value in arguments.items() if name not in ("model", "tokenizer", "prompt")}
    return {name: value for name, value in options.items() if value is not None and value is not False}


def make_request(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> Request:
    """The request that `prompt` and the options given make for this model. Raises UsageError for what is no option."""
    options = read_options(options, tokenizer.token_to_id)
    read = read_prompt(prompt)
    options["prompt" if isinstance(read, str) else "messages"] = read
    drawn = {name: options.pop(name) for name in SAMPLING_NAMES & options.keys()}
    request = Request(sampling=replace(default_sampling(model.info), **drawn), **options)
    if "max_tokens" in options:
        return request
    most = default_max_tokens(model.info, request, lambda: len(encode_prompt(tokenizer, request)))
    return replace(request, max_tokens=most)


def _collected(events: Events) -> Completion:
    texts: dict[str, list[str]] = {"content": [], "reasoning": []}
    calls: list[list[str]] = []
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    done: Done | None = None
    for event in events:
        if isinstance(event, Delta):
            if event.call is None:
                texts[event.kind].append(event.text)
            else:
                calls += [[] for _ in range(event.call + 1 - len(calls))]
                calls[event.call].append(event.text)
            tokens += event.tokens
            logprobs += event.logprobs
        elif isinstance(event, Done):
            done = event
    assert done is not None
    return Completion(
        text="".join(texts["content"]),
        reasoning="".join(texts["reasoning"]),
        tool_calls=tuple("".join(call) for call in calls),
        finish_reason=done.finish_reason,
        usage=done.usage,
        timing=done.timing,
        seed=done.seed,
        tokens=tuple(tokens),
        logprobs=tuple(logprobs),
    )


def run(
    model: LanguageModel,
    tokenizer: Tokenizer,
    request: Request,
    *,
    prefix: Prefix | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Events:
    """Events of `request`, beginning with what a `prefix` still knows of the prompt and leaving it all of this one.

    `cancelled` is asked after every step; once it says so, what was made so far is kept and Done follows. However
    it ends, the cache that stays in `prefix` holds tokens that were shown and no others.
    """
    prompt = encode_prompt(tokenizer, request)
    check(model.info, request, prompt)
    return _held(_Run(model, tokenizer, request, prompt, prefix, cancelled).events())


def _held(events: Generator[Event, None, None]) -> Generator[Event, None, None]:
    """The events, all made by the same implementation of the ops."""
    with cpu.held():
        yield from events


class _Run:
    """One completion while it is made."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        request: Request,
        prompt: tuple[int, ...],
        prefix: Prefix | None,
        cancelled: Callable[[], bool],
    ) -> None:
        self._model, self._request, self._prompt = model, request, prompt
        self._prefix, self._cancelled = prefix, cancelled
        self._info: ModelInfo = model.info
        self._room = room(self._info, request, len(prompt))
        self._seed = new_seed() if request.sampling.seed is None else request.sampling.seed
        self._ends = request.stop_tokens | self._info.eos
        if tokenizer.eos_token_id is not None:
            self._ends |= {tokenizer.eos_token_id}
        named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        unseen = frozenset(token for token in named if token is not None)
        splitter = part_splitter(tokenizer, prompt, request.tools)
        continued = self._info.kind == "decoder" and continues(tokenizer, request)
        detokenizer = tokenizer.detokenizer(after=prompt if continued else ())
        stop = (*request.stop, *wishes.read(self._info.generation_config).stop)
        self._assembler = Assembler(detokenizer, splitter, stop, unseen)
        self._drawn: list[int] = []

    def events(self) -> Generator[Event, None, None]:
        """Prefill, Delta, Done."""
        mx.reset_peak_memory()
        self._began = self._first = self._last = time.perf_counter()
        cache, inputs, cached = self._begin()
        total = len(self._prompt)
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

    def _begin(self) -> tuple[ModelCache, Sequence[int], int]:
        """A cache, the decoder's input, and how much of that the cache already holds."""
        model, request = self._model, self._request
        limits: dict[str, Any] = {"max_context": request.max_context, "kv_bits": request.kv_bits}
        if self._info.kind == "encoder-decoder":
            inputs = [token for token in (self._info.decoder_start, self._forced_bos()) if token is not None]
            source = mx.array([self._prompt], dtype=mx.int32)
            return cast(SourceModel, model).start(source, **limits), inputs, 0
        reach = request.max_context or len(self._prompt) + self._room
        rotation = self._info.rotation_class(reach)
        if rotation is not None:
            limits["max_context"] = reach
        if self._prefix is None:
            return model.make_cache(**limits), self._prompt, 0
        kind = (request.max_context, request.kv_bits, rotation)
        cache, cached = self._prefix.take(self._prompt, kind, lambda: model.make_cache(**limits))
        if cached and rotation is not None:
            cache.max_context = reach
        return cache, self._prompt, cached

    def _forced_bos(self) -> int | None:
        """The token that a decoder begins with after its start, as requested or else as its checkpoint wishes."""
        requested = self._request.sampling.forced_bos_token_id
        wished = wishes.read(self._info.generation_config, self._info.vocab_size).sampling
        return wished.get("forced_bos_token_id") if requested is None else requested

    def _sampler(self, inputs: Sequence[int], vocab_size: int) -> Sampler:
        given = len(inputs) - 1 if self._info.kind == "encoder-decoder" else 0
        bounds = Bounds(prompt=self._prompt, given=given, ends=self._ends, max_tokens=self._room)
        return Sampler(self._request.sampling, self._seed, inputs, vocab_size, bounds)

    def _complete(self, cache: ModelCache, inputs: Sequence[int], cached: int) -> Generator[Event, None, FinishReason]:
        """Everything between the first Prefill and the last of the text; says why it ended."""
        model, request = self._model, self._request
        # a decoder's one or two first tokens are no part of the prompt, and not worth a word
        step = len(inputs) if self._info.kind == "encoder-decoder" else request.prefill_step
        reading = prefill(model, cache, inputs[cached:], step, done=cached)
        while True:
            if self._cancelled():
                return "cancelled"
            try:
                yield next(reading)
            except StopIteration as end:
                logits = end.value
                break
        sampler = self._sampler(inputs, logits.shape[-1])
        tokens = decode(model, cache, logits, sampler, max_tokens=self._room, alternatives=request.logprobs)
        for sampled in tokens:
            self._last = time.perf_counter()
            self._drawn.append(sampled.token)
            if len(self._drawn) == 1:
                self._first = self._last
                yield Prefill(len(self._prompt), len(self._prompt))
            if sampled.token in self._ends:
                at_limit = bool(request.sampling.forced_eos_token_id) and len(self._drawn) == self._room
                return "length" if at_limit else "stop"
            yield from self._assembler.add(sampled)
            if self._assembler.stopped:
                return "stop"
            if self._cancelled():
                return "cancelled"
        return "length"

    def _settle(self, cache: ModelCache, inputs: Sequence[int]) -> None:
        """Take back what was computed and not shown, and leave the cache for the next turn."""
        if self._prefix is None or self._info.kind == "encoder-decoder":
            return
        shown = min(len(inputs) + self._assembler.shown, cache.length)
        if cache.nearest(shown) == shown:
            cache.cut(shown)
        self._prefix.keep([*inputs, *self._drawn], cache)
