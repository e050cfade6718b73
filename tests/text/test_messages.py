from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from macllm.errors import UsageError
from macllm.text.messages import read_messages, read_tools

HI = {"role": "user", "content": "hi"}
CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"a": 1}}}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}

REFUSED: dict[str, tuple[Any, str]] = {
    "a text": ("hi", "The conversation is a string"),
    "one message": (HI, "The conversation is one object"),
    "nothing": (None, "The conversation is null"),
    "a number": (5, "The conversation is a number"),
    "no messages": ([], "has no messages"),
    "texts": (["hi"], r"messages\[0\] is a string, not an object"),
    "pairs": ([("user", "hi")], r"messages\[0\] is of type tuple, not an object"),
    "a null among them": ([HI, None], r"messages\[1\] is null"),
    "tokens": ([1, 2], r"messages\[0\] is a number"),
    "no role": ([HI, {"content": "x"}], r"messages\[1\] has no role"),
    "a role of null": ([{"role": None, "content": "x"}], r"messages\[0\] has no role"),
    "a role that is a number": ([{"role": 1, "content": "x"}], r"messages\[0\] has a role that is a number"),
    "an empty role": ([{"role": "", "content": "x"}], r"messages\[0\] has a role that is empty"),
    "only a role": ([HI, {"role": "assistant"}], r"messages\[1\] has neither content nor tool calls"),
    "null content": ([{"role": "user", "content": None}], r"messages\[0\] has neither content nor tool calls"),
    "no content, no calls": (
        [{"role": "assistant", "content": None, "tool_calls": []}],
        r"messages\[0\] has neither content nor tool calls",
    ),
    "no parts": ([{"role": "user", "content": []}], r"messages\[0\] has neither content nor tool calls"),
    "content that is a number": ([{"role": "user", "content": 5}], r"messages\[0\] has content that is a number"),
    "a result that is a number": (
        [HI, {"role": "tool", "content": 5.5}],
        r"messages\[1\] has content that is a number",
    ),
    "content of bytes": ([{"role": "user", "content": b"hi"}], r"messages\[0\] has content that is of type bytes"),
    "a result of bytes": ([HI, {"role": "tool", "content": b"hi"}], r"messages\[1\] has content that is of type bytes"),
    "a picture": ([{"role": "user", "content": object()}], r"messages\[0\] has content that is of type object"),
    "a picture among the parts": (
        [{"role": "user", "content": ["hi", object()]}],
        r"messages\[0\]\.content\[1\] is of type object",
    ),
    "a part whose text is bytes": (
        [{"role": "user", "content": [{"type": "text", "text": b"hi"}]}],
        r"content\[0\] is a text part whose text is of type bytes",
    ),
    "content that is true": ([{"role": "user", "content": True}], r"messages\[0\] has content that is a boolean"),
    "content that is an object": (
        [{"role": "user", "content": {"a": 1}}],
        r"messages\[0\] has content that is an object",
    ),
    "an image": (
        [HI, {"role": "user", "content": [IMAGE]}],
        r"messages\[1\]\.content\[0\] is a part of type 'image_url'",
    ),
    "an image beside text": (
        [{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image", "image": "x"}]}],
        r"messages\[0\]\.content\[1\] is a part of type 'image'",
    ),
    "an image of a tool": (
        [HI, {"role": "tool", "content": [{"type": "text", "text": "see"}, IMAGE]}],
        r"messages\[1\]\.content\[1\] is a part of type 'image_url'",
    ),
    "sound": (
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        r"messages\[0\]\.content\[0\] is a part of type 'input_audio'",
    ),
    "a part without a type": (
        [{"role": "user", "content": [{"a": 1}]}],
        r"messages\[0\]\.content\[0\] is a part without",
    ),
    "a part that is a number": ([{"role": "user", "content": [5]}], r"messages\[0\]\.content\[0\] is a number"),
    "a part without text": (
        [{"role": "user", "content": [{"type": "text"}]}],
        r"content\[0\] is a text part whose text is",
    ),
    "calls that are an object": (
        [{"role": "assistant", "tool_calls": CALL}],
        r"messages\[0\] has tool_calls that are an object, not a list",
    ),
    "a call that is a string": (
        [{"role": "assistant", "tool_calls": ["f()"]}],
        r"messages\[0\]\.tool_calls\[0\] is a string",
    ),
    "a call without a name": (
        [{"role": "assistant", "tool_calls": [CALL, {"function": {"arguments": {}}}]}],
        r"messages\[0\]\.tool_calls\[1\] names no function",
    ),
    "a name that no JSON has": (
        [{"role": "assistant", "tool_calls": [{"function": {"name": object(), "arguments": {}}}]}],
        r"messages\[0\]\.tool_calls\[0\] names no function",
    ),
    "arguments that no JSON has": (
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": object()}}]}],
        r"messages\[0\]\.tool_calls\[0\] has arguments that are of type object",
    ),
    "a role that no JSON has": (
        [{"role": object(), "content": "x"}],
        r"messages\[0\] has a role that is of type object",
    ),
    "arguments that are a list": (
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}],
        r"messages\[0\]\.tool_calls\[0\] has arguments that are a list",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_invalid_conversation_is_refused_with_the_place_of_the_fault(case: str) -> None:
    value, match = REFUSED[case]
    with pytest.raises(UsageError, match=match) as caught:
        read_messages(value)
    assert caught.value.remedy


def test_a_message_that_contains_itself_is_refused() -> None:
    message: dict[str, Any] = {"role": "user", "content": "hi"}
    message["extra"] = message
    with pytest.raises(UsageError, match=r"messages\[1\] contains itself"):
        read_messages([HI, message])


def test_null_fields_are_dropped() -> None:
    nulls = dict.fromkeys(("name", "refusal", "audio", "function_call", "annotations", "reasoning_content"))
    assert read_messages([{**HI, **nulls, "tool_calls": None}]) == [HI]
    assert read_messages([{**HI, "tool_calls": []}]) == [HI]
    call = {"id": None, "index": None, **CALL, "function": {**CALL["function"], "strict": None}}
    assert read_messages([{"role": "assistant", "content": None, "tool_calls": [call]}]) == [
        {"role": "assistant", "content": None, "tool_calls": [{**CALL}]}
    ]


def test_reading_messages_twice_changes_nothing() -> None:
    thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]}
    messages = [HI, CALLING, {"role": "tool", "content": [{"t": 1}, None]}, thought, {**HI, "content": ["a", "b"]}]
    once = read_messages(messages)
    assert read_messages(once) == once


