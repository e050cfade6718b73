"""Versions of messages, editing, block mode and long conversations, in the app."""

from __future__ import annotations

import threading

import pytest

from macllm.chat.conversation import Conversation, Turn
from macllm.chat.session import Session
from macllm.generation.request import Delta, Prefill
from macllm_tui.widgets.transcript import MORE, NEWEST
from macllm_tui.widgets.turns import AnswerTurn, UserTurn
from tests.chat.scripted_engine import ScriptedEngine, Step
from tests.tui.conftest import Play, Stage

CODE = "Both:\n\n```python\nprint(1)\n```\n\n- or\n\n  ```sh\n  ls -l\n  ```\n"


def contents(stage: Stage) -> list[str]:
    return [turn.content for turn in stage.session.turns]


def test_another_answer_stands_beside_the_first_and_brackets_show_each(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.idle()
        await stage.say("/regen")
        await stage.sees("‹2/2›")
        assert "first try" not in stage.screen()
        await stage.press("alt+up", "left_square_bracket")
        await stage.sees("first try")
        assert contents(stage) == ["Go", "first try"]
        assert "‹1/2›" in stage.screen()
        await stage.press("left_square_bracket", "right_square_bracket", "escape")
        await stage.sees("second try")
        await stage.say("Next")
        await stage.sees("third")
        assert contents(stage) == ["Go", "second try", "Next", "third"]

    play(ScriptedEngine(["first try"], ["second try"], ["third"]), scenario, size=(60, 20))


def test_an_edited_message_begins_a_branch_and_both_stay(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        for text in ("one", "two"):
            await stage.say(text)
            await stage.idle()
        await stage.press("alt+up", "up", "up", "up", "e")
        await stage.until(lambda: stage.typed == "one")
        await stage.type(" more")
        await stage.press("enter")
        await stage.sees("an answer to more")
        await stage.idle()
        assert contents(stage) == ["one more", "an answer to more"]
        assert "one more  ‹2/2›" in stage.screen()
        await stage.press("alt+up", "up", "left_square_bracket")
        await stage.sees("an answer to two")
        assert contents(stage) == ["one", "an answer to one", "two", "an answer to two"]

    engine = ScriptedEngine(*([f"an answer to {word}"] for word in ("one", "two", "more")))
    play(engine, scenario)


def test_escape_twice_edits_the_last_message_and_once_more_leaves_it(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("//one")
        await stage.idle()
        await stage.press("escape", "escape")
        await stage.until(lambda: stage.typed == "//one")
        await stage.sees("Esc leaves")
        await stage.press("escape")
        assert stage.typed == ""
        await stage.say("two")
        await stage.idle()
        assert contents(stage) == ["/one", "ok", "two", "ok"]

    play(ScriptedEngine(), scenario)


def test_an_edit_without_an_answer_returns_to_the_prompt_as_an_edit(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("one")
        await stage.idle()
        await stage.press("escape", "escape")
        await stage.type(" more")
        await stage.press("enter")
        await stage.until(lambda: stage.app.chat.exchange.pending is not None)
        await stage.press("escape")
        await stage.until(lambda: stage.typed == "one more")
        assert contents(stage) == ["one", "ok"]
        await stage.press("enter")
        await stage.sees("edited")
        await stage.idle()
        assert contents(stage) == ["one more", "edited"]

    play(ScriptedEngine(["ok"], [threading.Event()], ["edited"]), scenario)


def test_block_mode_copies_a_message_its_code_or_one_block_of_it(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.idle()
        for line in ("python", "print(1)"):
            await stage.sees(line)
        await stage.press("alt+up")
        for key, text in (("2", "ls -l\n"), ("1", "print(1)\n"), ("c", "print(1)\n\nls -l\n"), ("y", CODE)):
            await stage.press(key)
            await stage.until(lambda text=text: stage.app.clipboard == text)
        await stage.press("3")
        await stage.sees("No code block 3: the message has 2 code blocks")
        await stage.press("up", "c")
        await stage.sees("No code block: the message has 0 code blocks")
        await stage.press("escape")
        await stage.type("back")
        assert stage.typed == "back"

    play(ScriptedEngine([CODE]), scenario, size=(60, 40))


def test_block_mode_answers_an_earlier_message_again_and_folds(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        for text in ("one", "two"):
            await stage.say(text)
            await stage.idle()
        await stage.press("alt+up", "up", "up", "space")
        await stage.until(lambda: "the first answer" not in stage.screen())
        await stage.press("space")
        await stage.sees("the first answer")
        await stage.press("r")
        await stage.sees("another first answer")
        await stage.idle()
        assert contents(stage) == ["one", "another first answer"]
        await stage.type("x")
        assert stage.typed == "x"

    play(ScriptedEngine(["the first answer"], ["the second"], ["another first answer"]), scenario)


def test_a_stopped_answer_goes_on_in_its_place(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("half")
        await stage.press("escape")
        await stage.idle()
        await stage.sees("stopped")
        await stage.say("/continue")
        await stage.idle()
        assert len(stage.session.turns) == 2
        assert len(stage.app.chat.query(AnswerTurn)) == 1
        await stage.until(lambda: "stopped" not in stage.screen())  # nor in the menu of commands

    play(ScriptedEngine(["half", threading.Event()], [" and half"]), scenario)


@pytest.mark.parametrize(
    ("command", "given", "new"),
    [
        ("/continue", [Delta("ha", tokens=(0,), given=True), Delta("lf", given=True)], "half and more"),
        ("/regen", [], "another"),
    ],
)
def test_a_former_answer_stays_until_the_first_new_text(play: Play, command: str, given: list[Step], new: str) -> None:
    def seen(stage: Stage) -> list[AnswerTurn]:
        return [answer for answer in stage.app.chat.query(AnswerTurn) if answer.display]

    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("half")
        await stage.press("escape")
        await stage.idle()
        former = seen(stage)
        for end in ("stopped", "answered"):
            await stage.say(command)
            await stage.sees("answering…" if given else "reading 3/9")
            assert seen(stage) == former
            if end == "stopped":
                await stage.press("escape")
                await stage.idle()
                assert (contents(stage), seen(stage)[0].source) == (["Go", "half"], "half")
                former = seen(stage)
        gate.set()
        await stage.sees(new)
        await stage.idle()
        assert [answer.source for answer in seen(stage)] == [new]
        assert contents(stage) == ["Go", new]

    gate = threading.Event()
    tail = new.removeprefix("half")
    answers = [Prefill(3, 9), *given, threading.Event()], [Prefill(3, 9), *given, gate, tail]
    play(ScriptedEngine(["half", threading.Event()], *answers), scenario)


def stored(pairs: int) -> Conversation:
    """A conversation with an escape sequence and markup in each message."""
    conversation = Conversation.begin()
    for number in range(pairs):
        conversation = conversation.added(Turn(role="user", content=f"[b]question[/] {number}\x1b[2J"))
        answer = f"- **answer** {number}\n- [/]\n\n```py\nx = {number}\x07\n```\n"
        conversation = conversation.added(Turn(role="assistant", content=answer, reasoning="[hm]", finish="stop"))
    return conversation


def test_a_stored_conversation_is_drawn_as_it_was_and_its_text_is_never_interpreted(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.idle()
        await stage.sees("[b]question[/] 1")
        await stage.sees("• answer 1")
        assert "\x1b" not in stage.screen()
        assert "\x07" not in stage.screen()
        await stage.say("more")
        await stage.sees("ok")

    play(lambda on_status: Session(ScriptedEngine(), conversation=stored(2)), scenario, size=(80, 40))


def test_of_two_thousand_messages_the_newest_are_drawn_and_earlier_ones_unfold_on_demand(play: Play) -> None:
    conversation = stored(1000)

    async def scenario(stage: Stage) -> None:
        await stage.idle()
        stage.session.open(conversation)
        stage.app.chat.redraw()
        await stage.sees("answer 999")
        transcript = stage.app.chat.transcript
        assert len(transcript.query("UserTurn, AnswerTurn")) == NEWEST
        transcript.scroll_to(y=0, animate=False)
        await stage.sees("1,970 earlier messages")
        await stage.press("pageup")
        await stage.until(lambda: len(transcript.query("UserTurn, AnswerTurn")) == NEWEST + MORE)
        assert [block.text for block in transcript.query(UserTurn)][-1].startswith("[b]question[/] 999")

    play(ScriptedEngine(), scenario)
