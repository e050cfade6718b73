"""The outcomes of slash commands, carried out on the chat screen."""

from __future__ import annotations

import os
from typing import Any, Protocol

from macllm.chat.session import Session

from .. import clipboard, outcomes, themes
from ..commands.interface import theme_choices
from ..comparison import Comparison
from ..exchange import Exchange
from ..widgets.prompt import Prompt
from .compare import CompareScreen
from .registry import SCREENS


class ChatView(Protocol):
    """A screen on which outcomes are carried out."""

    @property
    def app(self) -> Any:
        """The app."""
        ...

    @property
    def session(self) -> Session | None:
        """The conversation, once the model is loaded."""
        ...

    @property
    def exchange(self) -> Exchange:
        """The messages and their answers."""
        ...

    @property
    def prompt(self) -> Prompt:
        """The input field."""
        ...

    def show_notice(self, text: str) -> None:
        """Show a line of text, unless it is empty."""
        ...

    def redraw(self) -> None:
        """Draw the current path of the conversation."""
        ...

    def start_answer(self, answer: outcomes.Answer) -> None:
        """Show an answer as it comes."""
        ...

    def ask(self, question: outcomes.Question | None) -> None:
        """Ask a question."""
        ...

    def switch_model(self, change: outcomes.SwitchModel | outcomes.Activate) -> None:
        """Load another model or adapter."""
        ...

    def action_run(self, line: str) -> None:
        """Run a slash command."""
        ...

    def action_toggle_reasoning(self) -> None:
        """Fold or unfold the reasoning."""
        ...

    def action_leave(self) -> None:
        """Quit."""
        ...


def carry_out(outcome: outcomes.Outcome, chat: ChatView) -> None:
    """Carry out an outcome. Raises: MacllmError."""
    match outcome:
        case outcomes.Say(text):
            chat.show_notice(text)
        case outcomes.Redraw(text):
            chat.redraw()
            chat.show_notice(text)
        case outcomes.Mark():
            chat.redraw()
            chat.show_notice("")
        case outcomes.Copy(text):
            _copy(text, chat)
        case outcomes.Answer():
            chat.start_answer(outcome)
            if outcome.comparison is not None:
                _compare(outcome.comparison, chat)
        case outcomes.Compare(comparison):
            _compare(comparison, chat)
        case outcomes.Ask(question):
            chat.ask(question)
        case outcomes.Open(screen, argument):
            _open(screen, argument, chat)
        case outcomes.SwitchModel() | outcomes.Activate():
            chat.switch_model(outcome)
        case shown:
            _show(shown, chat)


def _show(outcome: outcomes.Outcome, chat: ChatView) -> None:
    match outcome:
        case outcomes.Attach() | outcomes.Shorten() | outcomes.OpenEditor():
            chat.prompt.apply(outcome)
        case outcomes.ShowReasoning():
            chat.action_toggle_reasoning()
        case outcomes.ShowHelp():
            _open("help", "", chat)
        case outcomes.SwitchTheme(""):
            chat.ask(outcomes.Question("Which theme?", theme_choices()))
        case outcomes.SwitchTheme(name):
            chat.app.theme = themes.chosen(name, os.environ)
            chat.show_notice(f"macllm config set ui.theme {name} makes it the default.")
        case outcomes.Quit():
            chat.action_leave()


def _copy(text: str, chat: ChatView) -> None:
    if clipboard.copy_natively(text):
        chat.show_notice("Copied.")
    else:
        chat.app.copy_to_clipboard(text)
        chat.show_notice("Sent to the terminal's clipboard (OSC 52; some terminals do not allow it).")


def _compare(comparison: Comparison, chat: ChatView) -> None:
    pending = chat.exchange.pending
    screen = CompareScreen(comparison, pending.stop if pending else None)
    if pending is not None:
        pending.mirror = screen
    chat.app.push_screen(screen, lambda line: chat.action_run(line or ""))


def _open(name: str, argument: str, chat: ChatView) -> None:
    chat.app.push_screen(SCREENS[name](chat.session, argument), lambda line: chat.action_run(line or ""))
