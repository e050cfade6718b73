"""Public entry points of generation: `generate`, `stream`, and requests from their options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from macllm.errors import UsageError
from macllm.nn.protocol import LanguageModel
from macllm.text.tokenizer import Tokenizer

from .completion import run
from .options import ENGINE_NAMES, SAMPLING_NAMES, read_engine_options
from .options import read as read_options
from .prompt import check_pair, encode_prompt, read_prompt
from .request import (
    Beam,
    Delta,
    Done,
    Events,
    FinishReason,
    Request,
    Timing,
    TokenLogprob,
    Usage,
)
from .sampling.defaults import default_beams, default_max_tokens, default_sampling

Prompt = str | Sequence[Mapping[str, Any]] | Request


@dataclass(frozen=True)
class Completion:
    """A finished completion; `str()` gives its text."""

    text: str
    reasoning: str
    tool_calls: tuple[str, ...]
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    seed: int
    tokens: tuple[int, ...]  # without the stop token
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    beams: tuple[Beam, ...] = ()  # of beam search, the best first

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
    num_beams: int | None = None,
    length_penalty: float | None = None,
    early_stopping: bool | str | None = None,
    num_return_sequences: int | None = None,
    prefill_step: int | None = None,
) -> Completion:
    """The completion of a text or of messages. Arguments and errors as in `stream`."""
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
    num_beams: int | None = None,
    length_penalty: float | None = None,
    early_stopping: bool | str | None = None,
    num_return_sequences: int | None = None,
    prefill_step: int | None = None,
) -> Events:
    """Events of a completion: Prefill while the prompt is read, Delta with new text, Done at the end.

    A string is one user message, rendered with the model's chat template; with `raw`, or without a template, it is
    continued as plain text. `tools` and `variables` go to the template. An option that is None gets its default from
    the checkpoint's generation_config.json, else from `Request`, `SamplingParams` and `EngineOptions`; only `kv_bits`
    and `prefill_step` can be combined with a `Request`. Closing the iterator stops generation after the current step.
    With `num_beams` above 1 the text comes at the end, all at once, and Done has the best beams.
    Raises UsageError for invalid options and DoesNotFitError for a prompt longer than the context.
    """
    given = _given(locals())
    check_pair(model, tokenizer)
    options = read_engine_options({name: given.pop(name) for name in ENGINE_NAMES & given.keys()})
    if isinstance(prompt, Request):
        if given:
            raise UsageError("a Request takes no further options; set them in it", cause=", ".join(given))
        return run(model, tokenizer, prompt, options)
    return run(model, tokenizer, make_request(model, tokenizer, prompt, given), options)


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `stream` that are set."""
    options = {name: value for name, value in arguments.items() if name not in ("model", "tokenizer", "prompt")}
    return {name: value for name, value in options.items() if value is not None and (name, value) != ("raw", False)}


def make_request(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> Request:
    """Request from prompt, options and this model's defaults. Raises UsageError for unknown options."""
    options = read_options(options, tokenizer.token_to_id)
    read = read_prompt(prompt)
    options["prompt" if isinstance(read, str) else "messages"] = read
    drawn = {name: options.pop(name) for name in SAMPLING_NAMES & options.keys()}
    if options.get("num_beams", 1) > 1:
        drawn.setdefault("temperature", 0.0)
    request = Request(sampling=replace(default_sampling(model.info), **drawn), **options)
    if "num_beams" not in options:
        request = replace(request, **default_beams(model.info, request) | options)
    if "max_tokens" in options:
        return request
    most = default_max_tokens(model.info, request, lambda: len(encode_prompt(tokenizer, request, model.info.kind)))
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
        beams=done.beams,
    )
