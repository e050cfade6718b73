"""Data of maclet-text2text: texts, and misspelled questions with the right ones."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from macllm_models.maclet.knowledge import Guide
from macllm_models.maclet.misspelling import misspelled
from macllm_models.maclet.plain import plain, plain_questions
from macllm_models.maclet.questions import kept_from_training
from macllm_models.maclet.topics import normalized, reserved

from . import texts
from .texts import write_rows

TOKENIZER = ("--type", "unigram", "--vocab-size", "1280", "--byte-fallback", "--sentinels", "32", "--add-eos")
HELDOUT_PERCENT = 4  # of the questions; the texts of the first stage lack them too
VERSIONS = 2  # of each question, misspelled anew in each
PIECE_WORDS = 5  # of each question, at most, once more: copying is learned from pieces sooner
PLAIN_VERSIONS = 8  # of "What is RoPE?" and the like
CLEAN = 0.1  # of the versions: without an error, so that a right question is left as it is
LOWER = 0.4  # of the questions: in lower case
LONGEST = 64  # characters
TESTED = 400  # held-out pairs
RARE, FREQUENT = 2, 25  # a rare word beside a frequent one, one letter apart, is taken for misspelled
_WORD = re.compile(r"[a-z]+")
_ASKED = re.compile(r"[\x20-\x7e]+")


def questions(guide: Guide) -> list[str]:
    """The questions of `data/asks`, without those of the examination and those that look misspelled."""
    examined = kept_from_training()
    found = list(dict.fromkeys(" ".join(question.split()) for _, _, question in guide.own))
    usable = [q for q in found if len(q) <= LONGEST and _ASKED.fullmatch(q) and normalized(q) not in examined]
    told = [answer for topic in guide.topics for answers in topic.answers.values() for answer in answers]
    counts = Counter(_WORD.findall(" ".join([*found, *told]).lower()))
    wrong = suspicious(counts) - set(_WORD.findall(" ".join(told).lower()))
    return [question for question in usable if wrong.isdisjoint(_WORD.findall(question.lower()))]


def suspicious(counts: Counter[str]) -> set[str]:
    """Rare words of five letters or more, one edit from a frequent word that is no form of them."""
    near = Neighbours(word for word, count in counts.items() if count >= FREQUENT)
    rare = (word for word, count in counts.items() if count <= RARE and len(word) > 4)
    return {word for word in rare if any(not _inflected(word, other) for other in near(word))}


class Neighbours:
    """Words one edit away: a letter dropped, changed or added, or two neighbours swapped."""

    def __init__(self, words: Iterable[str]) -> None:
        self._shortened: dict[str, set[str]] = {}
        for word in words:
            for short in _shortened(word):
                self._shortened.setdefault(short, set()).add(word)

    def __call__(self, word: str) -> set[str]:
        """The words at most one edit away from this one."""
        found = (self._shortened.get(short, set()) for short in _shortened(word))
        return {other for others in found for other in others if _one_edit(word, other)}


def _shortened(word: str) -> set[str]:
    """The word, and the word without one letter; words one edit apart share one of these."""
    return {word, *(word[:at] + word[at + 1 :] for at in range(len(word)))}


def _one_edit(word: str, other: str) -> bool:
    at = next((at for at, (one, two) in enumerate(zip(word, other, strict=False)) if one != two), None)
    if at is None:
        return abs(len(word) - len(other)) <= 1
    rest, others = word[at:], other[at:]
    swapped = rest[:2] == others[1::-1] and rest[2:] == others[2:]
    return swapped or rest[1:] in (others, others[1:]) or rest == others[1:]


def _inflected(word: str, other: str) -> bool:
    """True if the words differ at their end only, as "layer" and "layers" do."""
    short, long = sorted((word, other), key=len)
    return long.startswith(short) or long[:-1] == short[:-1]


def plain_forms(guide: Guide) -> list[str]:
    """ "What is X?" of all names of all topics; these are trained on purpose."""
    return sorted({plain(topic, name) for topic, name in plain_questions(guide.topics).values()})


def pairs(rng: random.Random, asked: Iterable[str], versions: int, clean: float = CLEAN) -> list[tuple[str, str]]:
    """(source, target) of each question in some versions; none occurs twice."""
    found: dict[tuple[str, str], None] = {}
    for question in asked:
        for _ in range(versions):
            target = question.lower() if rng.random() < LOWER else question
            found[target if rng.random() < clean else misspelled(rng, target), target] = None
    return list(found)


def pieces(rng: random.Random, asked: Iterable[str]) -> Iterator[str]:
    """A few words that follow one another in each question."""
    for question in asked:
        said = question.split()
        length = min(rng.randint(1, PIECE_WORDS), len(said))
        start = rng.randrange(len(said) - length + 1)
        yield " ".join(said[start : start + length])


def make(build: Path) -> None:
    """The texts of the first stage, and the pairs of the others in `second/` and so on."""
    guide = Guide(random.Random(0))
    texts.make(build, texts.parts_of(guide))
    make_pairs(build / "second", guide)
    make_pairs(build / "third", guide, seed=1)
    make_pairs(build / "fourth", guide, seed=2)


def make_pairs(folder: Path, guide: Guide, seed: int = 0, most: int | None = None) -> None:
    """Write `train.jsonl`, `valid.jsonl` and `heldout.jsonl` with rows {"source": ..., "target": ...}.

    Questions of the last two are not in the first, whatever the seed. Pieces of questions are in the first for seed 0.
    `most` questions make a trial.
    """
    plains = plain_forms(guide)
    forms = {normalized(question) for question in plains}
    found = questions(guide)
    rng = random.Random(0)
    every = rng.sample(found, min(most or len(found), len(found)))
    unseen = [each for each in every if reserved(each, HELDOUT_PERCENT) and normalized(each) not in forms]
    kept = {normalized(question) for question in unseen}
    trained = [question for question in every if normalized(question) not in kept]
    rng = random.Random(seed) if seed else rng
    rows = [*pairs(rng, trained, VERSIONS), *pairs(rng, plains, PLAIN_VERSIONS)]
    rows += [] if seed else pairs(rng, pieces(rng, trained), 1)
    rng.shuffle(rows)
    tested, evaluated = unseen[:TESTED], unseen[TESTED : 2 * TESTED]
    parts = {"train": rows, "valid": pairs(rng, evaluated, 1), "heldout": pairs(rng, tested, 1, 0.0)}
    for name, part in parts.items():
        write_rows(folder / f"{name}.jsonl", ({"source": source, "target": target} for source, target in part))
