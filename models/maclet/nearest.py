"""A yardstick for maclet: answer with the answer of the most similar training question.

`python models/maclet/nearest.py train.jsonl heldout.jsonl` prints the table of `evaluate.py` for it. Similar is the
cosine of TF-IDF vectors over words; of several questions alike the first counts. What follows a held-out question's
first turn is not looked at, so follow-ups are hopeless for it.
"""

from __future__ import annotations

import argparse
import collections
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from macllm_models.maclet.evaluate import report, score, table, words


class Nearest:
    """Questions with their answers, found by the words that they share with another question."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.answers: list[str] = []
        counts: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
        for question, answer in dict(pairs).items():
            for word, count in collections.Counter(words(question)).items():
                counts[word].append((len(self.answers), count))
            self.answers.append(answer)
        total, squares = len(self.answers), np.zeros(len(self.answers))
        self._rarity = {word: float(np.log(total / len(places))) for word, places in counts.items()}
        self._places: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, places in counts.items():
            at, count = np.array(places).T
            weight = count * self._rarity[word]
            squares[at] += weight**2
            self._places[word] = at, weight
        self._norms = np.sqrt(squares) + 1e-9

    def answer(self, question: str) -> str:
        """The answer of the most similar question."""
        scores = np.zeros(len(self.answers))
        for word, count in collections.Counter(words(question)).items():
            if word in self._places:
                at, weight = self._places[word]
                scores[at] += count * self._rarity[word] * weight
        return self.answers[int(np.argmax(scores / self._norms))]


def questions(path: Path) -> Iterable[tuple[str, str]]:
    """First questions of conversations without a system prompt, with their answers."""
    for line in path.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line).get("messages")
        if messages and messages[0]["role"] == "user":
            yield messages[0]["content"], messages[1]["content"]


def main() -> None:
    """Read the command line, ask, and report."""
    parser = argparse.ArgumentParser(
        description="Answer held-out questions with the nearest training question's answer."
    )
    parser.add_argument("train", type=Path)
    parser.add_argument("heldout", type=Path)
    options = parser.parse_args()
    nearest = Nearest(questions(options.train))
    items = [json.loads(line) for line in options.heldout.read_text(encoding="utf-8").splitlines()]
    rates = report(items, [score(item, nearest.answer(item["messages"][-1]["content"])) for item in items])
    print(table(rates))
    print(json.dumps({"model": "nearest", "rates": rates}))


if __name__ == "__main__":
    main()
