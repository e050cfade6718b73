"""Answers of a model as training rows: distillation by sequences (arXiv:1606.07947).

Each answer is a line of the output. A sidecar file has the hash of all that the answers depend on, so that an
interrupted pass goes on after its last whole line, to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macllm.errors import DataError, UsageError
from macllm.files import append, json_text, read_json, whole_lines, write_json
from macllm.generation.sampling.ranges import LARGEST_SEED
from macllm.generation.stream import generate
from macllm.nn.protocol import LanguageModel
from macllm.text.tokenizer import Tokenizer

from .events import Advanced
from .rows import Chat, Messages, PlainText, Row, TaggedWords

_SIDECAR = ".made-by.json"
_ROW = "row"  # column of the output: the number of the question, from 0


@dataclass(frozen=True)
class Written:
    """Numbers of questions, of answers in the output, and of answers that are left out."""

    questions: int
    answers: int
    left_out: int


def answering(
    model: LanguageModel,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    output: Path,
    *,
    identity: str = "",
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Generator[Advanced, None, Written]:
    """Write the model's answer to the question of each row, {"prompt", "completion"}, yielding progress.

    An answer in the rows is not read. Left out are answers that are empty, call a tool, or reach the limit of tokens:
    nothing would teach their end. `identity` names the weights, `options` are those of `generate`; question n is
    answered with the seed `seed` + n. Raises UsageError for an output that was made from other rows or settings,
    DataError for a row without a question.
    """
    asked = [_question(row) for row in rows]
    facts = {"model": identity, "seed": seed, "options": dict(options or {}), "questions": _hash(asked)}
    answers, first = _begun(output, facts)
    for number in range(first, len(asked)):
        yield Advanced("asking the teacher", number, len(asked))
        line = _answer(model, tokenizer, asked[number], (seed + number) % (LARGEST_SEED + 1), options or {})
        if line is not None:
            append(output, json_text({**line, _ROW: number}).encode() + b"\n")
            answers += 1
    yield Advanced("asking the teacher", len(asked), len(asked))
    return Written(len(asked), answers, len(asked) - answers)


@dataclass(frozen=True)
class _Asked:
    prompt: str | Messages
    tools: list[Any] | None
    variables: dict[str, Any] | None


def _question(row: Row) -> _Asked:
    """The prompt of a row; of a conversation, all before the answer at its end."""
    match row:
        case PlainText() | TaggedWords():
            raise DataError(
                f"{row.where} is a row of kind {row.kind}",
                cause="it has no question to answer",
                remedy='rows of {"prompt": ...} or {"messages": [...]}',
            )
        case Chat():
            answered = row.messages[-1:] and row.messages[-1]["role"] == "assistant"
            prompt = row.messages[:-1] if answered else row.messages
        case _:
            prompt = row.prompt
    if not prompt:
        raise DataError(f"{row.where} has no question", remedy="leave the row out")
    return _Asked(prompt, row.tools, row.variables)


def _answer(
    model: LanguageModel, tokenizer: Tokenizer, asked: _Asked, seed: int, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The row of a question with its answer; None for an answer to leave out."""
    given = {"tools": asked.tools, "variables": asked.variables, "seed": seed}
    made = generate(model, tokenizer, asked.prompt, **given, **options)
    if made.finish_reason != "stop" or not made.text.strip():
        return None
    if isinstance(asked.prompt, str):
        return {"prompt": asked.prompt, "completion": made.text}
    row: dict[str, Any] = {"prompt": asked.prompt, "completion": [{"role": "assistant", "content": made.text}]}
    row |= {"tools": asked.tools} if asked.tools else {}
    return row | ({"chat_template_kwargs": asked.variables} if asked.variables else {})


def _begun(output: Path, facts: Mapping[str, Any]) -> tuple[int, int]:
    """Number of answers in the output, and of the next question; a line that was cut off is removed."""
    sidecar = output.with_name(output.name + _SIDECAR)
    facts = json.loads(json.dumps(facts))
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(sidecar, facts)
        output.touch()
        return 0, 0
    try:
        stored = read_json(sidecar)
    except (OSError, ValueError):
        stored = None
    if stored != facts:
        changed = "unknown settings" if not isinstance(stored, dict) else ", ".join(
            name for name in facts if stored.get(name) != facts[name]
        )  # fmt: skip
        raise UsageError(f"{output} exists, made with other settings", cause=changed, remedy="another --output")
    lines = whole_lines(output)
    return len(lines), int(json.loads(lines[-1])[_ROW]) + 1 if lines else 0


def _hash(asked: Sequence[_Asked]) -> str:
    digest = hashlib.sha256()
    for each in asked:
        digest.update(json.dumps([each.prompt, each.tools, each.variables], sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
