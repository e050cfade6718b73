"""Answers of a model, criticized and revised by it: supervised data (arXiv:2212.08073, section 3)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from macllm.errors import DoesNotFitError
from macllm.train.events import Advanced

from .principles import Principle
from .prompts import AskedQuestion
from .records import RecordFiles
from .speaker import Speaker


@dataclass(frozen=True)
class Revised:
    """Numbers of questions, of answers that their revisions changed, and of dialogues that did not fit."""

    questions: int
    changed: int
    too_long: int


def revise(
    questions: Sequence[AskedQuestion], principles: Sequence[Principle], speaker: Speaker, output: RecordFiles, *,
    rounds: int = 1, seed: int = 0,
) -> Generator[Advanced, None, Revised]:  # fmt: skip
    """Append a record for each question that `output` lacks, yielding progress.

    A record is a row of training data (`prompt`, `completion`) with the first `answer` and the `rounds`: principle,
    critique and revision. Principles are drawn by `seed`, anew for each round. A question whose dialogue does not fit
    in the context is skipped.
    """
    about = [rounds, seed, [vars(each) for each in principles]]
    ids = output.ids(about, [question.messages for question in questions])
    for number, (id, question) in enumerate(zip(ids, questions, strict=True)):
        if id not in output:
            made = _revised(question, principles, speaker, rounds, Random(f"{seed} {number}"))
            (output.made if "completion" in made else output.skipped).add({"id": id, **made})
        yield Advanced("revising", number + 1, len(questions))
    changed = sum(each["completion"][0]["content"] != each["answer"] for each in output.made)
    return Revised(len(questions), changed, len(output.skipped))


def _revised(
    question: AskedQuestion, principles: Sequence[Principle], speaker: Speaker, rounds: int, random: Random
) -> dict[str, Any]:
    """The record of a question, without its id."""
    asked = {"prompt": question.messages}
    try:
        first = last = speaker.say(question.messages, random.getrandbits(32))
        dialogue: list[dict[str, str]] = []
        for _ in range(rounds):
            principle = random.choice(principles)
            about = {"question": question.text, "answer": last}
            critique = _say(speaker, principle.asked("critique", **about), random)
            revision = _say(speaker, principle.asked("revision", **about, critique=critique), random)
            dialogue.append({"principle": principle.name, "critique": critique, "revision": revision})
            last = revision or last
    except DoesNotFitError as error:
        return {**asked, "too_long": error.message}
    return {**asked, "completion": [{"role": "assistant", "content": last}], "answer": first, "rounds": dialogue}


def _say(speaker: Speaker, text: str, random: Random) -> str:
    return speaker.say([{"role": "user", "content": text}], random.getrandbits(32))
