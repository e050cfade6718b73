"""A conversation with an engine: its tree of turns, and the events of the current answer.

No terminal code: the full screen, the line mode and programs use the same `Session`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Literal, Protocol

from macllm.errors import DoesNotFitError, MacllmError, UsageError
from macllm.generation.request import Delta, Done, Events, FinishReason, Prefill, Request, SamplingParams
from macllm.generation.sampling.defaults import new_seed
from macllm.generation.sampling.ranges import LARGEST_SEED
from macllm.hub.blend import parse

from .again import comparison, continuation
from .answer import PartialAnswer
from .context import ContextUse, tokens_at, used_tokens
from .conversation import Attachment, Conversation, ModelChoice, Origin, Turn
from .summarizing import Summary

if TYPE_CHECKING:
    from macllm.config.settings import Preset
    from macllm.generation.contract import CompletionEvents, Engine


_SAVE_SECONDS = 0.5
_REMEDY = "a shorter message, /clear in a longer conversation, or a model with a longer context"


class Journal(Protocol):
    """Storage of conversations."""

    def save(self, conversation: Conversation) -> None:
        """Queue the conversation for writing, in place of its last state.

        Returns at once; any thread may call it.
        """
        ...

    def close(self) -> None:
        """Write what waits. A later `save` is written, too."""
        ...


class Session:
    """One conversation. The iterator of an answer may run in another thread than `stop` and the readers.

    `max_tokens` limits each answer; None: up to the end of the context. With a seed in `sampling`, the n-th
    completion of the session uses seed + n, so that a regenerated answer differs while the session as a whole is
    reproducible. `journal` gets every state of the conversation: before an answer, as it streams, and after it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        conversation: Conversation | None = None,
        system: str | None = None,
        sampling: SamplingParams | None = None,
        max_tokens: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.engine = engine
        self.sampling = engine.info.defaults if sampling is None else sampling
        self.max_tokens = max_tokens
        self.adapters = list(parse(self.adapter)) if self.adapter else []  # each that was active, by folder
        self.preset: Preset | None = None  # the one applied last
        self.on_done: Callable[[Done], object] | None = None  # gets the end of each completion
        self.journal = journal
        self._conversation = conversation or Conversation.begin(system)
        self._asked = self._conversation
        self._used_tokens = used_tokens(self._conversation)
        self._completions = 0
        self._warned = False
        self._answering: CompletionEvents | Summary | None = None

    @property
    def conversation(self) -> Conversation:
        """The conversation; the current answer is a turn of it from its first text on."""
        return self._conversation

    @property
    def asked(self) -> Conversation:
        """The conversation that the newest answer goes on with; also before the first event of the answer."""
        return self._asked

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns of the current path, oldest first."""
        return self._conversation.turns

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages for a chat template, system prompt first."""
        return self._conversation.messages

    @property
    def system(self) -> str | None:
        """The system prompt, which holds from the next answer on."""
        return self._conversation.system

    @system.setter
    def system(self, text: str | None) -> None:
        self._keep(replace(self._conversation, system=text))

    @property
    def adapter(self) -> str | None:
        """The active LoRA adapter, or several with weights, as `a + b:0.5`."""
        return self.engine.info.adapter

    def activate(self, adapter: str | None) -> None:
        """Make another adapter active, or none, for the answers from now on. Waits for the engine.

        A resumed conversation has it, too. Raises: MacllmError if it cannot be loaded; the former one stays active.
        """
        self.engine.activate(adapter)
        if adapter is not None:
            self.adapters += [name for name in parse(adapter) if name not in self.adapters]
        self._keep(self._conversation.choosing(self._choice))

    @property
    def _choice(self) -> ModelChoice:
        return ModelChoice(model=self.engine.info.model_name, adapter=self.adapter)

    @property
    def preset_in_effect(self) -> str:
        """The name of the preset, as long as none of its values is changed; else empty."""
        return self.preset.name if self.preset and self.preset.is_met(self.system, self.sampling) else ""

    @property
    def context(self) -> ContextUse:
        """Tokens of the newest completion, updated while it streams."""
        return ContextUse(self._used_tokens, self.engine.info.context_length)

    def take_warning(self) -> str | None:
        """The warning that the context fills up, once per conversation; else None."""
        if self._warned or not self.context.fills_up:
            return None
        self._warned = True
        return self.context.warning("/summarize" if self.can_drop else "/summarize all")

    @property
    def last_answer(self) -> Turn | None:
        """The newest answer of the path, or None."""
        return next((turn for turn in reversed(self.turns) if turn.role == "assistant"), None)

    def reply(self, text: str, attachments: tuple[Attachment, ...] = ()) -> Events:
        """Add the user's message and return the events of the answer.

        However the iteration ends, the answer's text so far is kept. If it has none, the message goes too.
        Raises: UsageError for an empty message; while iterating, the engine's errors (DoesNotFitError if the
        conversation is longer than the context: it is never truncated).
        """
        return self._begin(self._conversation.added(_message(text, attachments)))

    def edit(self, node: str, text: str, attachments: tuple[Attachment, ...] = ()) -> Events:
        """The same in place of the user's message `node`: a new branch, beside the old one."""
        return self._begin(
            self._conversation.at(self._conversation.node(node).parent).added(_message(text, attachments))
        )

    def regenerate(self, node: str | None = None) -> Events:
        """Answer the last message again; the new answer, once it has text, stands beside the old.

        With `node`, the last message of the path up to it. Raises: UsageError if there is no message yet.
        """
        path = (self._conversation if node is None else self._conversation.at(node)).path
        while path and path[-1].turn.role != "user":
            path = path[:-1]
        if not path:
            raise UsageError("The conversation has no message to answer again.", remedy="write one first")
        return self._begin(self._conversation.at(path[-1].id))

    def continue_answer(self) -> Events:
        """Go on with the last answer, which was stopped, cut at a limit or failed, in its place.

        The events repeat its text, marked as given, before the first new text. The new text is what the uninterrupted
        answer would have had; without any, the answer stays as it was.
        Raises: UsageError if there is no such answer of this model.
        """
        return self._submit(*continuation(self._conversation, self.engine.info, self.max_tokens))

    def compare(self) -> Events:
        """Answer the last question again with the seed of the last answer, without the adapter if it had it.

        The new answer stands beside the other one. Raises: UsageError without an answer or an adapter.
        """
        return self._submit(*comparison(self._conversation, self.engine.info))

    def stop(self) -> None:
        """Stop the current answer after its current step; its iterator then ends, and its text is kept."""
        answering = self._answering
        if answering is not None:
            answering.cancel()

    def show(self, node: str) -> None:
        """Make the newest path through `node` the current one."""
        self.open(self._conversation.showing(node))

    def open(self, conversation: Conversation) -> None:
        """Go on with another conversation, or another path of this one."""
        self._warned = self._warned and conversation.id == self._conversation.id
        self._used_tokens = used_tokens(conversation)
        self._keep(conversation)

    def take_over(self, former: Session) -> None:
        """Go on with the conversation of another session, and with those of its settings that were changed."""
        changed = {
            item.name: value
            for item in fields(SamplingParams)
            if (value := getattr(former.sampling, item.name)) != getattr(former.engine.info.defaults, item.name)
        }
        if former.preset is not None and former.preset_in_effect:
            changed |= former.preset.sampling
        self.preset = former.preset
        self.sampling = replace(self.sampling, **changed)
        self.max_tokens = former.max_tokens
        changed_model = self._choice != former._choice
        self.open(former.conversation.choosing(self._choice) if changed_model else former.conversation)

    def clear(self) -> None:
        """Begin a new conversation. System prompt and sampling settings stay."""
        self._conversation = Conversation.begin(self.system)
        self._used_tokens = 0
        self._warned = False

    def set_title(self, title: str) -> None:
        """Name the conversation."""
        self._keep(replace(self._conversation, title=title))

    @property
    def can_drop(self) -> bool:
        """True if `drop_oldest` finds a turn to leave out."""
        questions = [node for node in self._conversation.read if node.turn.role == "user"]
        return self.engine.info.context_length is not None and len(questions) > 1

    def drop_oldest(self, *, everything: bool = False) -> int:
        """Let the model no longer read the oldest turns, so that at least half of the context is free.

        They stay in the conversation, before a mark. With `everything`, it reads only later turns. Returns the number
        of turns dropped now. Raises: UsageError if only the last question is left, or the context has no limit.
        """
        kept, dropped = self._oldest(everything)
        self._cut(kept, "")
        return len(dropped)

    def summarize_oldest(self, *, everything: bool = False) -> Events:
        """The same, with a summary that the model writes; returns the events of the summary."""
        kept, dropped = self._oldest(everything)
        self._asked = self._conversation
        opening = [message for message in self.messages[:1] if message["role"] == "system"]
        self._answering = summary = Summary(
            lambda messages, most: self.engine.submit(self._request(messages, most)),
            dropped,
            self.engine.info.context_length,
            opening,
            self._conversation.summary,
        )
        return self._summary(kept, summary)

    def close(self) -> None:
        """Close the engine and the journal."""
        self.engine.close()
        if self.journal is not None:
            self.journal.close()

    def _begin(self, conversation: Conversation) -> Events:
        request = self._request(conversation.messages, self.max_tokens)
        origin = Origin(
            model=self.engine.info.model_name,
            adapter=self.adapter,
            system=conversation.system,
            sampling=request.sampling,
            max_tokens=request.max_tokens,
        )
        return self._submit(request, PartialAnswer(conversation, origin))

    def _submit(self, request: Request, answer: PartialAnswer) -> Events:
        # Submitted here and not in the generator, so that stop() always finds a completion to cancel
        self._answering = None
        self._asked = answer.asked
        try:
            self._answering = completion = self.engine.submit(request)
        except MacllmError as error:
            return self._answer(request, answer, error)
        return self._answer(request, answer, completion)

    def _answer(self, request: Request, answer: PartialAnswer, submitted: CompletionEvents | MacllmError) -> Events:
        before, used_before = self._conversation, self._used_tokens
        self._keep(answer.begun)
        saved = time.monotonic()
        finish: FinishReason | Literal["failed"] = "failed"
        try:
            if isinstance(submitted, MacllmError):
                raise submitted
            for event in self._counted(submitted, len(request.answer_start)):
                answer.add(event)
                if isinstance(event, Delta) and time.monotonic() - saved > _SAVE_SECONDS:
                    self._keep(answer.conversation("cancelled"))
                    saved = time.monotonic()
                yield event
            finish = answer.finish or "cancelled"
        except (GeneratorExit, KeyboardInterrupt):
            finish = "cancelled"
            raise
        except DoesNotFitError as error:
            raise DoesNotFitError(error.message, cause=error.cause, remedy=_REMEDY) from error
        finally:
            if answer.has_text or finish not in ("failed", "cancelled"):
                self._keep_answer(answer.conversation(finish))
            else:
                self._used_tokens = used_before
                self._keep(before)

    def _summary(self, kept: str | None, summary: Summary) -> Events:
        tokens = 0
        for event in summary.events():
            if isinstance(event, Done):
                tokens = event.usage.completion_tokens
            yield event
        if summary.text is not None:
            self._cut(kept, summary.text)
            self._used_tokens += tokens

    def _counted(self, completion: CompletionEvents, given: int) -> Events:
        """The same events; updates `context`. The first deltas have `given` tokens of the prompt."""
        with closing(completion):
            for event in completion:
                if isinstance(event, Prefill):
                    self._used_tokens = event.total - given
                elif isinstance(event, Delta):
                    self._used_tokens += len(event.tokens)
                elif isinstance(event, Done):
                    if self.on_done is not None:
                        self.on_done(event)
                    self._used_tokens = event.usage.prompt_tokens + event.usage.completion_tokens
                yield event

    def _request(self, messages: Sequence[Mapping[str, str]], max_tokens: int | None) -> Request:
        seed = self.sampling.seed  # known before the end, so that an answer that fails can be continued
        seed = new_seed() if seed is None else (seed + self._completions) % (LARGEST_SEED + 1)
        sampling = replace(self.sampling, seed=seed)
        self._completions += 1
        return Request(messages=tuple(messages), max_tokens=max_tokens, sampling=sampling)

    def _keep(self, conversation: Conversation) -> None:
        self._conversation = conversation
        if self.journal is not None:
            self.journal.save(conversation)

    def _keep_answer(self, conversation: Conversation) -> None:
        """Keep a conversation that ends with an answer, perhaps made without the active adapter (`compare`)."""
        is_usual = conversation.model_choice == self._choice
        self._keep(conversation if is_usual else conversation.choosing(self._choice))

    def _cut(self, kept: str | None, summary: str) -> None:
        self._keep(self._conversation.added(Turn(role="cut", content=summary, kept=kept)))
        self._used_tokens = used_tokens(self._conversation)

    def _oldest(self, everything: bool) -> tuple[str | None, list[Turn]]:
        """The first node to keep, always a question, and the turns before it that the model still reads."""
        limit = self.engine.info.context_length
        read = self._conversation.read
        if everything and read:
            return None, [node.turn for node in read]
        questions = [n for n, node in enumerate(read) if node.turn.role == "user" and n > 0]
        if limit is None or not questions:
            raise UsageError(
                "No older messages to leave out.", remedy="/drop all or /summarize all, which take the last ones, too"
            )
        total = tokens_at(read)
        free = next((n for n in questions if total - tokens_at(read[:n]) <= limit // 2), None)
        first = questions[-1] if free is None else free
        return read[first].id, [node.turn for node in read[:first]]


def _message(text: str, attachments: tuple[Attachment, ...]) -> Turn:
    if not text.strip() and not attachments:
        raise UsageError("The message is empty.", remedy="write something first")
    return Turn(role="user", content=text, attachments=attachments)
