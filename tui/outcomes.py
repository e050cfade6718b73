"""Outcomes of slash commands, for an interface to carry out."""

from __future__ import annotations

from dataclasses import dataclass

from macllm.chat.conversation import Attachment
from macllm.generation.request import Events

from .comparison import Comparison


@dataclass(frozen=True)
class Say:
    """Show a line of text."""

    text: str


@dataclass(frozen=True)
class Redraw:
    """Draw the conversation anew, because another one or another path is shown; then show a line of text."""

    text: str = ""


@dataclass(frozen=True)
class Mark:
    """Draw the mark that now ends the conversation; where there are no marks, say the text instead."""

    text: str


@dataclass(frozen=True)
class Copy:
    """Copy text to the clipboard."""

    text: str


@dataclass(frozen=True)
class Answer:
    """Show the events of an answer as they come.

    `message` is the new message that they answer, if any: without an answer it returns to the prompt. An answer
    with a title, such as a summary, stands beside the conversation. One with a `comparison` is shown beside the
    answer that it is compared with.
    """

    events: Events
    message: str = ""
    title: str = ""
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Compare:
    """Show two versions of an answer side by side, or one after the other."""

    comparison: Comparison


@dataclass(frozen=True)
class Choice:
    """One of the choices of a question, with the slash command that it runs; "": none.

    With `send`, the message that got no answer is sent again afterwards.
    """

    label: str
    line: str = ""
    send: bool = False


@dataclass(frozen=True)
class Question:
    """A question with numbered choices."""

    text: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Ask:
    """Ask a question. A choice is made by its number; any other text is a message as usual."""

    question: Question


@dataclass(frozen=True)
class Open:
    """Open a screen of the full screen by its name: chats, models, palette, …"""

    screen: str
    argument: str = ""


@dataclass(frozen=True)
class SwitchModel:
    """Close the engine and load a model, with an adapter if there is one. The conversation stays."""

    model: str
    adapter: str | None = None


@dataclass(frozen=True)
class Activate:
    """Make another adapter of the loaded model active, or several, as `a + b:0.5`; None: none."""

    adapter: str | None


@dataclass(frozen=True)
class ShowReasoning:
    """Show the reasoning of the newest answer, or fold it again."""


@dataclass(frozen=True)
class Attach:
    """Attach a text to the next message."""

    attachment: Attachment


@dataclass(frozen=True)
class Shorten:
    """Keep at most the first characters of each attachment of the message that is being written; 0: none."""

    most: int


@dataclass(frozen=True)
class OpenEditor:
    """Write the next message in the user's editor."""


@dataclass(frozen=True)
class ShowHelp:
    """Show commands and keys."""


@dataclass(frozen=True)
class SwitchTheme:
    """Switch to a theme: dark, light, ansi or auto. "": ask which."""

    name: str


@dataclass(frozen=True)
class Quit:
    """End the chat."""


Outcome = (
    Say
    | Redraw
    | Mark
    | Copy
    | Answer
    | Compare
    | Ask
    | Open
    | SwitchModel
    | Activate
    | Attach
    | Shorten
    | OpenEditor
    | ShowReasoning
    | ShowHelp
    | SwitchTheme
    | Quit
)
