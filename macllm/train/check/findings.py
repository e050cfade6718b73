"""Findings in the rows of one file."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from macllm.errors import DataError
from macllm.train.config.objective import OBJECTIVES, AnyObjective
from macllm.train.rows import Chat, PlainText, Preference, PromptOnly, Row, TaggedWords, UnpairedPreference
from macllm.train.turns import UnstableTemplateError
from macllm.train.unused import has_unused_columns
from macllm.units import count_text

from .report import Finding, Level
from .split import CheckedSplit, RunSettings

MOST_PLACES = 100
_WITHOUT_ENDS = ("classify", "tag", "mlm", "span", "infill")  # objectives that learn no end of an answer
_SHARE_LONGER = 0.6  # share of pairs with the longer answer chosen, above which length is told
_SURE = 3.0  # standard deviations of a fair coin
_LOPSIDED = 0.1  # share of the rarer label


def reading(split: CheckedSplit, settings: RunSettings) -> Iterator[Finding]:
    """Rows that cannot be read or rendered; each stops a run that reads the file."""
    if split.unreadable:
        yield _errors(split, "unreadable", "that cannot be read", split.unreadable)
    if not split.rows and not split.unreadable:
        yield Finding("error", "no-rows", f"{split.path} has no rows")
    by_remedy: dict[tuple[bool, str | None], list[DataError]] = {}
    for error in split.unrenderable:
        by_remedy.setdefault((isinstance(error, UnstableTemplateError), error.remedy), []).append(error)
    for (unstable, remedy), errors in by_remedy.items():
        if unstable:
            text = "whose text does not begin with the template's generation prompt: answers cannot be found"
            yield _errors(split, "template-not-prefix-stable", text, errors, remedy)
        else:
            yield _errors(split, "unusable", "that cannot be encoded", errors, remedy)


def kinds(splits: Sequence[CheckedSplit], objective: AnyObjective = "sft") -> Iterator[Finding]:
    """Kinds of rows that one run cannot mix, or that the objective does not learn from."""
    found: Counter[str] = Counter(row.kind for split in splits for row in split.rows)
    taken = OBJECTIVES[objective].rows
    others = [kind for kind in found if kind not in (each.kind for each in taken)]
    counted = ", ".join(f"{count_text(count)} {kind}" for kind, count in found.items())
    if others and len(found) > 1:
        places = [row.where for split in splits for row in split.rows if row.kind == min(found, key=found.__getitem__)]
        text = f"rows of kinds that no objective takes together: {counted}"
        yield finding("error", "mixed-kinds", text, places, "one kind of row in a file")
        return
    if others and Chat not in taken:
        text = f"{counted} rows, and objective is {objective}"
        remedy = f"rows of {' or '.join(each.form for each in taken)}"
        yield Finding("error", "other-objective", text, found[others[0]], remedy=remedy)
    elif others:
        use = next(row.use for split in splits for row in split.rows if hasattr(row, "use"))  # type: ignore[union-attr]
        yield Finding(
            "error", "other-objective", f"{counted} rows are for {use}; language modelling refuses them",
            found[others[0]], remedy='rows of {"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": ...}',
        )  # fmt: skip
    elif len(found) > 1:
        yield Finding("note", "several-kinds", f"rows of several kinds: {counted}", sum(found.values()))


def supervision(split: CheckedSplit, settings: RunSettings) -> Iterator[Finding]:
    """Rows that are cut, that teach nothing, or that never teach an end."""
    if all(row.kind == PromptOnly.kind for row in split.rows):
        return
    counts, config = split.encoding.counted(), settings.config
    limit, total = count_text(settings.limit), max(1, sum(whole for whole, _ in split.wholes))
    if split.cut and config.long_rows == "truncate":
        text = f"cut to {limit} tokens: {count_text(counts.lost_tokens)} tokens ({counts.lost_tokens / total:.1%}) and "
        yield in_rows(split, "warning", "truncated", f"{text}the ends are lost", split.cut, "--max-seq-length")
    elif split.cut and config.long_rows != "error":
        done = "dropped" if config.long_rows == "drop" else "split into pieces where they are texts, else cut"
        yield in_rows(split, "note", "long", f"longer than {limit} tokens: {done}", split.cut, "--max-seq-length")
    if not split.rows or settings.objective in _WITHOUT_ENDS:
        return
    nothing = split.role == "train" and bool(split.wholes) and not split.encoding.kept
    if places := split.unsupervised + split.dropped * nothing:
        remedy = "answers of the assistant in these rows, or a larger --max-seq-length"
        text = "without supervised tokens: nothing is learned from them"
        yield in_rows(split, "error" if nothing else "warning", "unsupervised", text, places, remedy)
    if split.unended:
        remedy = "a template that ends an answer with an end token"
        untaught = len(split.unsupervised) + len(split.dropped) + len(split.unrenderable)
        if len(split.unended) + untaught == len(split.rows):
            text = "all: no end of an answer is supervised, the model will not learn to stop"
        else:
            text = "where no end of an answer is supervised"
        yield in_rows(split, "warning", "end-never-learned", text, split.unended, remedy)
    if split.without_calls:
        text = "with a call of a tool that the template does not write: it is not learned"
        yield in_rows(
            split, "warning", "call-left-out", text, split.without_calls, "a model whose template writes calls"
        )
    if split.without_reasoning:
        text, remedy = "with reasoning that the template does not write: it is not learned", "a model that reasons"
        yield in_rows(split, "warning", "reasoning-left-out", text, split.without_reasoning, remedy)
    if split.unknown_roles:
        text = "with a message of a role that the template does not name"
        yield in_rows(
            split, "warning", "unknown-role", text, split.unknown_roles, "roles system, user, assistant and tool"
        )
    if split.expanded:
        text = "whose template rewrites earlier answers: one example for each answer, {} tokens in place of {}"
        text = text.format(*map(count_text, split.expanded_tokens))
        yield in_rows(split, "note", "expanded", text, split.expanded)


def content(split: CheckedSplit, settings: RunSettings) -> Iterator[Finding]:
    """Empty turns, unused columns, conversations without a last answer, special tokens in messages."""
    empty = [row.where for row in split.rows if _has_empty_turn(row)]
    if empty:
        yield in_rows(split, "warning", "empty-turns", "with an empty turn", empty, "leave them out, or complete them")
    unused = [row.where for row in split.rows if has_unused_columns(row, settings.tokenizer)]
    if unused:
        text = "with tools or variables for a template, which are ignored: their text is made without one"
        yield in_rows(split, "note", "unused-columns", text, unused)
    open_ended = [row.where for row in split.rows if isinstance(row, Chat) and row.messages[-1]["role"] != "assistant"]
    if open_ended:
        text = "with messages after the last answer, which are not learned"
        yield in_rows(split, "note", "open-ended", text, open_ended)
    names = filter(None, map(settings.tokenizer.id_to_token, sorted(settings.tokenizer.special_ids)))
    if pattern := "|".join(re.escape(name) for name in names if len(name) > 2):
        spelled = re.compile(pattern)
        if found := [row.where for row in split.rows if any(map(spelled.search, _message_texts(row)))]:
            text = "with the text of a special token in a message or prompt: it becomes that token"
            yield in_rows(split, "warning", "special-in-text", text, found, "remove it, or check that it is meant")


def preferences(split: CheckedSplit, settings: RunSettings) -> Iterator[Finding]:
    """Pairs without a difference, and answers that can be told apart by their length or their label alone."""
    pairs = [row for row in split.rows if isinstance(row, Preference)]
    if equal := [row.where for row in pairs if row.chosen == row.rejected]:
        yield in_rows(split, "warning", "equal-pair", "whose chosen and rejected answers are equal", equal)
    longer = sum(better > worse for better, worse, _ in split.pairs)
    shorter = sum(better < worse for better, worse, _ in split.pairs)
    if unequal := longer + shorter:
        share = max(longer, shorter) / unequal
        means = [sum(lengths) / len(split.pairs) for lengths in zip(*((a, b) for a, b, _ in split.pairs), strict=True)]
        which = "longer" if longer > shorter else "shorter"
        told = share >= _SHARE_LONGER and abs(longer - shorter) > _SURE * math.sqrt(unequal)
        text = f"the chosen answer is the {which} one in {share:.0%} of pairs, with {means[0]:.0f} tokens on average "
        text += f"against {means[1]:.0f}" + (": the length alone tells them apart" if told else "")
        yield Finding("warning" if told else "note", "length-bias", text + _in(split), max(longer, shorter))
    labels = Counter(row.label for row in split.rows if isinstance(row, UnpairedPreference))
    if labels and min(labels[True], labels[False]) < _LOPSIDED * labels.total():
        text = f"{count_text(labels[True])} good and {count_text(labels[False])} bad answers{_in(split)}"
        yield Finding("warning", "lopsided-labels", text, labels.total())


def _has_empty_turn(row: Row) -> bool:
    if isinstance(row, PlainText):
        return not row.text.strip()
    if isinstance(row, TaggedWords):
        return not any(word.strip() for word in row.words)
    parts = [row.messages] if isinstance(row, Chat) else [row.prompt]
    parts += [getattr(row, name) for name in ("completion", "chosen", "rejected") if hasattr(row, name)]
    if isinstance(row, Preference) and not row.prompt:  # the answers begin with it
        parts = parts[1:]
    return any(not part or not _has_text(part) for part in parts)


def _has_text(part: Any) -> bool:
    """True if a text, or each message of a conversation, has something in it."""
    if isinstance(part, str):
        return bool(part.strip())
    return all(message.get("tool_calls") or any(text.strip() for text in _texts(message)) for message in part)


def _texts(message: dict[str, Any]) -> Iterator[str]:
    inside = message.get("content")
    for part in inside if isinstance(inside, list) else [inside]:
        text = part.get("text") if isinstance(part, dict) else part
        yield text if isinstance(text, str) else repr(part) if part else ""


def _message_texts(row: Row) -> Iterator[str]:
    """All texts that become a part of a prompt or an answer; a row of text alone may have special tokens."""
    for name in ("messages", "prompt", "completion", "chosen", "rejected"):
        yield from _strings(getattr(row, name, None))


def _strings(value: Any) -> Iterator[str]:
    """The texts in a value, on all levels."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _errors(
    split: CheckedSplit, code: str, text: str, errors: Sequence[DataError], remedy: str | None = None
) -> Finding:
    told = [f"{error.message}: {error.cause}" if error.cause else error.message for error in errors]
    remedies = {error.remedy for error in errors}
    return in_rows(split, level_of(split), code, text, told, remedy or (len(remedies) == 1 and remedies.pop()) or "")


def level_of(split: CheckedSplit) -> Level:
    """The level of a fault that stops a run, in the rows of a file that a run reads or not."""
    return "warning" if split.role == "test" else "error"


def in_rows(
    split: CheckedSplit, level: Level, code: str, text: str, places: Sequence[str], remedy: str = ""
) -> Finding:
    """A finding of rows at `places`, with their number before the text."""
    return finding(level, code, f"{rows_of(split, len(places))} {text}", places, remedy)


def finding(level: Level, code: str, text: str, places: Iterable[str], remedy: str = "") -> Finding:
    """A finding with its number of places, and the first of them."""
    all_places = list(places)
    return Finding(level, code, text, len(all_places), tuple(all_places[:MOST_PLACES]), remedy)


def rows_of(split: CheckedSplit, count: int) -> str:
    """A number of rows in words, with the name of the file unless it is that of the training rows."""
    return f"{count_text(count)} row{'s' * (count != 1)}{_in(split)}"


def _in(split: CheckedSplit) -> str:
    return "" if split.role == "train" else f" of {split.name}"
