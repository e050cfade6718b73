from __future__ import annotations

import os
from pathlib import Path

import pytest

from macllm.errors import DataError
from macllm.train import rows


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_chat_completion_and_text_rows_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        '\ufeff{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": []}',
        "",
        '{"prompt": "p", "completion": "c", "extra": 1}',
        '{"text": "t"}',
        '{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}',
    )
    first, second, third, fourth = rows.read(path)
    assert isinstance(first, rows.Chat)
    assert isinstance(fourth, rows.Chat)
    assert first.messages == fourth.messages
    assert second == rows.PromptCompletion("p", "c", f"{path}:3")
    assert third == rows.PlainText("t", f"{path}:4")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"prompt": "p"}',
        '{"prompt": "p", "completion": 1}',
        '{"prompt": "p", "completion": []}',
        '{"text": 1}',
        '{"messages": []}',
        '{"messages": "x"}',
        '{"messages": ["x"]}',
        '{"messages": [{"content": "x"}]}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "assistant", "content": null}]}',
        '{"messages": [{"role": "user", "content": "x"}], "tools": {}}',
        "[" * 100_000,
        '{"text": ' + "1" * 5000 + "}",
    ],
    ids=lambda line: line[:40],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}', line)
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        rows.read(path)


def test_a_row_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1"):
        rows.read(tmp_path / "a.jsonl")


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        rows.read(write(tmp_path / "a.jsonl", ""))


def test_a_folder_gives_its_training_and_validation_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train\.jsonl"):
        rows.find_files(str(tmp_path), "")
    train = write(tmp_path / "train.jsonl", "")
    assert rows.find_files(str(tmp_path), "") == (train, None)
    valid = write(tmp_path / "valid.jsonl", "")
    assert rows.find_files(str(tmp_path), "") == (train, valid)
    assert rows.find_files(str(train), "") == (train, None)
    assert rows.find_files(str(train), str(valid)) == (train, valid)
    with pytest.raises(DataError):
        rows.find_files(str(tmp_path / "absent"), "")
    with pytest.raises(DataError):
        rows.find_files(str(train), str(tmp_path / "absent"))


def test_a_named_pipe_is_refused_as_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    good = write(tmp_path / "a.jsonl", '{"text": "t"}')
    for data, valid in ((tmp_path / "pipe", ""), (good, tmp_path / "pipe")):
        with pytest.raises(DataError, match="is not a file"):
            rows.find_files(str(data), str(valid))


def test_check_reads_only_the_first_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "", '{"text": "t"}', "odd")
    rows.check(str(path), "")
    with pytest.raises(DataError, match=":3"):
        rows.read(path)