def test_every_spelling_of_a_text_part_becomes_a_text_part() -> None:
    parts = ["a", {"text": "b"}, {"type": "input_text", "text": "c"}, {"type": "refusal", "refusal": "d"}]
    read = read_messages([{"role": "user", "content": parts}])[0]["content"]
    assert [(part["type"], part["text"]) for part in read] == [("text", letter) for letter in "abcd"]
    assert read_messages([{"role": "user", "content": {"type": "text", "text": "e"}}])[0]["content"][0]["text"] == "e"


def test_thinking_parts_become_reasoning_content() -> None:
    for thinking in ("hm", [{"type": "text", "text": "hm"}]):
        parts = [{"type": "thinking", "thinking": thinking}, {"type": "text", "text": "a"}]
        assert read_messages([{"role": "assistant", "content": parts}])[0]["reasoning_content"] == "hm"
    assert read_messages([{"role": "assistant", "reasoning": "hm"}])[0]["thinking"] == "hm"


def test_tool_calls_in_other_forms_become_function_calls() -> None:
    function = CALL["function"]
    for value in ({"tool_calls": [function]}, {"tool_calls": [{"function": function}]}, {"function_call": function}):
        calls = read_messages([{"role": "assistant", **value}])[0]["tool_calls"]
        assert calls == [{"type": "function", "function": function}]
    for empty in ({"name": "f"}, {"name": "f", "arguments": ""}, {"name": "f", "arguments": None}):
        assert read_messages([{"role": "assistant", "tool_calls": [empty]}])[0]["tool_calls"][0]["function"] == {
            "name": "f",
            "arguments": {},
        }


def test_message_objects_of_clients_are_read_as_their_json() -> None:
    class Message:
        def model_dump(self) -> dict[str, Any]:
            return {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL], "function_call": None}

    @dataclass
    class Reply:
        role: str
        content: str

    assert read_messages([Message(), Reply("user", "hi")]) == [{**CALLING, "content": None}, HI]
    assert read_messages(iter((HI,))) == [HI]
    with pytest.raises(UsageError, match="The conversation is of type Message"):
        read_messages(Message())


TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def test_tools_are_read_with_or_without_the_function_wrapper() -> None:
    flat = {"type": "function", **TOOL["function"]}
    for tool in (TOOL, TOOL["function"], flat, {"function": TOOL["function"]}, {**TOOL, "strict": None}):
        assert read_tools([tool]) == [TOOL]
    assert read_tools((TOOL,)) == [TOOL]
    assert read_tools(None) is None
    schema = {"type": "object", "properties": {"a": {}}}
    assert read_tools([{"name": "f", "input_schema": schema}]) == [
        {"type": "function", "function": {"name": "f", "parameters": schema}}
    ]
    assert read_tools([]) == []
    assert list((read_tools([{"function": TOOL["function"], "type": "function"}]) or [{}])[0]) == ["function", "type"]


@pytest.mark.parametrize(
    ("tools", "match"),
    [
        (TOOL, "tools is one object"),
        ("f", "tools is a string"),
        (5, "tools is a number"),
        ([None], r"tools\[0\] is null"),
        ([TOOL, "f"], r"tools\[1\] is a string"),
        ([len], r"tools\[0\] is of type builtin_function_or_method, not the description of a function"),
        ([{"type": "web_search"}], r"tools\[0\] has the type 'web_search' and no function"),
        ([{"description": "d"}], r"tools\[0\] describes no function"),
        ([{"type": "function", "function": {"description": "d"}}], r"tools\[0\] is a function without a name"),
        ([{"type": "function", "function": {"name": object()}}], r"tools\[0\] is a function without a name"),
        ([{"name": "f", "parameters": "{}"}], r"tools\[0\] has parameters that are a string"),
    ],
)
def test_an_invalid_tool_is_refused_with_the_place_of_the_fault(tools: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        read_tools(tools)
    assert caught.value.remedy
