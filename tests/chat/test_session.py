from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from macllm.chat import session as session_module
from macllm.chat.conversation import Attachment, Conversation, Origin
from macllm.chat.options import ChatOptions, open_session, with_overrides
from macllm.chat.session import Session
from macllm.errors import DoesNotFitError, EngineCrashedError, ModelNotFoundError, UsageError
from macllm.generation.contract import EngineInfo
from macllm.generation.engines import process
from macllm.generation.request import Delta, Done, Event, Prefill, SamplingParams, Timing, Usage
from tests.chat.scripted_engine import ScriptedEngine, thinking


def text_of(events: Iterator[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def test_an_answer_joins_the_conversation_with_its_usage_and_timing() -> None:
    session = Session(ScriptedEngine(["Hel", "lo."]))
    assert text_of(session.reply("Hi")) == "Hello."
    user, answer = session.turns
    assert (user.role, user.content, user.finish) == ("user", "Hi", None)
    assert (answer.role, answer.content, answer.finish) == ("assistant", "Hello.", "stop")
    assert answer.usage == Usage(prompt_tokens=2, completion_tokens=2)
    assert answer.timing == Timing(0.25, 0.5, 5_000_000)


def test_the_events_of_the_engine_pass_through_unchanged() -> None:
    events = list(Session(ScriptedEngine([Prefill(1, 2), "a", "b"])).reply("Hi"))
    assert [type(event) for event in events] == [Prefill, Delta, Delta, Done]


def test_the_next_prompt_holds_system_history_and_message() -> None:
    engine = ScriptedEngine(["one"], ["two"])
    session = Session(engine, system="Be brief.")
    text_of(session.reply("a"))
    text_of(session.reply("b"))
    assert [(m["role"], m["content"]) for m in engine.rendered[1]] == [
        ("system", "Be brief."),
        ("user", "a"),
        ("assistant", "one"),
        ("user", "b"),
    ]


def test_a_new_system_prompt_holds_from_the_next_reply_on() -> None:
    engine = ScriptedEngine()
    session = Session(engine)
    session.system = "Rhyme."
    text_of(session.reply("a"))
    assert engine.rendered[0][0] == {"role": "system", "content": "Rhyme."}


def test_reasoning_is_kept_apart_from_the_content() -> None:
    engine = ScriptedEngine([thinking("hm "), thinking("so"), "Yes."], ["ok"])
    session = Session(engine)
    list(session.reply("a"))
    assert (session.turns[1].content, session.turns[1].reasoning) == ("Yes.", "hm so")
    list(session.reply("b"))
    assert engine.rendered[1][1] == {"role": "assistant", "content": "Yes.", "reasoning_content": "hm so"}


def test_an_answer_without_reasoning_is_rendered_without_the_key() -> None:
    engine = ScriptedEngine()
    session = Session(engine)
    list(session.reply("a"))
    assert session.messages[1] == {"role": "assistant", "content": "ok"}


def test_closing_the_events_keeps_the_text_so_far() -> None:
    session = Session(ScriptedEngine(["one ", "two ", "three"]))
    events = session.reply("count")
    assert next(events) == Delta("one ", tokens=(0,))
    events.close()  # type: ignore[attr-defined]
    assert session.turns[1].content == "one "
    assert session.turns[1].finish == "cancelled"


def test_stop_from_another_thread_keeps_the_text_and_its_usage() -> None:
    session = Session(ScriptedEngine(["one ", threading.Event(), "two"]))
    events = session.reply("count")
    next(events)
    threading.Timer(0.02, session.stop).start()
    assert text_of(events) == ""
    assert (session.turns[1].content, session.turns[1].finish) == ("one ", "cancelled")
    assert session.turns[1].usage == Usage(prompt_tokens=2, completion_tokens=1)


def test_a_stop_before_the_first_event_is_not_lost() -> None:
    session = Session(ScriptedEngine(["one"]))
    events = session.reply("count")
    session.stop()
    assert text_of(events) == ""
    assert session.turns == ()


def test_a_stop_cancels_only_the_answer_of_its_session() -> None:
    engine = ScriptedEngine(["mine"], ["theirs"])
    session, other = Session(engine), Session(engine)
    events, others = session.reply("a"), other.reply("b")
    session.stop()
    assert [each.is_cancelled for each in engine.completions] == [True, False]
    assert (text_of(events), text_of(others)) == ("", "theirs")


def test_an_answer_that_is_never_read_is_dropped_with_its_message() -> None:
    session = Session(ScriptedEngine(["one"], ["two"]))
    session.reply("a")
    assert session.turns == ()
    assert text_of(session.reply("b")) == "two"
    assert [turn.content for turn in session.turns] == ["b", "two"]


def test_a_reply_stopped_before_its_first_word_leaves_the_conversation_as_it_was() -> None:
    session = Session(ScriptedEngine(["ok"], [Prefill(1, 9), threading.Event()]))
    list(session.reply("a"))
    before, used = session.turns, session.context.used_tokens
    events = session.reply("b")
    next(events)
    session.stop()
    list(events)
    assert session.turns == before
    assert session.context.used_tokens == used


@pytest.mark.parametrize("error", [EngineCrashedError("gone"), ValueError("bug"), KeyboardInterrupt()])
def test_an_error_after_some_text_keeps_the_text(error: BaseException) -> None:
    session = Session(ScriptedEngine(["half ", error]))
    with pytest.raises(type(error)):
        list(session.reply("a"))
    assert session.turns[0].content == "a"
    assert session.turns[1].content == "half "
    assert session.turns[1].finish == ("cancelled" if isinstance(error, KeyboardInterrupt) else "failed")


def test_replies_and_regenerations_work_after_a_stop() -> None:
    session = Session(ScriptedEngine(["half", threading.Event()], ["whole"], ["again"]))
    events = session.reply("a")
    next(events)
    session.stop()
    list(events)
    assert text_of(session.reply("b")) == "whole"
    session.stop()  # without a reply in progress
    assert text_of(session.regenerate()) == "again"
    assert [turn.content for turn in session.turns] == ["a", "half", "b", "again"]


def test_an_error_before_any_text_leaves_the_conversation_as_it_was() -> None:
    session = Session(ScriptedEngine(["ok"], [EngineCrashedError("gone")]))
    list(session.reply("a"))
    before = session.turns
    with pytest.raises(EngineCrashedError):
        list(session.reply("b"))
    assert session.turns == before


def test_an_empty_finished_answer_is_kept() -> None:
    session = Session(ScriptedEngine([]))
    list(session.reply("a"))
    assert [turn.content for turn in session.turns] == ["a", ""]


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_an_empty_message_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        Session(ScriptedEngine()).reply(text)


def test_a_regenerated_answer_stands_beside_the_former_one() -> None:
    engine = ScriptedEngine(["first"], ["second"])
    session = Session(engine)
    list(session.reply("a"))
    first = session.conversation.head
    assert text_of(session.regenerate()) == "second"
    assert [turn.content for turn in session.turns] == ["a", "second"]
    assert session.conversation.siblings(first) == (first, session.conversation.head)
    session.show(first)
    assert [turn.content for turn in session.turns] == ["a", "first"]
    assert [m["content"] for m in engine.rendered[1]] == ["a"]


@pytest.mark.parametrize("steps", [[EngineCrashedError("gone")], [threading.Event()]])
def test_a_regeneration_without_text_keeps_the_former_answer(steps: list[object]) -> None:
    session = Session(ScriptedEngine(["first"], steps))  # type: ignore[arg-type]
    list(session.reply("a"))
    events = session.regenerate()
    threading.Timer(0.02, session.stop).start()  # not before regenerate(), which resets earlier stops
    with suppress(EngineCrashedError):
        list(events)
    assert [turn.content for turn in session.turns] == ["a", "first"]


def test_regenerating_in_an_empty_conversation_is_an_error() -> None:
    with pytest.raises(UsageError, match="no message"):
        Session(ScriptedEngine()).regenerate()


def test_clear_removes_the_turns_and_keeps_the_system_prompt() -> None:
    session = Session(ScriptedEngine(), system="Be brief.")
    list(session.reply("a"))
    session.clear()
    assert session.messages == [{"role": "system", "content": "Be brief."}]
    assert session.context.used_tokens == 0


def test_the_context_grows_with_prompt_and_answer() -> None:
    session = Session(ScriptedEngine([Prefill(0, 4), "x", "y"], context_length=50))
    events = session.reply("one two three")  # 4 tokens by the engine's count
    next(events)
    assert (session.context.used_tokens, session.context.limit_tokens) == (4, 50)
    next(events)
    assert session.context.used_tokens == 5
    list(events)
    assert session.context.used_tokens == 6


def test_a_conversation_beyond_the_context_is_refused_and_not_truncated() -> None:
    engine = ScriptedEngine(context_length=10)
    session = Session(engine)
    with pytest.raises(DoesNotFitError):
        list(session.reply("word " * 30))
    assert len(engine.rendered[0][0]["content"].split()) == 30
    assert session.turns == ()


def test_a_full_context_is_an_error_that_suggests_clear_and_a_longer_context() -> None:
    session = Session(ScriptedEngine(context_length=10))
    list(session.reply("word"))
    with pytest.raises(DoesNotFitError, match="the context holds 10") as error:
        list(session.reply("word " * 30))
    assert "/clear" in error.value.remedy
    assert "a model with a longer context" in error.value.remedy


@pytest.mark.parametrize(("words", "fills_up"), [(30, False), (38, False), (39, True), (45, True)])
def test_an_almost_full_context_gives_one_warning(words: int, fills_up: bool) -> None:
    session = Session(ScriptedEngine([Prefill(0, words), "x"], [Prefill(0, words), "y"], context_length=50))
    list(session.reply("word " * (words - 1)))
    assert session.context.fills_up == fills_up
    warning = session.take_warning()
    assert (warning is not None) == fills_up
    if warning is not None:
        assert "of 50 tokens" in warning
        assert "/summarize all makes room, /clear" in warning
    assert session.take_warning() is None


def test_a_new_conversation_is_warned_again() -> None:
    session = Session(ScriptedEngine([Prefill(0, 45), "x"], [Prefill(0, 45), "y"], context_length=50))
    for _ in range(2):
        list(session.reply("word " * 44))
        assert session.take_warning() is not None
        session.clear()
        assert session.take_warning() is None


def test_a_context_without_a_limit_never_fills_up() -> None:
    session = Session(ScriptedEngine([Prefill(0, 10**6), "x"], context_length=None))
    list(session.reply("a"))
    assert session.take_warning() is None


def test_requests_have_no_token_limit_unless_max_tokens_is_given() -> None:
    engine = ScriptedEngine(context_length=100)
    list(Session(engine).reply("a b c"))
    list(Session(engine, max_tokens=7).reply("a b c"))
    assert [request.max_tokens for request in engine.requests] == [None, 7]


def test_an_unknown_context_limit_is_none() -> None:
    session = Session(ScriptedEngine(context_length=None))
    list(session.reply("a"))
    assert session.context.limit_tokens is None


def test_sampling_defaults_come_from_the_model() -> None:
    engine = ScriptedEngine()
    list(Session(engine).reply("a"))
    list(Session(engine, sampling=SamplingParams(temperature=0.1)).reply("a"))
    assert [request.sampling.temperature for request in engine.requests] == [0.5, 0.1]


def test_each_reply_has_its_own_seed_and_a_seeded_session_repeats() -> None:
    seeds = []
    for _ in range(2):
        engine = ScriptedEngine()
        session = Session(engine, sampling=SamplingParams(seed=2**32 - 1))
        list(session.reply("a"))
        list(session.regenerate())
        seeds.append([request.sampling.seed for request in engine.requests])
    assert seeds[0] == seeds[1] == [2**32 - 1, 0]


class Unloadable:
    """An engine whose model cannot be loaded; the newest one is `opened`."""

    opened: Unloadable

    def __init__(self, model: str, adapter: str | None, **options: object) -> None:
        self.closed = False
        self.arguments = model, adapter
        Unloadable.opened = self

    @property
    def info(self) -> EngineInfo:
        raise ModelNotFoundError(f"there is no {self.arguments[0]}")

    def close(self) -> None:
        self.closed = True


def test_an_engine_whose_model_cannot_be_loaded_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ProcessEngine", Unloadable)
    with pytest.raises(ModelNotFoundError, match="no org/x"):
        open_session(ChatOptions(model="org/x", adapter="mine"))
    assert Unloadable.opened.arguments == ("org/x", "mine")
    assert Unloadable.opened.closed


def test_a_session_is_opened_with_the_given_options_and_the_models_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ProcessEngine", lambda model, adapter, **options: ScriptedEngine())
    options = ChatOptions(system="Be brief.", seed=0, sampling={"top_k": 5, "top_p": None}, max_tokens=9)
    session = open_session(options)
    assert session.sampling == SamplingParams(temperature=0.5, top_k=5, seed=0)
    assert (session.system, session.max_tokens) == ("Be brief.", 9)
    assert options.request().sampling == SamplingParams(top_k=5, seed=0)


def test_overrides_change_only_the_named_fields() -> None:
    params = with_overrides(SamplingParams(temperature=0.3), {"top_k": 5, "seed": None})
    assert params == SamplingParams(temperature=0.3, top_k=5)
    with pytest.raises(UsageError, match="'heat'"):
        with_overrides(SamplingParams(), {"heat": 1})


@pytest.mark.parametrize(
    ("model", "shown"), [(None, "maclet"), ("org/name", "name"), ("./models/mine/", "mine"), ("x@main", "x@main")]
)
def test_a_model_is_shown_by_the_last_part_of_its_name(model: str | None, shown: str) -> None:
    assert ChatOptions(model=model).model_name == shown


def test_each_tool_call_is_a_paragraph_of_the_kept_answer() -> None:
    steps = [Delta("Let me look."), Delta("f(", "tool_call", call=0), Delta("a=1)", "tool_call", call=0)]
    session = Session(ScriptedEngine([*steps, Delta("g()", "tool_call", call=1), Delta("Done.")]))
    list(session.reply("hi"))
    assert session.turns[-1].content == "Let me look.\n\nf(a=1)\n\ng()\n\nDone."


class Kept:
    """A journal that keeps every state."""

    def __init__(self) -> None:
        self.states: list[Conversation] = []

    def save(self, conversation: Conversation) -> None:
        self.states.append(conversation)

    def close(self) -> None:
        self.closed = True


def test_the_journal_has_the_question_before_the_answer_and_the_answer_as_it_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "_SAVE_SECONDS", 0.0)
    kept = Kept()
    session = Session(ScriptedEngine(["one ", "two"]), journal=kept)
    list(session.reply("a"))
    states = [[(turn.content, turn.finish) for turn in state.turns] for state in kept.states]
    assert states == [
        [("a", None)],
        [("a", None), ("one ", "cancelled")],
        [("a", None), ("one two", "cancelled")],
        [("a", None), ("one two", "stop")],
    ]
    assert len({state.head for state in kept.states[1:]}) == 1


def test_the_journal_loses_a_question_without_an_answer() -> None:
    kept = Kept()
    session = Session(ScriptedEngine([EngineCrashedError("gone")]), journal=kept)
    with pytest.raises(EngineCrashedError):
        list(session.reply("a"))
    assert [len(state.nodes) for state in kept.states] == [1, 0]


def test_an_answer_records_what_made_it() -> None:
    engine = ScriptedEngine(["a", thinking("b")])
    session = Session(engine, system="S", max_tokens=9)
    session.activate("mine")
    list(session.reply("a"))
    answer = session.turns[1]
    assert answer.origin == Origin(
        model="scripted",
        adapter="mine",
        system="S",
        sampling=SamplingParams(temperature=0.5, seed=answer.seed),
        max_tokens=9,
    )
    assert answer.tokens == (0, 0)
    assert answer.seed is not None


def test_an_edited_message_begins_a_branch() -> None:
    engine = ScriptedEngine(["1"], ["2"], ["3"])
    session = Session(engine)
    list(session.reply("a"))
    list(session.reply("b"))
    old = session.conversation.path[2].id
    assert text_of(session.edit(old, "B")) == "3"
    assert [turn.content for turn in session.turns] == ["a", "1", "B", "3"]
    assert [m["content"] for m in engine.rendered[2]] == ["a", "1", "B"]
    session.show(old)
    assert [turn.content for turn in session.turns] == ["a", "1", "b", "2"]


def test_an_edit_without_an_answer_leaves_the_old_path() -> None:
    session = Session(ScriptedEngine(["1"], [EngineCrashedError("gone")]))
    list(session.reply("a"))
    with pytest.raises(EngineCrashedError):
        list(session.edit(session.conversation.path[0].id, "B"))
    assert [turn.content for turn in session.turns] == ["a", "1"]


def test_an_attachment_goes_with_its_message() -> None:
    engine = ScriptedEngine(context_length=None)
    session = Session(engine)
    list(session.reply("Read this", (Attachment("notes", "text"),)))
    assert engine.rendered[0][0]["content"] == 'Read this\n\n<file name="notes">\ntext\n</file>'
    assert session.turns[0].content == "Read this"


def conversed(engine: ScriptedEngine, *questions: str) -> Session:
    session = Session(engine)
    for question in questions:
        list(session.reply(question))
    return session


def test_dropping_the_oldest_turns_frees_half_of_the_context_and_hides_nothing() -> None:
    engine = ScriptedEngine(context_length=40)
    session = conversed(engine, *(f"question {n} is" for n in range(6)))
    used = session.context.used_tokens
    assert used > 30
    left_out = session.turns[5].usage
    assert session.drop_oldest() == 6
    assert left_out is not None
    assert session.context.used_tokens == used - left_out.prompt_tokens - left_out.completion_tokens > 0
    assert Session(engine, conversation=session.conversation).context == session.context
    assert [turn.content for turn in session.turns if turn.role == "user"] == [f"question {n} is" for n in range(6)]
    list(session.reply("next"))
    assert engine.rendered[-1][0]["content"] == "question 3 is"
    assert session.context.used_tokens < used


def test_a_summary_takes_the_place_of_the_oldest_turns() -> None:
    engine = ScriptedEngine(*(["ok"] for _ in range(6)), ["They ", "counted."], context_length=60)
    session = conversed(engine, *(f"question {n} is" for n in range(6)))
    engine.info = replace(engine.info, context_length=40)
    list(session.summarize_oldest())
    assert "Summarize" in engine.rendered[6][-1]["content"]
    assert engine.requests[6].max_tokens == 10  # a quarter of the context
    list(session.reply("next"))
    system, first, *_ = engine.rendered[-1]
    assert system["content"].endswith("They counted.")
    assert first["content"] == "question 3 is"


def test_a_stopped_summary_changes_nothing() -> None:
    engine = ScriptedEngine(*(["ok"] for _ in range(6)), ["They ", threading.Event()], context_length=60)
    session = conversed(engine, *(f"question {n} is" for n in range(6)))
    before = session.conversation
    events = session.summarize_oldest()
    next(events)
    session.stop()
    list(events)
    assert session.conversation == before


@pytest.mark.parametrize("limit", [None, 40])
def test_a_single_question_cannot_be_dropped(limit: int | None) -> None:
    session = conversed(ScriptedEngine(context_length=limit), "a")
    with pytest.raises(UsageError, match="No older messages"):
        session.drop_oldest()


def test_a_cleared_conversation_is_a_new_one() -> None:
    kept = Kept()
    session = Session(ScriptedEngine(), system="S", journal=kept)
    list(session.reply("a"))
    old = session.conversation
    session.clear()
    assert (session.conversation.id != old.id, session.turns, session.system) == (True, (), "S")
    assert kept.states[-1] == old


def test_an_opened_conversation_has_its_context() -> None:
    first = conversed(ScriptedEngine(["x", "y"]), "one two")
    session = Session(ScriptedEngine(), conversation=first.conversation)
    assert session.context.used_tokens == first.context.used_tokens == 5
    session.open(Conversation.begin())
    assert session.context.used_tokens == 0


def test_an_earlier_answer_is_given_again_beside_it() -> None:
    session = Session(ScriptedEngine(["one"], ["two"], ["other one"]))
    list(session.reply("a"))
    first = session.conversation.path[1].id
    list(session.reply("b"))
    events = session.regenerate(first)
    assert [turn.content for turn in session.asked.turns] == ["a"]
    assert [turn.content for turn in session.turns] == ["a", "one", "b", "two"]
    list(events)
    assert [turn.content for turn in session.turns] == ["a", "other one"]
    assert len(session.conversation.siblings(first)) == 2


def test_a_session_takes_over_the_conversation_and_the_changed_settings_of_another() -> None:
    former = Session(ScriptedEngine(["one"]), max_tokens=5)
    list(former.reply("a"))
    former.sampling = replace(former.sampling, top_k=3)
    session = Session(ScriptedEngine())
    session.engine.info = replace(session.engine.info, defaults=SamplingParams(temperature=0.9))
    session.sampling = session.engine.info.defaults
    session.take_over(former)
    assert session.conversation is former.conversation
    assert session.sampling == SamplingParams(temperature=0.9, top_k=3)
    assert session.max_tokens == 5
