from __future__ import annotations

from typing import Any

import pytest

from macllm.errors import UsageError
from macllm.text.roles import with_short_ids
from macllm.text.template import ChatTemplate

HI = {"role": "user", "content": "hi"}


def each(body: str) -> ChatTemplate:
    return ChatTemplate("{% for m in messages %}" + body + "{% endfor %}")


def render(chat: ChatTemplate, messages: list[dict[str, Any]]) -> str:
    return chat.render(messages, add_generation_prompt=False)


def call(name: str, identity: str | None = None) -> dict[str, Any]:
    entry = {"type": "function", "function": {"name": name, "arguments": {}}}
    return entry if identity is None else {**entry, "id": identity}


def result(content: Any, identity: str | None = None) -> dict[str, Any]:
    return {"role": "tool", "content": content} | ({} if identity is None else {"tool_call_id": identity})


NAMES_ROLES = (
    "{% if m.role == 'system' %}<S>{{ m.content }}{% elif m.role == 'user' %}<U>{{ m.content }}"
    "{% elif m.role == 'tool' %}<T>{{ m.content }}{% endif %}"
)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "developer", "content": "be kind"}, HI], "<S>be kind<U>hi"),
        ([{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, HI], "<S>a\n\nb<U>hi"),
        (
            [
                {"role": "developer", "content": [{"type": "text", "text": "a"}]},
                {"role": "system", "content": "b"},
                {"role": "developer", "content": "c"},
                HI,
            ],
            "<S>a\n\nb\n\nc<U>hi",
        ),
        ([HI, {"role": "developer", "content": "late"}], "<U>hi<S>late"),
        ([{"role": "system", "content": "a"}, {"role": "system", "content": "b"}], "<S>a<S>b"),
    ],
)
def test_what_a_developer_says_is_the_systems_for_a_template_that_knows_no_developer(
    messages: list[dict[str, Any]], expected: str
) -> None:
    assert render(each(NAMES_ROLES), messages) == expected


def test_a_developer_stays_one_for_a_template_that_knows_it() -> None:
    chat = each("{% if m['role'] == \"developer\" %}<D>{% endif %}{{ m.role }}:{{ m.content }};")
    messages = [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}]
    assert render(chat, messages) == "system:a;<D>developer:b;"


def test_the_result_of_a_function_is_that_of_a_tool() -> None:
    messages = [
        HI,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "42"},
    ]
    assert render(each(NAMES_ROLES), messages) == "<U>hi<T>42"


NULL_AND_TRUTH = {"a": None, "b": [True, "é"]}
JSON = '{"a": null, "b": [true, "é"]}'
WAYS = {
    "writes it": ("{{ m.content }}", "{}"),
    "trims it": ("{{ m.content | trim }}", "{}"),
    "joins it with +": ("{{ '<' + m.content + '>' }}", "<{}>"),
    "joins it with ~": ("{{ '<' ~ m.content ~ '>' }}", "<{}>"),
    "asks its methods": ("{{ m.content.strip() }}", "{}"),
    "cuts it": ("{{ m.content.split('|')[-1] }}", "{}"),
    "writes objects as JSON": ("{{ m.content if m.content is string else m.content | tojson }}", "{}"),
    "writes all as JSON": ('{{ {"result": m.content} | tojson }}', '{{"result": {}}}'),
    "leaves out what is no text": ("{{ m.content if m.content is string else '' }}", "{}"),
    "goes through parts": (
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endif %}",
        "{}",
    ),
    "refuses what is no text": (
        "{% if m.content is not string %}{{ raise_exception('Unexpected content type.') }}{% endif %}{{ m.content }}",
        "{}",
    ),
}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    ("content", "expected"),
    [(NULL_AND_TRUTH, JSON), ([NULL_AND_TRUTH, 1.5, "x"], f'[{JSON}, 1.5, "x"]'), ([1], "[1]"), ([], "[]"), ({}, "{}")],
)
def test_what_a_tool_returned_is_written_as_json(how: str, content: Any, expected: str) -> None:
    body, around = WAYS[how]
    messages = [result(content)]
    assert render(each(body), messages) == around.format(expected)
    assert messages == [result(content)]


def test_results_in_parts_and_as_objects_stand_in_one_conversation() -> None:
    messages = [HI, result([{"type": "text", "text": "x"}]), result({"a": [1]}), result("y")]
    assert render(each("[{{ m.content }}]"), messages) == '[hi][x][{"a": [1]}][y]'


STRICT = each(
    "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('9 letters') }}{% endif %}"
    "{{ c.function.name }}={{ c.id }};{% endfor %}"
    "{% if m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}{{ raise_exception('9 letters') }}{% endif %}"
    "{{ m.content }}={{ m.tool_call_id }};{% endif %}"
)


def test_ids_of_any_length_are_written_by_a_template_that_asks_for_nine_letters() -> None:
    calls = {"role": "assistant", "tool_calls": [call("f", "call_abc"), call("g", "abcDEF123")]}
    messages = [calls, result("F", "call_abc"), result("G", "abcDEF123"), result("X", "chatcmpl-tool-1")]
    assert render(STRICT, messages) == ("f=000000000;g=abcDEF123;F=000000000;G=abcDEF123;X=000000002;")


def test_results_without_ids_belong_to_the_calls_before_them_in_order() -> None:
    messages = [
        {"role": "assistant", "tool_calls": [call("f"), call("g")]},
        result("F"),
        result("G"),
        {"role": "assistant", "tool_calls": [call("h")]},
        result("H"),
    ]
    assert render(STRICT, messages) == "f=000000000;g=000000001;F=000000000;G=000000001;h=000000002;H=000000002;"


def test_ids_that_a_template_takes_stay_as_they_are() -> None:
    chat = each("{% for c in m.tool_calls or [] %}{{ c.id }}{% endfor %}{{ m.tool_call_id }}")
    messages = [{"role": "assistant", "tool_calls": [call("f", "call_abc")]}, result("F", "call_abc")]
    assert render(chat, messages) == "call_abccall_abc"


def test_the_refusal_of_other_things_than_ids_is_told_as_it_was() -> None:
    chat = each("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UsageError, match="refuses this conversation") as refused:
        render(chat, [{"role": "assistant", "tool_calls": [call("f", "x")]}])
    assert refused.value.cause == "roles must alternate"


def test_ids_that_are_numbers_tie_a_result_to_its_call() -> None:
    calls = [{"id": number, "type": "function", "function": {"name": "f", "arguments": {}}} for number in (7, 5)]
    messages = [{"role": "assistant", "tool_calls": calls}, {"role": "tool", "tool_call_id": 5, "content": "r"}]
    made = with_short_ids(messages)
    assert made[1]["tool_call_id"] == made[0]["tool_calls"][1]["id"] != made[0]["tool_calls"][0]["id"]
