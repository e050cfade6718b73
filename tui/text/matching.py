"""Fuzzy matching of a typed query with choices. No Textual in here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Positions = tuple[int, ...]


def match(query: str, text: str, *, fuzzy: bool = True) -> tuple[int, Positions] | None:
    """(rank, positions of the matched characters), lower ranks first; None if the query does not match.

    0: the text begins with the query; 1: a word in it does; 2: it contains the query; from 3 on, with `fuzzy`: its
    characters are in the text in their order, with rank - 3 others between. Case does not matter.
    """
    folded, query = _lower(text), _lower(query)
    at = folded.find(query)
    if at == 0:
        return 0, tuple(range(len(query)))
    if at > 0:
        starts = [n for n in range(at, len(folded)) if folded.startswith(query, n)]
        word = next((n for n in starts if not text[n - 1].isalnum()), None)
        start = at if word is None else word
        return (2 if word is None else 1), tuple(range(start, start + len(query)))
    return _scattered(query, folded) if fuzzy else None


def ranked(
    query: str, items: Iterable[Item], text: Callable[[Item], str], *, fuzzy: bool = True
) -> list[tuple[Item, Positions]]:
    """The items that match, best first, with the matched positions in their text."""
    found = [(item, result) for item in items if (result := match(query, text(item), fuzzy=fuzzy)) is not None]
    return [(item, positions) for item, (_, positions) in sorted(found, key=lambda each: each[1][0])]


def _scattered(query: str, text: str) -> tuple[int, Positions] | None:
    """The closest match: it ends at the first possible end, and begins as late as possible before that."""
    at = -1
    for character in query:
        at = text.find(character, at + 1)
        if at < 0:
            return None
    positions = [at]
    for character in reversed(query[:-1]):
        at = text.rfind(character, 0, at)
        positions.append(at)
    positions.reverse()
    return 3 + positions[-1] - positions[0] + 1 - len(query), tuple(positions)


def _lower(text: str) -> str:
    """Lower case that keeps the number of characters, so that positions fit the original."""
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)
