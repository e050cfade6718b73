"""Questions and answers about all that maclet knows, and about what it does not, drawn at random."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from .descriptions import described
from .misspelling import misspelled
from .plain import plain_turns
from .topics import (
    DATA,
    FACETS,
    Topic,
    Turn,
    first_sentence,
    is_plural,
    kept_apart,
    labelled,
    normalized,
    read_sections,
    read_topics,
    reserve,
    split_label,
)

KNOWLEDGE = ("tokens", "positions", "attention", "architecture", "training", "sampling", "inference", "macllm", "self")
FOLLOW_UPS = {"why": 4, "how": 3, "example": 4, "cons": 2, "short": 3, "again": 3, "more": 3, "all": 1}  # weights
FOLLOW_UPS["memory"] = 2
SWITCHES = ("what", "what", "why", "how", "example")
OWN = 0.6  # of the questions about a topic that has questions of its own
MISSPELLED = 0.3  # of the questions: one slip of the keyboard or the ear in some 14 letters
HASTY = 0.12  # of the questions: one or two words left out
PLAIN = 0.34  # of the known questions; without them a plain form of a name is 1 in 90 of its questions
DESCRIBED = 0.12  # of the questions without a phrasing: a sentence of an answer, without the name
LONG = 0.25  # of the questions made of a phrasing and a name: two or three sentences
SMALL = frozenset(
    ("a", "an", "the", "is", "are", "do", "does", "of", "in", "to", "it", "that", "me", "my", "for", "can")
)
UNKNOWN = {"full": 6, "live": 5, "math": 4, "write": 7, "private": 7, "thing": 16, "near": 10, "made_up": 16}
UNKNOWN |= {"place": 3, "food": 3, "known": 9, "command": 3, "text": 4, "chore": 7, "pair": 4}  # weights
KNOWN_FRAMES = ("what", "what", "what", "why", "how", "example", "cons", "short", "compare")
NEIGHBOURS = ("attention", "tokenizer", "sampling", "decoding", "norm", "positions", "model", "cache")
ONSETS = (
    "b",
    "bl",
    "br",
    "c",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gl",
    "gr",
    "h",
    "j",
    "k",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "pr",
)
ONSETS += ("qu", "r", "s", "sk", "sn", "st", "t", "tr", "v", "w", "z")
VOWELS = ("a", "e", "i", "o", "u", "oo", "ea", "ai")
CODAS = ("n", "r", "x", "th", "ng", "ck", "st", "sm", "tron", "zation", "ing", "form")


class Guide:
    """All knowledge and phrasings, and how to ask for them at random."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.topics = [topic for name in KNOWLEDGE for topic in read_topics(DATA / f"{name}.txt")]
        self.concepts = [topic for topic in self.topics if topic.kind == "concept"]
        self.frames = read_sections(DATA / "frames.txt")
        self.outside = read_sections(DATA / "outside.txt")
        self.countable = set(self.frames["countable"])
        self.slots = {name: self._items(name) for name in ("thing", "near", "place", "person", "food", "company")}
        self.slots |= {name: self._items(name) for name in ("command", "adjective", "noun", "chore")}
        self._phrasings = {name: kept_apart(lines) for name, lines in (self.outside | self.frames).items()}
        self._things = {name: reserve(items) for name, items in self.slots.items()}
        self.by_name = {name.lower(): topic for topic in self.topics for name in topic.names}
        self.pairs = self._pairs()
        for label, answer in labelled(DATA / "more.txt"):
            name, facet = split_label(label)
            self.by_name[name.lower()].answers.setdefault(facet, []).append(answer)
        for topic in self.topics:
            for facet, answers in topic.answers.items():
                topic.answers[facet] = [topic.with_subject(facet, answer) for answer in answers]
        for label, questions in labelled(*sorted((DATA / "asks").glob("*.txt"))):
            name, facet = split_label(label)
            self._own(name, facet).ask.setdefault(facet, []).extend(questions.split(" | "))
        for label, questions in labelled(DATA / "tests.txt"):
            name, facet = split_label(label)
            self._own(name, facet).test.extend((facet, question) for question in questions.split(" | "))
        self.own = [(topic, facet, ask) for topic in self.topics for facet in topic.ask for ask in topic.ask[facet]]
        self._plain = plain_turns(rng, self.topics)
        known = {normalized(name) for name in self.by_name}
        clash = [thing for name in ("thing", "near") for thing in self.slots[name] if normalized(thing) in known]
        if clash:
            raise ValueError(f"both known and unknown: {clash}")

    def _own(self, name: str, facet: str) -> Topic:
        """The topic that questions are written for; it must have an answer to them."""
        topic = self.by_name.get(name.lower())
        if topic is None or facet not in topic.answers:
            raise ValueError(f"questions, but no answer: {name} / {facet}")
        return topic

    def _items(self, name: str) -> list[str]:
        return [item.strip() for line in self.outside[name] for item in line.split(",")]

    def _pairs(self) -> list[tuple[str, str, str]]:
        pairs = []
        for names, answer in labelled(DATA / "compare.txt"):
            first, _, second = names.partition(" | ")
            pairs.append((first, second, answer))
        return pairs

    # --- questions ---

    def named(self, name: str) -> str:
        """A name, with an article where one usually stands."""
        roll = self.rng.random()
        if name in self.countable and roll < 0.5:
            return f"{'an' if name[0].lower() in 'aeiou' or name[:2] in ('LL', 'LM', 'RN', 'Mo') else 'a'} {name}"
        article = name[0].islower() and roll > (0.75 if name in self.countable else 0.92)
        return f"the {name}" if article and not name.startswith("the ") else name

    def frame(self, section: str, heldout: bool) -> str:
        """A random phrasing; those marked `~` are for held-out questions only."""
        return self.rng.choice(self._phrasings[section][heldout])

    def styled(self, turn: Turn) -> str:
        """The question as somebody might type it: case, punctuation, a greeting before or a remark after."""
        rng, question = self.rng, turn.question
        alone = not turn.category.startswith(("then", "self", "unknown.text"))
        if alone and rng.random() < 0.08:
            question = f"{rng.choice(self.frames['before'])} {question}"
        if alone and rng.random() < 0.05:
            question = f"{question.rstrip('?')}, {rng.choice(self.frames['after'])}"
        if rng.random() < 0.45:
            question = question.lower()
            if rng.random() < 0.6:
                question = question.rstrip("?.")
        elif rng.random() < 0.7:
            question = question[:1].upper() + question[1:]
        if rng.random() < HASTY:
            question = self._hasty(question)
        if rng.random() < MISSPELLED:
            question = misspelled(rng, question)
        return question.strip()

    def _hasty(self, question: str) -> str:
        """The question without one or two of its small words or, if it is long, of any words."""
        words = question.split(" ")
        for _ in range(self.rng.choice((1, 1, 2))):
            long = len(words) > 9
            spare = [at for at, word in enumerate(words) if long or (len(words) > 3 and word.lower() in SMALL)]
            if spare:
                del words[self.rng.choice(spare)]
        return " ".join(words)

    # --- turns ---

    def about(self, topic: Topic, facet: str = "", heldout: bool = False) -> Turn:
        """A question about a topic; a random facet unless one is given."""
        rng = self.rng
        what = {"concept": "what"}.get(topic.kind, topic.kind)
        if not facet:
            absent = 0.12 if topic.kind == "concept" else 0
            weights = [0.8 if name in topic.answers else absent for name in FACETS[1:]]
            facet = rng.choices([*FACETS, "short", "all"], [1.6, *weights, 2 * absent, 2 * absent])[0]
        if topic.kind in ("self", "task", "place"):
            facet = "what"
        if facet in topic.ask and not heldout and (topic.kind == "self" or rng.random() < OWN):
            question = rng.choice(topic.ask[facet])
        else:
            name = rng.choice(topic.names)
            section = what if facet == "what" else facet
            if f"long.{section}" in self.frames and not heldout and rng.random() < LONG:
                section = f"long.{section}"
            plural = is_plural(name)
            if section == "what" and plural and rng.random() < 0.4:
                section = "what.plural"
            question = self.frame(section, heldout).replace("{x}", self.named(name))
            if plural and section in ("what", "what.plural", "long.what", "place"):
                question = re.sub(r"\b(is|does) (?=" + re.escape(name) + ")", _agree, question)
            elif what == "place":
                question = question.replace("what are ", "what is ")
        return self._answered(question, topic, facet)

    def _answered(self, question: str, topic: Topic, facet: str) -> Turn:
        accepted = tuple(self._accepted(topic, facet))
        return Turn(question, self.rng.choice(accepted), accepted, topic, f"{topic.kind}.{facet}")

    def _accepted(self, topic: Topic, facet: str) -> list[str]:
        return [self.everything(topic)] if facet == "all" else topic.facet(facet, self.frames)

    def everything(self, topic: Topic) -> str:
        """One answer of each facet, as one text."""
        return " ".join(self.rng.choice(topic.answers[facet]) for facet in FACETS if facet in topic.answers)

    def plain(self) -> Turn:
        """A plain question, as "what is RoPE?", about the next name."""
        topic, question = next(self._plain)
        return replace(self._answered(question, topic, "what"), category=f"plain.{topic.kind}.what")

    def known(self, heldout: bool = False) -> Turn:
        """A question that has an answer, about anything known."""
        if not heldout and self.rng.random() < PLAIN:
            return self.plain()
        roll = self.rng.random()
        if roll < 0.08:
            return self.comparison(heldout)
        if roll < 0.4 or heldout:
            return self.about(self.rng.choice(self.topics if not heldout else self.asked_by_frame()), heldout=heldout)
        if roll < 0.44:
            own = [topic for topic in self.topics if topic.kind not in ("concept", "self")]
            return self.about(self.rng.choice(own))
        return self._in_own_words()

    def asked_freely(self, unknown: float) -> Turn:
        """A question in words of its own, a description, or, in this share, one that must be refused."""
        return self.unknown() if self.rng.random() < unknown else self._in_own_words()

    def _in_own_words(self) -> Turn:
        """A question without a phrasing: written for its topic, or a description from one of its answers."""
        if self.rng.random() < DESCRIBED:
            topic = self.rng.choice(self.concepts)
            if question := described(self.rng, topic):
                return self._answered(question, topic, "what")
        topic, facet, question = self.rng.choice(self.own)
        return self._answered(question, topic, facet)

    def asked_by_frame(self) -> list[Topic]:
        """Topics that phrasings with a slot can ask for."""
        return [topic for topic in self.topics if topic.kind != "self"]

    def comparison(self, heldout: bool = False) -> Turn:
        """A question on the difference between two things."""
        first, second, answer = self.rng.choice(self.pairs)
        x, y = self.rng.sample([self.alias(first), self.alias(second)], 2)
        question = self.frame("compare", heldout).replace("{x}", x).replace("{y}", y)
        return Turn(question, answer, (answer,), self.by_name.get(first.lower()), "compare", (answer,))

    def alias(self, name: str) -> str:
        """The name itself or another name of the same topic."""
        topic = self.by_name.get(name.lower())
        return self.rng.choice(topic.names) if topic and self.rng.random() < 0.4 else name

    def unknown(self, heldout: bool = False) -> Turn:
        """A question that must be refused."""
        kind = self.rng.choices(list(UNKNOWN), list(UNKNOWN.values()))[0]
        question = self._unanswerable(kind, heldout)
        named = {"known": "refusal.about"}.get(kind, f"refusal.{kind}")
        if kind == "known" and re.search(r"\b(code|implement|poem)\b", question):
            named = "refusal.write"
        accepted = self.outside.get(named, self.outside["refusal"])
        return Turn(question, self.rng.choice(accepted), tuple(accepted), None, f"unknown.{kind}")

    def _unanswerable(self, kind: str, heldout: bool) -> str:
        if kind == "pair":
            x, y = self.uncompared()
            return self.frame("compare", heldout).replace("{x}", x).replace("{y}", y)
        if kind == "text":
            return f"{self.frame(kind, heldout)}\n\n<stdin>\n{self.attachment()}\n</stdin>"
        if kind in ("thing", "near", "made_up"):
            section = self.rng.choice(("thing.frames", self.rng.choice(KNOWN_FRAMES)))
            question = self.frame(section, heldout).replace("{x}", "{thing}").replace("{y}", "{thing}")
        else:
            known_alike = {"chore": "task", "command": "command"}.get(kind)
            section = f"{kind}.frames" if f"{kind}.frames" in self.outside else kind
            alike = known_alike and self.rng.random() < 0.5
            question = self.frame(known_alike if alike else section, heldout)
            question = question.replace("{x}", f"{{{kind}}}") if alike else question
        if kind == "known":
            question = question.replace("{x}", self.named(self.rng.choice(self.rng.choice(self.concepts).names)))
        return re.sub(r"\{(\w+)\}", lambda slot: self.slot(kind, slot[1], heldout), question)

    def uncompared(self) -> tuple[str, str]:
        """Names of two concepts that nothing is known to compare."""
        compared = {frozenset((self._id(first), self._id(second))) for first, second, _ in self.pairs}
        while True:
            first, second = self.rng.sample(self.concepts, 2)
            if frozenset((first.name, second.name)) not in compared:
                return self.rng.choice(first.names), self.rng.choice(second.names)

    def attachment(self) -> str:
        """Some sentences, as they may be piped in; about anything."""
        answers = [answer for topic in self.topics for answer in topic.answers.get("what", ())]
        person, place, thing = (self.slots[name] for name in ("person", "place", "thing"))
        line = "{} wrote to us from {} about {}."
        told = [line.format(self.rng.choice(person), self.rng.choice(place), self.rng.choice(thing)) for _ in range(3)]
        return self.rng.choice(("\n", " ")).join(self.rng.sample([*told, *self.rng.sample(answers, 3)], 3))

    def slot(self, kind: str, slot: str, heldout: bool) -> str:
        """Something to ask for that is not known."""
        rng = self.rng
        if slot == "n":
            return str(rng.choice([rng.randrange(2, 13), rng.randrange(10, 100), rng.randrange(100, 5000)]))
        if slot != "thing" or kind != "made_up":
            return rng.choice(self._things["near" if kind == "near" and slot == "thing" else slot][heldout])
        roll = rng.random()
        if roll < 0.3:
            return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randrange(3, 5)))
        if roll < 0.5:
            return f"{rng.choice(self.slots['adjective'])} {rng.choice(NEIGHBOURS)}"
        if roll < 0.75:
            return f"the {rng.choice(self.slots['adjective'])} {rng.choice(self.slots['noun'])}"
        return made_up_word(rng)

    def follow_up(self, last: Turn, heldout: bool = False) -> Turn:
        """A question that only makes sense after the last turn."""
        rng, topic = self.rng, last.topic
        if last.category.startswith("unknown") and (heldout or rng.random() < 0.4):
            accepted = self.frames["refused"]
            question = self.frame("then.refused", heldout)
            return Turn(question, rng.choice(accepted), tuple(accepted), None, "then.refused")
        if topic is None or topic.kind == "self":
            return self.known(heldout)
        here = [name in topic.answers or name in ("short", "again", "more", "all") for name in FOLLOW_UPS]
        odds = [1.0 if fits else 0.3 if topic.kind == "concept" else 0.1 for fits in here]
        weights = [weight * odd for weight, odd in zip(FOLLOW_UPS.values(), odds, strict=True)]
        facet = rng.choices(list(FOLLOW_UPS), weights)[0]
        pairs = [pair for pair in self.pairs if topic.name in (self._id(pair[0]), self._id(pair[1]))]
        pairs = [pair for pair in pairs if pair[2] not in last.told]
        if pairs and rng.random() < 0.25:
            first, second, answer = rng.choice(pairs)
            other = second if self._id(first) == topic.name else first
            question = self.frame("then.compare", heldout).replace("{y}", self.alias(other))
            return Turn(question, answer, (answer,), topic, "then.compare", (*last.told, answer))
        return self._more(last, topic, facet, heldout)

    def _more(self, last: Turn, topic: Topic, facet: str, heldout: bool) -> Turn:
        if facet == "short":
            accepted = [first_sentence(last.answer)]
        elif facet in ("again", "more") or (facet == "how" and "how" not in topic.answers):
            order = ("how", "why", "example", "what", "cons") if facet == "more" else ("what",)
            fresh = (self._untold(topic, name, last.told) for name in order)
            accepted = next((answers for answers in fresh if answers), topic.answers["what"])
        else:
            accepted = self._accepted(topic, facet)
        answer = self.rng.choice(accepted)
        told = (*last.told, answer)
        return Turn(self.frame(f"then.{facet}", heldout), answer, tuple(accepted), topic, f"then.{facet}", told)

    def _untold(self, topic: Topic, facet: str, told: tuple[str, ...]) -> list[str]:
        return [answer for answer in topic.answers.get(facet, []) if answer not in told]

    def _id(self, name: str) -> str:
        topic = self.by_name.get(name.lower())
        return topic.name if topic else name

    def turn_to(self) -> Turn:
        """A short change of subject: "and what about ...?", "why ...?"."""
        if self.rng.random() < 0.2:
            thing = self.slot(self.rng.choice(("thing", "near", "made_up")), "thing", heldout=False)
            accepted = self.outside["refusal"]
            question = self.frame("then.about", heldout=False).replace("{y}", thing)
            return Turn(question, self.rng.choice(accepted), tuple(accepted), None, "unknown.thing")
        topic = self.rng.choice(self.concepts)
        facet = self.rng.choice([facet for facet in SWITCHES if facet in topic.answers])
        section = "then.about" if facet == "what" and self.rng.random() < 0.6 else f"then.switch.{facet}"
        question = self.frame(section, heldout=False).replace("{y}", self.named(self.rng.choice(topic.names)))
        accepted = tuple(topic.answers[facet])
        return Turn(question, self.rng.choice(accepted), accepted, topic, f"then.about.{facet}")


def _agree(match: re.Match[str]) -> str:
    return {"is": "are ", "does": "do "}[match[1]]


def made_up_word(rng: random.Random) -> str:
    """A word that means nothing."""
    syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.randrange(2, 4))]
    return "".join(syllables) + rng.choice(CODAS)
