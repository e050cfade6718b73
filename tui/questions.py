"""Questions with numbered choices: the ways on after a failure. No Textual in here."""

from __future__ import annotations

from macllm.chat.conversation import Turn
from macllm.chat.session import Session
from macllm.errors import DoesNotFitError, EngineCrashedError, MacllmError

from .outcomes import Choice, Question


def chosen(question: Question, line: str) -> Choice | None:
    """The choice that a line makes by its number; None: the line is something else."""
    line = line.strip()
    if not line.isascii() or not line.isdecimal() or not 1 <= int(line) <= len(question.choices):
        return None
    return question.choices[int(line) - 1]


def as_text(question: Question) -> str:
    """The question and its choices, one a line."""
    return "\n".join([question.text, *(f"  {n}  {choice.label}" for n, choice in enumerate(question.choices, 1))])


def after_answer(
    error: MacllmError | None, session: Session, *, message_returned: bool, answer: Turn | None = None
) -> Question | None:
    """The ways on after an answer that failed, or that the end of the context cut off, if there are any.

    `message_returned`: the message got no `answer`, and can be sent again.
    """
    if isinstance(error, DoesNotFitError):
        what = "conversation" if session.turns else "message"
        return Question(f"The {what} is longer than the context.", _room(session, message_returned))
    if isinstance(error, EngineCrashedError):
        again = Choice("try again", send=True) if message_returned else Choice("answer again", "/regen")
        go_on = () if message_returned else (Choice("go on with the answer", "/continue"),)
        other = Choice("keep the chat and choose another model", "/model")
        return Question("The engine starts again by itself; the chat is kept.", (*go_on, again, other))
    if error is None and answer is not None and answer.finish == "length" and session.context.is_full:
        return Question("The context is full, which cut the answer off.", _room(session, False))
    return None


def after_loading(former: Session | None = None) -> Question:
    """The ways on after a model could not be loaded, perhaps in place of the one of `former`."""
    back = (Choice("go back to the former model", f"/model {former.engine.info.model_name}"),) if former else ()
    others = (Choice("choose another model", "/model"), Choice("quit", "/quit"))
    return Question("No model is loaded.", (Choice("try again", send=True), *back, *others))


def _room(session: Session, send: bool) -> tuple[Choice, ...]:
    """The ways to have more room in the context."""
    choices: list[Choice] = []
    if session.can_drop:
        choices += [
            Choice("leave out the oldest messages; they stay on the screen", "/drop", send=send),
            Choice("let the model summarize the oldest messages", "/summarize", send=send),
        ]
    if session.turns:
        choices.append(Choice("begin a new conversation", "/clear", send=send))
    return (*choices, Choice("choose a model with a longer context", "/model"))
