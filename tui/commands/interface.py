"""Commands for the interface itself."""

from __future__ import annotations

from ..outcomes import Quit, ShowHelp, SwitchTheme
from .command import Command

COMMANDS = (
    Command("help", "", "show commands and keys", run_without_model=lambda _: ShowHelp()),
    Command("theme", "[dark | light]", "switch the color theme", run_without_model=SwitchTheme),
    Command("quit", "", "quit", run_without_model=lambda _: Quit()),
)
