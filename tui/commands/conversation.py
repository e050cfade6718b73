"""Commands that change the conversation."""

from __future__ import annotations

from macllm.chat.session import Session

from .. import comparison
from ..outcomes import Answer, Compare, Outcome, Redraw, Say
from .command import Command


def _clear(session: Session, argument: str) -> Outcome:
    session.clear()
    return Redraw("New conversation.")


def _system(session: Session, argument: str) -> Outcome:
    if not argument:
        return Say(f"System prompt: {session.system}" if session.system else "No system prompt is set.")
    session.system = None if argument == "none" else argument
    return Say("The system prompt is removed." if session.system is None else "The system prompt is set.")


def _regenerate(session: Session, argument: str) -> Outcome:
    return Answer(session.regenerate())


def _continue(session: Session, argument: str) -> Outcome:
    return Answer(session.continue_answer())


def _compare(session: Session, argument: str) -> Outcome:
    return Answer(session.compare(), comparison=comparison.with_and_without_adapter(session))


def _versions(session: Session, argument: str) -> Outcome:
    return Compare(comparison.of_versions(session.conversation))


COMMANDS = (
    Command("clear", "", "start a new conversation", _clear, idle=True, aliases=("new",)),
    Command("system", "[TEXT | none]", "show, set or remove the system prompt", _system, idle=True),
    Command("regen", "", "answer the last message again", _regenerate, idle=True, aliases=("retry",)),
    Command("continue", "", "go on with an answer that was stopped or cut", _continue, idle=True),
    Command("ab", "", "answer again with the same seed, without the adapter or with it", _compare, idle=True),
    Command("compare", "", "show two versions of an answer side by side", _versions, idle=True),
)
