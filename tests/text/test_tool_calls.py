from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from macllm.errors import UsageError
from macllm.text.tool_calls import ToolCall, ToolCallError, parse_tool_calls

A, B = ToolCall("a", {"x": 1}), ToolCall("b", {"y": ["é", None]})
A_TEXT, B_TEXT = '{"x": 1}', '{"y": ["é", null]}'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        # JSON
        ('{"name": "a", "arguments": {"x": 1}}', [A]),
        ('{"arguments": {"x": 1}, "name": "a"}', [A]),
        ('{"name": "a", "parameters": {"x": 1}}', [A]),
        ('{"tool_call_id": "0", "tool_name": "a", "parameters": {"x": 1}}', [ToolCall("a", {"x": 1}, "0")]),
        ('{"a": {"x": 1}}', [A]),
        ('{"type": "function", "function": {"name": "a", "arguments": "{\\"x\\": 1}"}}', [A]),
        ('{"id": "c7", "function": {"name": "a", "arguments": {"x": 1}}}', [ToolCall("a", {"x": 1}, "c7")]),
        ('{"id": 7, "function": {"name": "a", "arguments": " "}}', [ToolCall("a")]),
        ('{"name": "a", "arguments": {"x": 1}}\n{"name": "b", "arguments": {"y": ["é", null]}}', [A, B]),
        ('{"name": "a", "parameters": {"x": 1}}; {"name": "b", "parameters": {"y": ["é", null]}}', [A, B]),
        ('[{"name": "a", "arguments": {"x": 1}, "id": "abcdef123"}]', [ToolCall("a", {"x": 1}, "abcdef123")]),
        ('<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>', [A]),
        ('<tool_call>[{"name": "a", "arguments": {"x": "]}</tool_call>"}}]</tool_call>', [ToolCall("a", {"x": "]}</tool_call>"})]),  # noqa: E501
        ('{"name": "a"}', [ToolCall("a")]),
        ('{"name": "a", "arguments": ""}', [ToolCall("a")]),
        ('{"name": "a", "arguments": {"x": "line\nbreak"}}', [ToolCall("a", {"x": "line\nbreak"})]),
        ("{'name': 'a', 'arguments': {'x': 1}}", [A]),
        ("<tool_call>{'arguments': {'y': ['é', None]}, 'name': \"b\"}</tool_call>", [B]),
        ('Action: ```json\n[\n  {"tool_name": "a", "parameters": {"x": 1}}\n]\n```', [A]),
        (f'functools[{{"name": "a", "arguments": {A_TEXT}}}, {{"name": "b", "arguments": {B_TEXT}}}]', [A, B]),
        # Mistral
        ('[TOOL_CALLS] [{"name": "a", "arguments": {"x": 1}}]', [A]),
        (f"[TOOL_CALLS]a[ARGS]{A_TEXT}[TOOL_CALLS]b[ARGS]{B_TEXT}", [A, B]),
        (f"a[ARGS]{A_TEXT}", [A]),
        (f"a{A_TEXT}", [A]),
        (f"[TOOL_CALLS]a{A_TEXT}[TOOL_CALLS]b {B_TEXT}", [A, B]),
        (f" a [ARGS] {A_TEXT} ", [A]),
        (f"a[CALL_ID]abcdef123[ARGS]{A_TEXT}", [ToolCall("a", {"x": 1}, "abcdef123")]),
        # XML
        ("<function=a>\n</function>", [ToolCall("a")]),
        ("<function=a>\n<parameter=x>\n1\n</parameter>\n</function>", [ToolCall("a", {"x": "1"})]),
        ("<function=a>\n<parameter=x>\n\n a\n\n</parameter>\n</function>", [ToolCall("a", {"x": "\n a\n"})]),
        ("<function=a>\n<parameter=x>1</parameter>\n<parameter=y>\n</parameter></function>", [ToolCall("a", {"x": "1", "y": ""})]),  # noqa: E501
        (f"<function=a>{A_TEXT}</function><function=b>{B_TEXT}</function>", [A, B]),
        ("<function=a>\n<parameter=x>\n1</parameter>\n</function>", [ToolCall("a", {"x": "1"})]),
        ("<function=a>\n<parameter=x>1\n</parameter>\n</function>", [ToolCall("a", {"x": "1\n"})]),
        ("<function=a>\r\n<parameter=x>\r\n1\r\n 2\r\n</parameter>\r\n</function>", [ToolCall("a", {"x": "1\r\n 2"})]),
        ("a\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n", [A]),
        ("a<arg_key>x</arg_key><arg_value>1 < 2</arg_value>", [ToolCall("a", {"x": "1 < 2"})]),
        ("<tool_call>a</tool_call>", [ToolCall("a")]),
        ("a", [ToolCall("a")]),
        ('<invoke name="a"><parameter name="x">1</parameter></invoke>', [ToolCall("a", {"x": "1"})]),
        ('<｜DSML｜invoke name="a"><｜DSML｜parameter name="x" string="false">1</｜DSML｜parameter></｜DSML｜invoke>', [A]),  # noqa: E501
        # Python
        ("a(x=1)", [A]),
        ('[a(x=1), b(y=["é", None])]', [A, B]),
        ("a(x=1) b(y=['é', null])", [A, B]),
        ("""[f(a='it\\'s', b="x, y)", c={"d": [true, -1.5]}, from=None)]""", [ToolCall("f", {"a": "it's", "b": "x, y)", "c": {"d": [True, -1.5]}, "from": None})]),  # noqa: E501
        ("f(a='say 'no' to\nit', b='2')", [ToolCall("f", {"a": "say 'no' to\nit", "b": "2"})]),
        ('f(a="""say "no" \\\\\nto""", b=\'\'\'it\'s\'\'\', c="")', [ToolCall("f", {"a": 'say "no" \\\nto', "b": "it's", "c": ""})]),  # noqa: E501
        ("brave_search.call(query='x')", [ToolCall("brave_search", {"query": "x"})]),
        # tokens
        ('call:a{x:1}', [A]),
        ('call:a{x:<|"|>a, {b} "c"\n<|"|>,y:[true,None,{z:-1.5e3}],w:{}}', [ToolCall("a", {"x": 'a, {b} "c"\n', "y": [True, None, {"z": -1500.0}], "w": {}})]),  # noqa: E501
        ("call:a{x:<escape>1<escape>}", [ToolCall("a", {"x": "1"})]),
        (f"commentary to=functions.a <|constrain|>json<|message|>{A_TEXT}", [A]),
        (f"to=functions.a<|channel|>commentary json<|message|>{A_TEXT}", [A]),
        (f"functions.a:0<|tool_call_argument_begin|>{A_TEXT}", [ToolCall("a", {"x": 1}, "functions.a:0")]),
        (f"a<｜tool▁sep｜>{A_TEXT}", [A]),
        (f"function<｜tool▁sep｜>a\n```json\n{A_TEXT}\n```", [A]),
        ("  \n", []),
    ],
)  # fmt: skip
def test_calls_are_read_in_every_format(text: str, calls: list[ToolCall]) -> None:
    assert parse_tool_calls(text) == calls


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "a", "arguments": {"x": 1}',
        '{"arguments": {}}',
        '{"name": 5}',
        '{"name": "a", "arguments": [1]}',
        '{"name": "a"} and then',
        "a[ARGS]",
        "a[ARGS][1]",
        "[1]",
        "[" * 100_000,
        "a(x=1",
        "a(x=b)",
        "a(x=b())",
        "a(x=f'{1}')",
        "a(1)",
        "a(x=1) and then",
        "x = 1",
        "<function=a>\n<parameter=x>\n1\n",
        "<function=a>\n<parameter=x>1</parameter> and\n</function>",
        "a<arg_key>x</arg_key><arg_value>1",
        "call:a{x:1",
        "call:a{x}",
        'call:a{x:<|"|>1}',
        "call:a" + "{x:" * 100_000,
        "commentary to=functions.a<|message|>print(1)",
        "functions.a:0<|tool_call_argument_begin|>",
        "import math",
        "two words",
        "call:a{x:" + "1" * 5000 + "}",
        '{"name": "a", "arguments": {"x": ' + "1" * 5000 + "}}",
        "a(x=" + "1" * 5000 + ")",
    ],
)
def test_malformed_calls_are_an_error_with_cause_and_remedy(text: str) -> None:
    with pytest.raises(ToolCallError) as caught:
        parse_tool_calls(text)
    assert caught.value.cause
    assert caught.value.remedy


