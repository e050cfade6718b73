"""Questions with numbered choices. No Textual in here."""

from __future__ import annotations

from .outcomes import Choice, Question


def chosen(question: Question, line: str) -> Choice | None:
    """The choice that a line makes by its number; None: the line is something else."""
    line = line.strip()
    if not line.isascii() or not line.isdecimal() or not 1 <= int(line) <= len(question.choices):
        return None
    return question.choices[int(line) - 1]


def as_text(question: Question) -> str:
    """The question and its choices, one a line."""
    return "\n".join([question.text, *(f"  {n}  {choice.label}" for n, choice in enumerate(question.choices, 1))])
