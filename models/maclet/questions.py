"""The questions of the examination, read from `evaluation/`; none of them is ever trained."""

from __future__ import annotations

from dataclasses import dataclass

from .topics import DATA, normalized

EVALUATION = DATA.parent / "evaluation"
STYLES = ("typo", "terse", "lower", "verbose", "indirect")
GENERIC_WORDS = 3  # a follow-up of so few words ("why?") cannot be kept from training


@dataclass(frozen=True)
class Wording:
    """A question about a topic in other words."""

    style: str
    label: str  # "topic / facet"
    question: str


@dataclass(frozen=True)
class FollowUp:
    """Questions with the labels of the answers given between them, and what the last one asks for."""

    questions: tuple[str, ...]
    answered: tuple[str, ...]  # "topic / facet" of the answers to all questions but the last
    expected: str  # "topic / facet", "shorter", "asked NAME", "asked first NAME", "refuse" or "differ X + Y"


def _lines(name: str) -> list[list[str]]:
    lines = (EVALUATION / name).read_text(encoding="utf-8").splitlines()
    return [[part.strip() for part in line.split(" | ")] for line in lines if line.strip()]


def wordings() -> list[Wording]:
    """Lines "style | topic / facet | question"."""
    return [Wording(*parts) for parts in _lines("wordings.txt")]


def follow_ups() -> list[FollowUp]:
    """Lines "question | label | question | ... | label | question | expected"."""
    return [FollowUp(tuple(parts[:-1:2]), tuple(parts[1:-2:2]), parts[-1]) for parts in _lines("follow_ups.txt")]


def refusals() -> list[str]:
    """Questions that must be refused."""
    return [parts[0] for parts in _lines("refusals.txt")]


def kept_from_training() -> set[str]:
    """All questions of the examination, normalized, that training data must not hold."""
    asked = [wording.question for wording in wordings()] + refusals()
    for follow_up in follow_ups():
        asked += [follow_up.questions[0]]
        asked += [question for question in follow_up.questions[1:] if len(question.split()) > GENERIC_WORDS]
    return {normalized(question) for question in asked}
