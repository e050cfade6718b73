"""A strict, mechanical judge of answers: terms, subject, and the nearest known answer.

An answer about a topic is right if it is no refusal, has one term of each required group, has no forbidden term, does
not begin with the name of another topic, and of all known answers one of the right topic and facet is the most similar.
`evaluation/terms.txt` holds the terms by topic and facet.
"""

from __future__ import annotations

import collections
import re
from dataclasses import dataclass

from .evaluate import agreement, holds, refuses, words
from .knowledge import Guide
from .topics import DATA, Topic, first_sentence, labelled, split_label

TERMS = DATA.parent / "evaluation" / "terms.txt"
LEAST = 0.5  # agreement with a right answer
SHORTER = 0.75  # of the length of the answer before, at most


@dataclass(frozen=True)
class Terms:
    """Required groups of alternatives and forbidden terms; a term is the beginning of a word."""

    required: tuple[tuple[str, ...], ...]
    forbidden: tuple[str, ...] = ()

    def missed(self, answer: str) -> str:
        """The first rule that the answer breaks; "" if it keeps all."""
        for group in self.required:
            if not any(_has(answer, term) for term in group):
                return f"lacks {'|'.join(group)}"
        return next((f"has {term}" for term in self.forbidden if _has(answer, term)), "")


def _has(answer: str, term: str) -> bool:
    return re.search(r"(?<![a-z0-9])" + re.escape(term.lower()), answer.lower()) is not None


def read_terms() -> dict[tuple[str, str], Terms]:
    """Terms by name and facet; in the file groups are parted by ";", alternatives by "|", and "!" forbids."""
    found = {}
    for label, text in labelled(TERMS):
        groups = [[term.strip() for term in part.split("|")] for part in text.split(";")]
        required = tuple(tuple(group) for group in groups if not group[0].startswith("!"))
        forbidden = tuple(term.lstrip("!") for group in groups if group[0].startswith("!") for term in group)
        found[split_label(label)] = Terms(required, forbidden)
    return found


class Judge:
    """All known answers and the terms, to judge any answer."""

    def __init__(self, guide: Guide) -> None:
        self._guide = guide
        self._terms = read_terms()
        self._answers = [
            (topic.name, facet, answer)
            for topic in guide.topics
            for facet in (*topic.answers, "short")
            for answer in topic.facet(facet, {})
        ]
        self._lengths, self._places = [], collections.defaultdict(list)
        for at, (*_, answer) in enumerate(self._answers):
            counts = collections.Counter(words(answer))
            self._lengths.append(counts.total())
            for word, count in counts.items():
                self._places[word].append((at, count))
        self._names = {name.lower(): topic for name, topic in guide.by_name.items() if topic.kind != "self"}
        longest_first = "|".join(re.escape(name) for name in sorted(self._names, key=len, reverse=True))
        self._opening = re.compile(rf"(?:(?:in|with|to|an?|the|full|because)\s+)*({longest_first})(?![a-z0-9-])")

    def about(self, answer: str, topic: Topic, facet: str) -> str:
        """The first reason against an answer about a topic; "" if it is right."""
        accepted = topic.facet(facet, self._guide.frames)
        if refuses(answer) and not any(refuses(each) for each in accepted):
            return "refuses"
        if topic.kind == "self":
            broken = "" if holds(answer, topic.keys) else "lacks its keyword"
        else:
            broken = self.terms(topic, facet).missed(answer)
        if broken:
            return broken
        subject = self.subject(answer)
        if subject not in (None, topic) and subject not in [self.subject(each) for each in accepted]:
            return f"is about {subject.name}"
        if max(agreement(answer, each) for each in accepted) < LEAST:
            return "agrees with no right answer"
        nearest = self.nearest(answer)
        right = any(text in accepted for *_, text in nearest)
        return "" if right else f"is nearest to {' / '.join(nearest[0][:2]) if nearest else 'nothing'}"

    def terms(self, topic: Topic, facet: str) -> Terms:
        """Terms of a facet. Raises: KeyError if none are written."""
        return self._terms[(topic.name, facet)]

    def subject(self, answer: str) -> Topic | None:
        """The topic whose name an answer begins with."""
        match = self._opening.match(answer.lower())
        return self._names[match[1]] if match else None

    def nearest(self, answer: str) -> list[tuple[str, str, str]]:
        """(topic, facet, answer) of the known answers that are most similar."""
        ours, shared = collections.Counter(words(answer)), [0] * len(self._answers)
        for word, count in ours.items():
            for at, theirs in self._places.get(word, ()):
                shared[at] += min(count, theirs)
        total = ours.total()
        scores = [both / (total + length) for both, length in zip(shared, self._lengths, strict=True)]
        best = max(scores)
        return [known for known, score in zip(self._answers, scores, strict=True) if score == best > 0]

    def shorter(self, answer: str, before: str, topic: Topic) -> str:
        """The first reason against an answer that should say the one before in fewer words."""
        if len(words(answer)) > SHORTER * len(words(before)):
            return "is not shorter"
        if agreement(answer, first_sentence(before)) < LEAST:
            return "says something else"
        subject = self.subject(answer)
        return "" if subject in (None, topic, self.subject(before)) else f"is about {subject.name}"
