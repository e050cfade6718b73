"""Texts of the siblings, from maclet's: answers, comparisons and questions, some of them held out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from macllm_models.maclet.knowledge import Guide
from macllm_models.maclet.questions import kept_from_training
from macllm_models.maclet.topics import normalized, reserved

HELDOUT_PERCENT = 5  # of all texts: never trained
TOGETHER = 0.6  # of the texts to train, by default: in rows of several about one topic
LONGEST = 340  # characters of such a row, about 90 tokens

Part = tuple[list[str], list[str]]  # texts to train, and held-out ones


def texts(guide: Guide) -> list[list[str]]:
    """Answers and questions of each topic, then the comparisons; each once, none of the examination."""
    seen = kept_from_training()

    def new(found: Iterable[str]) -> list[str]:
        kept = []
        for text in found:
            if normalized(text) not in seen:
                seen.add(normalized(text))
                kept.append(text)
        return kept

    topics = [
        new(text for found in (topic.answers, topic.ask) for facet in found.values() for text in facet)
        for topic in guide.topics
    ]
    return [*topics, new(answer for *_, answer in guide.pairs)]


def is_held_out(text: str) -> bool:
    """True if a text is never trained."""
    return reserved(text, HELDOUT_PERCENT)


def parted(found: Iterable[str]) -> Part:
    """The texts to train, and those held out."""
    train: list[str] = []
    held: list[str] = []
    for text in found:
        (held if is_held_out(text) else train).append(text)
    return train, held


def parts_of(guide: Guide) -> list[Part]:
    """The two parts of each group of `texts`."""
    return [parted(group) for group in texts(guide)]


def rows(found: Iterable[list[str]], rng: random.Random, share: float) -> list[str]:
    """Texts in random order, each once: alone, or a `share` of them after others of its group."""
    made = []
    for group in found:
        texts = rng.sample(group, len(group))
        count = round(share * len(texts))
        together, alone = texts[:count], texts[count:]
        row = ""
        for text in together:
            if row and len(row) + len(text) >= LONGEST:
                made.append(row)
                row = ""
            row = f"{row} {text}".strip()
        made += [row, *alone] if row else alone
    rng.shuffle(made)
    return made


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make(build: Path, parts: Sequence[Part], share: float = TOGETHER) -> None:
    """Write `train.jsonl` and `valid.jsonl` with rows {"text": ...}. The same texts give the same bytes."""
    train = rows([train for train, _ in parts], random.Random(0), share)
    for name, part in (("train", train), ("valid", [text for _, held in parts for text in held])):
        write_rows(build / f"{name}.jsonl", ({"text": text} for text in part))
