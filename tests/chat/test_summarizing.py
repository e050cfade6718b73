"""Summaries of turns that are longer than the context, and marks that leave out all of them."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from macllm.chat.session import Session
from macllm.errors import DoesNotFitError
from macllm.generation.request import Prefill
from tests.chat.scripted_engine import ScriptedEngine, Step

WORDS = [f"word{number}" for number in range(200)]


def talked(*answers: list[Step], system: str | None = None) -> tuple[Session, ScriptedEngine]:
    """A conversation of 203 words in a context that now holds 100."""
    engine = ScriptedEngine(["one"], ["two"], *answers)
    session = Session(engine, system=system)
    for half in (WORDS[:100], WORDS[100:]):
        list(session.reply(" ".join(half)))
    engine.info = replace(engine.info, context_length=100)
    return session, engine


def test_turns_longer_than_the_context_are_summarized_in_parts_and_no_word_is_skipped() -> None:
    session, engine = talked(*([f"summary {number}"] for number in range(20)))
    list(session.summarize_oldest(everything=True))
    parts = [message["content"] for (message,) in engine.rendered[2:]]
    completed = engine.completions[2:]
    assert len(completed) > 2
    read = [word for part in parts[-len(completed) :] for word in part.split() if word in WORDS]
    assert read == WORDS
    for number, part in enumerate(parts[-len(completed) + 1 :]):
        assert part.startswith(f"Said before:\nsummary {number}\n\n")
    cut = session.turns[-1]
    assert (cut.role, cut.content) == ("cut", f"summary {len(completed) - 1}")
    assert session.conversation.read == ()
    list(session.reply("And now?"))
    assert [message["role"] for message in engine.rendered[-1]] == ["system", "user"]


def test_a_part_leaves_room_for_its_summary() -> None:
    session, engine = talked([Prefill(0, 90), "x"], [Prefill(0, 70), "fits"], *([["more"]] * 20))
    list(session.summarize_oldest(everything=True))
    first, second = (engine.rendered[-len(engine.completions[2:]) + at][0]["content"] for at in (0, 1))
    assert first.startswith(second[:100])
    assert len(second) < len(first)
    assert engine.completions[2].is_cancelled


def test_a_summary_that_is_stopped_between_its_parts_leaves_no_mark() -> None:
    session, engine = talked([Prefill(1, 2), threading.Event()])
    for _ in session.summarize_oldest(everything=True):
        session.stop()
    assert len(engine.completions) == 3
    assert [turn.role for turn in session.turns] == ["user", "assistant"] * 2


def test_without_room_for_the_smallest_part_it_says_so_and_leaves_no_mark() -> None:
    session, engine = talked()
    engine.info = replace(engine.info, context_length=20)
    with pytest.raises(DoesNotFitError):
        list(session.summarize_oldest(everything=True))
    assert len(session.turns) == 4


def test_with_everything_left_out_the_next_message_is_read_alone() -> None:
    session, engine = talked(system="Be brief.")
    assert session.drop_oldest(everything=True) == 4
    list(session.reply("Next"))
    assert [message["content"] for message in engine.rendered[-1]] == ["Be brief.", "Next"]
    assert len(session.turns) == 7
    forked = session.conversation.forked()
    assert [node.turn.content for node in forked.read] == ["Next", "ok"]
