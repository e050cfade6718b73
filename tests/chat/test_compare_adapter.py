"""The last question answered again with the same seed and the other state of the adapter."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from macllm.chat.session import Session
from macllm.errors import EngineCrashedError, UsageError
from macllm.generation.request import SamplingParams
from tests.chat.scripted_engine import ScriptedEngine, Step


def adapted(*answers: list[Step]) -> ScriptedEngine:
    engine = ScriptedEngine(*answers)
    engine.info = replace(engine.info, adapter="runs/notes")
    return engine


def test_the_base_answers_beside_the_adapter_with_its_seed_and_settings() -> None:
    engine = adapted(["one"], ["two"], ["three"])
    session = Session(engine, system="Be brief.", sampling=SamplingParams(temperature=0.9), max_tokens=50)
    list(session.reply("Why?"))
    first = session.conversation.head
    session.system, session.sampling, session.max_tokens = None, SamplingParams(), None
    list(session.compare())
    assert first is not None
    assert session.conversation.siblings(first) == (first, session.conversation.head)
    assert [turn.content for turn in session.turns] == ["Why?", "two"]
    sent, compared = engine.requests
    assert sent.sampling.seed is not None
    assert compared == replace(sent, adapter=False)
    origins = [session.conversation.nodes[node].turn.origin for node in session.conversation.siblings(first)]
    assert [origin.adapter if origin else "" for origin in origins] == ["runs/notes", None]
    list(session.compare())
    assert [request.adapter for request in engine.requests] == [True, False, True]
    origin = session.turns[-1].origin
    assert origin is not None
    assert origin.adapter == "runs/notes"


def test_an_answer_of_the_base_is_continued_by_the_base() -> None:
    engine = adapted(["one"], ["two", "more"], ["more"])
    session = Session(engine)
    list(session.reply("Why?"))
    for event in session.compare():
        if event.__class__.__name__ == "Delta":
            session.stop()
    assert session.turns[-1].finish == "cancelled"
    list(session.continue_answer())
    assert [request.adapter for request in engine.requests] == [True, False, False]


def test_without_an_adapter_or_an_answer_nothing_is_compared() -> None:
    with pytest.raises(UsageError, match="no answer"):
        Session(adapted()).compare()
    session = Session(ScriptedEngine())
    list(session.reply("Why?"))
    with pytest.raises(UsageError, match="no adapter"):
        session.compare()
    assert len(session.turns) == 2


def test_an_answer_that_failed_is_continued_with_its_seed() -> None:
    engine = adapted(["on", EngineCrashedError("gone")], ["e"])
    session = Session(engine, sampling=SamplingParams(temperature=1.0))
    with suppress(EngineCrashedError):
        list(session.reply("Why?"))
    list(session.continue_answer())
    first, second = engine.requests
    assert first.sampling.seed is not None
    assert second.sampling == first.sampling
