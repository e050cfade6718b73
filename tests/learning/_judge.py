"""The principle that a program checks, and a judge by it that is wrong in one of five cases."""

from __future__ import annotations

import random

MOST_WORDS = 20
RIGHT = 0.8
PRINCIPLE = f"""[[principle]]
name = "brief"
text = "The answer must have at most {MOST_WORDS} words."
revision = "{{question}}\\nReply in one short sentence."
"""


def excess(answer: str) -> int:
    """Words beyond the limit; 0 for an answer that keeps the principle."""
    return max(0, len(answer.split()) - MOST_WORDS)


def exact(question: str, first: str, second: str, principle: str) -> float:
    """1 if the first answer breaks the principle by fewer words, -1 if the second does, 0 if neither."""
    return float((excess(first) < excess(second)) - (excess(first) > excess(second)))


def noisy(question: str, first: str, second: str, principle: str) -> float:
    """The same, with the other sign for one in five pairs, in whichever order they are asked."""
    is_right = random.Random(" ".join((question, *sorted((first, second))))).random() < RIGHT
    return exact(question, first, second, principle) * (1 if is_right else -1)
