"""Questions about the conversation: "what did I ask?", and follow-ups that nothing comes before."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .topics import Turn

NOTHING_ASKED = ("You have not asked anything yet. Ask me about language models or macllm.",)
NOTHING_BEFORE = ("There is nothing before that. Ask me about language models or macllm first.",)
_FIRST = ("what did I ask first?", "what was my first question?", "what was the first thing I asked?")
_FIRST += ("my first question was?", "which question did I start with?", "how did this conversation begin?")
_FIRST += ("what did we begin with?", "what was the first topic?", "tell me my first question")
_LAST = ("what did I ask?", "what did I ask?", "what did I just ask?", "what was my question?", "my question was?")
_LAST += ("what was my last question?", "repeat my question", "what did I want to know?", "what was that about again?")
_LAST += ("what are we talking about?", "what were we talking about?", "which topic was that?", "what is the topic?")
_LAST += ("what did I ask before?", "what did I ask you about?", "do you know what I asked?", "say my question again")
_LAST += ("tell me what I asked", "I forgot my question", "I forgot what I asked", "remind me of my question")


def small_talk(turn: Turn) -> bool:
    """True if a turn leaves the conversation at the topic that it had."""
    return turn.category.startswith(("self", "then.recall"))


def asked_about(turn: Turn) -> str:
    """The part of a sentence that says what a turn is about."""
    topic = turn.topic
    if topic is None:
        return "something that I do not know"
    return f"how to {topic.name}" if topic.kind == "task" else topic.name


def recall(rng: random.Random, turns: Sequence[Turn]) -> Turn:
    """A question on what was asked: last, or first of several."""
    real = [turn for turn in turns if not small_talk(turn)]
    if not real:
        return Turn(rng.choice(_LAST + _FIRST), NOTHING_ASKED[0], NOTHING_ASKED, None, "self.recall")
    first = len(real) > 1 and rng.random() < 0.35
    turn = real[0] if first else real[-1]
    answer = f"{'Your first question was' if first else 'You asked'} about {asked_about(turn)}."
    return Turn(rng.choice(_FIRST if first else _LAST), answer, (answer,), turn.topic, "then.recall", turn.told)


def nothing_before(question: str) -> Turn:
    """A follow-up as the first question."""
    return Turn(question, NOTHING_BEFORE[0], NOTHING_BEFORE, None, "self.nothing")
