"""Maclet's knowledge, read from `data/`."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

DATA = Path(__file__).parent / "data"
FACETS = ("what", "why", "how", "example", "cons", "memory")
OPENING = 8  # words that may come before the end of the name
RESERVED_PERCENT = 8  # of the unknown things: never trained
_LEADS = {"why": "The reason for {}", "how": "How {} works", "example": "Example of {}", "cons": "Limits of {}"}
_LEADS |= {"memory": "Memory of {}"}
_IMPERATIVES = ("Run", "Use", "Type", "Press", "Add", "Start", "Set", "Write", "Give", "Name", "Take", "Check", "Pipe")


@dataclass
class Topic:
    """A topic: names, answers and extra questions by facet, and keywords of a right answer."""

    kind: str  # concept, command, product, place, task, self
    names: list[str]
    keys: list[list[str]] = field(default_factory=list)
    answers: dict[str, list[str]] = field(default_factory=dict)
    ask: dict[str, list[str]] = field(default_factory=dict)
    test: list[tuple[str, str]] = field(default_factory=list)  # (facet, question)

    @property
    def name(self) -> str:
        """The first name, which identifies the topic."""
        return self.names[0]

    def facet(self, facet: str, nothing: dict[str, list[str]]) -> list[str]:
        """All accepted answers to a question about `facet`."""
        if facet in self.answers:
            return self.answers[facet]
        if facet == "short":
            return [first_sentence(answer) for answer in self.answers["what"][:1]]
        if f"none.{facet}" in nothing:
            return [self.with_subject(facet, answer) for answer in nothing[f"none.{facet}"]]
        return self.answers["what"]

    def subject(self) -> str:
        """The name as the first answer opens with it ("A tokenizer", "RoPE"), or else the first name."""
        names = "|".join(re.escape(name) for name in sorted(self.names, key=len, reverse=True))
        opening = re.match(rf"((?:an?|the) )?({names})(?![\w-])", self.answers["what"][0], re.IGNORECASE)
        if opening is None:
            return self.name
        name = next(name for name in self.names if name.lower() == opening[2].lower())
        return f"{(opening[1] or '').lower()}{name}"

    def with_subject(self, facet: str, answer: str) -> str:
        """The answer with the topic named at its beginning, which a model then has before it for all the rest.

        "It is used because ..." becomes "RoPE is used because ...", "Press Esc" becomes "To stop an answer, press Esc",
        and any other answer begins with a phrase such as "Example of RoPE: ".
        """
        names = (name.lower() for name in self.names)
        if self.kind == "self" or any(name in answer.lower()[: len(name) + 14] for name in names):
            return answer
        subject = self.subject()
        pronoun, _, rest = answer.partition(" ")
        if self.kind == "task" and facet == "what":
            done = re.sub(r"\bmy\b", "your", re.sub(r"\bi\b", "you", self.name))
            return f"To {done}, {pronoun.lower()} {rest}" if pronoun in _IMPERATIVES else f"To {done}: {answer}"
        if self.kind == "concept" and pronoun == ("They" if is_plural(subject) else "It"):
            return f"{_capitalized(subject)} {rest}"
        if self.kind != "concept" and facet != "what":
            return answer
        return f"{_capitalized(_LEADS.get(facet, '{}').format(subject))}: {answer}"

    def opening(self, answer: str) -> str:
        """The first words of an answer, up to the topic's name if that is near, else five."""
        words, names = answer.split(), [name.lower() for name in self.names]
        for count in range(3, min(len(words), OPENING) + 1):
            begun = " ".join(words[:count])
            if any(name in begun.lower() for name in names):
                return begun.rstrip(",:;")
        return " ".join(words[:5]).rstrip(",:;")


@dataclass(frozen=True)
class Turn:
    """One question with an answer, all accepted answers, and the topic that it leaves the conversation at."""

    question: str
    answer: str
    accepted: tuple[str, ...]
    topic: Topic | None
    category: str
    told: tuple[str, ...] = ()


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def first_sentence(text: str) -> str:
    """The text up to its first full stop that ends a sentence."""
    return re.split(r"(?<=[.!])\s", text, maxsplit=1)[0]


def normalized(question: str) -> str:
    """The question without case and punctuation, but for points inside words, to compare questions."""
    return " ".join(re.findall(r"[\w#+*/<>@-]+(?:\.\w+)*", question.lower()))


def reserved(text: str, percent: int) -> bool:
    """True if a question or topic belongs to the share held out of training."""
    return zlib.crc32(normalized(text).encode()) % 100 < percent


def read_topics(path: Path) -> list[Topic]:
    """Topics of one knowledge file; `#` opens a concept, `>` a task ("how do I ..."), `@` small talk."""
    topics: list[Topic] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        if line[:2] in ("# ", "> ", "@ "):
            kind = {"#": "concept", ">": "task", "@": "self"}[line[0]]
            topics.append(Topic(kind, [name.strip() for name in line[2:].split(" | ")]))
            continue
        label, _, value = line.partition(": ")
        topic = topics[-1]
        if label == "kind":
            topic.kind = value
        elif label == "key":
            topic.keys = [part.split("|") for part in value.split(", ")]
        elif label == "ask":
            topic.ask.setdefault("what", []).extend(question.strip() for question in value.split(" | "))
        elif label == "test":
            topic.test.append(("what", value))
        else:
            topic.answers.setdefault("what" if label == "say" else label, []).append(value)
    return topics


def read_sections(path: Path) -> dict[str, list[str]]:
    """The lines under each `[name]` of a list file."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.fullmatch(r"\[[a-z.]+\]", line):
            lines = sections.setdefault(line[1:-1], [])
        elif line.strip():
            lines.append(line.strip())
    return sections


def labelled(*paths: Path) -> list[tuple[str, str]]:
    """(label, text) of each line of files with lines "label: text"."""
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(label, text) for label, _, text in (line.partition(": ") for line in lines)]


def split_label(label: str) -> tuple[str, str]:
    """Name and facet of a label "name / facet"; without one, the facet is "what"."""
    name, _, facet = label.rpartition(" / ")
    return (name, facet) if facet in FACETS else (label, "what")


def is_plural(name: str) -> bool:
    """True if a name takes "are"."""
    return name.endswith("s") and not name.endswith(("ss", "is", "us", "bias", "loss", "`", "safetensors", "others"))


def kept_apart(frames: list[str]) -> tuple[list[str], list[str]]:
    """Phrasings to train, and those marked `~`, which are for the test."""
    return [frame for frame in frames if frame[0] != "~"], [frame[1:] for frame in frames if frame[0] == "~"]


def reserve(items: list[str]) -> tuple[list[str], list[str]]:
    """Unknown things to train, and those for the test; where none is drawn for it, all."""
    trained = [item for item in items if not reserved(item, RESERVED_PERCENT)]
    return trained, [item for item in items if item not in trained] or items
