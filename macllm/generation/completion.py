"""One completion of a request: its prompt, its tokens and its end as events."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import mlx.nn as nn

from macllm.adapter import identity
from macllm.errors import UsageError
from macllm.nn import lora
from macllm.nn.info import ModelInfo
from macllm.nn.protocol import LanguageModel, ModelCache, SourceModel
from macllm.ops import cpu
from macllm.text.detokenizer import Detokenizer
from macllm.text.parts import part_splitter
from macllm.text.tokenizer import Tokenizer

from .assemble import Assembler
from .contract import DEFAULT_OPTIONS, EngineOptions
from .decode import Sampled, decode, prefill
from .limits import answer_limit, check, check_kind
from .prefix import PrefixCache
from .prompt import continues, encode_prompt
from .request import Beam, Delta, Done, Event, Events, FinishReason, Prefill, Request, Timing, Usage
from .sampling import config_file
from .sampling.constraints import Bounds
from .sampling.defaults import new_seed
from .sampling.sampler import Sampler, adjusted

if TYPE_CHECKING:
    from .beams import Ended

Steps = Generator[tuple[Event, ...], None, None]


def run(
    model: LanguageModel,
    tokenizer: Tokenizer,
    request: Request,
    options: EngineOptions = DEFAULT_OPTIONS,
    *,
    prefix: PrefixCache | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Events:
    """Events of `request`, one by one; arguments as in `run_steps`."""
    return _one_by_one(run_steps(model, tokenizer, request, options, prefix=prefix, cancelled=cancelled))


def run_steps(
    model: LanguageModel,
    tokenizer: Tokenizer,
    request: Request,
    options: EngineOptions = DEFAULT_OPTIONS,
    *,
    prefix: PrefixCache | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Steps:
    """Events of `request`, grouped by prefill or decoding step. Reuses and then fills the `prefix` cache.

    `cancelled` is called after every step; once it returns True, Done follows with the tokens so far. However
    a completion ends, the cache in `prefix` holds only shown tokens.
    """
    check_kind(model.info)  # before a chat template is missed that this kind never has
    prompt = encode_prompt(tokenizer, request, model.info.kind)
    check(model.info, request, prompt)
    running = _RunningCompletion(model, tokenizer, request, options, prompt, prefix, cancelled)
    steps = running.steps()
    return _held(steps if request.adapter else _within(lora.Disabled(cast(nn.Module, model)), steps))


def end_tokens(info: ModelInfo, tokenizer: Tokenizer, request: Request) -> frozenset[int]:
    """The tokens that end a completion."""
    named = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return request.stop_tokens | info.eos | frozenset(named)


def assembler(info: ModelInfo, tokenizer: Tokenizer, request: Request, prompt: tuple[int, ...]) -> Assembler:
    """The assembler of the text of a completion after `prompt`."""
    stop = (*request.stop, *config_file.read(info.generation_config).stop)
    splitter = part_splitter(tokenizer, prompt, request.tools)
    return Assembler(_detokenizer(info, tokenizer, request, prompt)(), splitter, stop, _unseen(tokenizer))


def _detokenizer(
    info: ModelInfo, tokenizer: Tokenizer, request: Request, prompt: tuple[int, ...]
) -> Callable[[], Detokenizer]:
    continued = info.kind == "decoder" and continues(tokenizer, request)
    return partial(tokenizer.detokenizer, after=prompt if continued else ())


def _unseen(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens without text."""
    named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return frozenset(token for token in named if token is not None)


def _one_by_one(steps: Steps) -> Generator[Event, None, None]:
    with closing(steps):
        for step in steps:
            yield from step


def _held(steps: Steps) -> Steps:
    """The same steps, all computed by one implementation of the ops."""
    with cpu.held():
        yield from steps


def _joined(deltas: Iterable[Delta]) -> list[Delta]:
    """The deltas with successive ones of a part in one."""
    joined: list[Delta] = []
    for delta in deltas:
        if joined and (joined[-1].kind, joined[-1].call) == (delta.kind, delta.call):
            before = joined.pop()
            delta = replace(before, text=before.text + delta.text, tokens=before.tokens + delta.tokens)
        joined.append(delta)
    return joined


def _within(context: AbstractContextManager[None], steps: Steps) -> Steps:
    """The same steps, each computed in the context."""
    with closing(steps):
        while True:
            with context:
                step = next(steps, None)
            if step is None:
                return
            yield step


