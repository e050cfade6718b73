"""The screens over the chat, by name.

Each is dismissed with a slash command, which the chat runs, with `action:` and an action of the chat, or with None.
A command that ends with a space waits for its argument in the prompt.
"""

from __future__ import annotations

from collections.abc import Callable

from textual.screen import ModalScreen

from macllm.chat.session import Session

from .chats import ChatsScreen
from .help import HelpScreen, KeysScreen
from .models import ModelsScreen
from .palette import PaletteScreen

SCREENS: dict[str, Callable[[Session | None, str], ModalScreen[str | None]]] = {
    "chats": ChatsScreen,
    "help": lambda session, argument: HelpScreen(argument),
    "keys": lambda session, argument: KeysScreen(argument),
    "models": ModelsScreen,
    "palette": PaletteScreen,
}
