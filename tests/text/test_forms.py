from __future__ import annotations

from typing import Any

import pytest

from macllm.errors import UsageError
from macllm.text.template import ChatTemplate


def each(body: str) -> ChatTemplate:
    return ChatTemplate("{% for m in messages %}" + body + "{% endfor %}")


def render(chat: ChatTemplate, messages: list[dict[str, Any]], **options: Any) -> str:
    return chat.render(messages, add_generation_prompt=False, **options)


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


PARTS = [{"role": "user", "content": [text("hi "), text("there")]}]

CONTENT = {
    "writes it": ("<{{ m.role }}>{{ m.content }}", "<user>hi there"),
    "trims it": ("{{ m['content'] | trim }}", "hi there"),
    "joins it with +": ("{{ '<' + m.content + '>' }}", "<hi there>"),
    "joins it with ~": ("{{ '<' ~ m.content ~ '>' }}", "<hi there>"),
    "formats it": ("{{ '<%s>' | format(m.content) }}", "<hi there>"),
    "asks its methods": ("{% if m.content.startswith('hi') %}{{ m.content.upper() }}{% endif %}", "HI THERE"),
    "looks for a text in it": ("{% if 'there' in m.content %}{{ m.content }}{% endif %}", "hi there"),
    "cuts it": ("{{ m.content.split(' ')[0] }}", "hi"),
    "leaves out what is no text": ("{{ m.content if m.content is string else '' }}", "hi there"),
    "writes it as JSON": ("{{ m.content | tojson }}", '"hi there"'),
    "takes the first part only": (
        "{{ m.content if m.content is string else m.content[0]['text'] }}",
        "hi there",
    ),
    "goes through it": ("{% for p in m.content %}[{{ p.text }}]{% endfor %}", "[hi ][there]"),
    "goes through it by keys": (
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m['content'] %}"
        "{% if p['type'] == 'text' %}[{{ p['text'] }}]{% endif %}{% endfor %}{% endif %}",
        "[hi ][there]",
    ),
    "goes through it in a macro": (
        "{% macro show(c) %}{% if c is string %}{{ c }}{% elif c is iterable %}{% for p in c %}"
        "{% if 'text' in p %}[{{ p.get('text') }}]{% endif %}{% endfor %}{% endif %}{% endmacro %}"
        "{{ show(m.content) }}",
        "[hi ][there]",
    ),
    "selects its texts": (
        "{{ m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('|') }}",
        "hi |there",
    ),
}


@pytest.mark.parametrize("how", CONTENT)
def test_parts_are_joined_but_for_a_template_that_goes_through_them(how: str) -> None:
    body, expected = CONTENT[how]
    assert render(each(body), PARTS) == expected


def test_each_role_gets_the_form_that_the_template_writes_for_it() -> None:
    chat = each(
        "{% if m.role == 'user' %}{% for p in m.content %}[{{ p.text }}]{% endfor %}"
        "{% else %}{{ m.role + ':' + m.content.strip() }};{% endif %}"
    )
    messages = [{"role": "system", "content": [text(" S ")]}, *PARTS, {"role": "assistant", "content": [text("a")]}]
    assert render(chat, messages) == "system:S;[hi ][there]assistant:a;"
    # a text where the template knows only parts
    assert render(chat, [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}]) == "system:S;[hi]"


def test_a_text_is_a_part_for_a_template_that_knows_only_parts() -> None:
    chat = each("<{{ m.role }}>{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}")
    assert render(chat, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]) == (
        "<user>hi<assistant>yes"
    )
    with pytest.raises(UsageError, match="refuses"):
        render(each("{{ raise_exception('no') }}"), [{"role": "user", "content": "hi"}])


