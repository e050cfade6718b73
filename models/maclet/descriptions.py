"""Questions that describe a topic without its name, made from what is known of it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from .topics import Topic, first_sentence

_OF_A_VERB = ("what {}?", "which thing {}", "which part {}?", "the thing that {}", "it {}. What is it?")
_OF_A_VERB += ("something {}, what is that", "name of what {}", "what do you call a thing that {}", "it {}, its name?")
_OF_A_VERB += ("explain what {}", "tell me about the thing which {}", "that which {}", "what is it called that {}")
_OF_A_NOUN = ("{}: what is it called?", "what do you call {}?", "{}, what is that", "{}", "which term means {}?")
_OF_A_NOUN += ("what is the name of {}", "how is {} called", "explain the thing that is {}", "the word for {}")


def described(rng: random.Random, topic: Topic) -> str:
    """A question from a sentence of a definition; "" if none says it without the name."""
    found = [question for answer in topic.answers["what"] if (question := _question(rng, topic, answer))]
    return rng.choice(found) if found else ""


def _question(rng: random.Random, topic: Topic, answer: str) -> str:
    names = _alternatives(topic.names)
    sentence = first_sentence(answer)
    opening = re.match(rf"(?:(?:an?|the) )?(?:{names})(?![\w-]) ", sentence, re.IGNORECASE)
    if opening is None:
        return ""
    said = sentence[opening.end() :].rstrip(".")
    if "," in said and rng.random() < 0.5:
        said = said.partition(",")[0]
    if re.search(rf"(?<![\w-])(?:{names})(?![\w-])", said, re.IGNORECASE) or len(said.split()) < 4:
        return ""
    noun = re.match(r"(?:is|are) (?=an?\b|the\b|one\b|some\b)", said)
    if noun:
        return rng.choice(_OF_A_NOUN).replace("{}", said[noun.end() :])
    return rng.choice(_OF_A_VERB).replace("{}", said)


def _alternatives(names: Sequence[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
