"""Answers of a model as training rows: which are written, and an interrupted pass."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from macllm import cli
from macllm.errors import DataError, UsageError
from macllm.train import answers
from macllm.train.rows import PlainText, parse, read

ROWS = [
    {"prompt": "one"},
    {"prompt": "two", "completion": "old"},
    {"messages": [{"role": "user", "content": "three"}, {"role": "assistant", "content": "old"}]},
    {"prompt": [{"role": "user", "content": "four"}], "tools": [{"name": "f"}]},
    {"prompt": "five", "chosen": "a", "rejected": "b"},
    {"messages": [{"role": "user", "content": "six"}, {"role": "assistant", "content": "x"},
                  {"role": "user", "content": "seven"}]},
]  # fmt: skip


def parsed() -> list[Any]:
    return [parse(row, f"rows.jsonl:{n}") for n, row in enumerate(ROWS)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of a scripted `generate`, which cuts the answer to "two" and says nothing to "five"."""
    calls: list[dict[str, Any]] = []

    def generate(model: Any, tokenizer: Any, prompt: Any, **options: Any) -> Any:
        calls.append({"prompt": prompt, **options})
        text = "" if prompt == "five" else f"answer {options['seed']}"
        return SimpleNamespace(text=text, finish_reason="length" if prompt == "two" else "stop")

    monkeypatch.setattr(answers, "generate", generate)
    return calls


def written(output: Path, most: int = 99, **settings: Any) -> Any:
    """The result of the work, or None after `most` questions."""
    work = answers.answering(None, None, parsed(), output, **settings)  # type: ignore[arg-type]
    try:
        for _ in range(most):
            next(work)
    except StopIteration as end:
        return end.value
    work.close()
    return None


def test_whole_answers_become_rows_after_their_questions(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    output = tmp_path / "new/answered.jsonl"
    assert written(output, seed=7, options={"temperature": 0.5}) == answers.Written(6, 4, 2)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    said = [{"role": "assistant", "content": f"answer {seed}"} for seed in (9, 10, 12)]
    assert [line.pop("row") for line in lines] == [0, 2, 3, 5]
    assert lines == [
        {"prompt": "one", "completion": "answer 7"},
        {"prompt": ROWS[2]["messages"][:1], "completion": said[:1]},
        {"prompt": ROWS[3]["prompt"], "completion": said[1:2], "tools": parsed()[3].tools},
        {"prompt": ROWS[5]["messages"], "completion": said[2:]},
    ]
    assert [row.kind for row in read(output)] == ["prompt and completion"] * 4
    assert {call["temperature"] for call in asked} == {0.5}


def test_an_interrupted_pass_goes_on_to_the_same_bytes(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    written(whole)
    assert written(stopped, most=4) is None
    with stopped.open("ab") as file:
        file.write(b'{"prompt": "fo')  # a kill in the middle of a line
    asked.clear()
    assert written(stopped) == answers.Written(6, 4, 2)
    assert stopped.read_bytes() == whole.read_bytes()
    assert len(asked) == 3
    asked.clear()
    assert written(stopped) == answers.Written(6, 4, 2)
    assert asked == []


def test_an_output_of_other_settings_is_kept(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    output = tmp_path / "answered.jsonl"
    written(output, seed=1)
    content = output.read_bytes()
    with pytest.raises(UsageError, match="made with other settings") as error:
        written(output, seed=2, identity="another")
    assert error.value.cause == "model, seed"
    (tmp_path / "own.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="made with other settings"):
        written(tmp_path / "own.jsonl")
    assert output.read_bytes() == content


@pytest.mark.parametrize(
    "row", [PlainText("a text", "here:1"), parse({"messages": [{"role": "assistant", "content": "x"}]}, "here:1")]
)
def test_a_row_without_a_question_is_an_error(row: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="here:1"):
        next(answers.answering(None, None, [row], tmp_path / "out"))  # type: ignore[arg-type]


def test_the_command_writes_answers_of_the_bundled_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "What is a KV cache?"}\n{"prompt": "Hello!"}\n')
    command = ["data", "answer", "rows.jsonl", "--model", "maclet", "-o", "out.jsonl", "-n", "80", "--temperature", "0"]
    assert cli.main(command) == 0
    told = capsys.readouterr()
    assert told.out == "out.jsonl\n"
    assert "2 answers to 2 questions" in told.err
    assert "cache" in json.loads(Path("out.jsonl").read_text().splitlines()[0])["completion"]
