"""Findings that depend on the objective: labels, prompts, and tokens that it takes from the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from macllm.errors import UsageError
from macllm.train.config.objective import OBJECTIVES, AnyObjective
from macllm.train.objectives import tokens
from macllm.train.rows import Label, PlainText, PromptOnly, Row, TaggedWords, label_name
from macllm.units import count_text

from .findings import finding, in_rows, level_of
from .report import Finding
from .split import CheckedSplit, RunSettings

_TOKENS: dict[AnyObjective, Callable[[Any], object]] = {
    "mlm": tokens.mask,
    "span": tokens.sentinels,
    "infill": tokens.mask,
}


def special_tokens(settings: RunSettings) -> Iterator[Finding]:
    """Tokens that the objective needs and the tokenizer lacks."""
    try:
        _TOKENS.get(settings.objective, bool)(settings.tokenizer)
    except UsageError as error:
        yield Finding("error", "no-such-token", error.message, 1, remedy=error.remedy or "")


def labels(splits: Sequence[CheckedSplit], objective: AnyObjective) -> Iterator[Finding]:
    """Texts without a label, labels that no training row has, and rows that all have the same one."""
    if OBJECTIVES[objective].head is None or objective == "reward":
        return
    names: dict[str, set[str]] = {}
    for split in splits:
        bare = [row.where for row in split.rows if isinstance(row, PlainText) and row.label is None]
        if bare:
            yield in_rows(split, level_of(split), "unlabelled", "without a label", bare, 'a column "label"')
        names.setdefault(split.role, set()).update(label_name(one) for row in split.rows for one in _labels(row))
    known = names.get("train", set()) | names.get("valid", set())
    if len(known) == 1:
        text = f"one label only: {known.pop()!r}"
        yield Finding("error", "one-label", text, 1, remedy="rows of at least two labels")
        return
    for split in splits:
        if split.role != "train" and (unseen := names[split.role] - names["train"]):
            places = [row.where for row in split.rows if unseen.intersection(map(label_name, _labels(row)))]
            text = f"with labels that no training row has: {', '.join(sorted(unseen)[:8])}"
            yield in_rows(split, "warning", "unseen-labels", text, places)


def _labels(row: Row) -> Sequence[Label]:
    if isinstance(row, TaggedWords):
        return row.tags
    return () if not isinstance(row, PlainText) or row.label is None else (row.label,)


def prompts(split: CheckedSplit, settings: RunSettings) -> Iterator[Finding]:
    """Prompts to which no answer can be generated: too long, or as long as the context."""
    if not split.rows or any(row.kind != PromptOnly.kind for row in split.rows):
        return
    if split.cut:
        text = f"longer than {count_text(settings.limit)} tokens: no answer is generated to them"
        all_are = split.role == "train" and len(split.cut) == len(split.rows)
        yield in_rows(
            split, "error" if all_are else "warning", "long-prompts", text, split.cut, "a larger --max-seq-length"
        )
    if split.full:
        text = "that fill the context, without room for an answer"
        remedy = "a smaller --max-seq-length, which leaves them out"
        yield finding(level_of(split), "no-room", f"{count_text(len(split.full))} prompts {text}", split.full, remedy)
