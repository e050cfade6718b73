"""Answers of a model, criticized and revised by it: supervised data (arXiv:2212.08073, section 3)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from macllm.errors import DoesNotFitError
from macllm.train.events import Advanced

from .dialogues import Dialogue, Messages, Query, Respondent, Said, held
from .principles import Principle
from .prompts import AskedQuestion
from .records import RecordFiles


@dataclass(frozen=True)
class Revised:
    """Numbers of questions, of answers that their revisions changed, and of those that are left out.

    `unfinished` revisions reached the limit of tokens: nothing would teach their end.
    """

    questions: int
    changed: int
    too_long: int
    unfinished: int


def revise(
    questions: Sequence[AskedQuestion], principles: Sequence[Principle], speaker: Respondent, output: RecordFiles, *,
    rounds: int = 1, seed: int = 0,
) -> Generator[Advanced, None, Revised]:  # fmt: skip
    """Append a record for each question that `output` lacks, yielding progress.

    A record is a row of training data (`prompt`, `completion`) with the first `answer` and the `rounds`: principle,
    critique if its revision reads one, and revision. Principles are drawn by `seed`, anew for each round. A question is
    skipped if its dialogue does not fit in the context, or its last revision reaches the limit of tokens.
    `speaker.batch_size` questions are answered side by side.
    """
    about = [rounds, seed, [vars(each) for each in principles]]
    ids = output.ids(about, [question.messages for question in questions])
    for start in range(0, len(questions), speaker.batch_size):
        numbers = range(start, min(start + speaker.batch_size, len(questions)))
        if not all(ids[number] in output for number in numbers):
            dialogues = [_revised(questions[n], principles, rounds, Random(f"{seed} {n}")) for n in numbers]
            output.add((ids[n], made) for n, made in zip(numbers, held(dialogues, speaker), strict=True))
        yield Advanced("revising", numbers.stop, len(questions))
    changed = sum(each["completion"][0]["content"] != each["answer"] for each in output.made)
    too_long = sum("too_long" in each for each in output.skipped)
    return Revised(len(questions), changed, too_long, len(output.skipped) - too_long)


def _revised(
    question: AskedQuestion, principles: Sequence[Principle], rounds: int, random: Random
) -> Dialogue[dict[str, Any]]:
    """The record of a question, without its id."""
    asked = {"prompt": question.messages}
    try:
        said = yield from _say(question.messages, random)
        first = last = said.text
        dialogue: list[dict[str, str]] = []
        for _ in range(rounds):
            principle = random.choice(principles)
            about = {"question": question.text, "answer": last}
            turn = {"principle": principle.name}
            if principle.is_criticized:
                turn["critique"] = (yield from _ask(principle.asked("critique", **about), random)).text
            said = yield from _ask(principle.asked("revision", **about, **turn), random)
            dialogue.append({**turn, "revision": said.text})
            last = said.text or last
    except DoesNotFitError as error:
        return {**asked, "too_long": error.message}
    revised = {"completion": [{"role": "assistant", "content": last}]} if said.finished else {"unfinished": last}
    return {**asked, **revised, "answer": first, "rounds": dialogue}


def _ask(text: str, random: Random) -> Dialogue[Said]:
    return (yield from _say([{"role": "user", "content": text}], random))


def _say(messages: Messages, random: Random) -> Dialogue[Said]:
    (said,) = yield [Query(messages, random.getrandbits(32))]
    return said
