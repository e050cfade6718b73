"""Questions with numbered choices: the ways on after a failure. No Textual in here."""

from __future__ import annotations

from dataclasses import dataclass

from macllm.chat.conversation import Attachment, Turn
from macllm.chat.session import Session
from macllm.errors import DoesNotFitError, EngineCrashedError, MacllmError
from macllm.units import count_text

from .outcomes import Choice, Question

_CHARACTERS = 2  # of an attachment for each token of the context, so that most texts fit in one go
_MOST_CHARACTERS = 6  # of a token on average; a text with more for each token of the context is longer than it


def chosen(question: Question, line: str) -> Choice | None:
    """The choice that a line makes by its number; None: the line is something else."""
    line = line.strip()
    if not line.isascii() or not line.isdecimal() or not 1 <= int(line) <= len(question.choices):
        return None
    return question.choices[int(line) - 1]


def as_text(question: Question) -> str:
    """The question and its choices, one a line."""
    return "\n".join([question.text, *(f"  {n}  {choice.label}" for n, choice in enumerate(question.choices, 1))])


@dataclass(frozen=True)
class Unanswered:
    """A message that got no answer, and can be sent again; `edited`: in place of an earlier one."""

    attachments: tuple[Attachment, ...] = ()
    edited: bool = False
    text: str = ""

    def is_longer_than(self, tokens: int | None) -> bool:
        """True for a message that is surely longer than a number of tokens; None: no limit."""
        characters = len(self.text) + sum(len(each.text) for each in self.attachments)
        return tokens is not None and characters > _MOST_CHARACTERS * tokens


def after_answer(
    error: MacllmError | None, session: Session, *, message: Unanswered | None, answer: Turn | None = None
) -> Question | None:
    """The ways on after an answer that failed, or that the end of the context cut off, if there are any.

    `message` got no `answer`.
    """
    if isinstance(error, DoesNotFitError):
        return Question(f"The {_too_long(session, message)} longer than the context.", _room(session, message))
    if isinstance(error, EngineCrashedError):
        again = Choice("try again", send=True) if message else Choice("answer again", "/regen")
        go_on = () if message else (Choice("go on with the answer", "/continue"),)
        other = Choice("keep the chat and choose another model", "/model")
        return Question("The engine starts again by itself; the chat is kept.", (*go_on, again, other))
    if error is None and answer is not None and answer.finish == "length" and session.context.is_full:
        return Question("The context is full, which cut the answer off.", _room(session, None))
    return None


def after_loading(former: Session | None = None) -> Question:
    """The ways on after a model could not be loaded, perhaps in place of the one of `former`."""
    back = (Choice("go back to the former model", f"/model {former.engine.info.model_name}"),) if former else ()
    others = (Choice("choose another model", "/model"), Choice("quit", "/quit"))
    return Question("No model is loaded.", (Choice("try again", send=True), *back, *others))


def _too_long(session: Session, message: Unanswered | None) -> str:
    alone = message is not None and message.is_longer_than(session.engine.info.context_length)
    if session.conversation.read and not alone:
        return "conversation is"
    if message is not None and session.system and not alone:
        return "message and the system prompt are"
    return "message is"


def _room(session: Session, message: Unanswered | None) -> tuple[Choice, ...]:
    """The ways to have more room in the context."""
    send, alone = message is not None, not session.conversation.read
    if message is not None and message.is_longer_than(session.engine.info.context_length):
        return (*_shorter(session, message), Choice("choose a model with a longer context", "/model"))
    choices: list[Choice] = []
    if message is not None and message.edited:
        alone = True  # marks come after the message that it stands for
    elif session.can_drop:
        choices += [
            Choice("leave out the oldest messages; they stay on the screen", "/drop", send=send),
            Choice("let the model summarize the oldest messages", "/summarize", send=send),
        ]
    elif not alone:
        choices += [
            Choice("leave out the earlier messages; they stay on the screen", "/drop all", send=send),
            Choice("let the model summarize the earlier messages", "/summarize all", send=send),
        ]
    if session.turns:
        choices.append(Choice("begin a new conversation", "/clear", send=send))
    if message is not None and alone:
        choices += _shorter(session, message)
    return (*choices, Choice("choose a model with a longer context", "/model"))


def _shorter(session: Session, message: Unanswered) -> list[Choice]:
    """The ways to send less."""
    choices: list[Choice] = []
    longest = max((len(each.text) for each in message.attachments), default=0)
    if (most := min(longest // 2, (session.engine.info.context_length or longest) * _CHARACTERS)) > 0:
        begun = f"send only the first {count_text(most)} characters of an attachment"
        choices.append(Choice(begun, f"/detach {most}", send=True))
        choices.append(Choice("send it without attachments", "/detach", send=True))
    if session.system and not message.is_longer_than(session.engine.info.context_length):
        choices.append(Choice("remove the system prompt", "/system none", send=True))
    return [*choices, Choice("write a shorter message")]
