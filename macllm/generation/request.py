"""Requests and events of generation.

Requests and events are frozen and hold no arrays, so that they cross threads, processes and sockets
unchanged. Terminal, server and library consume the same events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
DeltaKind = Literal["content", "reasoning", "tool_call"]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling parameters. The defaults draw from the model's own distribution.

    Applied in this order: biases and what must or must not come, penalties, temperature, then the filters top-k,
    top-p, min-p, typical and XTC. A temperature of 0 takes the likeliest token.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 0  # newest tokens that the three penalties look at, prompt included; 0: all
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_window: int = 0  # 0: all
    dry_breakers: tuple[int, ...] = ()  # tokens that end a repeated sequence
    logit_bias: tuple[tuple[int, float], ...] = ()
    # The next ten are those of transformers' GenerationConfig, lengths counted as there
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()  # added to the last token where the rest came before
    bad_words_ids: tuple[tuple[int, ...], ...] = ()  # sequences that must not come
    suppress_tokens: tuple[int, ...] = ()  # tokens that must not come
    begin_suppress_tokens: tuple[int, ...] = ()  # tokens that must not come first
    no_repeat_ngram_size: int = 0  # no n tokens in a row twice, prompt included; 0: off
    encoder_no_repeat_ngram_size: int = 0  # no n tokens in a row that the prompt has; 0: off
    min_length: int = 0  # tokens before an end may come: those of the prompt count, not those of an encoder's
    min_new_tokens: int = 0  # the same without the prompt's; wins over min_length
    forced_bos_token_id: int | None = None  # the token after a beginning of one token
    forced_eos_token_id: tuple[int, ...] = ()  # what the last of max_tokens must be
    seed: int | None = None  # None: drawn once and reported, so that every completion can be replayed


@dataclass(frozen=True, kw_only=True)
class Request:
    """One completion to make, of a prompt or of messages.

    `prompt` is tokens, or a text. A text is one user message, answered through the model's chat template where there
    is one; `raw` continues it instead. `messages`, `tools` and `variables` are what the chat template takes.

    `answer_start` are tokens with which the answer begins, such as those of an answer that was stopped: the completion
    continues them, and with the same seed draws what the uninterrupted answer would have. They count as prompt.
    """

    prompt: tuple[int, ...] | str = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    raw: bool = False
    answer_start: tuple[int, ...] = ()
    adapter: bool = True  # False: without the model's LoRA adapter, as its base
    max_tokens: int | None = 256  # None: to the end of the context
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    logprobs: int | None = None  # alternatives reported for each token; None: no logprobs at all
    max_context: int | None = None  # tokens, prompt and completion together
    # Beam search, with the meanings of transformers' GenerationConfig. The text of the best beam comes at the end.
    num_beams: int = 1
    length_penalty: float = 1.0  # a beam's score is its log-probability / length^length_penalty
    early_stopping: bool | str = False  # True: at num_beams ended beams; "never": once no better one can come
    num_return_sequences: int = 1  # beams that are reported


@dataclass(frozen=True)
class Beam:
    """A result of beam search: text, tokens without the end, and score."""

    text: str
    tokens: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class TokenLogprob:
    """A sampled token, its natural log-probability (unmodified distribution), and the likeliest others."""

    token: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Counts of tokens. `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timing:
    """Durations of a completion's phases, in seconds, and its peak memory."""

    prefill_seconds: float
    decode_seconds: float
    peak_bytes: int

    def tokens_per_second(self, completion_tokens: int) -> float:
        """Decoded tokens a second; the first token belongs to the prefill."""
        return (completion_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass(frozen=True)
class Prefill:
    """`done` of `total` prompt tokens are in the cache."""

    done: int
    total: int


@dataclass(frozen=True)
class Delta:
    """Text that has become certain, and the tokens that made it.

    `call` numbers the tool call that the text belongs to, from 0; None for any other text. Before the first new
    text, the text of `answer_start` that is certain comes again, marked as `given`.
    """

    text: str
    kind: DeltaKind = "content"
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    call: int | None = None
    given: bool = False


@dataclass(frozen=True)
class Done:
    """The end of a completion. `seed` replays it. `beams` are the results of beam search, the best first."""

    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    seed: int
    beams: tuple[Beam, ...] = ()


Event = Prefill | Delta | Done


class CallLines:
    """Text of an answer's deltas for a reader: each tool call is a paragraph of its own."""

    def __init__(self) -> None:
        self._call: int | None = None
        self._said = False

    def text(self, delta: Delta) -> str:
        """The delta's text, after a blank line where a call begins or ends."""
        if not delta.text:
            return ""
        begins = delta.call != self._call and self._said
        self._call, self._said = delta.call, True
        return ("\n\n" if begins else "") + delta.text


class Events(Iterator[Event], Protocol):
    """Events as they come. Closing them stops what makes them after the current step."""

    def close(self) -> None:
        """Want no more."""
        ...
