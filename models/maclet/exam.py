"""The examination: committed questions, answered greedily and judged.

`python models/maclet/exam.py MODEL TRAIN`:
MODEL is a folder or a name, TRAIN the training data for the nearest-question baseline. Prints a table with 95 %
intervals (Wilson); the last line is one JSON object. The exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from macllm_models.maclet.evaluate import agreement, refuses
from macllm_models.maclet.judge import LEAST, Judge
from macllm_models.maclet.knowledge import Guide
from macllm_models.maclet.nearest import Nearest, questions
from macllm_models.maclet.plain import plain, plain_questions
from macllm_models.maclet.questions import follow_ups, refusals, wordings
from macllm_models.maclet.topics import split_label

GOALS = {"plain": 0.95, "wordings": 0.80, "follow-ups": 0.75}
_GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 160}

Message = dict[str, str]


@dataclass(frozen=True)
class Question:
    """A conversation that ends with a question, and what a right answer is: see `questions.FollowUp`."""

    set: str
    style: str
    messages: list[Message]
    expected: str
    topic: str = ""  # of the answer before, for "shorter" and "again"


@dataclass(frozen=True)
class Marked:
    """A question with an answer and the reason against it; "" if it is right."""

    question: Question
    answer: str
    reason: str = field(default="")


class Exam:
    """All questions of the examination, and their judge."""

    def __init__(self) -> None:
        self.guide = Guide(random.Random(0))
        self.judge = Judge(self.guide)

    def questions(self) -> list[Question]:
        """Plain forms of first names and of other names, wordings, follow-ups and refusals."""
        asked = [
            Question("plain" if name == topic.name else "plain, other names", topic.kind, _user(text), topic.name)
            for topic, name in plain_questions(self.guide.topics).values()
            for text in [plain(topic, name)]
        ]
        asked += [Question("wordings", each.style, _user(each.question), each.label) for each in wordings()]
        asked += [Question("refusals", "", _user(question), "refuse") for question in refusals()]
        for each in follow_ups():
            messages: list[Message] = []
            for text, label in zip(each.questions, each.answered, strict=False):
                messages += [*_user(text), {"role": "assistant", "content": self._said(label)}]
            real = [label for label in each.answered if not label.startswith("self ")]
            topic = split_label(real[-1])[0]
            kind = each.expected.split()[0] if each.expected.split()[0] in _SPECIAL else "topic"
            asked.append(Question("follow-ups", kind, [*messages, *_user(each.questions[-1])], each.expected, topic))
        return asked

    def written(self) -> list[tuple[str, str]]:
        """The questions in people's own words, each with an answer: most are trained with a topic's name only."""
        return [(question, topic.answers[facet][0]) for topic, facet, question in self.guide.own]

    def _said(self, label: str) -> str:
        """The answer that a conversation gave."""
        if label == "refuse":
            return self.guide.outside["refusal"][0]
        name, facet = split_label(label.removeprefix("self "))
        return self.guide.by_name[name.lower()].answers[facet][0]

    def mark(self, question: Question, answer: str) -> str:
        """The first reason against an answer; "" if it is right."""
        kind, _, rest = question.expected.partition(" ")
        if kind in _SPECIAL:
            return _SPECIAL[kind](self, question, answer, rest)
        name, facet = split_label(question.expected)
        return self.judge.about(answer, self.guide.by_name[name.lower()], facet)

    def marked(self, answers: Callable[[list[Message]], str]) -> list[Marked]:
        """All questions, answered by a function of the conversation."""
        given = [(question, answers(question.messages)) for question in self.questions()]
        return [Marked(question, answer, self.mark(question, answer)) for question, answer in given]

    def _refused(self, question: Question, answer: str, rest: str) -> str:
        return "" if refuses(answer) else "does not refuse"

    def _explained(self, question: Question, answer: str, rest: str) -> str:
        close = max(agreement(answer, each) for each in self.guide.frames["refused"]) >= LEAST
        return "" if close else "does not say why it does not know"

    def _small_talk(self, question: Question, answer: str, rest: str) -> str:
        return self.judge.about(answer, self.guide.by_name[rest.lower()], "what")

    def _again(self, question: Question, answer: str, rest: str) -> str:
        return self.judge.about(answer, self.guide.by_name[question.topic.lower()], "what")

    def _shorter(self, question: Question, answer: str, rest: str) -> str:
        before = question.messages[-2]["content"]
        return self.judge.shorter(answer, before, self.guide.by_name[question.topic.lower()])

    def _recalled(self, question: Question, answer: str, rest: str) -> str:
        topic = self.guide.by_name[rest.removeprefix("first ").lower()]
        named = self._mentioned(answer)
        if "ask" not in answer.lower() and "question" not in answer.lower():
            return "does not say what was asked"
        return "" if named == {topic.name} else f"names {', '.join(named) or 'nothing'}"

    def _mentioned(self, answer: str) -> set[str]:
        """The topics that "about ..." names at the end of an answer."""
        said = answer.rstrip(".").rpartition(" about ")[2].removeprefix("how to ").lower()
        return {self.guide.by_name[said].name} if said in self.guide.by_name else set()

    def _differs(self, question: Question, answer: str, rest: str) -> str:
        names = [self.guide.by_name[name.strip().lower()].name for name in rest.split("+")]
        for first, second, right in self.guide.pairs:
            ends = [topic.name for name in (first, second) if (topic := self.guide.by_name.get(name.lower()))]
            if sorted(ends) == sorted(names):
                return "" if agreement(answer, right) >= LEAST + 0.1 else "does not say the difference"
        raise ValueError(f"nothing is known to compare {rest}")


_SPECIAL: dict[str, Callable[[Exam, Question, str, str], str]] = {
    "refuse": Exam._refused,
    "cannot": Exam._explained,
    "self": Exam._small_talk,
    "again": Exam._again,
    "shorter": Exam._shorter,
    "asked": Exam._recalled,
    "differ": Exam._differs,
}


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate."""
    z, rate = 1.96, right / total
    middle = rate + z * z / (2 * total)
    spread = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    return max(0.0, middle - spread) / (1 + z * z / total), (middle + spread) / (1 + z * z / total)


