"""Rows of one file, read and encoded as in training, with every error in place of the first."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from macllm.errors import DataError
from macllm.train import rows
from macllm.train.alignment import text_tokens
from macllm.train.config import TrainConfig
from macllm.train.encoding import Encoding
from macllm.train.events import Advanced
from macllm.train.render import Example, to_examples
from macllm.train.rows import (
    Chat,
    Messages,
    PlainText,
    Preference,
    PromptCompletion,
    PromptOnly,
    Row,
    TaggedWords,
    UnpairedPreference,
)
from macllm.train.turns import ChatTurns
from macllm.train.unused import Unused, unused

from .shown import Shown, show

if TYPE_CHECKING:
    from macllm.text.tokenizer import Tokenizer

Role = Literal["train", "valid", "test"]
_CHUNK = 4096  # examples that are counted together
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


@dataclass(frozen=True)
class RunSettings:
    """Settings of the run that the rows are for; `limit` is its longest example in tokens."""

    config: TrainConfig
    tokenizer: Tokenizer
    limit: int


@dataclass
class CheckedSplit:
    """A file's rows, their errors, and the examples that a run would train on.

    A run does not read "test" rows. `wholes` are the lengths of examples before they are cut, in total and supervised;
    `pairs` are the lengths of better and worse answers, with the place of each pair; `expanded_tokens` are those of the
    examples of expanded rows, in total and in the longest of each row.
    """

    role: Role
    name: str
    path: str
    rows: list[Row] = field(default_factory=list[Row])
    unreadable: list[DataError] = field(default_factory=list[DataError])
    unrenderable: list[DataError] = field(default_factory=list[DataError])
    wholes: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    cut: list[str] = field(default_factory=list[str])
    unsupervised: list[str] = field(default_factory=list[str])
    unended: list[str] = field(default_factory=list[str])
    dropped: list[str] = field(default_factory=list[str])
    without_calls: list[str] = field(default_factory=list[str])  # with a call of a tool that the template leaves out
    without_reasoning: list[str] = field(default_factory=list[str])  # with reasoning that the template leaves out
    unknown_roles: list[str] = field(
        default_factory=list[str]
    )  # with a message of a role that the template does not name
    expanded: list[str] = field(default_factory=list[str])
    expanded_tokens: tuple[int, int] = (0, 0)
    pairs: list[tuple[int, int, str]] = field(default_factory=list[tuple[int, int, str]])
    shown: list[Shown] = field(default_factory=list[Shown])
    encoding: Encoding[Example] = field(default_factory=lambda: Encoding[Example]("truncate", 1))

    def token_counts(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Occurrences of each token in the kept examples, (size,) int64: all, and supervised ones."""
        seen, supervised = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        kept = self.encoding.kept
        for start in range(0, len(kept), _CHUNK):
            tokens = np.concatenate([example.tokens for example in kept[start : start + _CHUNK]])
            mask = np.concatenate([example.loss_mask for example in kept[start : start + _CHUNK]])
            seen += np.bincount(tokens, minlength=size)[:size]
            supervised += np.bincount(tokens[mask], minlength=size)[:size]
        return seen, supervised


def read_split(
    role: Role, name: str, path: rows.Source, settings: RunSettings
) -> Generator[Advanced, None, CheckedSplit]:
    """The rows of a file and the errors of those that cannot be read."""
    split = CheckedSplit(role, name, str(path), encoding=Encoding[Example](settings.config.long_rows, settings.limit))
    for number, row in enumerate(rows.each_row(path, settings.config.columns)):
        yield Advanced("reading", number, 0)
        if isinstance(row, DataError):
            split.unreadable.append(row)
        else:
            split.rows.append(row)
    return split


def encode_split(split: CheckedSplit, settings: RunSettings, shown: int) -> Generator[Advanced, None, None]:
    """Encode the rows; `shown` of them, one of each kind first, are kept as pieces of text."""
    chosen = _chosen(split.rows, shown)
    for number, row in enumerate(split.rows):
        yield Advanced("encoding", number, len(split.rows))
        try:
            _encode(split, row, settings, number in chosen)
        except DataError as error:
            split.unrenderable.append(error)


