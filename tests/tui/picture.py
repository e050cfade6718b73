"""Picture of the chat in README: `python -m tests.tui.picture` writes it to `.github/chat.svg`.

The app draws it, and the bundled model answers, greedily, on MLX's own operations. Speed and memory depend on the
machine and are set to the values measured on two cores of an AMD EPYC.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import replace
from pathlib import Path
from unittest import mock

from macllm.chat.options import ChatOptions, open_session
from macllm.chat.session import Session
from macllm.generation.contract import CompletionEvents, Engine, MemoryUse
from macllm.generation.request import Done, Event, Request, Timing
from macllm_tui.app import ChatApp

PICTURE = Path(__file__).resolve().parents[2] / ".github" / "chat.svg"
QUESTIONS = ("What is RoPE?", "Why is it used?")
SIZE = (84, 21)  # cells
TOKENS_PER_SECOND = 755
FIRST_TOKEN_SECONDS = 0.01
MEMORY_BYTES = 12_000_000
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
        self.close = engine.close

    def submit(self, request: Request) -> SteadyCompletion:
        return SteadyCompletion(self._engine.submit(request))

    def usage(self) -> MemoryUse:
        return MemoryUse(MEMORY_BYTES, MEMORY_BYTES, 0)


def drawn() -> str:
    """The app's screenshot after the model has answered all questions, without links to fonts elsewhere."""

    async def main() -> str:
        app = ChatApp(
            lambda on_status: Session(SteadyEngine(open_session(ChatOptions()).engine)),
            model_name="maclet",
            theme="dark",  # whatever the terminal
        )
        app.title = "macllm chat"
        async with app.run_test(size=SIZE) as pilot:
            for number, question in enumerate(QUESTIONS, start=1):
                app.chat.prompt.put(question)
                await pilot.press("enter")
                async with asyncio.timeout(60):
                    while app.chat.session is None or len(app.chat.session.turns) < 2 * number or app.chat._pending:
                        await pilot.pause(0.01)
            await pilot.pause(0.3)
            app.chat.prompt.cursor_blink = False
            await pilot.pause()
            return app.export_screenshot(simplify=True)

    environment = {"TEXTUAL_ANIMATIONS": "none", "MACLLM_NATIVE": "0", "MACLLM_METAL": "0"}
    no_offer = mock.patch("macllm_tui.first_start.question", return_value=None)
    with mock.patch.dict(os.environ, environment), no_offer:
        os.environ.pop("NO_COLOR", None)  # Textual would draw in shades of grey
        return without_remote_fonts(asyncio.run(main()))


def without_remote_fonts(picture: str) -> str:
    """The picture with fonts of the reader's system instead of fonts fetched from another host."""
    picture = re.sub(r"\s*@font-face \{.*?\}\n", "\n", picture, flags=re.DOTALL)
    picture = picture.replace("font-family: Fira Code, monospace", f"font-family: {FONTS}")
    picture = picture.replace("font-family: arial", "font-family: sans-serif")
    return "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(drawn(), encoding="utf-8")
