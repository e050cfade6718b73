"""Two versions of an answer, to be shown side by side. No Textual in here."""

from __future__ import annotations

from dataclasses import dataclass, fields

from macllm.chat.conversation import Conversation, Node, Turn
from macllm.chat.options import short_name
from macllm.chat.session import Session
from macllm.errors import UsageError
from macllm.generation.request import SamplingParams
from macllm.visible import one_line


@dataclass(frozen=True)
class Side:
    """A version and its label; `node` is None for the answer that is being written."""

    label: str
    node: Node | None = None


@dataclass(frozen=True)
class Comparison:
    """Two versions of the answer to a question, the base model's before that of an adapter."""

    question: str
    sides: tuple[Side, Side]
    same: str = ""  # in words, the seed and settings that both have


def of_versions(conversation: Conversation, node: str | None = None) -> Comparison:
    """The answer `node` beside the version before it, or the first one beside the second.

    Without `node`, the newest answer of the path that has versions. Raises: UsageError if there is none.
    """
    if node is None:
        several = (each for each in reversed(conversation.path) if len(_answers(conversation, each)) > 1)
        found = next(several, None)
    else:
        found = conversation.nodes[node]
    answers = _answers(conversation, found) if found else []
    if found is None or len(answers) < 2:
        raise UsageError("There is one version of the answer.", remedy="/regen or /ab makes another")
    at = max(answers.index(found), 1)
    first, second = answers[at - 1], answers[at]
    labels = [
        " · ".join([f"version {number} of {len(answers)}", *_differences(one.turn, other.turn)])
        for number, one, other in ((at, first, second), (at + 1, second, first))
    ]
    return _ordered(conversation, Side(labels[0], first), Side(labels[1], second), _same(first.turn, second.turn))


def with_and_without_adapter(session: Session) -> Comparison:
    """The last answer beside the one that `Session.compare` begins."""
    last = session.conversation.read[-1]
    loaded, made = session.engine.info.adapter, _adapter(last.turn)
    stored = Side(_adapter_text(made), last)
    coming = Side(_adapter_text(loaded if made is None else None))
    same = "with the same settings" + ("" if last.turn.seed is None else f" and seed {last.turn.seed}")
    sides = (stored, coming) if made is None else (coming, stored)
    return Comparison(_question(session.conversation, last), sides, same)


def _answers(conversation: Conversation, node: Node) -> list[Node]:
    """The versions of an answer, oldest first; none for any other turn."""
    if node.turn.role != "assistant":
        return []
    versions = (conversation.nodes[id] for id in conversation.siblings(node.id))
    return [each for each in versions if each.turn.role == "assistant"]


def _ordered(conversation: Conversation, first: Side, second: Side, same: str) -> Comparison:
    assert first.node is not None
    assert second.node is not None
    swapped = _adapter(first.node.turn) is not None and _adapter(second.node.turn) is None
    return Comparison(_question(conversation, first.node), (second, first) if swapped else (first, second), same)


def _question(conversation: Conversation, answer: Node) -> str:
    asked = conversation.nodes.get(answer.parent or "")
    return one_line(asked.turn.content) if asked else ""


def _differences(turn: Turn, other: Turn) -> list[str]:
    """The model, adapter, seed and settings of an answer that the other one does not have."""
    one, two = turn.origin, other.origin
    if one is None or two is None:
        return []
    words = [short_name(one.model)] if one.model != two.model else []
    words += [_adapter_text(one.adapter)] if one.adapter != two.adapter else []
    words += [f"seed {turn.seed}"] if turn.seed != other.seed and turn.seed is not None else []
    words += [f"{name} {getattr(one.sampling, name)}" for name in _changed(one.sampling, two.sampling)]
    return words + (["another system prompt"] if one.system != two.system else [])


def _same(turn: Turn, other: Turn) -> str:
    one, two = turn.origin, other.origin
    if one is None or two is None or _changed(one.sampling, two.sampling) or one.system != two.system:
        return ""
    return "with the same settings" + (f" and seed {turn.seed}" if turn.seed == other.seed is not None else "")


def _changed(one: SamplingParams, two: SamplingParams) -> list[str]:
    """The settings, without the seed, in which two answers differ."""
    names = (item.name for item in fields(SamplingParams) if item.name != "seed")
    return [name for name in names if getattr(one, name) != getattr(two, name)]


def _adapter(turn: Turn) -> str | None:
    return turn.origin.adapter if turn.origin else None


def _adapter_text(adapter: str | None) -> str:
    return "base model" if adapter is None else f"with {short_name(adapter)}"
