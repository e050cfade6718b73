"""The use of the model's context by a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from macllm.units import count_text, tokens_text

from .conversation import Conversation, Node

_FULL_SHARE = 0.8  # share of the context above which a warning is shown


@dataclass(frozen=True)
class ContextUse:
    """Tokens of the context that are used; `limit_tokens` is None for a model without a stated limit."""

    used_tokens: int
    limit_tokens: int | None

    @property
    def fills_up(self) -> bool:
        """True from 80 % on."""
        return bool(self.limit_tokens) and self.used_tokens >= _FULL_SHARE * self.limit_tokens

    @property
    def is_full(self) -> bool:
        """True if no more tokens fit."""
        return self.limit_tokens is not None and self.used_tokens >= self.limit_tokens

    def warning(self, remedy: str) -> str:
        """A sentence with both numbers, and the command that makes room in a context that fills up."""
        share = self.used_tokens / self.limit_tokens if self.limit_tokens else 0.0
        numbers = f"{count_text(self.used_tokens)} of {tokens_text(self.limit_tokens or 0)}"
        return f"{min(share, 1):.0%} of the context is used ({numbers}); {remedy} makes room, /clear begins anew."


def used_tokens(conversation: Conversation) -> int:
    """Tokens of prompt and completion at the newest answer, without the messages left out since."""
    path, read = conversation.path, {node.id for node in conversation.read}
    newest = next((node.id for node in reversed(path) if node.turn.usage), None)
    left_out = [node for node in conversation.at(newest).read if node.id not in read]
    return tokens_at(path) - tokens_at(left_out)


def tokens_at(nodes: Sequence[Node]) -> int:
    """Tokens of prompt and completion at the newest answer among the nodes."""
    usage = next((node.turn.usage for node in reversed(nodes) if node.turn.usage), None)
    return usage.prompt_tokens + usage.completion_tokens if usage else 0