SCHEMAS: list[tuple[dict[str, Any], str, Any]] = [
    ({"type": "string"}, "1", "1"),
    ({"type": "string"}, "null", "null"),
    ({"type": "string"}, '{"a": 1}', '{"a": 1}'),
    ({"type": "integer"}, "12", 12),
    ({"type": "integer"}, "12.0", 12),
    ({"type": "integer"}, "twelve", "twelve"),
    ({"type": "integer"}, "1.5", "1.5"),
    ({"type": "number"}, "1.5", 1.5),
    ({"type": "number"}, "-2", -2),
    ({"type": "boolean"}, "true", True),
    ({"type": "boolean"}, "False", False),
    ({"type": "boolean"}, "maybe", "maybe"),
    ({"type": "object"}, '{"a": [1, null]}', {"a": [1, None]}),
    ({"type": "object"}, "{'a': [1, None, True]}", {"a": [1, None, True]}),
    ({"type": "array"}, "['x', 'y']", ["x", "y"]),
    ({"type": "array", "items": {}}, "x", "x"),
    ({"type": ["string", "null"]}, "null", None),
    ({"type": ["integer", "null"]}, "3", 3),
    ({"type": "integer", "nullable": True}, "None", None),
    ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "3", 3),
    ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "three", "three"),
    ({"oneOf": [{"type": "array"}, {"type": "null"}]}, "[1]", [1]),
    ({"properties": {}}, "{}", {}),
    ({"enum": [1, 2, "x"]}, "2", 2),
    ({"$ref": "#/$defs/count"}, "7", 7),
    ({}, "7", "7"),
    # names of types in other languages
    ({"type": "int"}, "7", 7),
    ({"type": "FLOAT"}, "1.5", 1.5),
    ({"type": "bool"}, "true", True),
    ({"type": "BOOLEAN"}, "True", True),
    ({"type": "dict"}, '{"a": 1}', {"a": 1}),
    ({"type": ["list", "none"]}, "[1]", [1]),
    ({"type": "str"}, "7", "7"),
    ({"const": 7}, "7", 7),
    ({"const": "7"}, "7", "7"),
    # what JSON cannot say
    ({"type": "number"}, "NaN", "NaN"),
    ({"type": "number"}, "-Infinity", "-Infinity"),
]


