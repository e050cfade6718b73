"""Prompts as examples: the tokens that answers are generated after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Self

import numpy as np

from macllm.errors import DataError
from macllm.text.tokenizer import encode_unended
from macllm.train.render import TextTokenizer
from macllm.train.rows import PromptOnly, Row
from macllm.train.turns import ChatTurns


@dataclass(frozen=True)
class PromptExample:
    """The tokens (P,) int32 of a prompt, its text or messages, and the other columns of its row."""

    tokens: np.ndarray
    where: str
    prompt: Any
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_whole: bool = True

    @property
    def sequences(self) -> tuple[np.ndarray, ...]:
        """The tokens alone."""
        return (self.tokens,)

    @property
    def splittable(self) -> bool:
        """False: a piece of a prompt is another question."""
        return False

    @property
    def num_target_tokens(self) -> int:
        """The number of tokens that answers follow; 0 for a prompt that was cut, which is left out."""
        return len(self.tokens) * self.is_whole

    @property
    def ends(self) -> bool:
        """True: answers are generated to their ends."""
        return True

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, start: int, stop: int) -> Self:
        """The tokens from `start` to `stop`, which are no question any more."""
        return replace(self, tokens=self.tokens[start:stop], is_whole=False)

    def fingerprint(self) -> bytes:
        """Length, tokens, and the columns that rewards may read."""
        others = json.dumps([self.prompt, dict(self.columns)], sort_keys=True, default=str).encode()
        return len(self).to_bytes(8, "little") + self.tokens.tobytes() + others


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that are answered together."""

    prompts: Sequence[PromptExample]

    @property
    def num_target_tokens(self) -> int:
        """Number of tokens in the prompts."""
        return sum(each.num_target_tokens for each in self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)


def to_prompt(row: Row, tokenizer: TextTokenizer, now: datetime | None) -> PromptExample:
    """The prompt of a row.

    A text is a user's message where there is a chat template, else it is continued. Raises DataError for another row,
    and for an empty prompt.
    """
    if not isinstance(row, PromptOnly):
        raise DataError(
            f"{row.where} is a row of kind {row.kind}",
            cause="this objective generates the answers itself",
            remedy='rows of {"prompt": ...}, with other columns for the reward, such as "answer"',
        )
    if isinstance(row.prompt, str) and tokenizer.chat_template is None:
        tokens = encode_unended(tokenizer, row.prompt)
    else:
        messages = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else row.prompt
        if messages and messages[-1].get("role") == "assistant":
            raise DataError(
                f"{row.where} has a prompt that ends with an assistant's turn",
                cause="answers are whole turns",
                remedy="a prompt that ends with the user's turn",
            )
        turns = ChatTurns(messages, row.tools, row.where, tokenizer, now=now, variables=row.variables)
        text = turns.render(range(len(messages)), answer_next=True)
        tokens = tokenizer.encode(text, add_special_tokens=False)
    if not tokens:
        raise DataError(f"{row.where} has an empty prompt", remedy="at least one word")
    return PromptExample(np.array(tokens, dtype=np.int32), row.where, row.prompt, row.columns)
