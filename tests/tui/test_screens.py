"""The lists over the chat."""

from __future__ import annotations

import pytest

from macllm_tui import slash
from macllm_tui.keys import help_lines
from macllm_tui.screens.help import HelpScreen, help_rows
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