def report(marked: Sequence[Marked], baseline: Sequence[Marked]) -> list[dict[str, Any]]:
    """Questions, right answers, interval and baseline of each set, then of each style of the wordings."""
    rows = []
    sets = list(dict.fromkeys((each.question.set, "") for each in marked))
    styles = dict.fromkeys((each.question.set, each.question.style) for each in marked)
    for name, style in [*sets, *(pair for pair in styles if pair[0] in ("wordings", "follow-ups"))]:
        ours, theirs = (
            [each.reason == "" for each in group if each.question.set == name and style in ("", each.question.style)]
            for group in (marked, baseline)
        )
        row: dict[str, Any] = {"set": name, "style": style, "questions": len(ours), "right": sum(ours)}
        row |= {"rate": sum(ours) / len(ours), "interval": interval(sum(ours), len(ours))}
        rows.append(row | {"nearest": sum(theirs) / len(theirs), "goal": None if style else GOALS.get(name)})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The report as a table in Markdown."""
    lines = ["| questions | | right | 95 % interval | goal | nearest question |", "|---|---|---|---|---|---|"]
    for row in rows:
        low, high = row["interval"]
        goal = f"{row['goal']:.0%}" if row["goal"] else ""
        name = f"{row['set']}: {row['style']}" if row["style"] else f"**{row['set']}**"
        shares = f"{row['rate']:.1%} | {low:.1%} to {high:.1%} | {goal} | {row['nearest']:.1%}"
        lines.append(f"| {name} | {row['questions']} | {shares} |")
    return "\n".join(lines)


def examine(model: str, train: Path) -> tuple[list[dict[str, Any]], list[Marked]]:
    """The report on a model, and every question with its answer."""
    import macllm

    exam = Exam()
    nearest = Nearest([*exam.written(), *questions(train)])
    loaded, tokenizer = macllm.load(model)
    marked = exam.marked(lambda messages: macllm.generate(loaded, tokenizer, messages, **_GREEDY).text)
    return report(marked, exam.marked(lambda messages: nearest.answer(messages[-1]["content"]))), marked


def main() -> int:
    """Read the command line, ask, and report."""
    parser = argparse.ArgumentParser(description="Examine a model.")
    parser.add_argument("model", help="folder or name")
    parser.add_argument("train", type=Path, help="train.jsonl, for the nearest question")
    parser.add_argument("--answers", type=Path, help="write every question, answer and reason here")
    options = parser.parse_args()
    rows, marked = examine(options.model, options.train)
    if options.answers:
        options.answers.write_text("".join(f"{json.dumps(asdict(each))}\n" for each in marked), encoding="utf-8")
    print(table(rows))
    print(json.dumps({"model": options.model, "report": rows}))
    return int(any(row["goal"] and row["rate"] < row["goal"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