def _chosen(all_rows: list[Row], count: int) -> set[int]:
    """Numbers of rows to show: the first of each kind, then some evenly spaced."""
    firsts = {row.kind: number for number, row in reversed(list(enumerate(all_rows)))}
    chosen = set(sorted(firsts.values())[:count])
    for number in np.linspace(0, max(0, len(all_rows) - 1), max(1, count), dtype=int).tolist():
        if len(chosen) < min(count, len(all_rows)):
            chosen.add(number)
    return chosen


def _encode(split: CheckedSplit, row: Row, settings: RunSettings, is_shown: bool) -> None:
    sides = {side: _examples(part, settings) for side, part in _sides(row)}
    if len(sides) == 2:
        better, worse = (sum(each.num_target_tokens for each in examples) for examples in sides.values())
        split.pairs.append((better, worse, row.where))
    if is_shown:
        for side, examples in sides.items():
            split.shown += [show(each.cut(0, settings.limit), side, len(each), settings.tokenizer) for each in examples]
    longest = max(sides.values(), key=lambda examples: max(map(len, examples), default=0))
    split.wholes += [(len(each), each.num_target_tokens) for each in longest]
    left = unused(row, longest, settings.tokenizer)
    kept = split.encoding.add(row.kind, longest, left)
    if any(len(each) > settings.limit for each in longest):
        split.cut.append(row.where)
    is_long = bool(longest) and all(len(each) > settings.limit for each in longest)
    if is_long and settings.config.long_rows == "drop":
        split.dropped.append(row.where)
    elif not kept:
        split.unsupervised.append(row.where)
    elif not any(each.ends for each in kept):
        split.unended.append(row.where)
    if Unused.CALLS in left:
        split.without_calls.append(row.where)
    if Unused.REASONING in left:
        split.without_reasoning.append(row.where)
    _note_unknown_roles(split, row, settings.tokenizer)
    if len(longest) > 1:
        split.expanded.append(row.where)
        lengths, (total, single) = list(map(len, longest)), split.expanded_tokens
        split.expanded_tokens = total + sum(lengths), single + max(lengths)


def _note_unknown_roles(split: CheckedSplit, row: Row, tokenizer: Tokenizer) -> None:
    """Note a row with a message of a role that the template does not name."""
    if not _ROLES.issuperset(roles := {message["role"] for message in _conversation(row)}):
        sources = " ".join(tokenizer.chat_template.sources.values()) if tokenizer.chat_template else ""
        if any(role not in sources for role in roles - _ROLES):
            split.unknown_roles.append(row.where)


def _conversation(row: Row) -> Messages:
    """The messages that a row is of, in a prompt and its completion too; none of a row of strings."""
    parts = [row.messages] if isinstance(row, Chat) else [getattr(row, "prompt", ""), getattr(row, "completion", "")]
    return [message for part in parts if isinstance(part, list) for message in part]


def _sides(row: Row) -> list[tuple[str, Row]]:
    """The parts of a row that are encoded one by one, and the names of the parts of a pair."""
    match row:
        case Preference(prompt, chosen, rejected, where, tools, variables):
            return [
                ("chosen", PromptCompletion(prompt, chosen, where, tools, variables)),
                ("rejected", PromptCompletion(prompt, rejected, where, tools, variables)),
            ]
        case UnpairedPreference(prompt, completion, label, where, tools, variables):
            return [("good" if label else "bad", PromptCompletion(prompt, completion, where, tools, variables))]
        case TaggedWords(words, _, where):
            return [("", PlainText(" ".join(words), where))]
        case _:
            return [("", row)]


def _examples(row: Row, settings: RunSettings) -> list[Example]:
    config, tokenizer = settings.config, settings.tokenizer
    if not isinstance(row, PromptOnly):
        return to_examples(row, tokenizer, config.mask_prompt, config.now)
    if isinstance(row.prompt, str) and tokenizer.chat_template is None:
        tokens = text_tokens(row.prompt, tokenizer)
    else:
        asked = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else row.prompt
        turns = ChatTurns(asked, row.tools, row.where, tokenizer, now=config.now, variables=row.variables)
        tokens = tokenizer.encode(turns.render(range(len(asked)), answer_next=True), add_special_tokens=False)
    ids = np.array(tokens, dtype=np.int32)
    return [Example(ids, np.zeros(len(ids), dtype=bool), row.where)]
