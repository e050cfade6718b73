"""The cost of drawing while an answer grows: lines that do not change are not drawn again."""

from __future__ import annotations

from textual.geometry import Region

from macllm.chat.session import Session
from macllm_tui.widgets.stream_markdown import StreamMarkdown
from tests.chat.scripted_engine import ScriptedEngine
from tests.tui.conftest import Play, Stage


def test_a_growing_answer_draws_only_its_new_lines(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("Hi")
        await stage.idle()
        answer = stage.app.chat.query(StreamMarkdown).last()
        await stage.until(lambda: answer.size.width)
        lines = Region(0, 0, answer.size.width, 3)
        before = answer.render_lines(lines)
        answer.write("\n\nA new line.")
        await stage.sees("A new line.")
        after = answer.render_lines(lines)
        assert [old is new for old, new in zip(before, after, strict=True)] == [True, True, True]

        background = stage.app.chat.transcript.render_lines(Region(0, 0, 9, 40))
        assert len(set(map(id, background))) == 1

        await answer.remove()
        assert len(answer.render_lines(lines)) == 3  # Textual draws what was removed until the next layout

    play(lambda _: Session(ScriptedEngine(["one\n\n", "- two\n", "- three"])), scenario)


def test_a_new_status_lays_nothing_out(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.idle()
        await stage.pilot.pause(0.1)
        layouts: list[object] = []
        chat = stage.app.chat
        chat.screen_layout_refresh_signal.subscribe(chat, layouts.append)
        chat._show_activity("reading a long prompt")
        await stage.pilot.pause(0.1)
        assert "reading a long prompt" in stage.screen()
        assert not layouts

    play(lambda _: Session(ScriptedEngine()), scenario)
