"""Rows of one file, read and encoded as in training, with every error in place of the first."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from macllm.errors import DataError
from macllm.train import rows
from macllm.train.config import FinetuneConfig, PretrainConfig, TrainConfig
from macllm.train.config.objective import AnyObjective
from macllm.train.encoding import Encoding
from macllm.train.events import Advanced
from macllm.train.objectives.prompts import to_prompt
from macllm.train.objectives.texts import source_and_target
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
from macllm.train.unused import Unused, unused

from .shown import Shown, show

if TYPE_CHECKING:
    from macllm.text.tokenizer import Tokenizer

Role = Literal["train", "valid", "test"]
_CHUNK = 4096  # examples that are counted together
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


@dataclass(frozen=True)
class RunSettings:
    """Settings of the run that the rows are for.

    `limit` is its longest example in tokens; `context_length` is that of the model, if it is known.
    """

    config: TrainConfig
    tokenizer: Tokenizer
    limit: int
    context_length: int | None = None

    @property
    def objective(self) -> AnyObjective:
        """The objective of the run; that of a config without one is sft."""
        config = self.config
        return config.objective if isinstance(config, FinetuneConfig | PretrainConfig) else "sft"


@dataclass(frozen=True)
class SourceAndTarget(Example):
    """A source and its supervised target, one after the other; the length is that of the longer one."""

    border: int = 0

    @classmethod
    def of(cls, row: Row, tokenizer: Tokenizer) -> SourceAndTarget:
        """The example of a row. Raises DataError for one without both."""
        source, target = source_and_target(row, tokenizer)
        tokens = np.concatenate([source.tokens, target.tokens])
        mask = np.arange(len(tokens)) >= len(source)
        return cls(tokens, mask, row.where, border=len(source), first_end=0 if target.ends else None)

    def __len__(self) -> int:
        return max(self.border, len(self.tokens) - self.border)

    def cut(self, start: int, stop: int) -> SourceAndTarget:
        """The beginnings of both."""
        kept = np.r_[: self.border][:stop].tolist() + np.r_[self.border : len(self.tokens)][:stop].tolist()
        border, first_end = min(self.border, stop), self.first_end if len(self) <= stop else None
        return replace(
            self, tokens=self.tokens[kept], loss_mask=self.loss_mask[kept], border=border, first_end=first_end
        )


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
    full: list[str] = field(default_factory=list[str])  # prompts as long as the context
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
    if isinstance(row, Preference):
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
    elif isinstance(row, PromptOnly) and len(longest[0]) == settings.context_length:
        split.full.append(row.where)
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
    if isinstance(row, PromptOnly):
        tokens = to_prompt(row, tokenizer, config.now).tokens
        return [Example(tokens, np.zeros(len(tokens), dtype=bool), row.where)]
    if settings.objective == "seq2seq" and isinstance(row, PromptCompletion):
        return [SourceAndTarget.of(row, tokenizer)]
    made = to_examples(row, tokenizer, config.mask_prompt, config.now)
    if settings.objective in ("classify", "tag"):  # of which no token is learned
        return [replace(each, loss_mask=np.zeros(len(each), dtype=bool)) for each in made]
    return made
