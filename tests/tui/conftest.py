"""Fixtures that run the app without a terminal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from textual._context import active_app
from textual.app import ScreenStackError
from textual.pilot import Pilot

from macllm.chat.session import Session
from macllm.generation.contract import Engine, OnStatus
from macllm_tui.app import ChatApp
from tests.tui.golden import screen_text

Scenario = Callable[["Stage"], Awaitable[None]]


class Stage:
    """The running app, with the actions of a user."""

    def __init__(self, app: ChatApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    @property
    def session(self) -> Session:
        assert self.app.chat.session is not None
        return self.app.chat.session

    @property
    def typed(self) -> str:
        return self.app.chat.prompt.text

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def type(self, text: str) -> None:
        names = {" ": "space", "/": "slash", "\n": "ctrl+j", ".": "full_stop", "-": "minus", "_": "underscore"}
        await self.pilot.press(*(names.get(character, character) for character in text))

    async def say(self, text: str) -> None:
        await self.type(text)
        await self.pilot.press("enter")

    async def until(self, condition: Callable[[], Any], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"timed out; on the screen:\n{self.screen()}"
            await self.pilot.pause(0.01)

    async def sees(self, text: str) -> None:
        await self.until(lambda: text in self.screen())

    def screen(self) -> str:
        """The lines on the screen."""
        return screen_text(self.app)

    async def idle(self) -> None:
        await self.until(lambda: self.app.chat.session is not None and self.app.chat.exchange.pending is None)
        await self.pilot.pause()  # until it is drawn


Play = Callable[..., ChatApp]


@pytest.fixture(autouse=True)
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Textual go on after a key when no message is left, instead of after 40 ms or more."""
    monkeypatch.setattr("textual.app.wait_for_idle", _settled)


async def _settled(min_sleep: float = 0.0, max_sleep: float = 1.0) -> None:
    """Wait until no callback of the event loop is due, but for timers and other threads, and draw.

    An engine that streams faster than the app draws never lets it come to rest; `max_sleep` seconds are enough then.
    """
    loop: Any = asyncio.get_running_loop()
    end = loop.time() + max_sleep
    for _ in range(2):
        quiet = 0
        while quiet < 3 and loop.time() < end:
            await asyncio.sleep(0)
            quiet = 0 if loop._ready else quiet + 1
        with suppress(ScreenStackError):  # the app has ended
            active_app.get().screen._on_timer_update()


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Run the app on an engine, or a function that opens a session, through a scenario; return the app."""
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    monkeypatch.delenv("COLORFGBG", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")

    def run(
        engine: Engine | Callable[[OnStatus], Session],
        scenario: Scenario,
        size: tuple[int, int] = (80, 24),
        prompt: str | None = None,
        **options: Any,
    ) -> ChatApp:
        app = ChatApp(
            lambda on_status: engine(on_status) if callable(engine) else Session(engine),
            model_name="maclet",
            prompt=prompt,
            **options,
        )

        async def main() -> None:
            async with app.run_test(size=size) as pilot:
                await scenario(Stage(app, pilot))

        asyncio.run(main())
        return app

    return run