class _RunningCompletion:
    """One completion while it is made."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        request: Request,
        options: EngineOptions,
        prompt: tuple[int, ...],
        prefix: PrefixCache | None,
        cancelled: Callable[[], bool],
    ) -> None:
        self._model, self._request, self._options = model, request, options
        self._answer_start = tuple(request.answer_start)
        self._prompt = (*prompt, *self._answer_start)
        self._prefix, self._cancelled = prefix, cancelled
        self._info: ModelInfo = model.info
        self._answer_limit = answer_limit(self._info, request, len(self._prompt))
        self._seed = new_seed() if request.sampling.seed is None else request.sampling.seed
        self._ends = end_tokens(self._info, tokenizer, request)
        self._detokenizer = _detokenizer(self._info, tokenizer, request, prompt)
        self._unseen = _unseen(tokenizer)
        self._assembler = assembler(self._info, tokenizer, request, prompt)
        self._given = self._resumed()
        self._drawn: list[int] = []
        self._beams: tuple[Beam, ...] = ()

    def _resumed(self) -> tuple[Delta, ...]:
        """The deltas of `answer_start`. Raises UsageError for an answer that has ended."""
        add = self._assembler.add
        deltas = [delta for token in self._answer_start for delta in add(Sampled(token))]
        if self._assembler.stopped or not self._ends.isdisjoint(self._answer_start):
            raise UsageError("answer_start is a whole answer, with its end", remedy="leave out the end")
        return tuple(replace(delta, given=True) for delta in _joined(deltas))

    def steps(self) -> Steps:
        """Prefill, Delta and Done, step by step."""
        mx.reset_peak_memory()
        self._began = self._first = self._last = time.perf_counter()
        if self._cancelled():  # while it was queued: leave the prefix cache unchanged
            yield (self._done("cancelled", 0),)
            return
        cache, inputs, cached = self._begin()
        try:
            yield (Prefill(cached, len(self._prompt)),)
            reason = yield from self._complete(cache, inputs, cached)
            rest = self._assembler.finish() if self._drawn else ()
        except GeneratorExit:  # closed between two steps; after other exceptions the cache may hold half a step
            self._finish(cache, inputs)
            raise
        self._finish(cache, inputs)
        if not self._drawn:
            self._first = self._last = time.perf_counter()
        if reason == "stop" and "tool_call" in self._assembler.kinds:
            reason = "tool_calls"
        yield (*rest, self._done(reason, cached))

    def _done(self, reason: FinishReason, cached: int) -> Done:
        usage = Usage(len(self._prompt), len(self._drawn), cached)
        timing = Timing(self._first - self._began, self._last - self._first, mx.get_peak_memory())
        return Done(reason, usage, timing, self._seed, self._beams)

    def _begin(self) -> tuple[ModelCache, Sequence[int], int]:
        """A cache, the decoder's input, and the number of its tokens already in the cache."""
        model, request = self._model, self._request
        limits: dict[str, Any] = {"max_context": request.max_context, "kv_bits": self._options.kv_bits}
        if self._info.kind == "encoder-decoder":
            inputs = [token for token in (self._info.decoder_start, self._forced_bos()) if token is not None]
            source = mx.array([self._prompt], dtype=mx.int32)
            return cast(SourceModel, model).start(source, **limits), inputs, 0
        planned = request.max_context or len(self._prompt) + self._answer_limit
        rotation = self._info.rotation_class(planned)
        if rotation is not None:
            limits["max_context"] = planned
        if self._prefix is None or request.num_beams > 1:  # beams take the cache apart
            return model.make_cache(**limits), self._prompt, 0
        adapter = identity(cast(nn.Module, model)) if request.adapter else ()
        kind = (request.max_context, self._options.kv_bits, rotation, adapter)
        cache, cached = self._prefix.acquire(self._prompt, kind, lambda: model.make_cache(**limits))
        if cached and rotation is not None:
            cache.max_context = planned
        return cache, self._prompt, cached

    def _forced_bos(self) -> int | None:
        """The token after the decoder's start token: the request's, else the checkpoint's."""
        requested = self._request.sampling.forced_bos_token_id
        defaults = config_file.read(self._info.generation_config, self._info.vocab_size).sampling
        return defaults.get("forced_bos_token_id") if requested is None else requested

    def _bounds(self, inputs: Sequence[int], drawn: int = 0) -> Bounds:
        """The bounds of what follows `drawn` new tokens."""
        before = len(self._answer_start)
        prompt, left = self._prompt[: len(self._prompt) - before], self._answer_limit - drawn
        return Bounds(prompt=prompt, given=self._forced(inputs), drawn=before + drawn, ends=self._ends, max_tokens=left)

    def _forced(self, inputs: Sequence[int]) -> int:
        """Number of tokens that an encoder-decoder is forced to begin with, after the start token."""
        return len(inputs) - 1 if self._info.kind == "encoder-decoder" else 0

    def _sampler(self, inputs: Sequence[int], vocab_size: int) -> Sampler:
        return Sampler(self._request.sampling, self._seed, inputs, vocab_size, self._bounds(inputs))

    def _search(
        self, cache: ModelCache, inputs: Sequence[int], logits: mx.array
    ) -> Generator[tuple[Event, ...], None, FinishReason]:
        """Steps of beam search; the text of the best beam comes after the last."""
        from .beams import Beams, search  # numpy, which takes long to import and only beams need

        params = self._request.sampling
        beams = Beams(self._request, self._ends, self._answer_limit, self._forced(inputs))

        def adjust(log_p: mx.array, answer: tuple[int, ...]) -> mx.array:
            return adjusted(log_p, params, [*inputs, *answer], self._bounds(inputs, len(answer)))

        yield (Prefill(len(self._prompt), len(self._prompt)), *self._given)
        for _ in search(self._model, cache, logits, beams, adjust):
            self._last = time.perf_counter()
            self._first = self._first if self._drawn else self._last
            self._drawn = list(beams.answers[0])
            if self._cancelled():
                return "cancelled"
        ended = beams.best()
        self._beams = tuple(self._beam(each) for each in ended)
        self._drawn = list(ended[0].tokens)
        yield tuple(_joined(d for token in self._beams[0].tokens for d in self._assembler.add(Sampled(token))))
        if self._assembler.stopped:
            return "stop"
        has_end = self._drawn[-1] in self._ends
        at_limit = bool(params.forced_eos_token_id) and len(self._drawn) == self._answer_limit
        return "stop" if has_end and not at_limit else "length"

    def _beam(self, ended: Ended) -> Beam:
        tokens = ended.tokens[:-1] if ended.tokens[-1] in self._ends else ended.tokens
        detokenizer = self._detokenizer()
        text = "".join(detokenizer.add(token) for token in tokens if token not in self._unseen)
        return Beam(text + detokenizer.finish(), tokens, ended.score)

    def _complete(
        self, cache: ModelCache, inputs: Sequence[int], cached: int
    ) -> Generator[tuple[Event, ...], None, FinishReason]:
        """Steps between the first Prefill and the last text; returns the finish reason."""
        model, request = self._model, self._request
        # an encoder-decoder's one or two start tokens are not part of the prompt: one step, no events
        step = len(inputs) if self._info.kind == "encoder-decoder" else self._options.prefill_step
        reading = prefill(model, cache, inputs[cached:], step, done=cached)
        while True:
            if self._cancelled():
                return "cancelled"
            try:
                read = next(reading)
            except StopIteration as end:
                logits = end.value
                break
            if (
                self._prefix is not None and request.num_beams == 1 and read.done + step >= read.total
            ):  # the last step of the prompt is next
                self._prefix.keep(inputs, cache)
            yield (read,)
        if request.num_beams > 1:
            return (yield from self._search(cache, inputs, logits))
        sampler = self._sampler(inputs, logits.shape[-1])
        tokens = decode(model, cache, logits, sampler, max_tokens=self._answer_limit, alternatives=request.logprobs)
        for sampled in tokens:
            self._last = time.perf_counter()
            self._drawn.append(sampled.token)
            if len(self._drawn) == 1:
                self._first = self._last
                yield (Prefill(len(self._prompt), len(self._prompt)), *self._given)
            if sampled.token in self._ends:
                at_limit = bool(request.sampling.forced_eos_token_id) and len(self._drawn) == self._answer_limit
                return "length" if at_limit else "stop"
            deltas = self._assembler.add(sampled)
            if deltas:
                yield tuple(deltas)
            if self._assembler.stopped:
                return "stop"
            if self._cancelled():
                return "cancelled"
        return "length"

    def _finish(self, cache: ModelCache, inputs: Sequence[int]) -> None:
        """Trim tokens that were computed but not shown; return the cache to the prefix cache."""
        if self._prefix is None or self._info.kind == "encoder-decoder" or self._request.num_beams > 1:
            return
        answered = max(0, self._assembler.shown - len(self._answer_start)) if self._drawn else 0
        shown = min(len(inputs) + answered, cache.length)
        if cache.nearest(shown) == shown:
            cache.cut(shown)
        self._prefix.release([*inputs, *self._drawn], cache)
