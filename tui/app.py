"""The full-screen app."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual.app import App
from textual.driver import Driver
from textual.filter import LineFilter
from textual.keys import Keys

from macllm.chat.conversation import Attachment, Conversation
from macllm.chat.session import Session
from macllm.generation.contract import OnStatus

from . import themes
from .hangup import HUNG_UP, watch_terminal
from .keymap import DEFAULTS, Keymap
from .model_slot import OpenModel
from .safe_lines import SafeLines
from .screens.chat import ChatScreen
from .screens.models import DOWNLOADS
from .session_loader import SessionLoader
from .terminal_input import read_safely

_CLOSING_SECONDS = 3.0  # longest wait for the engine to end


class ChatApp(App[None]):
    """The full-screen chat. `open_session` runs in a thread after the first paint."""

    CSS_PATH = "macllm.tcss"
    TITLE = "macllm"
    ENABLE_COMMAND_PALETTE = False

    def __init__(
        self,
        open_session: Callable[[OnStatus], Session],
        *,
        model_name: str = "the model",
        prompt: str | None = None,
        conversation: Conversation | None = None,
        open_model: OpenModel | None = None,
        theme: str = "auto",
        keymap: Keymap = DEFAULTS,
    ) -> None:
        environ = dict(os.environ)  # Textual takes NO_COLOR out
        colorless = themes.is_colorless(environ)
        super().__init__(ansi_color=True if colorless else None)
        # Alt+Enter, and Shift+Enter in Terminal.app. Textual would read it as Enter, which sends the message.
        cast(dict[str, Any], ANSI_SEQUENCES_KEYS)["\x1b\r"] = (Keys.ControlJ,)
        self.keymap = keymap
        self._safe_lines = SafeLines()  # one, because drawn lines are cached by their filters
        self.attached: Attachment | None = None  # goes with the first message
        self.loader = SessionLoader(open_session)
        self.chat = ChatScreen(
            self.loader, model_name=model_name, prompt=prompt, conversation=conversation, open_model=open_model
        )
        for each in themes.THEMES:
            self.register_theme(each)
        self.theme = themes.chosen(theme, environ)
        self.set_keymap(keymap.bindings)

    def get_driver_class(self) -> type[Driver]:
        """The driver of the terminal."""
        return read_safely(super().get_driver_class())

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Filters of every drawn line."""
        return [self._safe_lines, *super().get_line_filters()]

    def on_mount(self) -> None:
        """Show the chat; SIGTERM and SIGHUP (terminal closed) end the app cleanly."""
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._leave, 128 + number)
            if not self.is_headless and sys.__stdin__ is not None and sys.__stdin__.isatty():
                watch_terminal(sys.__stdin__.fileno(), lambda: loop.call_soon_threadsafe(self._leave, HUNG_UP))
        self.push_screen(self.chat)
        if not self.is_headless:  # a test process has many apps, whose remains would stay
            # Collections pass over the objects of the start-up, and take 10 ms instead of 50 while an answer streams.
            self.chat.call_after_refresh(gc.freeze)
        if (attached := self.attached) is not None:
            self.chat.call_after_refresh(lambda: self.chat.prompt.attach(attached))

    def _leave(self, code: int) -> None:
        """End the app; an answer is then stored as stopped, not as cut short by an error."""
        if self.chat.is_mounted and (pending := self.chat.exchange.pending) is not None:
            pending.stop()
        self.exit(return_code=code)

    @property
    def session(self) -> Session | None:
        """The conversation, once the model is loaded."""
        return self.chat.session

    @property
    def last_session(self) -> Session | None:
        """The conversation, once a model was loaded, also after its model was closed."""
        return self.chat.session or self.chat.model.former

    def converse(self) -> int:
        """Run until the user quits. Returns the exit code."""
        self.run()
        return self.return_code or 0

    async def on_unmount(self) -> None:
        """Pause downloads, which keep their bytes, and close the engine."""
        DOWNLOADS.close()
        closing = threading.Thread(target=self.loader.close, name="macllm-close", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _CLOSING_SECONDS)
