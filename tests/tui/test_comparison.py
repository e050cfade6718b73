"""Two versions of an answer beside each other: pure, and in the app."""

from __future__ import annotations

import threading

import pytest

from macllm.chat.conversation import Conversation, Origin, Turn
from macllm.chat.session import Session
from macllm.errors import UsageError
from macllm.generation.request import SamplingParams
from macllm_tui import outcomes
from macllm_tui.comparison import of_versions
from tests.chat.test_compare_adapter import adapted
from tests.tui.conftest import Play, Stage
from tests.tui.golden import check, screen_text
from tests.tui.test_slash import run

BASE = "Attention **weighs** values.\n\n- scores\n- softmax\n\n```python\nweights = softmax(q @ k.T)\n```\n"
ADAPTED = "In your notes:\n\n| step | cost |\n|---|---:|\n| scores | 12 |\n| softmax | 3 |\n"


def versions(*origins: tuple[str | None, int, float]) -> tuple[Conversation, list[str]]:
    """A question with an answer for each adapter, seed and temperature, and the ids of the answers."""
    asked = conversation = Conversation.begin().added(Turn(role="user", content="Why?"))
    answers: list[str] = []
    for number, (adapter, seed, temperature) in enumerate(origins):
        origin = Origin(model="org/m", adapter=adapter, sampling=SamplingParams(temperature=temperature))
        turn = Turn(role="assistant", content=f"answer {number}", finish="stop", seed=seed, origin=origin)
        conversation = conversation.at(asked.head).added(turn)
        assert conversation.head is not None
        answers.append(conversation.head)
    return conversation, answers


def test_the_base_stands_before_the_adapter_and_both_name_their_differences() -> None:
    conversation, answers = versions(("runs/notes", 7, 0.5), (None, 7, 0.5), (None, 8, 0.5), (None, 8, 0.9))
    found = of_versions(conversation, answers[0])
    assert (found.question, found.same) == ("Why?", "with the same settings and seed 7")
    assert [side.label for side in found.sides] == ["version 2 of 4 · base model", "version 1 of 4 · with notes"]
    assert found == of_versions(conversation, answers[1])
    found = of_versions(conversation, answers[2])
    assert [side.label for side in found.sides] == ["version 2 of 4 · seed 7", "version 3 of 4 · seed 8"]
    assert found.same == "with the same settings"
    found = of_versions(conversation)
    assert [side.node.id for side in found.sides if side.node] == answers[2:]
    assert [side.label for side in found.sides] == [
        "version 3 of 4 · temperature 0.5",
        "version 4 of 4 · temperature 0.9",
    ]
    assert found.same == ""


def test_one_version_and_a_question_are_not_compared() -> None:
    conversation, answers = versions((None, 7, 0.5))
    for node in (None, answers[0], conversation.path[0].id):
        with pytest.raises(UsageError, match="one version"):
            of_versions(conversation, node)


def test_a_comparison_of_adapters_names_both_sides_before_the_second_is_written() -> None:
    session = Session(adapted(["one"], ["two"], ["three"]), sampling=SamplingParams(seed=5))
    list(session.reply("Why?"))
    for labels in (["base model", "with notes"], ["base model", "with notes"]):
        outcome = run(session, "/ab")
        assert isinstance(outcome, outcomes.Answer)
        assert outcome.comparison is not None
        assert [side.label for side in outcome.comparison.sides] == labels
        coming = next(side for side in outcome.comparison.sides if side.node is None)
        list(outcome.events)
        assert outcome.comparison.same == "with the same settings and seed 5"
        origin = session.turns[-1].origin
        assert (coming.label == "with notes") == (origin is not None and origin.adapter is not None)


def test_two_answers_stream_side_by_side_or_stacked_and_a_digit_goes_on_with_one(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        chat = stage.app.chat
        await stage.idle()
        await stage.until(lambda: len(stage.session.turns) == 2)
        await stage.idle()
        chat.action_run("/ab")
        await stage.sees("weighs values")
        await stage.sees("scores     12")
        gate.set()
        await stage.sees("1 or 2 go on")
        await stage.sees("weights = softmax")
        await stage.sees("2 tokens · 2.0 tok/s")  # drawn last
        for size in ((120, 40), (80, 24), (60, 20)):
            await stage.pilot.resize_terminal(*size)
            await stage.pilot.pause(0.05)
            check(screen_text(stage.app), f"compare-{size[0]}x{size[1]}")
        await stage.press("2")
        await stage.until(lambda: stage.session.turns[-1].content == ADAPTED)
        await stage.until(lambda: stage.app.screen is chat)
        await stage.press("alt+up", "equals_sign")
        await stage.sees("version 1 of 2 · with notes")
        await stage.press("escape", "escape")
        chat.action_run("/ab")  # stopped before its first word
        await stage.sees("Esc stop")
        await stage.press("escape")
        await stage.until(lambda: stage.app.screen is chat)
        await stage.idle()
        assert stage.session.turns[-1].content == ADAPTED

    gate = threading.Event()
    engine = adapted(ADAPTED.splitlines(keepends=True), [BASE[:40], gate, BASE[40:]], [threading.Event()])
    play(lambda on_status: Session(engine, sampling=SamplingParams(seed=5)), scenario, (120, 40), "Why divide?")
