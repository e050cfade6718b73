"""Shares of words and whole questions that maclet-text2text corrects, beside two baselines."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .spelling import Neighbours

WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_")
BEAMS = 4
LEAST = 3  # occurrences in the training's targets that make a word known to the baseline
EXAMPLES = (
    "waht is atention?",
    "how do i quit teh chat",
    "whta si the diffrence between lora and full fine-tuning?",
    "explain rotery position embeddings plz",
    "waht is the captial of frnace?",
)

Corrector = Callable[[str], str]


@dataclass(frozen=True)
class Score:
    """Words and whole questions right, and how many there are."""

    words: int
    all_words: int
    questions: int
    all_questions: int

    @property
    def word_rate(self) -> float:
        """Share of the words that are right: 1 - the word error rate."""
        return self.words / self.all_words

    @property
    def question_rate(self) -> float:
        """Share of the questions that are right in every letter."""
        return self.questions / self.all_questions


def words(text: str) -> list[str]:
    """Words, numbers and punctuation marks."""
    return WORD.findall(text)


def distance(first: Sequence[str], second: Sequence[str]) -> int:
    """The Levenshtein distance: fewest insertions, deletions and changes that make one of the other."""
    row = list(range(len(second) + 1))
    for at, one in enumerate(first, 1):
        last, row[0] = row[0], at
        for place, other in enumerate(second, 1):
            last, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, last + (one != other))
    return row[-1]


def score(pairs: Iterable[tuple[str, str]], correct: Corrector) -> Score:
    """Words and questions that `correct` gets right, of (misspelled, right) pairs.

    Of the words of a right question, as many are wrong as the word distance to the correction says, at most all.
    """
    right = every = whole = count = 0
    for source, target in pairs:
        found, wanted = correct(source), words(target)
        right += max(0, len(wanted) - distance(words(found), wanted))
        every += len(wanted)
        whole += found.strip() == target
        count += 1
    return Score(right, every, whole, count)


class NearestWord:
    """The baseline: each unknown word becomes the most frequent of the nearest known ones."""

    def __init__(self, targets: Iterable[str]) -> None:
        counts = Counter(word for target in targets for word in words(target.lower()) if word.isalpha())
        self._counts = {word: count for word, count in counts.items() if count >= LEAST}
        self._near = Neighbours(self._counts)
        self._found: dict[str, str] = {}

    def __call__(self, source: str) -> str:
        """The question with each unknown word replaced."""
        return re.sub(r"[^\W\d_]+", lambda match: self._as(match[0]), source)

    def _as(self, word: str) -> str:
        if len(word) < 2 or word.lower() in self._counts:
            return word
        if word.lower() not in self._found:
            self._found[word.lower()] = self._nearest(word.lower())
        near = self._found[word.lower()]
        return near.capitalize() if word[0].isupper() and word[1:].islower() else near

    def _nearest(self, word: str) -> str:
        """The most frequent word one edit away, else two letters away, else the word itself."""
        near = self._near(word)
        if not near:
            near = {other for other in self._counts if abs(len(other) - len(word)) < 3 and distance(word, other) == 2}
        return max(sorted(near), key=self._counts.__getitem__, default=word)


def corrector(name: str, num_beams: int = 1) -> Corrector:
    """The model's correction of a text, greedily or by beams."""
    import macllm

    model, tokenizer = macllm.load(name)
    if num_beams > 1:
        return lambda text: macllm.generate(model, tokenizer, text, max_tokens=80, num_beams=num_beams).text
    return lambda text: macllm.generate(model, tokenizer, text, max_tokens=80, temperature=0.0).text


def read(path: Path) -> list[tuple[str, str]]:
    """The pairs of a file of rows."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [(row["source"], row["target"]) for row in rows]


def scores(model: str, data: Path) -> dict[str, Score]:
    """Scores of all correctors on the held-out questions, and of two on these without errors."""
    pairs = read(data / "heldout.jsonl")
    right = [(target, target) for _, target in pairs]
    nearest = NearestWord({target for _, target in read(data / "train.jsonl")})
    greedy = corrector(model)
    return {
        "as they were typed": score(pairs, lambda source: source),
        "nearest known word": score(pairs, nearest),
        "**maclet-text2text**, greedy": score(pairs, greedy),
        f"**maclet-text2text**, {BEAMS} beams": score(pairs, corrector(model, BEAMS)),
        "typed without errors: nearest known word": score(right, nearest),
        "typed without errors: **maclet-text2text**, greedy": score(right, greedy),
    }


def measure(folder: Path, build: Path) -> str:
    """The tables of the card: scores, and examples."""
    lines = ["| held-out questions | words right | questions right |", "|---|---|---|"]
    for name, one in scores(str(folder), build / "second").items():
        words_right = f"{one.word_rate:.1%} of {one.all_words:,}"
        lines.append(f"| {name} | {words_right} | {one.question_rate:.1%} of {one.all_questions} |")
    greedy = corrector(str(folder))
    lines += ["", "| typed | answered |", "|---|---|"]
    return "\n".join([*lines, *(f"| {text} | {greedy(text)} |" for text in EXAMPLES)])
