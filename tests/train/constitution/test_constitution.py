"""Revised answers and preferences by a model's own judgement."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macllm import checkpoint
from macllm.errors import DataError, DoesNotFitError, UsageError
from macllm.train import rows
from macllm.train.constitution import principles
from macllm.train.constitution.comparing import compare
from macllm.train.constitution.dialogues import Query, Said
from macllm.train.constitution.judges import AskedJudge, FunctionJudge
from macllm.train.constitution.principles import Principle
from macllm.train.constitution.prompts import AskedQuestion, questions
from macllm.train.constitution.records import RecordFiles, Records
from macllm.train.constitution.revising import revise
from macllm.train.constitution.speaker import ModelSpeaker
from macllm.train.rows import Chat, PlainText, PromptOnly

SHORT = Principle("short", "Be short.")
KIND = Principle("kind", "Be kind.", critique="How is {answer} unkind? {principle}")
ASKED = [AskedQuestion([{"role": "user", "content": f"What is {n}?"}], f"here:{n}") for n in range(5)]


class Scripted:
    """A speaker that answers by the seed, and as judge prefers long answers, and A by `bias`."""

    def __init__(self, bias: float = 0.0, taste: float = 1.0, batch_size: int = 2, finished: bool = True) -> None:
        self.bias, self.taste, self.batch_size, self.finished = bias, taste, batch_size, finished
        self.heard = list[str]()

    def say_all(self, turns: Sequence[Query]) -> list[Said | DoesNotFitError]:
        assert turns
        return [self.say(turn) for turn in turns]

    def say(self, turn: Query) -> Said | DoesNotFitError:
        self.heard.append(turn.messages[-1]["content"])
        if self.heard[-1] == "What is 3?":
            return DoesNotFitError("the question is longer than the context")
        return Said(f"answer {turn.seed % 1000}"[: 8 + turn.seed % 3], self.finished)

    def prefers_first(self, messages: Sequence[Mapping[str, Any]]) -> float:
        text = messages[-1]["content"]
        first, second = (
            text.partition("Answer A: ")[2].split("\n\n")[0],
            text.partition("Answer B: ")[2].split("\n\n")[0],
        )
        return self.bias + self.taste * (len(first) - len(second))


def finished(work: Generator[Any, None, Any]) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def revised(path: Path, speaker: Any, *, most: int | None = None, settings: object = None, **options: Any) -> Any:
    output = RecordFiles(path, settings)
    work = revise(ASKED, [SHORT, KIND], speaker, output, rounds=2, **options)
    return finished(work) if most is None else list(islice(work, most))


def compared(folder: Path, speaker: Any, judge: Any, *, most: int | None = None) -> Any:
    output = RecordFiles(folder / "pairs.jsonl")
    work = compare(ASKED, [SHORT, KIND], speaker, AskedJudge(judge), output)
    return finished(work) if most is None else list(islice(work, most))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_revision_is_asked_for_with_the_answer_its_critique_and_the_principle(tmp_path: Path) -> None:
    speaker = Scripted(batch_size=1)
    found = revised(tmp_path / "rows.jsonl", speaker)
    assert (found.questions, found.too_long) == (5, 1)
    record = lines(tmp_path / "rows.jsonl")[0]
    assert [each["principle"] for each in record["rounds"]] != []
    asked, *dialogue = speaker.heard[:5]
    assert asked == "What is 0?"
    answer = record["answer"]
    for number, each in enumerate(record["rounds"]):
        critique, revision = dialogue[2 * number : 2 * number + 2]
        rule = {"short": "Be short.", "kind": "Be kind."}[each["principle"]]
        assert all(text in critique for text in (answer, rule))
        assert all(text in revision for text in (answer, each["critique"], rule, "What is 0?"))
        answer = each["revision"]
    assert record["completion"] == [{"role": "assistant", "content": answer}]


def test_a_revision_that_reads_no_critique_is_asked_for_without_one(tmp_path: Path) -> None:
    speaker = Scripted(batch_size=1)
    direct = Principle("direct", "Be short.", revision="{question} Shorter: {answer}")
    finished(revise(ASKED[:1], [direct], speaker, RecordFiles(tmp_path / "rows.jsonl")))
    (record,) = lines(tmp_path / "rows.jsonl")
    assert speaker.heard == ["What is 0?", f"What is 0? Shorter: {record['answer']}"]
    assert record["rounds"] == [{"principle": "direct", "revision": record["completion"][0]["content"]}]


def test_the_records_are_training_data(tmp_path: Path) -> None:
    revised(tmp_path / "rows.jsonl", Scripted())
    assert [row.kind for row in rows.read(tmp_path / "rows.jsonl")] == ["prompt and completion"] * 4
    assert [each["prompt"][0]["content"] for each in lines(tmp_path / "rows.skipped.jsonl")] == ["What is 3?"]
    compared(tmp_path, Scripted(), Scripted())
    (first, *_) = rows.read(tmp_path / "pairs.jsonl")
    assert first.kind == "preference"


@pytest.mark.parametrize("most", [0, 1, 3])
def test_an_interrupted_command_goes_on_to_the_same_bytes(tmp_path: Path, most: int) -> None:
    revised(tmp_path / "whole.jsonl", Scripted())
    revised(tmp_path / "rows.jsonl", Scripted(), most=most)
    if most:
        with (tmp_path / "rows.jsonl").open("ab") as file:
            file.write(b'{"id": "half of a li')  # killed while it wrote
    revised(tmp_path / "rows.jsonl", Scripted())
    assert (tmp_path / "rows.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    compared(tmp_path / "whole", Scripted(), Scripted())
    compared(tmp_path / "parts", Scripted(), Scripted(), most=most)
    compared(tmp_path / "parts", Scripted(), Scripted())
    for name in ("pairs.jsonl", "pairs.skipped.jsonl"):
        assert lines(tmp_path / "whole" / name) == lines(tmp_path / "parts" / name)


def test_answers_that_the_limit_cut_off_are_not_learned(tmp_path: Path) -> None:
    found = revised(tmp_path / "rows.jsonl", Scripted(finished=False))
    assert (found.unfinished, found.too_long, lines(tmp_path / "rows.jsonl")) == (4, 1, [])
    whole, cut = (compared(tmp_path / str(each), Scripted(finished=each), Scripted()) for each in (True, False))
    assert (whole.unfinished, cut.unfinished, cut.decided) == (0, whole.decided, 0)
    assert (cut.undecided, cut.too_long) == (whole.undecided, whole.too_long)
    assert whole.decided > 0
    for name, finished in (("True", True), ("False", False)):
        stored = [*lines(tmp_path / name / "pairs.jsonl"), *lines(tmp_path / name / "pairs.skipped.jsonl")]
        assert [each["finished"] for each in stored if "answers" in each] == [[finished] * 2] * 4


def test_answers_side_by_side_are_those_of_one_at_a_time() -> None:
    model, tokenizer = checkpoint.load()
    turns = [Query(question.messages, n) for n, question in enumerate(ASKED)]
    turns[2] = Query([{"role": "user", "content": "long " * 2000}], 2)
    said = [
        ModelSpeaker(model, tokenizer, "maclet", max_tokens=12, temperature=0.7, batch_size=size).say_all(turns)
        for size in (1, 2, 8)
    ]
    assert [isinstance(each, DoesNotFitError) for each in said[0]] == [False, False, True, False, False]
    for others in said[1:]:
        assert [str(each) for each in others] == [str(each) for each in said[0]]


def test_records_of_other_settings_are_refused_and_files_of_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    revised(path, Scripted(), most=2)
    before = path.read_bytes()
    for change in ({"seed": 1}, {"settings": "hotter"}):
        with pytest.raises(UsageError, match="other prompts, principles or settings"):
            revised(path, Scripted(), **change)
    (tmp_path / "mine.jsonl").write_text('{"prompt": "mine"}\n')
    with pytest.raises(DataError, match="not a record"):
        Records(tmp_path / "mine.jsonl")
    assert path.read_bytes() == before


def test_a_bias_for_a_position_decides_nothing(tmp_path: Path) -> None:
    for name, judge in (("fair", Scripted()), ("biased", Scripted(bias=50.0)), ("blind", Scripted(50.0, taste=0.0))):
        (tmp_path / name).mkdir()
        found = compared(tmp_path / name, Scripted(), judge)
        for record in lines(tmp_path / name / "pairs.jsonl"):
            better, worse = record["chosen"][0]["content"], record["rejected"][0]["content"]
            assert len(better) > len(worse)
            assert record["preference"] == len(better) - len(worse)
            assert record["consistent"] is (name == "fair")
        assert found.position_bias == pytest.approx(judge.bias)
    decided = [{each["id"] for each in lines(tmp_path / name / "pairs.jsonl")} for name in ("fair", "biased", "blind")]
    assert decided[0] == decided[1] != set()
    assert decided[2] == set()


def test_the_model_chooses_by_the_next_token() -> None:
    model, tokenizer = checkpoint.load()
    speaker = ModelSpeaker(model, tokenizer, "maclet", max_tokens=4, temperature=0.0)
    messages = [{"role": "user", "content": "Which is better? Reply with A or B."}]
    logits = np.array(model(np_tokens(tokenizer.encode_chat(messages))))[0, -1].astype(np.float64)
    ids = {
        letter: {tuple(tokenizer.encode(space + letter, add_special_tokens=False)) for space in ("", " ")}
        for letter in "AB"
    }
    odds = [np.log(sum(np.exp(logits[each[0]]) for each in ids[letter] if len(each) == 1)) for letter in "AB"]
    assert speaker.prefers_first(messages) == pytest.approx(odds[0] - odds[1], abs=1e-4)
    with pytest.raises(DoesNotFitError):
        speaker.prefers_first([{"role": "user", "content": "long " * 2000}])


def np_tokens(ids: list[int]) -> Any:
    import mlx.core as mx

    return mx.array(ids)[None]


def test_braces_in_an_answer_stay_as_they_are() -> None:
    asked = KIND.asked("critique", question="{principle}", answer="{question} {0} {critique}")
    assert asked == "How is {question} {0} {critique} unkind? Be kind."


def test_questions_are_what_the_user_said_last() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    answered = [*turns, {"role": "assistant", "content": "Hello"}]
    found = questions([PromptOnly("Why?", "a:1"), Chat(answered, None, "a:2")])
    assert [each.text for each in found] == ["Why?", "Hi"]
    assert found[1].messages == turns
    with pytest.raises(DataError, match="a:3 has no question"):
        questions([PlainText("only a text", "a:3")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no list of principles"),
        ("[[principle]]\nname = 'a'", "principle 1 of .* has no text"),
        ("[[principle]]\nname = 'a'\ntext = 1", "text must be a text"),
        ("[[principle]]\nname = 'a'\ntext = 'b'\nrevison = 'c'", "unknown key 'revison'"),
        ("[[principle]]\nname = 'a'\ntext = 'b'\ncritique = '{first}'", "unknown {first}"),
        ("[[principle]]\nname = 'a'\ntext = 'b'\n[[principle]]\nname = 'a'\ntext = 'b'", "two principles"),
        ("[[principle]]\nname = 'a'\ntext = 'b'\ncritique = 'c'\nrevision = 'd'", "critique .* has no effect"),
        ("principle = [", "is not TOML"),
    ],
)
def test_wrong_principles_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "principles.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        principles.read(path)


def test_a_function_judges_in_place_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "judge.py"
    path.write_text(
        "def shorter(question, first, second, principle):\n    assert principle == 'Be short.'\n"
        "    return len(second) - len(first)\n\ndef broken(**given):\n    return float('nan')\n"
    )
    judge = FunctionJudge(f"{path}:shorter")
    assert judge.log_odds("What?", "long answer", "short", SHORT) == -6
    for name, principle in (("shorter", KIND), ("broken", SHORT)):
        with pytest.raises(DataError, match="the judge"):
            FunctionJudge(f"{path}:{name}").log_odds("What?", "a", "b", principle)
    with pytest.raises(UsageError, match="has no function 'short'"):
        FunctionJudge(f"{path}:short")
