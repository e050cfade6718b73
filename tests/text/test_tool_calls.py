from __future__ import annotations

import pytest

from macllm.text.tool_calls import ToolCall, ToolCallError, parse_tool_calls

A, B = ToolCall("a", {"x": 1}), ToolCall("b", {"y": ["é", None]})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "a", "arguments": {"x": 1}}', [A]),
        ('{"name": "a", "parameters": {"x": 1}}', [A]),
        ('{"type": "function", "function": {"name": "a", "arguments": "{\\"x\\": 1}"}}', [A]),
        ('{"id": "c7", "function": {"name": "a", "arguments": {"x": 1}}}', [ToolCall("a", {"x": 1}, "c7")]),
        ('{"id": 7, "function": {"name": "a", "arguments": " "}}', [ToolCall("a")]),
        ('{"name": "a", "arguments": {"x": 1}}\n{"name": "b", "arguments": {"y": ["é", null]}}', [A, B]),
        ('{"name": "a", "parameters": {"x": 1}}; {"name": "b", "parameters": {"y": ["é", null]}}', [A, B]),
        ('[{"name": "a", "arguments": {"x": 1}, "id": "abcdef123"}]', [ToolCall("a", {"x": 1}, "abcdef123")]),
        ('[TOOL_CALLS] [{"name": "a", "arguments": {"x": 1}}]', [A]),
        ('[TOOL_CALLS]a[ARGS]{"x": 1}[TOOL_CALLS]b[ARGS]{"y": ["é", null]}', [A, B]),
        ('a[ARGS]{"x": 1}', [A]),
        (' a [ARGS] {"x": 1} ', [A]),
        ('{"name": "a"}', [ToolCall("a")]),
        ('{"name": "a", "arguments": ""}', [ToolCall("a")]),
        ('{"name": "a", "arguments": {"x": "line\nbreak"}}', [ToolCall("a", {"x": "line\nbreak"})]),
        ("  \n", []),
    ],
)
def test_calls_are_read_in_every_format(text: str, calls: list[ToolCall]) -> None:
    assert parse_tool_calls(text) == calls


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "a", "arguments": {"x": 1}',
        "a(x=1)",
        '{"arguments": {}}',
        '{"name": 5}',
        '{"name": "a", "arguments": [1]}',
        '{"name": "a"} and then',
        "a[ARGS]",
        "[1]",
        "[" * 100_000,
    ],
)
def test_a_call_that_cannot_be_read_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(ToolCallError) as caught:
        parse_tool_calls(text)
    assert caught.value.cause
    assert caught.value.remedy
