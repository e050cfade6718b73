from __future__ import annotations

from typing import Any

import pytest

from macllm.errors import UsageError
from macllm.text.template import ChatTemplate


def per_message(body: str) -> ChatTemplate:
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
    "calls its methods": ("{% if m.content.startswith('hi') %}{{ m.content.upper() }}{% endif %}", "HI THERE"),
    "searches it": ("{% if 'there' in m.content %}{{ m.content }}{% endif %}", "hi there"),
    "splits it": ("{{ m.content.split(' ')[0] }}", "hi"),
    "leaves out other types than text": ("{{ m.content if m.content is string else '' }}", "hi there"),
    "writes it as JSON": ("{{ m.content | tojson }}", '"hi there"'),
    "reads only the first part": (
        "{{ m.content if m.content is string else m.content[0]['text'] }}",
        "hi there",
    ),
    "iterates over it": ("{% for p in m.content %}[{{ p.text }}]{% endfor %}", "[hi ][there]"),
    "iterates over it by keys": (
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m['content'] %}"
        "{% if p['type'] == 'text' %}[{{ p['text'] }}]{% endif %}{% endfor %}{% endif %}",
        "[hi ][there]",
    ),
    "iterates over it in a macro": (
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


@pytest.mark.parametrize("use", CONTENT)
def test_content_parts_are_joined_unless_the_template_iterates_over_them(use: str) -> None:
    body, expected = CONTENT[use]
    assert render(per_message(body), PARTS) == expected


def test_each_role_gets_the_content_form_that_the_template_expects() -> None:
    chat = per_message(
        "{% if m.role == 'user' %}{% for p in m.content %}[{{ p.text }}]{% endfor %}"
        "{% else %}{{ m.role + ':' + m.content.strip() }};{% endif %}"
    )
    messages = [{"role": "system", "content": [text(" S ")]}, *PARTS, {"role": "assistant", "content": [text("a")]}]
    assert render(chat, messages) == "system:S;[hi ][there]assistant:a;"
    # a text becomes a part if the template reads only parts
    assert render(chat, [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}]) == "system:S;[hi]"


def test_a_text_becomes_a_part_for_a_template_that_reads_only_parts() -> None:
    chat = per_message(
        "<{{ m.role }}>{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    )
    assert render(chat, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]) == (
        "<user>hi<assistant>yes"
    )
    # though the words occur in what the template writes besides
    assert render(chat, [{"role": "user", "content": "use"}, {"role": "assistant", "content": "yes"}]) == (
        "<user>use<assistant>yes"
    )
    with pytest.raises(UsageError, match="rejects"):
        render(per_message("{{ raise_exception('no') }}"), [{"role": "user", "content": "hi"}])


CALL = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLING = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "42"},
]
NAMES = "{% for c in m.tool_calls or [] %}<CALL>{{ c.function.name }}{% endfor %}"
BY_NULL = "{% if m.content is none %}" + NAMES + "{% else %}{{ m.content }}{% endif %};"
NULL = {
    "tests for none": (BY_NULL, "hi;<CALL>weather;42;"),
    "tests for none with ==": (BY_NULL.replace("is none", "== None"), "hi;<CALL>weather;42;"),
    "tests for none under another name": (
        "{% set c = m.content %}{% set d = c %}" + BY_NULL.replace("m.content is", "d is"),
        "hi;<CALL>weather;42;",
    ),
    "tests in a macro": (
        "{% macro show(c) %}{% if c is none %}-{% else %}{{ c }}{% endif %}{% endmacro %}{{ show(m.content) }}" + NAMES,
        "hi-<CALL>weather42",
    ),
    "tests with get": (
        "{% if m.get('content') is none %}-{% else %}{{ m.content }}{% endif %}" + NAMES,
        "hi-<CALL>weather42",
    ),
    "tests and joins": (
        "{% if m['content'] is not none %}{{ '' + m['content'] }}{% endif %}" + NAMES,
        "hi<CALL>weather42",
    ),
    "writes it": ("[{{ m.content }}]" + NAMES, "[hi][]<CALL>weather[42]"),
    "joins it": ("{{ '[' + m.content + ']' }}" + NAMES, "[hi][]<CALL>weather[42]"),
    "writes it as JSON": ("{{ m.content | tojson }}" + NAMES, '"hi"""<CALL>weather"42"'),
    "tests for the key": (
        "{% if 'content' in m %}[{{ m.content }}]{% endif %}" + NAMES,
        "[hi]<CALL>weather[42]",
    ),
    "tests that it is defined": (
        "{% if m.content is defined %}[{{ m.content }}]{% endif %}" + NAMES,
        "[hi]<CALL>weather[42]",
    ),
    "tests for the empty text": (
        "{% if m.content == '' %}" + NAMES + "{% else %}{{ m.content }}{% endif %};",
        "hi;<CALL>weather;42;",
    ),
    "tests its truth": ("{% if m.content %}{{ m.content }}{% endif %}" + NAMES, "hi<CALL>weather42"),
    "tests another variable for none": (
        "{% if tools is none and 'content' in m %}[{{ m.content }}]{% endif %}" + NAMES,
        "[hi]<CALL>weather[42]",
    ),
    "searches it for a tag": (
        "{% if '</think>' in m.content %}?{% endif %}{{ m.content }}" + NAMES,
        "hi<CALL>weather42",
    ),
}


