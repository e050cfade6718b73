"""Outcomes of slash commands, for an interface to carry out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Say:
    """Show a line of text."""

    text: str


@dataclass(frozen=True)
class Clear:
    """Empty the screen, then show a line of text."""

    text: str


@dataclass(frozen=True)
class Copy:
    """Copy text to the clipboard."""

    text: str


@dataclass(frozen=True)
class Regenerate:
    """Answer the last message again."""


@dataclass(frozen=True)
class ShowHelp:
    """Show commands and keys."""


@dataclass(frozen=True)
class SwitchTheme:
    """Switch to a theme, or to the other one if `name` is empty."""

    name: str


@dataclass(frozen=True)
class Quit:
    """End the chat."""


Outcome = Say | Clear | Copy | Regenerate | ShowHelp | SwitchTheme | Quit
