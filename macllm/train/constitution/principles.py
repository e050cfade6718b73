"""Principles in a TOML file, and what a model is asked about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from macllm.errors import UsageError
from macllm.train.config.values import nearest, read_toml

_CRITIQUE = (
    "Here is a question and an answer to it.\n\nQuestion: {question}\n\nAnswer: {answer}\n\n"
    "Name every place where the answer breaks this rule: {principle}"
)
_REVISION = (
    "Here is a question, an answer to it, and a critique of the answer.\n\nQuestion: {question}\n\nAnswer: {answer}\n\n"
    "Critique: {critique}\n\nWrite the answer again so that it keeps this rule: {principle}\n"
    "Reply with the new answer alone."
)
_PREFERENCE = (
    "Here is a question and two answers to it.\n\nQuestion: {question}\n\nAnswer A: {first}\n\nAnswer B: {second}\n\n"
    "Which answer keeps this rule better? {principle}\nReply with A or B alone."
)
_NAMES = {
    "critique": frozenset({"question", "answer", "principle"}),
    "revision": frozenset({"question", "answer", "critique", "principle"}),
    "preference": frozenset({"question", "first", "second", "principle"}),
}
_PLACE = re.compile(r"\{(\w+)\}")
_REMEDY = '[[principle]]\nname = "plain"\ntext = "Use short, common words."'


@dataclass(frozen=True)
class Principle:
    """A rule that answers are to keep, and the texts that ask a model about it.

    Words in braces stand for values: {question}, {principle}; {answer} and in a revision {critique}; in a preference
    {first} and {second}. A revision without {critique} is asked for at once, with no critique before it
    (arXiv:2212.08073, 3.5).
    """

    name: str
    text: str
    critique: str = _CRITIQUE
    revision: str = _REVISION
    preference: str = _PREFERENCE

    def __post_init__(self) -> None:
        for name, allowed in _NAMES.items():
            text: str = getattr(self, name)
            if unknown := sorted(set(_PLACE.findall(text)) - allowed):
                raise UsageError(
                    f"the {name} of the principle {self.name!r} has an unknown {{{unknown[0]}}}",
                    remedy=f"one of {', '.join(f'{{{each}}}' for each in sorted(allowed))}",
                )
        if self.critique != _CRITIQUE and not self.is_criticized:
            raise UsageError(
                f"the critique of the principle {self.name!r} has no effect",
                cause="its revision does not have {critique}",
                remedy="{critique} in the revision, or no critique",
            )

    @property
    def is_criticized(self) -> bool:
        """True if a revision reads a critique."""
        return "critique" in _PLACE.findall(self.revision)

    def asked(self, about: str, **values: str) -> str:
        """The text for a critique, a revision or a preference; braces within the values stay as they are."""
        known: Mapping[str, str] = {**values, "principle": self.text}
        return _PLACE.sub(lambda place: known[place[1]], getattr(self, about))


def read(path: Path) -> list[Principle]:
    """The principles of a file. Raises UsageError for a file without any, and for unknown or missing keys."""
    content = read_toml(path)
    entries = content.get("principle")
    if not isinstance(entries, list) or not entries or set(content) - {"principle"}:
        raise UsageError(f"{path} has no list of principles", remedy=_REMEDY)
    found = [_principle(entry, path, number) for number, entry in enumerate(entries, 1)]
    names = [each.name for each in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{path} has two principles named {twice!r}", remedy="another name for one of them")
    return found


def _principle(entry: Any, path: Path, number: int) -> Principle:
    where = f"principle {number} of {path}"
    known = [field.name for field in fields(Principle)]
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is not a table", remedy=_REMEDY)
    for name, value in entry.items():
        if name not in known:
            near = nearest(name, known)
            raise UsageError(
                f"{where} has an unknown key {name!r}", remedy=f"did you mean {near}?" if near else _REMEDY
            )
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{where}: {name} must be a text", remedy=_REMEDY)
    if missing := [name for name in ("name", "text") if name not in entry]:
        raise UsageError(f"{where} has no {missing[0]}", remedy=_REMEDY)
    return Principle(**entry)
