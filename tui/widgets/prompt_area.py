"""The place where the user writes: menu, sign and prompt."""

from __future__ import annotations

from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalGroup
from textual.widgets import Static

from macllm.chat.session import Session

from .completion_menu import CompletionMenu, MenuItemClicked
from .prompt import Prompt, PromptMenu


class PromptArea(VerticalGroup):
    """The prompt with its menu above it. `session` gives commands the values of their arguments."""

    def __init__(self, session: Callable[[], Session | None]) -> None:
        super().__init__()
        self._session = session

    def compose(self) -> ComposeResult:
        """Menu, sign, prompt."""
        yield CompletionMenu()
        with Horizontal(id="entry"):
            yield Static("❯", id="sign", markup=False)
            yield Prompt(self._session)

    def on_prompt_menu(self, message: PromptMenu) -> None:
        """Show the menu."""
        message.stop()
        self.query_one(CompletionMenu).show(message.menu)

    def on_menu_item_clicked(self, message: MenuItemClicked) -> None:
        """Take the choice."""
        message.stop()
        self.query_one(Prompt).choose(message.index)