@pytest.mark.parametrize("use", NULL)
def test_null_content_takes_the_form_that_the_template_tests_for(use: str) -> None:
    body, expected = NULL[use]
    assert render(per_message(body), CALLING) == expected
    absent = [{key: value for key, value in message.items() if value is not None} for message in CALLING]
    assert render(per_message(body), absent) == expected


def test_null_arguments_of_a_call_are_kept_as_json() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": None}}}
    conversation = [CALLING[0], {"role": "assistant", "content": None, "tool_calls": [call]}, CALLING[2]]
    chat = per_message(BY_NULL.replace("c.function.name", "c.function.name ~ c.function.arguments"))
    assert render(chat, conversation) == 'hi;<CALL>weather{"city": null};42;'
    assert render(
        per_message("[{{ m.content }}]{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"),
        conversation,
    ) == ('[hi][]{"name": "weather", "arguments": {"city": null}}[42]')


def test_empty_content_of_a_call_becomes_null_for_a_template_that_tests_for_none() -> None:
    empty = [{**message, "content": message["content"] or ""} for message in CALLING]
    assert render(per_message(BY_NULL), empty) == "hi;<CALL>weather;42;"
    assert (
        render(per_message("{{ 'x' if m.content is none }}[{{ m.content }}]" + NAMES), empty)
        == "[hi][]<CALL>weather[42]"
    )


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


@pytest.mark.parametrize("use", ARGUMENTS)
@pytest.mark.parametrize("given", [{"city": "Paris", "days": 2}, '{"city": "Paris", "days": 2}'])
def test_arguments_given_as_text_or_object_are_written_alike(use: str, given: Any) -> None:
    body, expected = ARGUMENTS[use]
    chat = per_message("{% for c in m.tool_calls %}{% set f = c.function %}" + body + "{% endfor %}")
    call = {"type": "function", "function": {"name": "weather", "arguments": given}}
    assert render(chat, [{"role": "assistant", "tool_calls": [call]}]) == expected


@pytest.mark.parametrize("given", [{"city": "Paris"}, '{"city": "Paris"}'])
@pytest.mark.parametrize("strip", ["", ".strip()"])
def test_a_call_with_null_content_and_arguments_joined_as_text_is_written(given: Any, strip: str) -> None:
    arguments = f"c['function']['arguments']{strip}"
    chat = per_message(
        "{% if m['content'] is none %}{% for c in m['tool_calls'] %}{{ '<' + c['function']['name'] + ' ' + "
        + arguments
        + " + '>' }}{% endfor %}{% else %}{{ m['content'] }}{% endif %}"
    )
    call = {"type": "function", "function": {"name": "weather", "arguments": given}}
    conversation = [CALLING[0], {"role": "assistant", "content": None, "tool_calls": [call]}, CALLING[2]]
    assert render(chat, conversation) == 'hi<weather {"city": "Paris"}>42'


def test_arguments_given_as_text_are_written_unchanged() -> None:
    chat = per_message("{{ m.tool_calls[0].function.arguments }}")
    for given in ('{"a":1}', '{"é": "\\u00e9"}', "{not JSON"):
        call = {"type": "function", "function": {"name": "f", "arguments": given}}
        assert render(chat, [{"role": "assistant", "tool_calls": [call]}]) == given


def test_arguments_that_are_not_json_are_named_for_a_template_that_needs_an_object() -> None:
    chat = per_message(
        "{% for c in m.tool_calls %}{% for k, v in c.function.arguments | items %}{{ k }}{% endfor %}{% endfor %}"
    )
    good, bad = ({"function": {"name": "f", "arguments": value}} for value in ("{}", '{"a": '))
    with pytest.raises(UsageError, match=r"messages\[0\]\.tool_calls\[1\] has arguments that are not a JSON object"):
        render(chat, [{"role": "assistant", "tool_calls": [good, bad]}])


def test_the_first_failure_is_reported_if_no_form_can_be_rendered() -> None:
    chat = per_message("{{ m.content + 1 }}")
    with pytest.raises(UsageError) as caught:
        render(chat, [*CALLING, *PARTS])
    assert "failed" in caught.value.message
    assert "str" in (caught.value.cause or "")


def test_spans_match_the_form_that_was_rendered() -> None:
    chat = per_message("{{ m.role }}{% generation %}{{ '' + m.content }}{% endgeneration %}")
    written, spans = chat.render_with_spans(PARTS)
    assert [written[start:end] for start, end in spans] == ["hi there"]


def test_all_forms_together_share_the_time_limit_of_one_rendering() -> None:
    import time

    chat = per_message("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}")
    start = time.thread_time()
    with pytest.raises(UsageError, match="stopped"):
        render(chat, [*CALLING, *PARTS])
    assert time.thread_time() - start < 2
