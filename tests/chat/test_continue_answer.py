"""An answer of a session that was interrupted and goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from macllm.chat.conversation import Conversation, Origin, Turn
from macllm.chat.session import Session
from macllm.errors import EngineCrashedError, UsageError
from macllm.generation.contract import EngineInfo
from macllm.generation.prefix import PrefixCache
from macllm.generation.request import Delta, Done, Request, SamplingParams
from macllm.generation.stream import run
from tests.chat.scripted_engine import ScriptedEngine
from tests.generation import scripted_answer


class InProcess:
    """An engine with the scripted answer, in this thread."""

    info = EngineInfo("scripted", None, 3072, 1, True, SamplingParams(temperature=0.0))

    def __init__(self) -> None:
        self.prefix = PrefixCache()
        self.requests: list[Request] = []
        self._cancelled = False

    def submit(self, request: Request) -> Any:
        self.requests.append(request)
        self._cancelled = False
        events = run(
            scripted_answer.model(),
            scripted_answer.tokenizer(),
            request,
            prefix=self.prefix,
            cancelled=lambda: self._cancelled,
        )
        events_with_cancel = type("Completion", (), {"__iter__": lambda _: events, "close": lambda _: events.close()})()
        events_with_cancel.cancel = self.cancel
        return events_with_cancel

    def cancel(self) -> None:
        self._cancelled = True


def stopped(tokens: int, engine: Any = None) -> Session:
    """A session whose answer was stopped after that many tokens."""
    session = Session(engine or InProcess(), max_tokens=tokens)
    list(session.reply("Why?"))
    session.max_tokens = None
    return session


def whole() -> Turn:
    session = Session(InProcess())
    list(session.reply("Why?"))
    return session.turns[-1]


def test_an_answer_that_was_stopped_and_continued_is_the_uninterrupted_one() -> None:
    expected = whole()
    assert expected.reasoning
    assert "日本語" in expected.content
    for tokens in range(1, len(expected.tokens), 4):
        session = stopped(tokens)
        before = session.conversation
        list(session.continue_answer())
        after = session.turns[-1]
        assert (after.content, after.reasoning, after.tokens, after.finish) == (
            expected.content,
            expected.reasoning,
            expected.tokens,
            expected.finish,
        )
        assert session.conversation.nodes.keys() == before.nodes.keys()
        assert session.conversation.head == before.head
        assert after.usage is not None
        assert session.context.used_tokens == after.usage.prompt_tokens + after.usage.completion_tokens


def test_an_answer_can_be_continued_again_and_again() -> None:
    session = stopped(3)
    session.max_tokens = 7
    while session.turns[-1].finish == "length":
        list(session.continue_answer())
    assert replace(session.turns[-1], usage=None, timing=None, seed=None, origin=None) == replace(
        whole(), usage=None, timing=None, seed=None, origin=None
    )


def test_the_context_counts_the_tokens_of_the_first_part_once() -> None:
    session = stopped(20)
    used = session.context.used_tokens
    for event in session.continue_answer():
        if isinstance(event, Delta) and event.given:
            assert session.context.used_tokens <= used
    assert session.context.used_tokens > used


def test_a_stop_before_the_first_new_token_leaves_the_answer_as_it_was() -> None:
    session = stopped(9)
    before = session.conversation
    events = session.continue_answer()
    next(iter(events))
    session.stop()
    assert isinstance(list(events)[-1], Done)
    assert session.conversation == before


def test_a_failure_before_the_first_new_token_leaves_the_answer_as_it_was() -> None:
    engine = ScriptedEngine(["a", "b"], [EngineCrashedError("gone")])
    session = stopped(1, engine)
    before = session.conversation
    with pytest.raises(EngineCrashedError):
        list(session.continue_answer())
    assert session.conversation == before


def test_the_request_repeats_the_settings_and_the_seed_of_the_answer() -> None:
    engine = ScriptedEngine(["a", "b"])
    session = Session(engine, system="Be brief.", sampling=SamplingParams(temperature=0.9), max_tokens=1)
    list(session.reply("Why?"))
    session.system, session.sampling = None, SamplingParams()
    list(session.continue_answer())
    first, second = engine.requests
    assert second.answer_start == session.turns[-1].tokens[:1] == (0,)
    assert second.sampling == first.sampling
    assert second.messages == first.messages


def finished(finish: Any) -> Callable[[Conversation], Conversation]:
    origin = Origin(model="scripted")
    return lambda c: c.added(Turn(role="assistant", content="x", finish=finish, tokens=(1,), origin=origin))


@pytest.mark.parametrize(
    ("end", "match"),
    [
        (lambda c: c, "no unfinished answer"),
        (finished("stop"), "no unfinished answer"),
        (finished("tool_calls"), "no unfinished answer"),
        (lambda c: c.added(Turn(role="assistant", content="x", finish="cancelled")), "cannot be taken up"),
        (
            lambda c: c.added(
                Turn(role="assistant", content="x", finish="length", tokens=(1,), origin=Origin(model="other"))
            ),
            "another model's",
        ),
    ],
)
def test_only_an_unfinished_answer_of_this_model_is_continued(end: Any, match: str) -> None:
    question = Conversation.begin().added(Turn(role="user", content="Why?"))
    session = Session(ScriptedEngine(), conversation=end(question))
    with pytest.raises(UsageError, match=match):
        session.continue_answer()


def test_an_empty_conversation_has_nothing_to_continue() -> None:
    with pytest.raises(UsageError, match="no unfinished answer"):
        Session(ScriptedEngine()).continue_answer()
