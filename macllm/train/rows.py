"""Rows of .jsonl training files: chats, prompts with completions, plain text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macllm.errors import DataError


@dataclass(frozen=True)
class Chat:
    """A conversation, with the tools for its template."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    where: str


@dataclass(frozen=True)
class PromptCompletion:
    """A prompt and its completion."""

    prompt: str
    completion: str
    where: str


@dataclass(frozen=True)
class PlainText:
    """Text with a loss on every token."""

    text: str
    where: str


Row = Chat | PromptCompletion | PlainText

_KINDS = 'a row is {"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": ...}'


def find_files(data: str, valid: str) -> tuple[Path, Path | None]:
    """The training file and the validation file or None, from a .jsonl file or a folder."""
    path = Path(data)
    given = Path(valid) if valid else None
    for each in (path, given):
        if each is not None and each.exists() and not each.is_dir() and not each.is_file():
            raise DataError(
                f"{each} is not a file",
                cause="rows are read more than once, and a pipe can be read only once",
                remedy="write them into a .jsonl file first",
            )
    if given is not None and not given.is_file():
        raise DataError(f"no file {given}", remedy="--valid a .jsonl file")
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"no file or folder {path}", remedy="--data train.jsonl")
        return path, given
    if not (path / "train.jsonl").is_file():
        raise DataError(f"no train.jsonl in {path}", remedy=f"put the rows into {path / 'train.jsonl'}")
    beside = path / "valid.jsonl"
    return path / "train.jsonl", given or (beside if beside.is_file() else None)


def check(data: str, valid: str) -> None:
    """Raise DataError if a file is missing or its first row is invalid."""
    for path in find_files(data, valid):
        if path is not None:
            read(path, most=1)


def read(path: Path, most: int | None = None) -> list[Row]:
    """All rows of a .jsonl file, or the first `most`. Raises DataError with file and line."""
    rows: list[Row] = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if len(rows) == most:
                    break
                if line.strip():
                    rows.append(_parse(line, f"{path}:{number}"))
    except OSError as error:
        raise DataError(f"cannot read {path}", cause=error.strerror) from error
    if not rows:
        raise DataError(f"no rows in {path}", remedy=_KINDS)
    return rows


def _parse(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON", cause=str(error), remedy="one JSON object per line, UTF-8") from error
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object", remedy=_KINDS)
    if "messages" in row:
        return Chat(_check_messages(row["messages"], where), _check_tools(row.get("tools"), where), where)
    if "prompt" in row and "completion" in row:
        return _completion(row, where)
    if "text" in row:
        if not isinstance(row["text"], str):
            raise DataError(f"{where}: text is not a string")
        return PlainText(row["text"], where)
    found = ", ".join(sorted(map(str, row))) or "nothing"
    raise DataError(f"{where} has no known field", cause=f"it has {found}", remedy=_KINDS)


def _completion(row: dict[str, Any], where: str) -> Row:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return Chat(_check_messages(prompt + completion, where), _check_tools(row.get("tools"), where), where)
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise DataError(f"{where}: prompt and completion must be two strings or two lists of messages")
    return PromptCompletion(prompt, completion, where)


def _check_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: messages is not a list of messages")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f"{where}: message {number} has no role", remedy='{"role": "user", "content": "..."}')
        content = message.get("content")
        if not isinstance(content, str | list) and not (content is None and message.get("tool_calls")):
            raise DataError(f"{where}: message {number} ({message['role']}) has no content")
    return messages


def _check_tools(tools: Any, where: str) -> list[Any] | None:
    if tools is not None and not isinstance(tools, list):
        raise DataError(f"{where}: tools is not a list")
    return tools
