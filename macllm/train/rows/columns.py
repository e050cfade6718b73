"""Kind of a row from its columns."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from macllm.errors import DataError

from .conversation import check_depth, messages_in, tools_in, variables_in, without_nulls
from .kinds import (
    Chat,
    Label,
    Messages,
    PlainText,
    Preference,
    PromptCompletion,
    PromptOnly,
    Row,
    TaggedWords,
    UnpairedPreference,
)

_FORMS = [each.form for each in (Chat, PromptCompletion, PlainText, Preference, UnpairedPreference)]
EXAMPLES = f"a row is {', '.join(_FORMS[:-1])} or {_FORMS[-1]}"


@dataclass(frozen=True)
class Columns:
    """Names of the columns of chats, prompts, completions and texts (mlx-lm's `chat_feature` and others)."""

    chat: str = "messages"
    prompt: str = "prompt"
    completion: str = "completion"
    text: str = "text"


_STANDARD = Columns()
_FOR_TEMPLATES = ("tools", "functions", "chat_template_kwargs")
_READ_OF_PROMPTS = ("prompt", "system", *_FOR_TEMPLATES)
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_TURNS = ("user", "assistant")
_INSTRUCTIONS = ("system", "developer")
_ANSWERS = ("completion", "chosen", "rejected")
_WORDS, _TAGS = ("words", "tokens"), ("tags", "labels", "ner_tags")


def parse(values: Any, where: str, columns: Columns = _STANDARD) -> Row:
    """The row of one JSON object. Null columns count as absent, unknown ones are ignored.

    Raises DataError, with `where`, for an invalid row, for a stepwise one, and for answers to images or sound.
    """
    if not isinstance(values, dict):
        raise DataError(f"{where} is not a JSON object", remedy=EXAMPLES)
    check_depth(values, where)
    row = _asked_and_answered(_renamed({name: value for name, value in values.items() if value is not None}, columns))
    parsed = _of_columns(row, values, where)
    if isinstance(parsed, PlainText | TaggedWords):
        return parsed
    if seen := [name for name in _MEDIA if without_nulls(row.get(name))]:
        raise DataError(
            f"{where} has the column {seen[0]}",
            cause="macllm supports text only",
            remedy="leave the column out where the texts stand alone",
        )
    tools = tools_in(row.get("tools", row.get("functions")), where)
    if row.get("system"):
        parsed = _instructed(parsed, messages_in([{"role": "system", "content": row["system"]}], where))
    if isinstance(parsed, Preference) and "margin" in row:
        parsed = replace(parsed, margin=_margin(row["margin"], where))
    return replace(parsed, tools=tools, variables=variables_in(row.get("chat_template_kwargs"), where))


def _of_columns(row: dict[str, Any], values: dict[str, Any], where: str) -> Row:
    """The row without system message, tools and variables of their own columns."""
    ranked = isinstance(row.get("chosen"), dict) and isinstance(row.get("rejected"), dict)
    if ranked and ("messages" in row or "conversations" in row):
        chosen, rejected = (messages_in([row[name]], where) for name in ("chosen", "rejected"))
        return Preference(_listed(row, where), chosen, rejected, where)
    if "messages" in row:
        return _chat(row, where)
    words, tags = (next((name for name in names if isinstance(row.get(name), list)), "") for names in (_WORDS, _TAGS))
    if words and tags:
        return _tagged(row[words], row[tags], where)
    if "completions" in row and "labels" in row:
        raise DataError(
            f"{where} is stepwise (prompt, completions, labels), which no objective of macllm learns from",
            remedy=EXAMPLES,
        )
    if "chosen" in row and "rejected" in row:
        return _preference(row, where)
    if "prompt" in row and "completion" in row:
        return _completion(row, where)
    if "text" in row:
        if not isinstance(row["text"], str):
            raise DataError(f"{where}: text is not a string")
        label = row.get("label") if isinstance(row.get("label"), Label) else None
        return PlainText(row["text"], where, tuple(name for name in _FOR_TEMPLATES if name in row), label)
    if "prompt" in row and "completion" not in values:
        others = {name: value for name, value in row.items() if name not in _READ_OF_PROMPTS}
        return PromptOnly(_text_or_messages(row["prompt"], where, "prompt"), where, columns=others)
    if "conversations" in row:
        return _chat(row, where)
    if "instruction" in row and "output" in row:
        return _alpaca(row, where)
    found = ", ".join(sorted(map(str, values))) or "nothing"
    remedy = f"{EXAMPLES}; columns of other names are given by --chat-feature, --prompt-feature and others"
    raise DataError(f"{where} has no known columns", cause=f"it has {found}", remedy=remedy)


def _tagged(words: list[Any], tags: list[Any], where: str) -> TaggedWords:
    if len(words) != len(tags):
        raise DataError(f"{where} has {len(words)} words and {len(tags)} labels")
    if not all(isinstance(word, str) for word in words) or not all(isinstance(tag, Label) for tag in tags):
        raise DataError(
            f"{where}: words must be strings, and their labels strings or whole numbers",
            remedy='{"words": ["Ada", "wrote"], "tags": ["PERSON", "O"]}',
        )
    return TaggedWords(tuple(words), tuple(tags), where)


def _margin(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{where}: margin is {value!r}, not a finite number")
    return float(value)


def _renamed(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """The row with its own columns under their standard names."""
    own = {columns.chat: "messages", columns.prompt: "prompt", columns.completion: "completion", columns.text: "text"}
    moved = {standard: row[name] for name, standard in own.items() if name in row}
    hidden = {standard for name, standard in own.items() if name != standard}
    return {name: value for name, value in row.items() if name not in hidden and name not in own} | moved


def _asked_and_answered(row: dict[str, Any]) -> dict[str, Any]:
    """The row of text to text, source and target, as a prompt and its completion."""
    others = {"messages", "conversations", "prompt", "completion", "text", "instruction", "chosen"}
    if {"source", "target"} <= row.keys() and others.isdisjoint(row):
        return {**row, "prompt": row["source"], "completion": row["target"]}
    return row


def _chat(row: dict[str, Any], where: str) -> Row:
    """A conversation, or with a verdict an unpaired preference.

    The verdict is on the last answer, as in rows of LLaMA-Factory and ms-swift.
    """
    messages, verdict = _listed(row, where), row.get("kto_tag", row.get("label"))
    if isinstance(verdict, bool) and messages[-1]["role"] == "assistant":
        return UnpairedPreference(messages[:-1], messages[-1:], verdict, where)
    return Chat(messages, None, where)


def _listed(row: dict[str, Any], where: str) -> Messages:
    """The messages of a conversation, under either name."""
    name = "messages" if "messages" in row else "conversations"
    if not isinstance(row[name], list):
        raise DataError(f"{where}: {name} is not a list of messages", remedy=EXAMPLES)
    return messages_in(row[name], where)


def _instructed(row: Chat | PromptOnly | PromptCompletion | Preference | UnpairedPreference, system: Messages) -> Row:
    """The row after a system message, unless it begins with its own.

    Strings become messages.
    """
    if isinstance(row, Chat):
        return replace(row, messages=_after(system, row.messages))
    answers = {name: getattr(row, name) for name in _ANSWERS if hasattr(row, name)}
    spoken = {name: messages_in([{"role": "assistant", "content": each}], row.where) if isinstance(each, str) else each
              for name, each in answers.items()}  # fmt: skip
    asked = row.prompt
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}] if asked else []
    return replace(row, prompt=_after(system, asked), **spoken)


def _after(system: Messages, messages: Messages) -> Messages:
    own = messages[:1] and messages[0]["role"] in _INSTRUCTIONS
    return messages if own else [*system, *messages]


def _completion(row: dict[str, Any], where: str) -> Row:
    prompt, completion = _alike(row, ("prompt", "completion"), where)
    if isinstance(label := row.get("label"), bool | int | float) and label in (0, 1):
        return UnpairedPreference(prompt, completion, bool(label), where)
    return PromptCompletion(prompt, completion, where)


def _preference(row: dict[str, Any], where: str) -> Row:
    if "instruction" in row and "prompt" not in row:
        chosen, rejected = (_answer(row[name], where) for name in ("chosen", "rejected"))
        return Preference(_asked(row, where), chosen, rejected, where)
    chosen, rejected = _alike(row, ("chosen", "rejected"), where)
    if "prompt" in row and isinstance(row["prompt"], str) == isinstance(chosen, str):
        return Preference(_text_or_messages(row["prompt"], where, "prompt"), chosen, rejected, where)
    start = _common_start(chosen, rejected)
    return Preference(chosen[:start], chosen[start:], rejected[start:], where)


def _common_start(chosen: str | Messages, rejected: str | Messages) -> int:
    """Length of the prompt that both completions begin with; both keep at least one character or message.

    As in TRL's `extract_prompt`, a space before the difference belongs to the completions.
    """
    most = min(len(chosen), len(rejected)) - 1
    start = next((at for at in range(most) if chosen[at] != rejected[at]), max(most, 0))
    differs = chosen[start : start + 1] != rejected[start : start + 1]
    return start - 1 if differs and start and chosen[start - 1] == " " else start


def _alike(row: dict[str, Any], names: tuple[str, str], where: str) -> tuple[Any, Any]:
    """The values of two columns: two strings or two conversations."""
    first, second = (row[name] for name in names)
    if isinstance(first, str) != isinstance(second, str):
        raise DataError(f"{where}: {names[0]} and {names[1]} must be two strings or two lists of messages")
    return _text_or_messages(first, where, names[0]), _text_or_messages(second, where, names[1])


def _text_or_messages(value: Any, where: str, name: str) -> str | Messages:
    """The value of a column that may have both. Raises DataError for another type."""
    if not isinstance(value, str | list):
        raise DataError(f"{where}: {name} must be a string or a list of messages")
    return value if isinstance(value, str) else messages_in(value, where)


def _alpaca(row: dict[str, Any], where: str) -> Row:
    """Alpaca's row, with the columns that LLaMA-Factory adds to it."""
    prompt, answer = _asked(row, where), _answer(row["output"], where)
    if isinstance(tag := row.get("kto_tag"), bool):
        return UnpairedPreference(prompt, answer, tag, where)
    if row.get("history"):  # its answers are learned too
        return Chat([*prompt, *answer], None, where)
    return PromptCompletion(prompt, answer, where)


def _asked(row: dict[str, Any], where: str) -> Messages:
    texts = [row["instruction"], row.get("input", "")]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: instruction and input must be strings")
    asked = {"role": "user", "content": "\n\n".join(filter(None, texts))}
    return messages_in([*_history(row, where), asked], where)


def _answer(text: Any, where: str) -> Messages:
    if not isinstance(text, str):
        raise DataError(f"{where}: answers to an instruction must be strings")
    return messages_in([{"role": "assistant", "content": text}], where)


def _history(row: dict[str, Any], where: str) -> Messages:
    """The messages of Alpaca's column `history`: pairs of a question and its answer."""
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise DataError(f"{where}: history is not a list of questions with their answers", remedy='[["...", "..."]]')
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(_TURNS, pair, strict=True)]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(text, str) for text in value)
