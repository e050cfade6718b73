"""The prompt in the app: menu, attachments, pastes, history, editor."""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path

import pytest
from textual.events import Paste

from macllm.chat.conversation import Attachment, Conversation
from macllm.chat.session import Session
from tests.chat.scripted_engine import ScriptedEngine
from tests.tui.conftest import Play, Stage

LONG = "".join(f"line {n}\n" for n in range(120))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "notes.md").write_text("My notes.\n")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.py").write_text("print()\n")
    (tmp_path / "data.bin").write_bytes(b"\0\1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_are_chosen_with_arrows_tab_and_enter(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.idle()
        await stage.type("/the")
        await stage.sees("› /theme")
        await stage.press("enter")
        assert stage.typed == "/theme "
        await stage.sees("› dark")
        await stage.press("down", "tab")
        assert stage.typed == "/theme light"
        await stage.press("enter")
        await stage.until(lambda: stage.app.theme == "macllm-light")
        assert stage.typed == ""

    play(ScriptedEngine(), scenario)


def test_escape_closes_the_menu_first_and_stops_the_answer_next(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("half")
        await stage.type("/the")
        await stage.sees("› /theme")
        await stage.press("escape")
        await stage.until(lambda: "› /theme" not in stage.screen())
        await stage.type("m")
        assert stage.app.chat.exchange.pending is not None
        assert "› /theme" not in stage.screen()
        await stage.press("escape")
        await stage.idle()
        await stage.sees("stopped")
        assert stage.typed == "/them"

    play(ScriptedEngine(["half", threading.Event()]), scenario)


def test_a_chosen_file_is_a_marker_that_is_sent_as_an_attachment(play: Play, folder: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.idle()
        await stage.type("sum up @not")
        await stage.sees("› notes.md")
        await stage.press("tab")
        assert stage.typed == "sum up [notes.md, 10 characters] "
        await stage.press("left", "left", "right", "right", "backspace", "backspace")
        assert stage.typed == "sum up "
        await stage.type("@src/")
        await stage.press("down", "up", "enter")
        await stage.type("now")
        await stage.press("enter")
        await stage.idle()
        turn = stage.session.turns[0]
        assert (turn.content, turn.attachments) == (
            "sum up @src/main.py now",
            (Attachment("src/main.py", "print()\n"),),
        )
        await stage.sees("[src/main.py, 8 characters]")

    play(ScriptedEngine(), scenario)


def test_a_typed_path_is_attached_and_a_wrong_file_keeps_the_message(play: Play, folder: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.idle()
        await stage.type("see @data.bin")
        await stage.press("enter")
        await stage.sees("data.bin is not text.")
        assert stage.typed == "see @data.bin"
        stage.app.chat.prompt.put("see @notes.md, bob@notes.md")
        await stage.press("enter")
        await stage.idle()
        turn = stage.session.turns[0]
        assert turn.content == "see @notes.md, bob@notes.md"
        assert turn.attachments == (Attachment("notes.md", "My notes.\n"),)
        await stage.say("/attach nothing")
        await stage.sees("There is no file nothing.")
        await stage.say("/attach notes.md")
        assert stage.typed == "[notes.md, 10 characters] "

    play(ScriptedEngine(), scenario)


def test_a_stopped_message_returns_with_its_markers(play: Play, folder: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.idle()
        stage.app.post_message(Paste(LONG))
        await stage.until(lambda: stage.typed == "[pasted 120 lines]")
        await stage.type(" @notes.md ")
        await stage.press("enter")
        await stage.until(lambda: stage.app.chat.exchange.pending)
        assert stage.session.turns[0].content == LONG + " @notes.md"
        await stage.press("escape")
        await stage.until(lambda: stage.typed == "[pasted 120 lines] [notes.md, 10 characters]")

    play(ScriptedEngine([threading.Event()]), scenario)


def test_a_stopped_message_that_began_with_two_slashes_returns_with_both(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("//clear it")
        await stage.until(lambda: stage.app.chat.exchange.pending)
        await stage.press("escape")
        await stage.until(lambda: stage.typed == "//clear it")

    play(ScriptedEngine([threading.Event()]), scenario)


def test_control_c_clears_a_draft_before_it_quits(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macllm_tui.screens.chat._AGAIN_SECONDS", 60.0)

    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("half")
        await stage.type("draft")
        await stage.press("ctrl+c")
        await stage.idle()
        await stage.press("ctrl+c")
        assert (stage.app.is_running, stage.typed) == (True, "")
        await stage.press("up")
        assert stage.typed == "draft"

    play(ScriptedEngine(["half", threading.Event()]), scenario)


def test_a_paste_sends_nothing_and_opens_no_menu(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.idle()
        stage.app.post_message(Paste("/the"))
        await stage.until(lambda: stage.typed == "/the")
        await stage.press("enter")
        await stage.sees("Unknown command /the.")
        assert (stage.typed, "› /theme" in stage.screen()) == ("/the", False)
        await stage.press("ctrl+u")
        stage.app.post_message(Paste("/quit\r"))
        await stage.until(lambda: stage.typed == "/quit\n")
        stage.app.post_message(Paste("\x1b[31mthe rest\x1b[0m"))
        await stage.until(lambda: stage.typed == "/quit\nthe rest")
        await stage.press("enter")
        await stage.idle()
        assert stage.session.turns[0].content == "/quit\nthe rest"

    play(ScriptedEngine(), scenario)


class KeptPrompts:
    """A store of messages in memory."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def prompts(self) -> list[str]:
        return list(self.texts)

    def remember(self, text: str) -> None:
        self.texts.append(text)

    def save(self, conversation: Conversation) -> None:
        pass

    def close(self) -> None:
        pass


def test_the_history_is_searched_and_kept(play: Play) -> None:
    store = KeptPrompts("sort a list", "other", "sort the keys")

    async def scenario(stage: Stage) -> None:
        await stage.idle()
        await stage.type("draft")
        await stage.press("ctrl+r")
        await stage.type("sort")
        await stage.sees("› sort the keys")
        await stage.press("ctrl+r")
        await stage.sees("› sort a list")
        await stage.press("escape")
        assert stage.typed == "draft"
        await stage.press("ctrl+r", "ctrl+r", "enter")
        assert stage.typed == "other"
        await stage.until(lambda: "Ctrl+R older" not in stage.screen())
        await stage.press("ctrl+r", "x", "x", "enter", "ctrl+c")
        assert stage.typed == "other"
        await stage.press("enter")
        await stage.idle()
        assert store.texts[3:] == ["other"]

    play(lambda on_status: Session(ScriptedEngine(), journal=store), scenario)


def test_the_editor_gets_the_whole_text_and_its_text_returns(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text().replace('Hi', 'Edited'))"
    monkeypatch.setenv("VISUAL", f'{sys.executable} -c "{code}"')

    async def scenario(stage: Stage) -> None:
        monkeypatch.setattr(stage.app, "suspend", contextlib.nullcontext)
        await stage.idle()
        await stage.type("Hi ")
        stage.app.post_message(Paste(LONG))
        await stage.until(lambda: stage.typed == "Hi [pasted 120 lines]")
        await stage.press("ctrl+g")
        assert stage.typed == "Edited [pasted 120 lines]"
        await stage.press("ctrl+underscore")
        assert stage.typed == "Hi [pasted 120 lines]"
        monkeypatch.setenv("VISUAL", "false")
        await stage.press("ctrl+g")
        await stage.sees("The editor false failed.")
        assert stage.typed == "Hi [pasted 120 lines]"

    play(ScriptedEngine(), scenario)
