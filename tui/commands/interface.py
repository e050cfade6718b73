"""Commands for the interface itself."""

from __future__ import annotations

from macllm.errors import UsageError

from ..outcomes import Choice, Open, Outcome, Quit, ShowHelp, ShowReasoning, SwitchTheme
from .command import Command

THEMES = {
    "dark": "light text on a dark ground",
    "light": "dark text on a light ground",
    "ansi": "the terminal's sixteen colors",
    "auto": "the one that suits the terminal",
}


def theme_choices() -> tuple[Choice, ...]:
    """The themes, to choose from."""
    return tuple(Choice(f"{each}: {about}", f"/theme {each}") for each, about in THEMES.items())


def _theme(name: str) -> Outcome:
    if name and name not in THEMES:
        raise UsageError(f"Unknown theme {name!r}.", remedy=f"/theme {', /theme '.join(THEMES)}")
    return SwitchTheme(name)


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
        f"[{' | '.join(THEMES)}]",
        "choose the color theme",
        run_without_model=_theme,
        values=lambda session, argument: THEMES,
    ),
    Command("keys", "", "list all keys with their names in the settings", run_without_model=lambda _: Open("keys")),
    Command("quit", "", "quit", run_without_model=lambda _: Quit()),
)
