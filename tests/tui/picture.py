"""Pictures of the app in README: `python -m tests.tui.picture` writes them to `.github/`.

The app draws them, and the bundled model answers, greedily, on MLX's own operations. Speed and memory depend on the
machine and are set to the values measured on two cores of an AMD EPYC.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

from macllm.chat.options import ChatOptions, open_session
from macllm.chat.session import Session
from macllm.chat.store import Store
from macllm.generation.contract import CompletionEvents, Engine, MemoryUse
from macllm.generation.request import Done, Event, Request, Timing
from macllm_tui.app import ChatApp

FOLDER = Path(__file__).resolve().parents[2] / ".github"
LATER = ("What is grouped-query attention?", "How do I fine-tune a model?")
QUESTIONS = ("What is RoPE?", "Why is it used?")
SIZE, WIDE_SIZE = (84, 21), (104, 21)  # cells
TOKENS_PER_SECOND = 1310
FIRST_TOKEN_SECONDS = 0.01
MEMORY_BYTES = 8_100_000
FONTS = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'


class SteadyCompletion:
    """Events of a completion with the same times on every machine."""

    def __init__(self, events: CompletionEvents) -> None:
        self._events = events
        self.cancel, self.close = events.cancel, events.close

    def __iter__(self) -> SteadyCompletion:
        return self

    def __next__(self) -> Event:
        event = next(self._events)
        if not isinstance(event, Done):
            return event
        seconds = (event.usage.completion_tokens - 1) / TOKENS_PER_SECOND
        return replace(event, timing=Timing(FIRST_TOKEN_SECONDS, seconds, MEMORY_BYTES))


class SteadyEngine:
    """An engine with real answers, and with the same times and memory on every machine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.info = engine.info
        self.activate, self.close = engine.activate, engine.close

    def submit(self, request: Request) -> SteadyCompletion:
        return SteadyCompletion(self._engine.submit(request))

    def usage(self) -> MemoryUse:
        return MemoryUse(MEMORY_BYTES, MEMORY_BYTES, 0)


def drawn() -> dict[str, str]:
    """The pictures by name: the chat, and earlier conversations beside another."""
    environment = {"TEXTUAL_ANIMATIONS": "none", "MACLLM_NATIVE": "0", "MACLLM_METAL": "0"}
    no_offer = mock.patch("macllm_tui.first_start.question", return_value=None)
    with (
        tempfile.TemporaryDirectory() as home,
        mock.patch.dict(os.environ, environment | {"MACLLM_HOME": home}),
        no_offer,
    ):
        os.environ.pop("NO_COLOR", None)  # Textual would draw in shades of grey
        return {name: without_remote_fonts(picture) for name, picture in asyncio.run(_drawn()).items()}


async def _drawn() -> dict[str, str]:
    app = ChatApp(
        lambda on_status: Session(SteadyEngine(open_session(ChatOptions()).engine), journal=Store()),
        model_name="maclet",
        theme="dark",  # whatever the terminal
    )
    app.title = "macllm chat"
    async with app.run_test(size=SIZE) as pilot:

        async def ask(question: str, turns: int) -> None:
            app.chat.prompt.put(question)
            await pilot.press("enter")
            async with asyncio.timeout(60):
                while app.chat.session is None or len(app.chat.session.turns) < turns or app.chat.exchange.pending:
                    await pilot.pause(0.01)

        async def picture() -> str:
            await pilot.pause(0.3)
            app.chat.prompt.cursor_blink = False
            await pilot.pause()
            return app.export_screenshot(simplify=True)

        for number, question in enumerate(QUESTIONS, start=1):
            await ask(question, 2 * number)
        pictures = {"chat.svg": await picture()}
        for question in LATER:
            app.chat.action_run("/clear")
            await ask(question, 2)
        await pilot.resize_terminal(*WIDE_SIZE)
        await pilot.press("ctrl+b")
        async with asyncio.timeout(60):
            while app.chat.sidebar.list.chosen is None:
                await pilot.pause(0.01)
        return pictures | {"chats.svg": await picture()}


def without_remote_fonts(picture: str) -> str:
    """The picture with fonts of the reader's system instead of fonts fetched from another host."""
    picture = re.sub(r"\s*@font-face \{.*?\}\n", "\n", picture, flags=re.DOTALL)
    picture = picture.replace("font-family: Fira Code, monospace", f"font-family: {FONTS}")
    picture = picture.replace("font-family: arial", "font-family: sans-serif")
    return "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"


if __name__ == "__main__":
    for name, picture in drawn().items():
        (FOLDER / name).write_text(picture, encoding="utf-8")
