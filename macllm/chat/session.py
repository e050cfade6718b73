"""A conversation with an engine: its turns, and the events of the current answer.

No terminal code: the full screen, the line mode and programs use the same `Session`.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from macllm.errors import DoesNotFitError, MacllmError, UsageError
from macllm.generation.request import (
    CallLines,
    Delta,
    Done,
    Events,
    FinishReason,
    Prefill,
    Request,
    SamplingParams,
    Timing,
    Usage,
)
from macllm.generation.sampling.ranges import LARGEST_SEED
from macllm.units import count_text, tokens_text

if TYPE_CHECKING:
    from macllm.generation.contract import CompletionEvents, Engine


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of the conversation; the model's reasoning is separate from its content.

    `finish` is None for a user's turn; "failed" marks an answer that an error cut short.
    """

    role: Literal["user", "assistant"]
    content: str
    reasoning: str = ""
    finish: FinishReason | Literal["failed"] | None = None
    usage: Usage | None = None
    timing: Timing | None = None
    seed: int | None = None

    def message(self) -> dict[str, str]:
        """The turn as a message for a chat template."""
        message = {"role": self.role, "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        return message


FULL_SHARE = 0.8  # share of the context above which a warning is shown
_REMEDY = "a shorter message, /clear in a longer conversation, or a model with a longer context"


@dataclass(frozen=True)
class ContextUse:
    """Tokens of the context that are used; `limit_tokens` is None for a model without a stated limit."""

    used_tokens: int
    limit_tokens: int | None

    @property
    def fills_up(self) -> bool:
        """True from 80 % on."""
        return bool(self.limit_tokens) and self.used_tokens >= FULL_SHARE * self.limit_tokens

    @property
    def is_full(self) -> bool:
        """True if no more tokens fit."""
        return self.limit_tokens is not None and self.used_tokens >= self.limit_tokens

    @property
    def warning(self) -> str:
        """A sentence with both numbers and a remedy, for a context that fills up."""
        share = self.used_tokens / self.limit_tokens if self.limit_tokens else 0.0
        numbers = f"{count_text(self.used_tokens)} of {tokens_text(self.limit_tokens or 0)}"
        return f"{min(share, 1):.0%} of the context is used ({numbers}); /clear begins a new conversation."


class Session:
    """One conversation. `reply` and `regenerate` may run in another thread than `stop` and the readers.

    `max_tokens` limits each answer; None: up to the end of the context. With a seed in `sampling`, the n-th
    completion of the session uses seed + n, so that a regenerated answer differs while the session as a whole is
    reproducible.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        sampling: SamplingParams | None = None,
        max_tokens: int | None = None,
        turns: tuple[Turn, ...] = (),
    ) -> None:
        self.engine = engine
        self.system = system
        self.sampling = engine.info.defaults if sampling is None else sampling
        self.max_tokens = max_tokens
        self._turns = turns
        self._used_tokens = 0
        self._completions = 0
        self._warned = False
        self._answering: CompletionEvents | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation, oldest turn first; an answer is added when it ends."""
        return self._turns

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as messages for a chat template, system prompt first."""
        return self._messages(self._turns)

    @property
    def context(self) -> ContextUse:
        """Tokens of the newest completion, updated while it streams."""
        return ContextUse(self._used_tokens, self.engine.info.context_length)

    def take_warning(self) -> str | None:
        """The warning that the context fills up, once per conversation; else None."""
        if self._warned or not self.context.fills_up:
            return None
        self._warned = True
        return self.context.warning

    @property
    def last_answer(self) -> Turn | None:
        """The newest answer, or None."""
        return next((turn for turn in reversed(self._turns) if turn.role == "assistant"), None)

    def reply(self, text: str) -> Events:
        """Add `text` as the user's message and return the events of the answer.

        However the iteration ends, the answer's text so far is kept in `turns`. If it has none, `turns` is unchanged.
        Raises: UsageError for an empty text; while iterating, the engine's errors (DoesNotFitError if the conversation
        is longer than the context: it is never truncated).
        """
        if not text.strip():
            raise UsageError("The message is empty.", remedy="write something first")
        return self._begin((*self._turns, Turn(role="user", content=text)))

    def regenerate(self) -> Events:
        """Answer the last message again; the new answer, once it has text, replaces the old.

        Raises: UsageError if there is no message yet.
        """
        turns = self._turns
        while turns and turns[-1].role == "assistant":
            turns = turns[:-1]
        if not turns:
            raise UsageError("The conversation has no message to answer again.", remedy="write one first")
        return self._begin(turns)

    def stop(self) -> None:
        """Stop the current answer after its current step; its iterator then ends, and its text is kept."""
        answering = self._answering
        if answering is not None:
            answering.cancel()

    def clear(self) -> None:
        """Remove all turns. System prompt and sampling settings stay."""
        self._turns = ()
        self._used_tokens = 0
        self._warned = False

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def _begin(self, turns: tuple[Turn, ...]) -> Events:
        # Submitted here and not in the generator, so that stop() always finds a completion to cancel
        self._answering = None
        try:
            self._answering = self.engine.submit(self._request(turns))
        except MacllmError as error:
            return self._answer(turns, error)
        return self._answer(turns, self._answering)

    def _answer(self, turns: tuple[Turn, ...], submitted: CompletionEvents | MacllmError) -> Events:
        before, used_before = self._turns, self._used_tokens
        self._turns = turns
        parts: dict[str, list[str]] = {"content": [], "reasoning": []}
        lines = CallLines()
        finish: FinishReason | Literal["failed"] = "failed"
        done: Done | None = None
        try:
            if isinstance(submitted, MacllmError):
                raise submitted
            for event in self._counted(submitted):
                if isinstance(event, Delta):
                    if event.kind == "reasoning":
                        parts["reasoning"].append(event.text)
                    else:
                        parts["content"].append(lines.text(event))
                elif isinstance(event, Done):
                    done = event
                yield event
            finish = done.finish_reason if done else "cancelled"
        except (GeneratorExit, KeyboardInterrupt):
            finish = "cancelled"
            raise
        except DoesNotFitError as error:
            raise DoesNotFitError(error.message, cause=error.cause, remedy=_REMEDY) from error
        finally:
            content, reasoning = "".join(parts["content"]), "".join(parts["reasoning"])
            if content or reasoning or finish not in ("failed", "cancelled"):
                ending = {"usage": done.usage, "timing": done.timing, "seed": done.seed} if done else {}
                answer = Turn(role="assistant", content=content, reasoning=reasoning, finish=finish, **ending)
                self._turns = (*turns, answer)
            else:
                self._turns, self._used_tokens = before, used_before

    def _counted(self, completion: CompletionEvents) -> Events:
        """The same events; updates `context`."""
        with closing(completion):
            for event in completion:
                if isinstance(event, Prefill):
                    self._used_tokens = event.total
                elif isinstance(event, Delta):
                    self._used_tokens += len(event.tokens)
                elif isinstance(event, Done):
                    self._used_tokens = event.usage.prompt_tokens + event.usage.completion_tokens
                yield event

    def _request(self, turns: tuple[Turn, ...]) -> Request:
        sampling = self.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + self._completions) % (LARGEST_SEED + 1))
        self._completions += 1
        return Request(messages=tuple(self._messages(turns)), max_tokens=self.max_tokens, sampling=sampling)

    def _messages(self, turns: tuple[Turn, ...]) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [turn.message() for turn in turns]
