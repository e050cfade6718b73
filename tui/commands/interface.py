"""Commands for the interface itself."""

from __future__ import annotations

from ..outcomes import Quit, ShowHelp, ShowReasoning, SwitchTheme
from .command import Command

COMMANDS = (
    Command("help", "", "show commands and keys", run_without_model=lambda _: ShowHelp()),
    Command(
        "thinking",
        "",
        "show the reasoning of the newest answer, or fold it again",
        run_without_model=lambda _: ShowReasoning(),
    ),
    Command(
        "theme",
        "[dark | light]",
        "switch the color theme",
        run_without_model=SwitchTheme,
        values=lambda session, argument: {"dark": "", "light": ""},
    ),
    Command("quit", "", "quit", run_without_model=lambda _: Quit()),
)