CALL = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLING = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "42"},
]
NAMES = "{% for c in m.tool_calls or [] %}<CALL>{{ c.function.name }}{% endfor %}"
BY_NULL = "{% if m.content is none %}" + NAMES + "{% else %}{{ m.content }}{% endif %};"
NULL = {
    "asks for none": (BY_NULL, "hi;<CALL>weather;42;"),
    "asks for none with ==": (BY_NULL.replace("is none", "== None"), "hi;<CALL>weather;42;"),
    "asks for none under another name": (
        "{% set c = m.content %}{% set d = c %}" + BY_NULL.replace("m.content is", "d is"),
        "hi;<CALL>weather;42;",
    ),
    "asks in a macro": (
        "{% macro show(c) %}{% if c is none %}-{% else %}{{ c }}{% endif %}{% endmacro %}{{ show(m.content) }}" + NAMES,
        "hi-<CALL>weather42",
    ),
    "asks with get": (
        "{% if m.get('content') is none %}-{% else %}{{ m.content }}{% endif %}" + NAMES,
        "hi-<CALL>weather42",
    ),
    "asks and joins": (
        "{% if m['content'] is not none %}{{ '' + m['content'] }}{% endif %}" + NAMES,
        "hi<CALL>weather42",
    ),
    "writes it": ("[{{ m.content }}]" + NAMES, "[hi][]<CALL>weather[42]"),
    "joins it": ("{{ '[' + m.content + ']' }}" + NAMES, "[hi][]<CALL>weather[42]"),
    "writes it as JSON": ("{{ m.content | tojson }}" + NAMES, '"hi"""<CALL>weather"42"'),
    "asks whether it is there": (
        "{% if 'content' in m %}[{{ m.content }}]{% endif %}" + NAMES,
        "[hi]<CALL>weather[42]",
    ),
    "asks whether it is defined": (
        "{% if m.content is defined %}[{{ m.content }}]{% endif %}" + NAMES,
        "[hi]<CALL>weather[42]",
    ),
    "asks whether it is empty": (
        "{% if m.content == '' %}" + NAMES + "{% else %}{{ m.content }}{% endif %};",
        "hi;<CALL>weather;42;",
    ),
    "asks whether it holds anything": ("{% if m.content %}{{ m.content }}{% endif %}" + NAMES, "hi<CALL>weather42"),
    "asks of something else": (
        "{% if tools is none and 'content' in m %}[{{ m.content }}]{% endif %}" + NAMES,
        "[hi]<CALL>weather[42]",
    ),
    "looks for a tag in it": (
        "{% if '</think>' in m.content %}?{% endif %}{{ m.content }}" + NAMES,
        "hi<CALL>weather42",
    ),
}


@pytest.mark.parametrize("how", NULL)
def test_null_content_is_kept_left_out_or_empty_as_the_template_asks(how: str) -> None:
    body, expected = NULL[how]
    assert render(each(body), CALLING) == expected
    absent = [{key: value for key, value in message.items() if value is not None} for message in CALLING]
    assert render(each(body), absent) == expected


def test_a_call_with_null_among_its_arguments_is_not_given_up_for_a_text_without_null() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": None}}}
    conversation = [CALLING[0], {"role": "assistant", "content": None, "tool_calls": [call]}, CALLING[2]]
    chat = each(BY_NULL.replace("c.function.name", "c.function.name ~ c.function.arguments"))
    assert render(chat, conversation) == 'hi;<CALL>weather{"city": null};42;'
    assert render(
        each("[{{ m.content }}]{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"), conversation
    ) == ('[hi][]{"name": "weather", "arguments": {"city": null}}[42]')


def test_a_call_with_empty_content_is_one_with_none_where_the_template_asks_for_none() -> None:
    empty = [{**message, "content": message["content"] or ""} for message in CALLING]
    assert render(each(BY_NULL), empty) == "hi;<CALL>weather;42;"
    assert render(each("{{ 'x' if m.content is none }}[{{ m.content }}]" + NAMES), empty) == "[hi][]<CALL>weather[42]"


