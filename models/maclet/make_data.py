"""Maclet's training data, from the texts in `data/`: `python models/maclet/make_data.py OUT`.

Writes `train.jsonl` and `valid.jsonl` (rows `{"messages": ...}` or `{"text": ...}`) and `heldout.jsonl` (questions that
occur nowhere in the other two, with what a right answer must hold). The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from macllm_models.maclet.knowledge import Guide
from macllm_models.maclet.plain import plain_questions
from macllm_models.maclet.questions import kept_from_training
from macllm_models.maclet.recall import nothing_before, recall, small_talk
from macllm_models.maclet.topics import Turn, first_sentence, normalized, reserved

VALIDATION = 600
PASSAGES = 6  # of each concept
LONG = 1_100  # characters, after which a conversation ends
LONGEST = 2_500  # the same of the few long ones, about 850 tokens with misspellings
LONG_SHARE = 0.012
QUESTIONS_OPENED = (5, 9)  # in one of them
FREELY = 0.7  # of those questions: in words of their own
FOLLOWING = 0.25  # of those questions after the first: only understood after the one before
RECALLED = 0.05  # of the turns after the first: "what did I ask?"
NOTHING_BEFORE = 0.01  # of the first turns: "why?"
REFERRING = ("why", "example", "short", "more", "cons", "memory")
HELDOUT_PERCENT = 4  # of all questions that phrasings and names can form: never trained

Message = dict[str, str]


@dataclass(frozen=True)
class Mix:
    """Number of conversations of a stage of training, and shares in them."""

    conversations: int
    opened: float  # conversations of many questions, each with the first words of an answer only
    unknown: float  # new questions of the other conversations that must be refused
    unknown_opened: float  # the same of the freely worded questions of those opened


FIRST = Mix(275_000, opened=0.55, unknown=0.22, unknown_opened=0.14)
SECOND = Mix(18_000, opened=0.4, unknown=0.35, unknown_opened=0.3)


def kept_out(turn: Turn, heldout: set[str]) -> bool:
    """True if the question is held out of training. Plain forms are not: they are trained on purpose."""
    if normalized(turn.question) in heldout:
        return True
    return not turn.category.startswith(("then", "self", "plain")) and reserved(turn.question, HELDOUT_PERCENT)


def next_turn(guide: Guide, turns: list[Turn], unknown: float) -> Turn:
    """Possible next messages of a user."""
    roll = guide.rng.random()
    if guide.rng.random() < (RECALLED if turns else NOTHING_BEFORE):
        nothing = not turns and guide.rng.random() < 0.6
        if nothing:
            return nothing_before(guide.frame(f"then.{guide.rng.choice(REFERRING)}", False))
        return recall(guide.rng, turns)
    if turns and roll < 0.5:
        return guide.follow_up(next((turn for turn in reversed(turns) if not small_talk(turn)), turns[-1]))
    if turns and roll < 0.65:
        return guide.turn_to()
    return guide.unknown() if guide.rng.random() < unknown else guide.known()


def conversation(guide: Guide, heldout: set[str], mix: Mix = FIRST) -> list[Message]:
    """One to four turns, now and then with a system prompt, without any question of `heldout`."""
    rng = guide.rng
    turns: list[Turn] = []
    long = rng.random() < LONG_SHARE
    count = 40 if long else rng.choices([1, 2, 3, 4], [54, 25, 14, 7])[0]
    limit = LONGEST if long else LONG
    while len(turns) < count and sum(len(turn.question + turn.answer) for turn in turns) < limit:
        turn = next_turn(guide, turns, mix.unknown)
        typed = replace(turn, question=guide.styled(turn), told=turn.told or (turn.answer,))
        if not kept_out(turn, heldout) and not kept_out(typed, heldout):
            turns.append(typed)
    messages: list[Message] = []
    brief = rng.random() < 0.05
    if brief or rng.random() < 0.08:
        messages.append({"role": "system", "content": guide.frame("system.brief" if brief else "system", False)})
    for turn in turns:
        answer = first_sentence(turn.answer) if brief and "compare" not in turn.category else turn.answer
        messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": answer}]
    return messages


def openings(guide: Guide, heldout: set[str], mix: Mix = FIRST) -> list[Message]:
    """A conversation in which only the first words of each answer are asked for.

    What a question is about is decided in these words: it is taught here at a quarter of the tokens.
    """
    rng, messages = guide.rng, [{"role": "system", "content": guide.frame("system.opening", False)}]
    last: Turn | None = None
    for _ in range(rng.randint(*QUESTIONS_OPENED)):
        if last and rng.random() < FOLLOWING:
            turn = guide.follow_up(last)
        else:
            turn = guide.asked_freely(mix.unknown_opened) if rng.random() < FREELY else guide.known()
        typed = replace(turn, question=guide.styled(turn), told=turn.told or (turn.answer,))
        if "compare" in turn.category or kept_out(turn, heldout) or kept_out(typed, heldout):
            continue
        opening = turn.topic.opening(turn.answer) if turn.topic else " ".join(turn.answer.split()[:4])
        messages += [{"role": "user", "content": typed.question}, {"role": "assistant", "content": opening}]
        last = typed
    return messages if len(messages) > 1 else openings(guide, heldout, mix)


def passages(guide: Guide) -> Iterator[str]:
    """Plain text about every topic, for the part of training that is not a conversation."""
    for topic in guide.concepts * PASSAGES:
        yield f"{topic.name[:1].upper()}{topic.name[1:]}. {guide.everything(topic)}"


def item(turn: Turn, category: str, before: tuple[Turn, ...] = ()) -> dict[str, Any]:
    """One row of the held-out set: the conversation to answer and what tells a right answer."""
    messages = []
    for earlier in before:
        messages.append({"role": "user", "content": earlier.question})
        messages.append({"role": "assistant", "content": earlier.answer})
    messages.append({"role": "user", "content": turn.question})
    refuse = turn.category.startswith("unknown")
    what = turn.category.endswith(".what")
    return {
        "category": category,
        "messages": messages,
        "topic": turn.topic.name if turn.topic else None,
        "keywords": turn.topic.keys if turn.topic and what else [],
        "answers": list(dict.fromkeys(turn.accepted)),
        "refuse": refuse,
    }


def heldout_items(guide: Guide) -> list[dict[str, Any]]:
    """Questions for the test, by category; none of them is ever trained."""
    items: dict[str, dict[str, Any]] = {}
    plain = plain_questions(guide.topics)

    def add(turn: Turn, category: str, before: tuple[Turn, ...] = ()) -> bool:
        key = normalized((before[0] if before else turn).question)
        return key not in items and key not in plain and bool(items.setdefault(key, item(turn, category, before)))

    for topic in guide.topics:
        accepted = tuple(answer for answers in topic.answers.values() for answer in answers)
        for facet, question in topic.test:
            add(Turn(question, accepted[0], accepted, topic, f"{topic.kind}.test.{facet}"), "own words")

    def fill(category: str, count: int, draw: Callable[[], Turn]) -> None:
        while count:
            turn = draw()
            count -= add(turn, category)

    def chance(draw: Callable[[], Turn]) -> Callable[[], Turn]:
        return lambda: next(turn for turn in iter(draw, None) if reserved(turn.question, HELDOUT_PERCENT))

    fill("new phrasing", 160, lambda: guide.known(heldout=True))
    fill("new pairing", 160, chance(guide.known))
    fill("unknown, new", 120, lambda: guide.unknown(heldout=True))
    fill("unknown, new pairing", 80, chance(guide.unknown))
    asked = chance(lambda: guide.about(guide.rng.choice(guide.concepts), "what"))
    for _ in range(80):
        first = asked()
        first = replace(first, told=(first.answer,))
        add(guide.follow_up(first), "follow-up", (first,))
    return list(items.values())


def rows(guide: Guide, count: int, heldout: set[str], seen: set[str], mix: Mix = FIRST) -> Iterator[str]:
    """`count` conversations as JSON lines, none of which is in `seen`."""
    while count:
        made = openings if guide.rng.random() < mix.opened else conversation
        line = json.dumps({"messages": made(guide, heldout, mix)})
        if line not in seen:
            seen.add(line)
            count -= 1
            yield line


def make(out: Path, seed: int = 0, conversations: int | None = None, mix: Mix = FIRST) -> None:
    """Write the three files into the folder `out`."""
    conversations = mix.conversations if conversations is None else conversations
    first = Guide(random.Random(0))
    items = heldout_items(first)  # the same whatever the seed
    guide = Guide(random.Random(seed)) if seed else first
    heldout = {normalized(message["content"]) for row in items for message in row["messages"][:1]}
    heldout |= kept_from_training()
    seen: set[str] = set()
    valid = list(rows(guide, min(VALIDATION, conversations), heldout, seen, mix))
    train = list(rows(guide, conversations, heldout, seen, mix))
    train += sorted({json.dumps({"text": text}) for text in passages(guide)})
    guide.rng.shuffle(train)
    out.mkdir(parents=True, exist_ok=True)
    held = [json.dumps(row) for row in items]
    for name, lines in (("train", train), ("valid", valid), ("heldout", held)):
        (out / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Read the command line and make the data."""
    parser = argparse.ArgumentParser(description="Make maclet's training data.")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conversations", type=int)
    parser.add_argument("--second", action="store_true", help="data of the second stage")
    options = parser.parse_args()
    make(options.out, options.seed, options.conversations, SECOND if options.second else FIRST)


if __name__ == "__main__":
    main()
