"""Commands that copy the conversation."""

from __future__ import annotations

from macllm.chat import transcript
from macllm.chat.options import short_name
from macllm.chat.session import Session
from macllm.errors import UsageError

from ..outcomes import Copy, Outcome
from .command import Command


def _copy(session: Session, argument: str) -> Outcome:
    answer = session.last_answer
    if answer is None:
        raise UsageError("No answer to copy yet.", remedy="write a message first")
    if argument == "all":
        name = short_name(session.engine.info.model_name)
        return Copy(transcript.as_markdown(session.turns, model_name=name, system=session.system))
    if not argument:
        return Copy(answer.content)
    from ..text.markdown import code_blocks  # imports the parser, which a chat in lines seldom needs

    blocks = code_blocks(answer.content)
    if not argument.isdecimal() or not 1 <= int(argument) <= len(blocks):
        cause = f"the answer has {len(blocks)} code block{'s' * (len(blocks) != 1)}"
        raise UsageError(f"No code block {argument}.", cause=cause, remedy="/copy, /copy 1 or /copy all")
    return Copy(blocks[int(argument) - 1])


COMMANDS = (Command("copy", "[N | all]", "copy the last answer, its Nth code block, or the whole conversation", _copy),)
