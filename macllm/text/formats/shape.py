"""Bounded patterns that also recognize their own prefixes, for text that arrives in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Repeat:
    """`least` to `most` characters of a class, as `[characters]{least,most}` of a regular expression."""

    characters: str
    least: int = 0
    most: int = 64


SPACE = Repeat(r"\s")
NAME = Repeat(r"^\s<>\"'{}()\[\]=,|｜", 1, 128)

Atom = str | tuple[str, ...] | Repeat


class Shape:
    """A sequence of literals, alternatives and repeats of bounded length."""

    def __init__(self, *atoms: Atom) -> None:
        self._whole = re.compile("".join(map(_whole, atoms)))
        beginning = ""
        for atom in reversed(atoms):
            beginning = rf"(?:{_beginning(atom)}\Z|{_whole(atom)}{beginning})" if beginning else _beginning(atom)
        self._beginning = re.compile(rf"{beginning}\Z")

    def end(self, text: str, at: int = 0) -> int | None:
        """The end of a match that begins at `at`, else None."""
        match = self._whole.match(text, at)
        return match.end() if match else None

    def may_begin(self, text: str, at: int = 0) -> bool:
        """True if `text[at:]` could become a match with more text."""
        return self._beginning.match(text, at) is not None


class Literals:
    """Search for any of several literals in text that arrives in pieces."""

    def __init__(self, literals: Iterable[str]) -> None:
        self.all = tuple(sorted({each for each in literals if each}, key=len, reverse=True))
        self._any = re.compile("|".join(map(re.escape, self.all))) if self.all else None
        self._beginnings = {each[:size] for each in self.all for size in range(1, len(each))}
        self._longest = max(map(len, self._beginnings), default=0)

    def search(self, text: str, at: int) -> re.Match[str] | None:
        """The first literal from `at` on, the longest of those that begin there."""
        return self._any.search(text, at) if self._any else None

    def match(self, text: str, at: int) -> re.Match[str] | None:
        """The longest literal at `at`."""
        return self._any.match(text, at) if self._any else None

    def before(self, text: str) -> str:
        """The text before the first literal; the whole text if it has none."""
        found = self.search(text, 0)
        return text if found is None else text[: found.start()]

    def may_begin(self, text: str, at: int) -> bool:
        """True if `text[at:]` is a proper prefix of a literal."""
        return len(text) - at <= self._longest and text[at:] in self._beginnings

    def tail(self, text: str, at: int) -> int:
        """Start of the longest suffix of `text[at:]` that could begin a literal; len(text) if none could."""
        for start in range(max(at, len(text) - self._longest), len(text)):
            if text[start:] in self._beginnings:
                return start
        return len(text)


def _whole(atom: Atom) -> str:
    if isinstance(atom, Repeat):
        return f"[{atom.characters}]{{{atom.least},{atom.most}}}"
    if isinstance(atom, tuple):
        return f"(?:{'|'.join(map(re.escape, atom))})"
    return re.escape(atom)


def _beginning(atom: Atom) -> str:
    """A pattern that matches every prefix of the atom, the empty one included."""
    if isinstance(atom, Repeat):
        return f"[{atom.characters}]{{0,{atom.most}}}"
    pattern = ""
    for literal in (atom,) if isinstance(atom, str) else atom:
        nested = ""
        for character in reversed(literal):
            nested = f"(?:{re.escape(character)}{nested})?"
        pattern += ("|" if pattern else "") + nested
    # order does not matter: the regular expression tries each alternative up to the end of the text
    return f"(?:{pattern})"