ARGUMENTS = {
    "as JSON": ("{{ f.arguments | tojson }}", '{"city": "Paris", "days": 2}'),
    "the function as JSON": ("{{ f | tojson }}", '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}'),
    "each item": ("{% for k, v in f.arguments | items %}{{ k }}={{ v }};{% endfor %}", "city=Paris;days=2;"),
    "each item by its method": (
        "{% for k, v in f.arguments.items() %}{{ k }}={{ v }};{% endfor %}",
        "city=Paris;days=2;",
    ),
    "each key": ("{% for k in f.arguments %}{{ k }}={{ f.arguments[k] }};{% endfor %}", "city=Paris;days=2;"),
    "text, else JSON": (
        "{% if f.arguments is string %}{{ f.arguments }}{% else %}{{ f.arguments | tojson }}{% endif %}",
        '{"city": "Paris", "days": 2}',
    ),
    "only a mapping": (
        "{% if f.arguments is mapping %}{{ f.arguments | tojson }}{% else %}{{ raise_exception('?') }}{% endif %}",
        '{"city": "Paris", "days": 2}',
    ),
    "written": ("{{ f.arguments }}", '{"city": "Paris", "days": 2}'),
    "joined with +": ("{{ '```' + f.arguments + '```' }}", '```{"city": "Paris", "days": 2}```'),
    "joined with ~": ("{{ '```' ~ f['arguments'] ~ '```' }}", '```{"city": "Paris", "days": 2}```'),
    "its text trimmed": ("{{ f.arguments | trim }}{{ f.arguments | string }}", '{"city": "Paris", "days": 2}' * 2),
    "its text stripped": ("{{ f.arguments.strip() }}", '{"city": "Paris", "days": 2}'),
    "only a text": (
        "{% if f.arguments is not string %}{{ raise_exception('?') }}{% endif %}{{ f.arguments }}",
        '{"city": "Paris", "days": 2}',
    ),
}


@pytest.mark.parametrize("how", ARGUMENTS)
@pytest.mark.parametrize("given", [{"city": "Paris", "days": 2}, '{"city": "Paris", "days": 2}'])
def test_arguments_as_text_or_object_are_written_alike(how: str, given: Any) -> None:
    body, expected = ARGUMENTS[how]
    chat = each("{% for c in m.tool_calls %}{% set f = c.function %}" + body + "{% endfor %}")
    call = {"type": "function", "function": {"name": "weather", "arguments": given}}
    assert render(chat, [{"role": "assistant", "tool_calls": [call]}]) == expected


@pytest.mark.parametrize("given", [{"city": "Paris"}, '{"city": "Paris"}'])
@pytest.mark.parametrize("strip", ["", ".strip()"])
def test_a_call_by_null_content_whose_arguments_are_a_text_is_written(given: Any, strip: str) -> None:
    arguments = f"c['function']['arguments']{strip}"
    chat = each(
        "{% if m['content'] is none %}{% for c in m['tool_calls'] %}{{ '<' + c['function']['name'] + ' ' + "
        + arguments
        + " + '>' }}{% endfor %}{% else %}{{ m['content'] }}{% endif %}"
    )
    call = {"type": "function", "function": {"name": "weather", "arguments": given}}
    conversation = [CALLING[0], {"role": "assistant", "content": None, "tool_calls": [call]}, CALLING[2]]
    assert render(chat, conversation) == 'hi<weather {"city": "Paris"}>42'


def test_a_text_of_arguments_is_written_as_it_was() -> None:
    chat = each("{{ m.tool_calls[0].function.arguments }}")
    for given in ('{"a":1}', '{"é": "\\u00e9"}', "{not JSON"):
        call = {"type": "function", "function": {"name": "f", "arguments": given}}
        assert render(chat, [{"role": "assistant", "tool_calls": [call]}]) == given


def test_arguments_that_are_no_json_are_named_where_the_template_needs_an_object() -> None:
    chat = each(
        "{% for c in m.tool_calls %}{% for k, v in c.function.arguments | items %}{{ k }}{% endfor %}{% endfor %}"
    )
    good, bad = ({"function": {"name": "f", "arguments": value}} for value in ("{}", '{"a": '))
    with pytest.raises(UsageError, match=r"messages\[0\]\.tool_calls\[1\] has arguments that are no JSON object"):
        render(chat, [{"role": "assistant", "tool_calls": [good, bad]}])


def test_the_first_failure_is_told_where_no_form_can_be_written() -> None:
    chat = each("{{ m.content + 1 }}")
    with pytest.raises(UsageError) as caught:
        render(chat, [*CALLING, *PARTS])
    assert "failed" in caught.value.message
    assert "str" in (caught.value.cause or "")


def test_spans_are_those_of_the_form_that_was_written() -> None:
    chat = each("{{ m.role }}{% generation %}{{ '' + m.content }}{% endgeneration %}")
    written, spans = chat.render_with_spans(PARTS)
    assert [written[start:end] for start, end in spans] == ["hi there"]


def test_all_forms_together_have_the_time_of_one_rendering() -> None:
    import time

    chat = each("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}")
    start = time.thread_time()
    with pytest.raises(UsageError, match="stopped"):
        render(chat, [*CALLING, *PARTS])
    assert time.thread_time() - start < 2
