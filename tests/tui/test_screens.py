"""The lists over the chat."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from macllm.chat.conversation import Conversation, Turn
from macllm.chat.session import Session
from macllm.chat.store import Store
from macllm_tui import slash
from macllm_tui.keys import help_lines
from macllm_tui.palette import command_entries, matching, stored_entries
from macllm_tui.screens.help import HelpScreen, help_rows
from macllm_tui.text.days import day_text
from tests.chat.scripted_engine import ScriptedEngine
from tests.tui.conftest import Play, Stage


def test_the_help_lists_every_command_and_key() -> None:
    rows = help_rows()
    assert [row.label for row in rows if row.group == "Commands"] == [each.usage for each in slash.COMMANDS.values()]
    assert [(row.label, row.about) for row in rows if row.group == "Keys"] == help_lines()


@pytest.mark.parametrize("size", [(120, 40), (60, 20), (30, 8)])
def test_the_help_is_filtered_takes_a_command_and_closes_again(play: Play, size: tuple[int, int]) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.idle()
        await stage.press("f1")
        await stage.sees("› /")
        assert isinstance(stage.app.screen, HelpScreen)
        await stage.press("q")
        await stage.until(lambda: stage.app.screen is stage.app.chat)
        await stage.press("f1")
        await stage.type("sys")
        await stage.until(lambda: "Keys" not in stage.screen())
        await stage.press("q", "backspace", "enter")
        await stage.until(lambda: stage.app.screen is stage.app.chat)
        assert stage.typed == "/system "
        await stage.press("f1", "escape")
        await stage.until(lambda: stage.app.screen is stage.app.chat)
        assert stage.typed == "/system "

    play(ScriptedEngine(), scenario, size=size)


def test_the_palette_finds_commands_actions_chats_and_models(tmp_path: Path) -> None:
    store = Store(tmp_path / "chats.db")
    store.save(asked("The stars of the sky"))
    store.flush()
    found = command_entries() + stored_entries(store)
    assert {"/clear", "/set ", "action:toggle_reasoning"} <= {entry.value for entry in found}
    assert "/model maclet" in {entry.value for entry in found}
    chat = store.list()[0].id
    assert matching(found, "starsky")[0][0].value == f"/resume {chat}"
    assert matching(found, "thm")[0][0].value == "/theme "
    assert "/copy " in {entry.value for entry, _ in matching(found, "whole conversation")}
    assert matching(found, "zzzz") == []


def test_the_palette_runs_a_command_an_action_and_puts_one_with_an_argument_into_the_prompt(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Hi")
        await stage.idle()
        await stage.press("ctrl+p")
        await stage.type("syst")
        await stage.sees("› /system")
        await stage.press("enter")
        await stage.until(lambda: stage.typed == "/system ")
        stage.app.chat.prompt.put("")
        await stage.press("ctrl+p")
        await stage.type("newest line")
        await stage.sees("› follow the newest line")
        await stage.press("enter")
        await stage.until(lambda: stage.app.screen is stage.app.chat)
        await stage.press("ctrl+p")
        await stage.type("clear")
        await stage.sees("› /clear")
        await stage.press("enter")
        await stage.sees("New conversation.")
        assert stage.session.turns == ()

    play(ScriptedEngine(), scenario)


def asked(*texts: str, title: str = "") -> Conversation:
    conversation = replace(Conversation.begin(), title=title)
    for text in texts:
        conversation = conversation.added(Turn(role="user", content=text))
    return conversation


def test_chats_are_listed_by_day_searched_renamed_exported_removed_and_opened(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "chats.db")
    first, second = asked("Why is the sky blue?", "And at night?"), asked("A haiku about Metal")
    for conversation in (first, second):
        store.save(conversation)
    store.flush()

    async def scenario(stage: Stage) -> None:
        await stage.until(lambda: stage.app.chat.session)
        await stage.press("ctrl+s")
        await stage.sees("› A haiku about Metal")
        assert "Today" in stage.screen()
        assert "2 messages" in stage.screen()
        await stage.type("night")
        await stage.sees("› Why is the sky blue?")
        assert "And at night?" in stage.screen()
        assert "haiku" not in stage.screen()
        await stage.press("tab", "r")
        await stage.until(lambda: "Name" in stage.screen())
        await stage.press("ctrl+u")
        await stage.type("Colours")
        await stage.press("enter")
        await stage.sees("› Colours")
        await stage.press("e", "enter")
        await stage.sees("Exported to colours.md.")
        assert "And at night?" in (tmp_path / "colours.md").read_text()
        await stage.press("x")
        await stage.sees("Remove “Colours” with its 2 messages for good?")
        await stage.press("n", "slash", "ctrl+u")
        await stage.sees("› A haiku")
        await stage.press("tab", "x", "y")
        await stage.until(lambda: "haiku" not in stage.screen())
        await stage.press("enter")
        await stage.until(lambda: stage.session.conversation.id == first.id)
        assert [chat.id for chat in store.list()] == [first.id]
        await stage.sees("Resumed: Colours")

    play(lambda on_status: Session(ScriptedEngine(), journal=store), scenario)


def test_escape_leaves_a_question_then_the_chats_and_the_open_chat_cannot_be_removed(
    play: Play, tmp_path: Path
) -> None:
    store = Store(tmp_path / "chats.db")

    async def scenario(stage: Stage) -> None:
        await stage.say("Hi")
        await stage.idle()
        await stage.press("ctrl+s")
        await stage.sees("› ● Hi")
        await stage.press("tab", "x", "y")
        await stage.sees("This conversation is open.")
        await stage.press("r", "escape")
        await stage.sees("Chats")
        await stage.press("escape")
        await stage.until(lambda: stage.app.screen is stage.app.chat)
        assert len(stage.session.turns) == 2

    play(lambda on_status: Session(ScriptedEngine(), journal=store), scenario, size=(60, 20))


NOON = datetime(2026, 11, 29, 12).timestamp()


@pytest.mark.parametrize(
    ("days", "text"),
    [(0, "Today"), (1, "Yesterday"), (2, "Friday"), (6, "Monday"), (7, "22 November"), (400, "25 October 2025")],
)
def test_days_have_names(days: int, text: str) -> None:
    assert day_text(NOON - days * 86400, NOON) == text
