"""Plain questions about each name of each topic: "What is RoPE?", "How do I quit the chat?"."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from .topics import Topic, is_plural, normalized

VARIATIONS = {  # of the plain form, with how often each is drawn; {x} is a name
    "what": {
        "what is {x}?": 8,
        "what's {x}?": 2,
        "what does {x} mean?": 1,
        "what {x} is": 1,
        "explain {x}": 2,
        "define {x}": 1,
        "{x}?": 1,
        "{x}": 2,
        "tell me about {x}": 1,
        "{x}: what is it?": 1,
    },
    "task": {
        "how do I {x}?": 8,
        "how to {x}": 2,
        "how can I {x}?": 2,
        "{x}": 1,
        "I want to {x}": 1,
        "{x}: how?": 1,
    },
    "place": {"tell me about {x}": 5, "{x}": 3, "{x}?": 2, "what about {x}?": 1, "explain {x}": 1},
}
_KINDS = {"task": "task", "place": "place"}


def plain(topic: Topic, name: str) -> str:
    """The plain question about one name of a topic; of small talk, the first question of its own."""
    if topic.kind == "self":
        question = topic.ask["what"][0]
    else:
        question = _filled(next(iter(VARIATIONS[_KINDS.get(topic.kind, "what")])), topic, name)
    return question[0].upper() + question[1:].rstrip("?") + ("?" if question.endswith("?") else ".")


def plain_questions(topics: Sequence[Topic]) -> dict[str, tuple[Topic, str]]:
    """Topic and name by plain question, normalized, for every name; of names alike, the first."""
    found: dict[str, tuple[Topic, str]] = {}
    for topic in topics:
        for name in topic.names[:1] if topic.kind == "self" else topic.names:
            found.setdefault(normalized(plain(topic, name)), (topic, name))
    return found


def plain_turns(rng: random.Random, topics: Sequence[Topic]) -> Iterator[tuple[Topic, str]]:
    """Topics with variations of the plain question, without end; no name comes again before all came."""
    names = [(topic, name) for topic in topics if topic.kind != "self" for name in topic.names]
    while True:
        rng.shuffle(names)
        for topic, name in names:
            variations = VARIATIONS[_KINDS.get(topic.kind, "what")]
            chosen = rng.choices(list(variations), list(variations.values()))[0]
            yield topic, _filled(chosen, topic, name)


def _filled(variation: str, topic: Topic, name: str) -> str:
    question = variation.replace("{x}", name)
    if topic.kind not in ("task", "place") and is_plural(name):
        question = question.replace("what is ", "what are ").replace("what's ", "what are ")
        question = re.sub(r"^what does (.*) mean\?$", r"what do \1 mean?", question)
        question = re.sub(r" is$", " are", question).replace("what is it?", "what are they?")
    return question
