"""Commands for the context: the messages that the model reads."""

from __future__ import annotations

from macllm.chat.session import Session
from macllm.errors import UsageError
from macllm.units import count_text, tokens_text

from ..outcomes import Answer, Mark, Outcome, Say
from ..text.summary import summarize
from .command import Command

_NEWEST = 10  # answers in the statistics
_ALL = "all"


def _drop(session: Session, argument: str) -> Outcome:
    dropped = session.drop_oldest(everything=_is_all(argument, "drop"))
    return Mark(f"{dropped} messages are left out; the model no longer reads them.")


def _summarize(session: Session, argument: str) -> Outcome:
    everything = _is_all(argument, "summarize")
    title = f"Summary of the {'earlier' if everything else 'oldest'} messages"
    return Answer(session.summarize_oldest(everything=everything), title=title)


def _is_all(argument: str, command: str) -> bool:
    """True for "all", False for nothing. Raises: UsageError for anything else."""
    if argument not in ("", _ALL):
        raise UsageError(f"/{command} takes {_ALL} or nothing.", remedy=f"/{command}, or /{command} {_ALL}")
    return argument == _ALL


def _context(session: Session, argument: str) -> Outcome:
    use, conversation = session.context, session.conversation
    if use.limit_tokens:
        lines = [f"{count_text(use.used_tokens)} of {tokens_text(use.limit_tokens)} are used."]
    else:
        lines = [f"{tokens_text(use.used_tokens)} are used."]
    said = sum(turn.role != "cut" for turn in conversation.turns)
    lines.append(f"The model reads {len(conversation.read)} of {said} messages.")
    if session.system:
        lines.append("A system prompt comes first (/system shows it).")
    if session.can_drop:
        lines.append("/drop leaves out the oldest messages, /summarize summarizes them.")
    return Say("\n".join(lines))


def _stats(session: Session, argument: str) -> Outcome:
    answers = [turn for turn in session.turns if turn.role == "assistant"]
    if not answers:
        raise UsageError("No answer yet.", remedy="write a message first")
    first = max(len(answers) - _NEWEST, 0)
    numbered = enumerate(answers[first:], first + 1)
    return Say("\n".join(f"answer {number}: {summarize(turn) or 'no numbers'}" for number, turn in numbered))


COMMANDS = (
    Command("context", "", "show the use of the context", _context),
    Command("drop", "[all]", "leave out the oldest messages; they stay on the screen", _drop, idle=True),
    Command(
        "summarize", "[all]", "replace the oldest messages by a summary", _summarize, idle=True, aliases=("compact",)
    ),
    Command("stats", "", "show tokens, speed and latency of the last answers", _stats),
)
