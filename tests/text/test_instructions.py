"""No system message is lost in a template that passes over it."""

from __future__ import annotations

import logging

import pytest

from macllm.text.template import ChatTemplate, TemplateError

USER, ANSWER = {"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}
FIRST, SECOND = {"role": "system", "content": "first"}, {"role": "system", "content": "second"}
THIRD = {"role": "developer", "content": "third"}
# the shape of gpt-oss's: one message in front, later ones of its role are passed over
ONE_IN_FRONT = ChatTemplate(
    "{% set rest = messages %}{% if messages[0].role in ['system', 'developer'] %}<D>{{ messages[0].content }}"
    "{% set rest = messages[1:] %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}<U>{{ m.content }}{% elif m.role == 'assistant' %}<A>{{ m.content }}"
    "{% endif %}{% endfor %}"
)
# the shape of Phi-3's first: no system messages at all
NONE = ChatTemplate(
    "{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}{% elif m.role == 'assistant' %}<A>"
    "{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([FIRST, USER], "<D>first<U>question"),
        ([FIRST, SECOND, USER], "<D>first\n\nsecond<U>question"),
        ([FIRST, THIRD, USER], "<D>first\n\nthird<U>question"),
        ([THIRD, FIRST, USER, ANSWER, USER], "<D>third\n\nfirst<U>question<A>answer<U>question"),
        ([USER, ANSWER, SECOND, USER], "<D>second<U>question<A>answer<U>question"),
        ([FIRST, {"role": "system", "content": [{"type": "text", "text": "b"}]}, USER], "<D>first\n\nb<U>question"),
    ],
)
def test_instructions_that_a_template_passes_over_join_the_first(messages: list, text: str) -> None:
    assert ONE_IN_FRONT.render(messages) == text


def test_a_template_without_system_messages_gets_them_before_the_question() -> None:
    assert NONE.render([FIRST, USER, ANSWER, USER]) == "<U>first\n\nquestion<A>answer<U>question"
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert NONE.render([FIRST, SECOND, parts]) == "<U>first\n\nsecond\n\nab"


def test_a_template_that_changes_the_words_of_a_system_message_has_written_it() -> None:
    chat = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content | replace('/no_think', '') }}{% endfor %}")
    messages = [{"role": "system", "content": "brief /no_think please"}, USER]
    assert chat.render(messages) == "<system>brief  please<user>question"


def test_a_template_that_refuses_system_messages_still_does() -> None:
    chat = ChatTemplate("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}")
    with pytest.raises(TemplateError, match="rejects"):
        chat.render([FIRST, USER])


def test_a_system_message_that_no_form_keeps_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="macllm"):
        assert NONE.render([FIRST, ANSWER]) == "<A>answer"
    assert "leaves out a system message" in caplog.text


def test_spans_of_the_answer_are_those_of_the_rendering_that_is_returned() -> None:
    chat = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% elif m.role == 'user' %}{{ m.content }}|{% endif %}{% endfor %}"
    )
    text, spans = chat.render_with_spans([FIRST, USER, ANSWER])
    assert [text[start:end] for start, end in spans] == ["answer"]
    assert text == "first\n\nquestion|answer"
