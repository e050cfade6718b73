"""Kinds of rows: TRL's dataset types, each with strings or with messages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, ClassVar

Messages = list[dict[str, Any]]
Label = str | int | bool


@dataclass(frozen=True)
class PlainText:
    """Text with a loss on every token, or with the label of the whole text.

    `unused` are the columns of its row that only a chat template reads.
    """

    kind: ClassVar[str] = "text"
    form: ClassVar[str] = '{"text": ...}'

    text: str
    where: str
    unused: tuple[str, ...] = field(default=(), compare=False, repr=False)
    label: Label | None = None


@dataclass(frozen=True)
class TaggedWords:
    """Words, each with a label."""

    kind: ClassVar[str] = "tagged words"
    form: ClassVar[str] = '{"words": [...], "tags": [...]}'
    use: ClassVar[str] = "objectives that label words (tag)"

    words: tuple[str, ...]
    tags: tuple[Label, ...]
    where: str


@dataclass(frozen=True)
class Chat:
    """A conversation, with the tools and variables for its template."""

    kind: ClassVar[str] = "chat"
    form: ClassVar[str] = '{"messages": [...]}'

    messages: Messages
    tools: list[Any] | None
    where: str
    variables: dict[str, Any] | None = None


@dataclass(frozen=True)
class PromptOnly:
    """A prompt without an answer; `columns` are the others of its row, for functions that reward answers."""

    kind: ClassVar[str] = "prompt"
    form: ClassVar[str] = '{"prompt": ...}'
    use: ClassVar[str] = "objectives that generate the answers, such as GRPO"

    prompt: str | Messages
    where: str
    tools: list[Any] | None = None
    variables: dict[str, Any] | None = None
    columns: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class PromptCompletion:
    """A prompt and its completion, both strings or both messages."""

    kind: ClassVar[str] = "prompt and completion"
    form: ClassVar[str] = '{"prompt": ..., "completion": ...}'

    prompt: str | Messages
    completion: str | Messages
    where: str
    tools: list[Any] | None = None
    variables: dict[str, Any] | None = None


@dataclass(frozen=True)
class Preference:
    """A prompt, perhaps empty, with a better and a worse completion, all strings or all messages.

    `margin` says how much better; reward models learn at least this difference.
    """

    kind: ClassVar[str] = "preference"
    form: ClassVar[str] = '{"prompt": ..., "chosen": ..., "rejected": ...}'
    use: ClassVar[str] = "objectives that compare answers, such as DPO and reward models"

    prompt: str | Messages
    chosen: str | Messages
    rejected: str | Messages
    where: str
    tools: list[Any] | None = None
    variables: dict[str, Any] | None = None
    margin: float = 0.0


@dataclass(frozen=True)
class UnpairedPreference:
    """A prompt and a completion, and True for a good completion."""

    kind: ClassVar[str] = "unpaired preference"
    form: ClassVar[str] = '{"prompt": ..., "completion": ..., "label": true}'
    use: ClassVar[str] = "objectives that judge single answers, such as KTO"

    prompt: str | Messages
    completion: str | Messages
    label: bool
    where: str
    tools: list[Any] | None = None
    variables: dict[str, Any] | None = None


Row = PlainText | TaggedWords | Chat | PromptOnly | PromptCompletion | Preference | UnpairedPreference


def content_key(row: Row) -> bytes:
    """16 bytes that are equal for rows with equal contents only, wherever they are."""
    return blake2b(repr(replace(row, where="")).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def weight_of(message: dict[str, Any]) -> float:
    """The loss weight of a message's tokens, 1 unless the row gives one."""
    return float(message.get("weight", 1))


def label_name(label: Label) -> str:
    """The name of a label: a string as it is, 3 as "3", True as "true"."""
    return str(label).lower() if isinstance(label, bool) else str(label)
