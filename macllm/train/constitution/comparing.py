"""Two answers of a model, and which of them it prefers: preference data (arXiv:2212.08073, section 4)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from macllm.errors import DoesNotFitError
from macllm.train.events import Advanced

from .dialogues import Dialogue, Query, Respondent, held
from .judges import PreferenceJudge
from .principles import Principle
from .prompts import AskedQuestion
from .records import RecordFiles


@dataclass(frozen=True)
class Compared:
    """Numbers of questions, by what became of them.

    `consistent` ones of the decided were decided the same way in both orders. Of `unfinished` ones the better answer
    reached the limit of tokens: nothing would teach its end. `position_bias` is the mean log-odds for the answer that
    was named first, over the judged questions.
    """

    questions: int
    decided: int
    undecided: int
    too_long: int
    unfinished: int
    consistent: int
    position_bias: float


def compare(
    questions: Sequence[AskedQuestion], principles: Sequence[Principle], speaker: Respondent, judge: PreferenceJudge,
    output: RecordFiles, *, margin: float = 0.0, seed: int = 0,
) -> Generator[Advanced, None, Compared]:  # fmt: skip
    """Append a record for each question that `output` lacks, yielding progress.

    The judge is asked in both orders: `scores` are its log-odds for the answer named first, and `preference`, half
    their difference, those for the chosen answer, free of a bias for a position. A question is skipped if both answers
    are the same, the preference is `margin` or less, the better answer is cut off, or it does not fit in the context.
    `speaker.batch_size` answers are made side by side.
    """
    about = [margin, seed, [vars(each) for each in principles]]
    ids = output.ids(about, [question.messages for question in questions])
    for start in range(0, len(questions), speaker.batch_size):
        numbers = range(start, min(start + speaker.batch_size, len(questions)))
        if not all(ids[number] in output for number in numbers):
            dialogues = [_compared(questions[n], principles, judge, margin, Random(f"{seed} {n}")) for n in numbers]
            output.add((ids[n], made) for n, made in zip(numbers, held(dialogues, speaker), strict=True))
        yield Advanced("comparing", numbers.stop, len(questions))
    judged = [each["scores"] for each in (*output.made, *output.skipped) if "scores" in each]
    return Compared(
        questions=len(questions),
        decided=len(output.made),
        undecided=sum("too_long" not in each and "unfinished" not in each for each in output.skipped),
        too_long=sum("too_long" in each for each in output.skipped),
        unfinished=sum("unfinished" in each for each in output.skipped),
        consistent=sum(each["consistent"] for each in output.made),
        position_bias=sum(map(sum, judged)) / (2 * len(judged)) if judged else 0.0,
    )


def _compared(
    question: AskedQuestion, principles: Sequence[Principle], judge: PreferenceJudge, margin: float, random: Random
) -> Dialogue[dict[str, Any]]:
    """The record of a question, without its id."""
    asked: dict[str, Any] = {"prompt": question.messages}
    try:
        said = yield [Query(question.messages, random.getrandbits(32)) for _ in range(2)]
        answers = [each.text for each in said]
        principle = random.choice(principles)
        asked |= {"answers": answers, "finished": [each.finished for each in said], "principle": principle.name}
        if answers[0] == answers[1]:
            return asked
        orders = (answers, answers[::-1])
        scores = [judge.log_odds(question.text, *order, principle=principle) for order in orders]
    except DoesNotFitError as error:
        return {**asked, "too_long": error.message}
    preference = (scores[0] - scores[1]) / 2
    asked |= {"scores": scores, "preference": abs(preference)}
    if not abs(preference) > margin:
        return asked
    better, worse = said if preference > 0 else reversed(said)
    if not better.finished:
        return {**asked, "unfinished": better.text}
    pair = {
        name: [{"role": "assistant", "content": each.text}] for name, each in (("chosen", better), ("rejected", worse))
    }
    return {**asked, **pair, "consistent": scores[0] * scores[1] < 0}
