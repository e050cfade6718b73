"""Commands for the interface itself."""

from __future__ import annotations

from macllm.errors import UsageError

from ..outcomes import Ask, Choice, Open, Outcome, Question, Quit, ShowHelp, ShowReasoning, SwitchTheme
from .command import Command

THEMES = {
    "dark": "light text on a dark ground",
    "light": "dark text on a light ground",
    "ansi": "the terminal's sixteen colors",
}


def _theme(name: str) -> Outcome:
    if name in THEMES:
        return SwitchTheme(name)
    if name:
        raise UsageError(f"Unknown theme {name!r}.", remedy=f"/theme {', /theme '.join(THEMES)}")
    choices = (Choice(f"{each}: {about}", f"/theme {each}") for each, about in THEMES.items())
    return Ask(Question("Which theme?", tuple(choices)))


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
        "[dark | light | ansi]",
        "choose the color theme",
        run_without_model=_theme,
        values=lambda session, argument: THEMES,
    ),
    Command("keys", "", "list all keys with their names in the settings", run_without_model=lambda _: Open("keys")),
    Command("quit", "", "quit", run_without_model=lambda _: Quit()),
)
