"""Data of maclet-moe: plain questions with answers, questions to refuse, and texts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from macllm_models.maclet.knowledge import Guide
from macllm_models.maclet.plain import plain, plain_questions, plain_turns
from macllm_models.maclet.questions import kept_from_training
from macllm_models.maclet.topics import Topic, normalized, reserved

from .texts import write_rows

TOKENIZER = ("--type", "bpe", "--vocab-size", "1536", "--chat")
HELDOUT_PERCENT = 5  # of the questions but the plain ones
HELDOUT_TEXTS_PERCENT = 10  # of the texts but the answers that are taught
VARIATIONS = 14  # drawn for each name
REFUSED = 0.15  # of the questions
LOWER = 0.35  # of the questions: in lower case, as typed in haste
TEXTS = 2  # times each text, beside other neighbours in each
LONGEST = 400  # characters of a row of texts
VALIDATION = 400


def answer(topic: Topic) -> str:
    """The one answer about a topic that is taught."""
    return topic.answers["what"][0]


def asked(guide: Guide, variations: int) -> Iterator[tuple[str, str]]:
    """(question, answer): plain questions about each name, variations of them, and questions to refuse."""
    rng = guide.rng
    plains = list(plain_questions(guide.topics).values())
    turns = plain_turns(rng, guide.topics)
    for _ in range(variations // 3):
        yield from ((plain(topic, name), answer(topic)) for topic, name in plains)
    for _ in range((variations - variations // 3) * len(plains)):
        topic, question = next(turns)
        yield question[0].upper() + question[1:], answer(topic)
    for _ in range(round(variations * len(plains) * REFUSED)):
        turn = guide.unknown()
        if len(turn.question) <= LONGEST // 4 and "\n" not in turn.question:
            yield turn.question, turn.accepted[0]


def typed(rng: random.Random, question: str) -> str:
    """The question as it is, or in lower case and mostly without its question mark."""
    if rng.random() >= LOWER:
        return question
    return question.lower().rstrip("?.") if rng.random() < 0.6 else question.lower()


def chats(guide: Guide, variations: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs of question and answer to train, and those held out; none has a question of the examination."""
    never, forms = kept_from_training(), set(plain_questions(guide.topics))
    train: dict[tuple[str, str], None] = {}
    held: dict[str, tuple[str, str]] = {}
    for question, told in asked(guide, variations):
        key, pair = normalized(question), (typed(guide.rng, question), told)
        if key not in forms and reserved(question, HELDOUT_PERCENT):
            held.setdefault(key, pair)
        elif key not in never:
            train[pair] = None
    return list(train), [pair for key, pair in held.items() if key not in never]


def texts(guide: Guide) -> tuple[list[list[str]], list[str]]:
    """The answers about each topic, then all comparisons, to train; and those held out."""
    taught = {answer(topic) for topic in guide.topics}
    groups = [[text for texts in topic.answers.values() for text in texts] for topic in guide.topics]
    groups.append([text for *_, text in guide.pairs])
    train, held = [], list[str]()
    for group in groups:
        kept = {text for text in group if reserved(text, HELDOUT_TEXTS_PERCENT) and text not in taught}
        train.append([text for text in dict.fromkeys(group) if text not in kept])
        held += sorted(kept)
    trained = "\n".join(text for group in train for text in group)
    return train, [text for text in dict.fromkeys(held) if text not in trained]


def joined(rng: random.Random, group: list[str]) -> Iterator[str]:
    """The texts of a group in random order, as many in a row as fit into it."""
    row = ""
    for text in rng.sample(group, len(group)):
        if row and len(row) + len(text) >= LONGEST:
            yield row
            row = ""
        row = f"{row} {text}".strip()
    if row:
        yield row


def make(build: Path, variations: int = VARIATIONS) -> None:
    """Write `train.jsonl`, and held-out rows: `valid`, `heldout_chats` and `heldout_texts.jsonl`."""
    guide = Guide(random.Random(0))
    rng = guide.rng
    pairs, held_pairs = chats(guide, variations)
    groups, held_texts = texts(guide)
    rows: list[dict[str, object]] = [chat(*pair) for pair in pairs]
    rows += [{"text": row} for _ in range(TEXTS) for group in groups for row in joined(rng, group)]
    rng.shuffle(rows)
    told = [{"text": text} for text in held_texts]
    talked = [chat(*pair) for pair in held_pairs]
    rng.shuffle(talked)
    write_rows(build / "train.jsonl", rows)
    write_rows(build / "heldout_texts.jsonl", told)
    write_rows(build / "heldout_chats.jsonl", talked[:VALIDATION])
    write_rows(build / "valid.jsonl", [*told[: VALIDATION // 2], *talked[: VALIDATION // 2]])


def chat(question: str, told: str) -> dict[str, object]:
    """A conversation of one question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": told}]}
