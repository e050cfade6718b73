"""Rows for two tasks of the encoder: `python -m macllm_models.siblings.tasks FOLDER`.

`classify/` has questions with their subjects, `tag/` texts with their terms marked word by word: B for the first word
of a term, I for the others, O outside. Both have `train.jsonl` and `valid.jsonl`, which holds what maclet-encoder was
not trained on.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from macllm_models.maclet.knowledge import KNOWLEDGE, Guide
from macllm_models.maclet.topics import DATA, read_topics
from macllm_models.siblings.texts import Part, parts_of, write_rows

TRAIN, HELD_OUT = 2_000, 1_000  # rows of a task


def make(out: Path, guide: Guide, parts: Sequence[Part]) -> None:
    """Write the rows of both tasks, out of texts to train and held-out ones, into the folder `out`."""
    subjects, names = subject_of_questions(guide), terms(guide)
    for part, count, at in (("train", TRAIN, 0), ("valid", HELD_OUT, 1)):
        found = [text for each in parts for text in each[at]]
        random.Random(0).shuffle(found)
        labelled = ({"text": text, "label": subjects[text]} for text in found if text in subjects)
        write_rows(out / "classify" / f"{part}.jsonl", islice(labelled, count))
        tagged = ({"words": text.split(), "tags": marked_words(text, names)} for text in found)
        write_rows(out / "tag" / f"{part}.jsonl", islice((row for row in tagged if "B" in row["tags"]), count))


def subject_of_questions(guide: Guide) -> dict[str, str]:
    """Each question in people's own words with the subject that its topic belongs to, such as "attention"."""
    subjects = {topic.name: name for name in KNOWLEDGE for topic in read_topics(DATA / f"{name}.txt")}
    return {ask: subjects[topic.name] for topic, _, ask in guide.own}


def terms(guide: Guide) -> dict[tuple[str, ...], int]:
    """The names of all concepts as normalized words, with their numbers of words."""
    names = {tuple(_plain(word) for word in name.split()) for topic in guide.concepts for name in topic.names}
    return {name: len(name) for name in names if all(name)}


def marked_words(text: str, found: dict[tuple[str, ...], int]) -> list[str]:
    """B, I or O for each word of a text; of terms that overlap, the longest."""
    words = [_plain(word) for word in text.split()]
    longest, tags, at = max(found.values()), ["O"] * len(words), 0
    while at < len(words):
        size = next((n for n in range(min(longest, len(words) - at), 0, -1) if tuple(words[at : at + n]) in found), 0)
        tags[at : at + size] = ["B", *["I"] * (size - 1)][:size]
        at += size or 1
    return tags


def _plain(word: str) -> str:
    """A word in lower case without punctuation around it."""
    return re.sub(r"^\W+|\W+$", "", word.lower())


def baseline(rows: Path, objective: str) -> tuple[int, float]:
    """The number of held-out rows, and what is right without a model.

    Accuracy of the commonest label; of tags, F1 of the tag that a word has most often in the training rows.
    """
    train, held = (
        [json.loads(line) for line in (rows / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]
        for part in ("train", "valid")
    )
    if objective == "classify":
        commonest = Counter(row["label"] for row in train).most_common(1)[0][0]
        return len(held), sum(row["label"] == commonest for row in held) / len(held)
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        for word, tag in zip(row["words"], row["tags"], strict=True):
            counts[_plain(word)][tag] += 1
    right = predicted = actual = 0
    for row in held:
        for word, tag in zip(row["words"], row["tags"], strict=True):
            guess = counts[_plain(word)].most_common(1)[0][0] if counts[_plain(word)] else "O"
            predicted, actual = predicted + (guess != "O"), actual + (tag != "O")
            right += guess == tag != "O"
    return len(held), 2 * right / (predicted + actual)


def main() -> None:
    """Read the command line and write the rows."""
    parser = argparse.ArgumentParser(description="Write rows for two tasks of maclet-encoder.")
    parser.add_argument("out", type=Path, help="folder to write to")
    out, guide = parser.parse_args().out, Guide(random.Random(0))
    make(out, guide, parts_of(guide))


if __name__ == "__main__":
    main()
