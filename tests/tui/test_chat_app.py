from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.events import Paste

from macllm.chat.session import Session
from macllm.errors import EngineCrashedError, ModelNotFoundError
from macllm.generation.contract import OnStatus, Status
from macllm.generation.request import Delta, Prefill
from macllm_tui.widgets.notices import Failure
from macllm_tui.widgets.stream_markdown import StreamMarkdown
from macllm_tui.widgets.turns import AnswerTurn, UserTurn
from tests.chat.scripted_engine import ScriptedEngine, thinking
from tests.tui.conftest import Play, Stage

LIST = "".join(f"- item {n} of the list\n" for n in range(60))


def open_after(gate: threading.Event, engine: ScriptedEngine) -> Callable[[OnStatus], Session]:
    """A function that opens a session once the gate is set."""

    def open_session(on_status: OnStatus) -> Session:
        gate.wait(10)
        return Session(engine)

    return open_session


def test_a_message_is_answered_and_the_answer_is_drawn_as_markdown(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Hi there")
        await stage.idle()
        await stage.sees("bold words")
        assert "**" not in stage.screen()
        assert stage.typed == ""
        assert [turn.content for turn in stage.session.turns] == ["Hi there", "Some **bold** words."]

    play(ScriptedEngine(["Some ", "**bo", "ld** ", "words."]), scenario)


def test_text_is_on_the_screen_during_the_answer(play: Play) -> None:
    gate = threading.Event()

    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("first part")
        assert stage.session.turns[-1].role == "user"
        gate.set()
        await stage.idle()
        await stage.sees("first part second part")

    play(ScriptedEngine(["first part ", gate, "second part"]), scenario)


def test_painting_and_typing_do_not_wait_for_the_model(play: Play) -> None:
    gate = threading.Event()
    engine = ScriptedEngine(["Hello."])

    async def scenario(stage: Stage) -> None:
        await stage.sees("loading maclet…")
        await stage.say("Early")
        assert stage.app.chat.query_one(UserTurn).has_class("-queued")
        assert engine.requests == []
        gate.set()
        await stage.sees("Hello.")
        assert not stage.app.chat.query_one(UserTurn).has_class("-queued")

    play(open_after(gate, engine), scenario)


def test_work_before_the_model_is_loaded_is_in_the_status_line_and_notices_stay(play: Play) -> None:
    steps = [threading.Event() for _ in range(3)]

    def open_slowly(on_status: OnStatus) -> Session:
        on_status(Status("compiling, 1 of 2", transient=True))
        steps[0].wait(10)
        on_status(Status("", transient=True))
        steps[1].wait(10)
        on_status(Status("slower than it could be", transient=False))
        steps[2].wait(10)
        return Session(ScriptedEngine(["Hello."]))

    async def scenario(stage: Stage) -> None:
        await stage.sees("compiling, 1 of 2")
        await stage.say("Early")
        steps[0].set()
        await stage.sees("loading maclet…")
        assert "compiling" not in stage.screen()
        steps[1].set()
        await stage.sees("slower than it could be")
        steps[2].set()
        await stage.sees("Hello.")
        assert "slower than it could be" in stage.screen()

    play(open_slowly, scenario)


def test_background_work_is_in_the_status_line_and_does_not_delay_answers(play: Play) -> None:
    callbacks: list[OnStatus] = []

    def open_at_once(on_status: OnStatus) -> Session:
        on_status(Status("compiling, 1 of 4", transient=True))
        callbacks.append(on_status)
        return Session(ScriptedEngine(["Hello."]))

    async def scenario(stage: Stage) -> None:
        await stage.sees("compiling, 1 of 4")
        await stage.idle()
        await stage.say("Now")
        await stage.sees("Hello.")
        callbacks[0](Status("compiling, 2 of 4", transient=True))
        await stage.sees("compiling, 2 of 4")
        callbacks[0](Status("", transient=True))
        await stage.idle()
        await stage.until(lambda: "compiling" not in stage.screen())

    play(open_at_once, scenario)


def test_idle_work_is_in_the_status_line_and_does_not_block_messages(play: Play) -> None:
    callbacks: list[OnStatus] = []

    def open_at_once(on_status: OnStatus) -> Session:
        callbacks.append(on_status)
        return Session(ScriptedEngine(["Hello."], ["Again."]))

    async def scenario(stage: Stage) -> None:
        await stage.say("First")
        await stage.sees("Hello.")
        await stage.idle()
        callbacks[0](Status("trying Metal kernels", transient=True))
        await stage.sees("trying Metal kernels")
        await stage.say("Second")
        await stage.sees("Again.")
        callbacks[0](Status("", transient=True))
        await stage.idle()
        await stage.say("/set")
        assert "trying Metal kernels" not in stage.screen()

    play(open_at_once, scenario)


def test_a_prompt_from_the_command_line_is_the_first_message(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.sees("Hello.")
        assert stage.session.turns[0].content == "Say hello"

    play(ScriptedEngine(["Hello."]), scenario, prompt="Say hello")


def test_escape_stops_the_answer_and_keeps_its_text(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("half an answer")
        await stage.press("escape")
        await stage.idle()
        await stage.sees("stopped")
        assert "half an answer" in stage.screen()
        assert stage.session.turns[-1].content == "half an answer"
        await stage.say("More")
        await stage.sees("the rest")

    play(ScriptedEngine(["half an answer", threading.Event()], ["the rest"]), scenario)


def test_stopping_before_the_first_word_returns_the_message_to_the_prompt(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("A long question")
        await stage.sees("reading 512/2,048")
        await stage.press("escape")
        await stage.idle()
        await stage.until(lambda: stage.typed == "A long question")
        assert stage.session.turns == ()
        assert len(stage.app.chat.query(UserTurn)) == 0

    play(ScriptedEngine([Prefill(512, 2048), threading.Event()]), scenario)


def test_messages_sent_during_an_answer_are_answered_in_order(play: Play) -> None:
    gate = threading.Event()

    async def scenario(stage: Stage) -> None:
        await stage.say("one")
        await stage.sees("first")
        await stage.say("two")
        await stage.say("three")
        gate.set()
        await stage.sees("third")
        order = [type(child) for child in stage.app.chat.turns.children if child.display]
        assert order == [UserTurn, AnswerTurn] * 3
        contents = [turn.content for turn in stage.session.turns]
        assert contents == ["one", "first", "two", "second", "three", "third"]

    play(ScriptedEngine(["first", gate], ["second"], ["third"]), scenario)


def test_a_signal_that_ends_the_app_stops_the_answer_before_the_engine(play: Play) -> None:
    engine = ScriptedEngine(["first", threading.Event()])

    async def scenario(stage: Stage) -> None:
        await stage.say("one")
        await stage.sees("first")
        stage.app._leave(143)
        assert (engine.completions[-1].is_cancelled, engine.closed) == (True, False)

    assert play(engine, scenario).return_code == 143


def test_stopping_returns_queued_messages_to_the_prompt(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("one")
        await stage.sees("first")
        await stage.say("two")
        await stage.type("draft")
        await stage.press("escape")
        await stage.idle()
        await stage.until(lambda: stage.typed == "two\n\ndraft")

    play(ScriptedEngine(["first", threading.Event()]), scenario)


def test_reasoning_is_shown_while_it_streams_and_folded_afterwards(play: Play) -> None:
    gate = threading.Event()

    async def scenario(stage: Stage) -> None:
        await stage.say("Why")
        await stage.sees("let me see")
        await stage.sees("thinking…")
        gate.set()
        await stage.sees("Because.")
        await stage.idle()
        assert "thought for" in stage.screen()
        assert "let me see" not in stage.screen()
        await stage.press("ctrl+t")
        await stage.sees("let me see")
        assert stage.session.turns[-1].reasoning == "let me see"
        assert stage.session.turns[-1].content == "Because."

    play(ScriptedEngine([thinking("let me "), thinking("see"), gate, "Because."]), scenario)


def test_a_model_that_cannot_be_loaded_is_an_error_with_cause_and_remedy(play: Play) -> None:
    def fail(on_status: OnStatus) -> Session:
        raise ModelNotFoundError("There is no model org/x.", cause="404 from the hub", remedy="macllm models ls")

    async def scenario(stage: Stage) -> None:
        await stage.sees("There is no model org/x.")
        await stage.sees("cause: 404 from the hub")
        await stage.sees("try: macllm models ls")
        await stage.press("ctrl+d")

    assert play(fail, scenario).return_code == 3


def test_a_failed_load_returns_the_message_and_sending_loads_again(play: Play) -> None:
    attempts: list[int] = []

    def fail_once(on_status: OnStatus) -> Session:
        attempts.append(1)
        if len(attempts) == 1:
            raise ModelNotFoundError("There is no model yet.")
        return Session(ScriptedEngine(["Here I am."]))

    async def scenario(stage: Stage) -> None:
        await stage.until(lambda: stage.typed == "Hello")
        await stage.press("enter")
        await stage.sees("Here I am.")

    play(fail_once, scenario, prompt="Hello")


def test_an_almost_full_context_is_a_warning_that_names_clear(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Hello you")
        await stage.sees("of the context is used")
        await stage.sees("/clear")

    play(ScriptedEngine(["x"], context_length=5), scenario)


def test_an_exception_while_loading_is_shown_like_an_error(play: Play) -> None:
    def fail(on_status: OnStatus) -> Session:
        raise KeyError("weights")

    async def scenario(stage: Stage) -> None:
        await stage.sees("The model could not be loaded.")
        await stage.sees("cause: KeyError: 'weights'")

    play(fail, scenario)


def test_a_crash_during_an_answer_keeps_its_text_and_the_chat_continues(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("The engine is gone.")
        await stage.idle()
        await stage.sees("half")
        assert stage.session.turns[-1].content == "half"
        await stage.say("Again")
        await stage.sees("back")

    crash = EngineCrashedError("The engine is gone.", cause="out of memory", remedy="a smaller model")
    play(ScriptedEngine(["half", crash], ["back"]), scenario)


def test_a_crash_before_the_first_word_returns_the_message_to_the_prompt(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("My long question")
        await stage.sees("The engine is gone.")
        await stage.until(lambda: stage.typed == "My long question")
        await stage.press("enter")
        await stage.sees("now it works")

    play(ScriptedEngine([EngineCrashedError("The engine is gone.")], ["now it works"]), scenario)


def test_a_conversation_beyond_the_context_is_an_error_and_keeps_the_message(play: Play) -> None:
    engine = ScriptedEngine(context_length=5)

    async def scenario(stage: Stage) -> None:
        await stage.say("one two three four five six")
        await stage.sees("the context holds 5")
        await stage.until(lambda: stage.typed.startswith("one two"))

    play(engine, scenario)


def test_the_status_line_shows_speed_context_and_memory(play: Play) -> None:
    gate = threading.Event()

    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("tok/s")
        gate.set()
        await stage.idle()
        await stage.sees("2.0 GB/8.0 GB")
        await stage.sees("23/1,000")
        assert "scripted" in stage.screen().splitlines()[-1]

    play(ScriptedEngine(["word ", *([0.02, "word "] * 20), gate]), scenario, size=(100, 30))


def test_shift_enter_alt_enter_ctrl_j_and_a_backslash_break_the_line(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.type("a")
        for key in ("shift+enter", "alt+enter", "ctrl+j"):
            await stage.press(key)
        await stage.type("b\\")
        await stage.press("enter")
        await stage.type("c")
        assert stage.typed == "a\n\n\nb\nc"
        await stage.press("enter")
        await stage.idle()
        assert stage.session.turns[0].content == "a\n\n\nb\nc"

    play(ScriptedEngine(["ok"]), scenario)


def test_up_and_down_browse_sent_messages_and_keep_the_draft(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("first")
        await stage.idle()
        await stage.say("second")
        await stage.idle()
        await stage.type("draft")
        await stage.press("up")
        assert stage.typed == "second"
        await stage.press("up", "up")
        assert stage.typed == "first"
        await stage.press("down", "down")
        assert stage.typed == "draft"

    play(ScriptedEngine(), scenario)


@pytest.mark.parametrize(
    ("keys", "left"),
    [
        (["ctrl+a", "ctrl+k"], ""),
        (["ctrl+u"], ""),
        (["ctrl+w"], "one two "),
        (["alt+b", "alt+b", "ctrl+k"], "one "),
        (["ctrl+a", "alt+f", "ctrl+k"], "one"),
        (["ctrl+a", "ctrl+f", "ctrl+d"], "oe two three"),
        (["left", "backspace"], "one two thre"),
        (["ctrl+a", "alt+d"], "two three"),
    ],
)
def test_the_prompt_edits_like_a_shell(play: Play, keys: list[str], left: str) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.type("one two three")
        await stage.press(*keys)
        assert stage.typed.strip() == left.strip()

    play(ScriptedEngine(), scenario)


def test_control_c_stops_an_answer_and_twice_quits(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macllm_tui.screens.chat._AGAIN_SECONDS", 60.0)
    engine = ScriptedEngine(["half", threading.Event()])

    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("half")
        await stage.press("ctrl+c")
        await stage.idle()
        await stage.sees("Ctrl+C again quits")
        assert stage.session.turns[-1].content == "half"
        await stage.press("ctrl+c")

    assert play(engine, scenario).return_code == 0
    assert engine.closed


def test_control_c_after_a_new_message_stops_its_answer_and_does_not_quit(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("macllm_tui.screens.chat._AGAIN_SECONDS", 60.0)
    engine = ScriptedEngine(["half", threading.Event()])

    async def scenario(stage: Stage) -> None:
        await stage.idle()
        await stage.type("never sent")
        await stage.press("ctrl+c")
        await stage.say("Go")
        await stage.sees("half")
        await stage.press("ctrl+c")
        await stage.idle()
        await stage.sees("half")
        assert stage.session.turns[-1].content == "half"

    play(engine, scenario)


def test_control_c_returns_a_message_that_waits_for_the_model(play: Play) -> None:
    gate = threading.Event()
    engine = ScriptedEngine(["Hello."])

    async def scenario(stage: Stage) -> None:
        await stage.sees("loading maclet…")
        await stage.say("Too early")
        await stage.press("ctrl+c")
        assert stage.typed == "Too early"
        gate.set()
        await stage.idle()
        assert engine.requests == []

    play(open_after(gate, engine), scenario)


def test_control_c_clears_the_prompt_and_up_restores_it(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.idle()
        await stage.type("precious")
        await stage.press("ctrl+c")
        assert stage.typed == ""
        await stage.press("up")
        assert stage.typed == "precious"

    play(ScriptedEngine(), scenario)


def test_control_d_deletes_and_quits_only_on_an_empty_prompt(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.idle()
        await stage.type("ab")
        await stage.press("home", "ctrl+d")
        assert stage.typed == "b"
        await stage.press("ctrl+d")
        assert stage.app.is_running
        await stage.press("ctrl+d")
        await stage.until(lambda: stage.app.return_code == 0)

    engine = ScriptedEngine()
    play(engine, scenario)
    assert engine.closed


def test_an_engine_that_opens_after_the_app_has_quit_is_closed(play: Play) -> None:
    gate, engine = threading.Event(), ScriptedEngine()
    opened: list[Session] = []

    def open_slowly(on_status: OnStatus) -> Session:
        gate.wait(10)
        opened.append(Session(engine))
        return opened[0]

    async def scenario(stage: Stage) -> None:
        await stage.press("ctrl+q")

    play(open_slowly, scenario)
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "macllm-open":
            thread.join(5)
    assert opened
    assert engine.closed


def test_regen_answers_the_last_message_again(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.idle()
        await stage.say("/regen")
        await stage.sees("second try")
        await stage.idle()
        await stage.until(lambda: len(stage.app.chat.query(AnswerTurn)) == 1)
        assert "first try" not in stage.screen()
        assert [turn.content for turn in stage.session.turns] == ["Go", "second try"]

    play(ScriptedEngine(["first try"], ["second try"]), scenario)


def test_a_regeneration_stopped_at_once_restores_the_former_answer(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.idle()
        await stage.say("/regen")
        await stage.press("escape")
        await stage.idle()
        await stage.sees("first try")
        assert stage.typed == ""
        assert stage.session.turns[-1].content == "first try"

    play(ScriptedEngine(["first try"], [threading.Event()]), scenario)


def test_the_view_follows_the_end_until_the_user_scrolls_up(play: Play) -> None:
    gates = [threading.Event(), threading.Event()]
    steps = [*LIST.splitlines(keepends=True), gates[0], *LIST.splitlines(keepends=True), gates[1], "\nThe end.\n"]

    async def scenario(stage: Stage) -> None:
        transcript = stage.app.chat.transcript
        await stage.say("Go")
        await stage.sees("item 59")
        assert transcript.scroll_y == transcript.max_scroll_y > 0
        await stage.press("pageup")
        await stage.sees("↓ more (End)")
        position, height = transcript.scroll_y, transcript.max_scroll_y
        gates[0].set()
        await stage.until(lambda: transcript.max_scroll_y > height)
        assert transcript.scroll_y == position
        await stage.press("end")
        gates[1].set()
        await stage.sees("The end.")
        await stage.idle()
        assert transcript.scroll_y == transcript.max_scroll_y

    play(ScriptedEngine(steps), scenario)


@pytest.mark.parametrize("size", [(200, 50), (80, 24), (40, 20), (40, 10), (24, 8)])
def test_any_size_shows_the_end_of_the_answer_and_the_prompt(play: Play, size: tuple[int, int]) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.idle()
        await stage.pilot.resize_terminal(*size)
        await stage.type("typed")
        await stage.sees("❯ typed")
        await stage.sees("zebra")
        assert all(len(line) <= size[0] for line in stage.screen().splitlines())

    play(ScriptedEngine([LIST, "\n\nzebra"]), scenario)


def test_a_resize_in_the_middle_of_an_answer_loses_nothing(play: Play) -> None:
    gate = threading.Event()

    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("one")
        await stage.pilot.resize_terminal(40, 12)
        gate.set()
        await stage.idle()
        await stage.pilot.resize_terminal(100, 30)
        await stage.sees("one two three")

    play(ScriptedEngine(["one ", "two ", gate, "three"]), scenario)


def test_text_of_the_model_is_never_interpreted_as_markup_or_terminal_commands(play: Play) -> None:
    nasty = "[bold red]x[/] [link='y']z[/nope] \x1b]0;owned\x07 \x1b[2J end"

    async def scenario(stage: Stage) -> None:
        await stage.say("[/] [b]")
        await stage.idle()
        await stage.sees("end")
        assert "[bold red]x[/]" in stage.screen()
        assert "[/] [b]" in stage.screen()
        assert "\x1b" not in stage.screen()
        assert stage.session.turns[-1].content == nasty

    play(ScriptedEngine([nasty]), scenario)


def test_only_web_links_open(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    async def scenario(stage: Stage) -> None:
        monkeypatch.setattr(stage.app, "open_url", lambda url, new_tab=True: opened.append(url))
        await stage.say("Go")
        await stage.idle()
        await stage.sees("script")
        await stage.pilot.pause()  # until the answer is at its place
        body = stage.app.chat.query_one(StreamMarkdown)
        for column in (1, 5, 10):  # web, file, script
            await stage.pilot.click(body, offset=(column, 0))

    links = "[web](https://example.org/'x) [file](file:///etc/passwd) [script](javascript:alert(1))"
    play(ScriptedEngine([links]), scenario)
    assert opened == ["https://example.org/'x"]


def test_an_answer_can_be_selected_with_the_mouse_and_copied(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.idle()
        await stage.sees("second line")
        body = stage.app.chat.query_one(StreamMarkdown)
        await stage.pilot.mouse_down(body, offset=(2, 0))
        await stage.pilot.hover(body, offset=(5, 1))
        await stage.pilot.mouse_up(body, offset=(5, 1))
        await stage.press("ctrl+c")
        await stage.until(lambda: stage.app.clipboard)
        assert stage.app.clipboard == "first line\n• seco"

    play(ScriptedEngine(["- first line\n- second line"]), scenario)


def test_an_engine_error_is_one_block_with_cause_and_remedy(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("try: restart")
        failure = stage.app.chat.query_one(Failure)
        assert failure.error.message == "It broke."

    play(ScriptedEngine([EngineCrashedError("It broke.", cause="why", remedy="restart")]), scenario)


def test_a_theme_can_be_chosen(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        assert stage.app.theme == "macllm-light"
        await stage.say("/theme")
        await stage.sees("1  dark")
        await stage.say("1")
        await stage.until(lambda: stage.app.theme == "macllm-dark")
        await stage.say("/theme ansi")
        await stage.until(lambda: stage.app.theme == "macllm-ansi")
        await stage.say("/theme purple")
        await stage.sees("Unknown theme 'purple'.")

    play(ScriptedEngine(), scenario, theme="light")


def test_the_commands_of_a_session_work_in_the_app(play: Play, tmp_path: Path) -> None:
    path = tmp_path / "chat.md"

    async def scenario(stage: Stage) -> None:
        await stage.say("Hi")
        await stage.idle()
        stage.app.chat.prompt.put(f"/save {path}")
        await stage.press("enter")
        await stage.sees("Exported to")
        await stage.say("/set temperature 0")
        await stage.sees("temperature = 0")
        await stage.say("/system Be brief.")
        await stage.sees("The system prompt is set.")
        await stage.say("/copy")
        await stage.until(lambda: stage.app.clipboard == "ok")
        await stage.say("/help")
        await stage.sees("Enter take a command")
        await stage.press("escape")
        await stage.say("/clear")
        await stage.sees("New conversation.")
        assert "ok" not in stage.screen()
        assert stage.session.turns == ()
        assert stage.session.system == "Be brief."
        await stage.say("/quit")

    app = play(ScriptedEngine(), scenario, size=(100, 40))
    assert app.return_code == 0
    assert "## You\n\nHi\n\n## scripted\n\nok\n" in path.read_text()


def test_an_unknown_command_is_an_error_and_stays_in_the_prompt(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("/sve it")
        await stage.sees("Unknown command /sve.")
        await stage.sees("/export [md | json | html] [--force] FILE")
        assert stage.typed == "/sve it"

    play(ScriptedEngine(), scenario)


def test_a_slash_lists_the_commands_and_tab_completes(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.type("/sy")
        await stage.sees("show, set or remove the system prompt")
        await stage.press("tab")
        assert stage.typed == "/system "
        await stage.until(lambda: "show, set or remove" not in stage.screen())

    play(ScriptedEngine(), scenario)


def test_commands_that_change_the_conversation_are_refused_during_an_answer(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("half")
        await stage.say("/clear")
        await stage.sees("/clear cannot run during an answer.")
        await stage.say("/regen")
        await stage.sees("/regen cannot run")
        await stage.say("/set top_k 3")
        await stage.sees("top_k = 3")

    play(ScriptedEngine(["half", threading.Event()]), scenario)


def test_a_paste_of_several_lines_is_one_message(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.idle()
        stage.app.post_message(Paste("one\rtwo\r\nthree"))
        await stage.until(lambda: stage.typed == "one\ntwo\nthree")

    play(ScriptedEngine(), scenario)


def test_typing_works_while_a_list_streams(play: Play) -> None:
    pieces = [Delta(LIST[i : i + 4], tokens=(0,)) for i in range(0, len(LIST), 4)]

    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("item 3")
        await stage.type("ok")
        assert stage.app.chat.exchange.pending is not None
        assert stage.typed == "ok"
        await stage.press("escape")
        await stage.idle()

    play(ScriptedEngine(pieces * 100, step_seconds=0.005, context_length=10**6), scenario)
