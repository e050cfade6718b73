"""The chats beside the conversation."""

from __future__ import annotations

from pathlib import Path

from macllm.chat.session import Session
from macllm.chat.store import Store
from macllm_tui.screens.chats import ChatsScreen
from tests.chat.scripted_engine import ScriptedEngine
from tests.tui.conftest import Play, Stage
from tests.tui.test_screens import asked


def test_the_sidebar_shows_finds_and_opens_chats_and_its_key_opens_and_closes_the_screen_of_a_narrow_terminal(
    play: Play, tmp_path: Path
) -> None:
    store = Store(tmp_path / "chats.db")
    first, second = asked("Why is the sky blue?", "And at night?"), asked("A haiku about Metal")
    for conversation in (first, second):
        store.save(conversation)
    store.flush()

    async def scenario(stage: Stage) -> None:
        chat = stage.app.chat
        await stage.idle()
        assert "haiku" not in stage.screen()
        await stage.press("ctrl+b")
        await stage.sees("› " + "  A haiku about Metal")
        await stage.press("escape")
        await stage.until(lambda: chat.prompt.has_focus and "›" not in stage.screen())
        await stage.press("ctrl+b")
        await stage.sees("› " + "  A haiku")
        await stage.press("slash")
        await stage.type("nig")
        await stage.sees("And at night?")
        assert "haiku" not in stage.screen()
        await stage.press("enter")
        await stage.until(lambda: stage.session.conversation.id == first.id)
        await stage.sees("● Why is the sky blue?")
        assert chat.prompt.has_focus
        await stage.press("ctrl+b")
        await stage.sees("› ● Why")
        await stage.press("ctrl+b")
        await stage.until(lambda: "haiku" not in stage.screen())
        assert chat.prompt.has_focus
        await stage.press("ctrl+b")
        await stage.sees("› ● Why")
        await stage.pilot.resize_terminal(80, 16)
        await stage.until(lambda: chat.prompt.has_focus and "haiku" not in stage.screen())
        await stage.press("ctrl+b")
        await stage.until(lambda: isinstance(stage.app.screen, ChatsScreen))
        screen = stage.app.screen
        await stage.press("ctrl+b")
        await stage.until(lambda: stage.app.screen is chat and chat.prompt.has_focus)
        assert isinstance(screen, ChatsScreen)
        await screen._search("too late")

    play(lambda on_status: Session(ScriptedEngine(), journal=store), scenario, size=(100, 16))