@pytest.mark.parametrize(("schema", "text", "value"), SCHEMAS)
def test_untyped_arguments_get_the_type_of_the_schema(schema: dict[str, Any], text: str, value: Any) -> None:
    parameters = {"type": "object", "properties": {"x": schema}, "$defs": {"count": {"type": "integer"}}}
    for tool in (
        {"type": "function", "function": {"name": "f", "parameters": parameters}},
        {"name": "f", "parameters": parameters},
        {"name": "f", "input_schema": parameters},
    ):
        for call in (
            f"<function=f>\n<parameter=x>\n{text}\n</parameter>\n</function>",
            f'<invoke name="f">\n<parameter name="x">{text}</parameter>\n</invoke>',
        ):
            (read,) = parse_tool_calls(call, [tool])
            assert read.arguments == {"x": value}
            assert type(read.arguments["x"]) is type(value)


def test_arguments_without_a_schema_are_read_as_json_if_possible() -> None:
    text = "f<arg_key>a</arg_key><arg_value>2</arg_value><arg_key>b</arg_key><arg_value>two</arg_value>"
    assert parse_tool_calls(text) == [ToolCall("f", {"a": 2, "b": "two"})]


def test_positional_arguments_take_the_names_of_the_schema() -> None:
    tool = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}}
    assert parse_tool_calls("f('x', b=2)", [tool]) == [ToolCall("f", {"a": "x", "b": 2})]


def test_a_bare_name_is_a_call_only_of_a_known_tool() -> None:
    assert parse_tool_calls("now", [{"name": "now"}]) == [ToolCall("now")]
    with pytest.raises(ToolCallError):
        parse_tool_calls("now", [{"name": "then"}])


@pytest.mark.parametrize("wrong", [None, ("a", "b"), ["a"], b"a", {"name": "a"}])
def test_parse_tool_calls_refuses_arguments_that_are_not_text(wrong: Any) -> None:
    with pytest.raises(UsageError, match="takes a string, and this is"):
        parse_tool_calls(wrong)


def test_missing_arguments_are_accepted_for_a_tool_without_parameters() -> None:
    tools = [{"name": "now"}, {"name": "a", "parameters": {"properties": {"x": {}}}}]
    assert parse_tool_calls("commentary to=functions.now<|message|>", tools) == [ToolCall("now")]
    assert parse_tool_calls("now[ARGS]", tools) == [ToolCall("now")]
    for text, known in (("a[ARGS]", tools), ("now[ARGS]", None), ("then[ARGS]", tools)):
        with pytest.raises(ToolCallError):
            parse_tool_calls(text, known)


@pytest.mark.parametrize(
    "unit", ["'x", '"""', '"', "<parameter=a>", "</parameter>", "{", "call:f{a:", "to=", "<arg_key>", "[f(a=", "\\"]
)
def test_long_malformed_calls_are_read_within_two_seconds(unit: str) -> None:
    for head in (
        "f(a='",
        "<function=f>\n<parameter=a>",
        "f<arg_key>a</arg_key><arg_value>",
        "call:f{a:",
        "to=f <|message|>",
    ):
        started = time.process_time()
        with contextlib.suppress(ToolCallError):
            parse_tool_calls(head + unit * 50_000)
        assert time.process_time() - started < 2
