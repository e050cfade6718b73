"""Questions with numbered choices: pure, and in the app."""

from __future__ import annotations

import threading

import pytest

from macllm.chat.conversation import Attachment
from macllm.chat.session import Session
from macllm.errors import DoesNotFitError, EngineCrashedError, MacllmError, ModelNotFoundError
from macllm.generation.contract import OnStatus
from macllm_tui import questions, slash
from macllm_tui.outcomes import Choice, Question, SwitchModel
from macllm_tui.questions import Unanswered
from macllm_tui.widgets.question import QuestionBox
from tests.chat.scripted_engine import ScriptedEngine
from tests.tui.conftest import Play, Stage

LONG = "a long question with many more words than there is room for"
QUESTION = Question("Which?", (Choice("one", "/clear"), Choice("two")))


@pytest.mark.parametrize(("line", "at"), [("1", 0), (" 2 ", 1), ("0", None), ("3", None), ("x", None), ("²", None)])
def test_a_number_chooses_and_other_lines_do_not(line: str, at: int | None) -> None:
    assert questions.chosen(QUESTION, line) == (None if at is None else QUESTION.choices[at])


def test_a_question_as_text_numbers_its_choices() -> None:
    assert questions.as_text(QUESTION) == "Which?\n  1  one\n  2  two"


def conversed(*messages: str, context_length: int = 1000) -> Session:
    session = Session(ScriptedEngine(context_length=context_length))
    for message in messages:
        list(session.reply(message))
    return session


@pytest.mark.parametrize(
    ("messages", "lines"),
    [
        (["a", "b"], ["/drop", "/summarize", "/clear", "/model"]),
        (["a"], ["/drop all", "/summarize all", "/clear", "/model"]),
        ([], ["", "/model"]),
    ],
)
def test_an_overflow_offers_the_ways_on_that_can_help(messages: list[str], lines: list[str]) -> None:
    question = questions.after_answer(DoesNotFitError("too long"), conversed(*messages), message=Unanswered())
    assert question is not None
    assert [choice.line for choice in question.choices] == lines
    assert [choice.send for choice in question.choices] == [line not in ("/model", "") for line in lines]


def lines_after(session: Session, message: Unanswered) -> list[str]:
    question = questions.after_answer(DoesNotFitError("too long"), session, message=message)
    assert question is not None
    return [choice.line for choice in question.choices]


def test_a_message_that_is_too_long_alone_is_sent_with_less() -> None:
    session = conversed()
    notes = Unanswered((Attachment("notes.md", "x" * 5000),))
    assert lines_after(session, notes) == ["/detach 2000", "/detach", "", "/model"]
    assert lines_after(session, Unanswered((Attachment("notes.md", "x" * 900),)))[0] == "/detach 450"
    session.system = "Be brief."
    assert lines_after(session, Unanswered()) == ["/system none", "", "/model"]
    list(session.reply("one"))
    session.drop_oldest(everything=True)
    assert lines_after(session, Unanswered()) == ["/clear", "/system none", "", "/model"]


def test_a_message_that_is_too_long_alone_is_sent_with_less_in_a_conversation_too() -> None:
    session = conversed("a", "b", context_length=100)
    pasted = Unanswered((Attachment("notes.md", "x" * 500),), text="y" * 500)
    assert lines_after(session, pasted) == ["/detach 200", "/detach", "", "/model"]
    question = questions.after_answer(DoesNotFitError("too long"), session, message=pasted)
    assert question is not None
    assert question.text == "The message is longer than the context."
    assert lines_after(session, Unanswered(text="y" * 500))[0] == "/drop"


def test_an_edit_that_is_too_long_is_offered_as_a_new_conversation_and_not_a_mark_after_it() -> None:
    assert lines_after(conversed("a", "b"), Unanswered(edited=True)) == ["/clear", "", "/model"]


@pytest.mark.parametrize("returned", [True, False])
@pytest.mark.parametrize("error", [DoesNotFitError("x"), EngineCrashedError("x")])
def test_every_choice_runs_a_known_command_or_sends(error: MacllmError, returned: bool) -> None:
    question = questions.after_answer(error, conversed("a", "b"), message=Unanswered() if returned else None)
    assert question is not None
    for choice in (*question.choices, *questions.after_loading(conversed()).choices):
        assert slash.parse(choice.line) or choice.send


def test_an_answer_cut_off_by_the_end_of_the_context_asks_for_the_way_on() -> None:
    session = conversed("a", "b", context_length=7)
    answer = session.turns[-1]
    assert answer.finish == "length"
    question = questions.after_answer(None, session, answer=answer, message=None)
    assert question is not None
    assert [choice.line for choice in question.choices] == ["/drop", "/summarize", "/clear", "/model"]
    assert not any(choice.send for choice in question.choices)
    assert questions.after_answer(None, conversed("a", "b"), answer=answer, message=None) is None


def test_other_errors_ask_nothing() -> None:
    assert questions.after_answer(ModelNotFoundError("x"), conversed("a"), message=Unanswered()) is None


async def send(stage: Stage, text: str) -> None:
    stage.app.chat.prompt.put(text)
    await stage.press("enter")


async def _converse(stage: Stage) -> None:
    for number in range(4):
        await send(stage, f"question {number} of many, with enough words to fill it up")
        await stage.idle()


