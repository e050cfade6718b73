"""The theme of the full screen, chosen in lines."""

from __future__ import annotations

from macllm.config.editing import keep
from macllm.config.schema import SETTINGS
from macllm.config.settings import DEFAULT, Resolved, load, resolve

from ..commands.interface import theme_choices
from ..outcomes import Question

_THEME = SETTINGS["ui.theme"]


def theme_question() -> Question:
    """The choice of the theme, with the present one and its origin. Raises: UsageError for a wrong file."""
    found = resolve(load(), {}).get(_THEME.key, Resolved(_THEME.default, DEFAULT))
    return Question(
        f"Lines have the colors of the terminal. The theme of the full screen is {found.value} ({found.source}). "
        "Another?",
        theme_choices(),
    )


def keep_theme(name: str) -> str:
    """Make a theme the default of the full screen, and say so. Raises: UsageError for a wrong file."""
    found = resolve(keep(_THEME.table, _THEME.name, name), {})[_THEME.key]
    if found.value != name:
        return f"The theme {name} is kept, but {found.source} goes before it."
    return f"The theme of the full screen is {name} from its next start on ({found.source})."
