from __future__ import annotations

from typing import Any

import pytest

from macllm.errors import UsageError
from macllm.text.roles import with_short_ids
from macllm.text.template import ChatTemplate

HI = {"role": "user", "content": "hi"}


def per_message(body: str) -> ChatTemplate:
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
def test_developer_messages_become_system_messages_for_a_template_without_that_role(
    messages: list[dict[str, Any]], expected: str
) -> None:
    assert render(per_message(NAMES_ROLES), messages) == expected


def test_developer_messages_stay_for_a_template_with_that_role() -> None:
    chat = per_message("{% if m['role'] == \"developer\" %}<D>{% endif %}{{ m.role }}:{{ m.content }};")
    messages = [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}]
    assert render(chat, messages) == "system:a;<D>developer:b;"


def test_a_function_message_becomes_a_tool_message() -> None:
    messages = [
        HI,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "42"},
    ]
    assert render(per_message(NAMES_ROLES), messages) == "<U>hi<T>42"


NULL_AND_TRUTH = {"a": None, "b": [True, "é"]}
JSON = '{"a": null, "b": [true, "é"]}'
USES = {
    "writes it": ("{{ m.content }}", "{}"),
    "trims it": ("{{ m.content | trim }}", "{}"),
    "joins it with +": ("{{ '<' + m.content + '>' }}", "<{}>"),
    "joins it with ~": ("{{ '<' ~ m.content ~ '>' }}", "<{}>"),
    "calls its methods": ("{{ m.content.strip() }}", "{}"),
    "splits it": ("{{ m.content.split('|')[-1] }}", "{}"),
    "writes objects as JSON": ("{{ m.content if m.content is string else m.content | tojson }}", "{}"),
    "writes all as JSON": ('{{ {"result": m.content} | tojson }}', '{{"result": {}}}'),
    "leaves out other types than text": ("{{ m.content if m.content is string else '' }}", "{}"),
    "iterates over parts": (
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endif %}",
        "{}",
    ),
    "refuses other types than text": (
        "{% if m.content is not string %}{{ raise_exception('Unexpected content type.') }}{% endif %}{{ m.content }}",
        "{}",
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("content", "expected"),
    [(NULL_AND_TRUTH, JSON), ([NULL_AND_TRUTH, 1.5, "x"], f'[{JSON}, 1.5, "x"]'), ([1], "[1]"), ([], "[]"), ({}, "{}")],
)
def test_tool_results_that_are_not_text_are_written_as_json(use: str, content: Any, expected: str) -> None:
    body, around = USES[use]
    messages = [result(content)]
    assert render(per_message(body), messages) == around.format(expected)
    assert messages == [result(content)]


def test_tool_results_of_parts_objects_and_text_mix_in_one_conversation() -> None:
    messages = [HI, result([{"type": "text", "text": "x"}]), result({"a": [1]}), result("y")]
    assert render(per_message("[{{ m.content }}]"), messages) == '[hi][x][{"a": [1]}][y]'


STRICT = per_message(
    "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('9 letters') }}{% endif %}"
    "{{ c.function.name }}={{ c.id }};{% endfor %}"
    "{% if m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}{{ raise_exception('9 letters') }}{% endif %}"
    "{{ m.content }}={{ m.tool_call_id }};{% endif %}"
)


def test_call_ids_of_other_lengths_are_replaced_for_a_template_that_needs_nine_characters() -> None:
    calls = {"role": "assistant", "tool_calls": [call("f", "call_abc"), call("g", "abcDEF123")]}
    messages = [calls, result("F", "call_abc"), result("G", "abcDEF123"), result("X", "chatcmpl-tool-1")]
    assert render(STRICT, messages) == ("f=000000000;g=abcDEF123;F=000000000;G=abcDEF123;X=000000001;")


def test_results_without_ids_get_those_of_the_calls_before_them_in_order() -> None:
    messages = [
        {"role": "assistant", "tool_calls": [call("f"), call("g")]},
        result("F"),
        result("G"),
        {"role": "assistant", "tool_calls": [call("h")]},
        result("H"),
    ]
    assert render(STRICT, messages) == "f=000000000;g=000000001;F=000000000;G=000000001;h=000000002;H=000000002;"


def test_call_ids_that_the_template_accepts_are_unchanged() -> None:
    chat = per_message("{% for c in m.tool_calls or [] %}{{ c.id }}{% endfor %}{{ m.tool_call_id }}")
    messages = [{"role": "assistant", "tool_calls": [call("f", "call_abc")]}, result("F", "call_abc")]
    assert render(chat, messages) == "call_abccall_abc"


def test_a_refusal_for_another_reason_than_ids_keeps_its_cause() -> None:
    chat = per_message("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UsageError, match="rejects this conversation") as refused:
        render(chat, [{"role": "assistant", "tool_calls": [call("f", "x")]}])
    assert refused.value.cause == "roles must alternate"


def test_numeric_ids_link_a_result_to_its_call() -> None:
    calls = [{"id": number, "type": "function", "function": {"name": "f", "arguments": {}}} for number in (7, 5)]
    messages = [{"role": "assistant", "tool_calls": calls}, {"role": "tool", "tool_call_id": 5, "content": "r"}]
    made = with_short_ids(messages)
    assert made[1]["tool_call_id"] == made[0]["tool_calls"][1]["id"] != made[0]["tool_calls"][0]["id"]


def test_generated_short_ids_differ_from_given_ids() -> None:
    def call(identity: str | None) -> dict:
        return {"id": identity, "function": {"name": "f", "arguments": {}}}

    def result(identity: str) -> dict:
        return {"role": "tool", "content": "x", "tool_call_id": identity}

    given = ["call_abcdef", "000000000", None, "000000002", "call 0", "toolu_1"]
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call(each) for each in given]},
        *(result(each) for each in given if each),
    ]
    made = with_short_ids(messages)
    ids = [each["id"] for each in made[1]["tool_calls"]]
    assert len(set(ids)) == len(ids)
    assert all(len(each) == 9 and each.isalnum() for each in ids)
    assert (ids[1], ids[3]) == ("000000000", "000000002")
    assert [each["tool_call_id"] for each in made[2:]] == [each for each, old in zip(ids, given, strict=True) if old]