@pytest.mark.parametrize(
    ("keys", "shown"),
    [(["1"], "earlier messages are no longer read"), (["down", "enter"], "no longer read, but summarized")],
)
def test_an_overflow_is_answered_by_leaving_out_or_summarizing_and_the_message_is_sent_again(
    play: Play, keys: list[str], shown: str
) -> None:
    async def scenario(stage: Stage) -> None:
        await _converse(stage)
        await send(stage, LONG)
        await stage.sees("1  leave out the oldest messages")
        assert stage.typed == LONG
        await stage.press(*keys)
        await stage.sees("the last answer")
        await stage.idle()
        await stage.sees(shown)
        assert "left out" not in stage.screen()  # the mark says it
        assert stage.typed == ""
        assert [turn.content for turn in stage.session.turns if turn.role == "user"][-1] == LONG

    answers = [["ok"]] * 4 + [["they asked"]] * (len(keys) - 1) + [["the last answer"]]
    play(ScriptedEngine(*answers, context_length=60), scenario, size=(80, 40))


def test_a_choice_that_fails_leaves_the_question_open(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        for text in ("one", "two"):
            await stage.say(text)
            await stage.idle()
        await stage.say("a long message")
        await stage.sees("1  leave out")
        await stage.press("2")  # the request for a summary is too long, too
        await stage.until(lambda: stage.screen().count("the context holds 9") == 2)
        await stage.press("3")
        await stage.sees("New conversation.")
        await stage.idle()
        assert [turn.content for turn in stage.session.turns] == ["a long message", "ok"]

    play(ScriptedEngine(context_length=9), scenario, size=(80, 40))


@pytest.mark.parametrize(
    ("system", "keys", "sent"),
    [(None, ["1"], ["/drop all", LONG]), ("word " * 30, ["1", "2"], ["/system none", LONG])],
)
def test_with_one_exchange_or_a_long_system_prompt_a_full_context_has_ways_on(
    play: Play, system: str | None, keys: list[str], sent: list[str]
) -> None:
    async def scenario(stage: Stage) -> None:
        await send(stage, "a first question of some words")
        await stage.idle()
        stage.session.system = system
        await send(stage, LONG)
        for key in keys:
            await stage.sees("longer than the context.")
            await stage.until(lambda: isinstance(stage.app.focused, QuestionBox))
            await stage.press(key)
            await stage.pilot.pause()
        await stage.until(lambda: [turn.content for turn in stage.session.turns][-2:] == [LONG, "the answer"])
        assert stage.typed == ""

    play(ScriptedEngine(["ok"], ["the answer"], context_length=18), scenario, size=(80, 40))


def test_an_edit_that_does_not_fit_is_sent_as_a_new_conversation(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        for text in ("one two three", "four five six"):
            await send(stage, text)
            await stage.idle()
        await stage.press("escape", "escape")
        await send(stage, LONG)
        await stage.sees("1  begin a new conversation")
        await stage.press("1")
        await stage.until(lambda: [turn.content for turn in stage.session.turns] == [LONG, "the answer"])

    play(ScriptedEngine(["ok"], ["ok"], ["the answer"], context_length=16), scenario)


def test_an_attachment_that_does_not_fit_is_sent_in_part(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.idle()
        stage.app.chat.prompt.attach(Attachment("notes.md", "word " * 200))
        await stage.press("x")
        await stage.press("enter")
        await stage.sees("1  send only the first 120 characters")
        await stage.press("1")
        await stage.until(lambda: len(stage.session.turns) == 2)
        asked = stage.session.turns[0]
        assert asked.content == '@"notes.md (beginning)" x'
        assert asked.attachments == (Attachment("notes.md (beginning)", ("word " * 200)[:120]),)

    play(ScriptedEngine(["ok"], context_length=60), scenario)


def test_a_question_can_be_passed_over_by_typing_or_escape(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        for key in ("escape", "x", "backspace"):
            await send(stage, "one two three four five six")
            await stage.sees("The message is longer than the context.")
            await stage.press(key)
            await stage.until(lambda: "The message is longer" not in stage.screen())
            assert (
                stage.typed
                == ("one two three four five six" + "x" * (key == "x"))[: -1 if key == "backspace" else None]
            )
            await stage.press("ctrl+u")

    play(ScriptedEngine(context_length=5), scenario)


def test_after_a_crash_the_message_is_sent_again_by_its_number(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("1  try again")
        await stage.press("1")
        await stage.sees("now it works")

    play(ScriptedEngine([EngineCrashedError("The engine is gone.")], ["now it works"]), scenario)


def test_a_number_with_enter_chooses_too_while_a_draft_was_being_typed(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("half")
        await stage.type("my draft")
        gate.set()
        await stage.sees("2  answer again")
        assert stage.typed == "my draft"
        await stage.press("ctrl+u")
        await stage.say("2")
        await stage.sees("now it works")
        assert [turn.content for turn in stage.session.turns] == ["Go", "now it works"]

    gate = threading.Event()
    play(ScriptedEngine(["half", gate, EngineCrashedError("The engine is gone.")], ["now it works"]), scenario)


def test_another_model_goes_on_with_the_conversation_and_a_missing_one_offers_the_former(play: Play) -> None:
    opened: list[ScriptedEngine] = []

    def open_model(model: str, adapter: str | None, on_status: OnStatus) -> Session:
        if model == "missing":
            raise ModelNotFoundError("There is no model missing.")
        opened.append(ScriptedEngine(["from the other"]))
        return Session(opened[-1])

    async def scenario(stage: Stage) -> None:
        first = stage.app.chat
        first.model._open_model = open_model
        await stage.say("Hello")
        await stage.idle()
        first.switch_model(SwitchModel("missing"))
        await stage.sees("There is no model missing.")
        await stage.sees("go back to the former model")
        await stage.press("escape")
        assert engine.closed
        first.switch_model(SwitchModel("other"))
        await stage.idle()
        await stage.say("Again")
        await stage.sees("from the other")
        assert [message["content"] for message in opened[0].rendered[0]] == ["Hello", "from the first", "Again"]

    engine = ScriptedEngine(["from the first"])
    play(engine, scenario)
