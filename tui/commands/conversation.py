"""Commands that change the conversation."""

from __future__ import annotations

from macllm.chat.session import Session
from macllm.errors import UsageError

from ..outcomes import Answer, Outcome, Redraw, Say
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


def _edit(session: Session, argument: str) -> Outcome:
    asked = next((node for node in reversed(session.conversation.path) if node.turn.role == "user"), None)
    if asked is None:
        raise UsageError("The conversation has no message to edit.", remedy="write one first")
    return Answer(session.edit(asked.id, argument, asked.turn.attachments), argument)


def _continue(session: Session, argument: str) -> Outcome:
    return Answer(session.continue_answer())


def _compare(session: Session, argument: str) -> Outcome:
    return Answer(session.compare())


COMMANDS = (
    Command("clear", "", "start a new conversation", _clear, idle=True, aliases=("new",)),
    Command("system", "[TEXT | none]", "show, set or remove the system prompt", _system, idle=True),
    Command("regen", "", "answer the last message again", _regenerate, idle=True, aliases=("retry",)),
    Command("edit", "TEXT", "ask something else in place of the last message", _edit, idle=True),
    Command("continue", "", "go on with an answer that was stopped or cut", _continue, idle=True),
    Command("ab", "", "answer again with the same seed, without the adapter or with it", _compare, idle=True),
)
