from __future__ import annotations

import json
import threading
from datetime import datetime
from pathlib import Path

import pytest

from macllm.errors import DoesNotFitError, UsageError
from macllm.text.template import ChatTemplate, TemplateError

TEMPLATES = Path(__file__).parent / "templates"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "<é>", "parameters": {}}}


def template(name: str) -> ChatTemplate:
    return ChatTemplate((TEMPLATES / f"{name}.jinja").read_text("utf-8"), TOKENS)


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"text {index}"} for index, role in enumerate(roles)]


RECORDED = [
    (
        "llama-3",
        {"date_string": "26 Jul 2024"},
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\ntext 0<|eot_id|><|start_header_id|>user<|end_header_id|>\n\ntext 1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    ("qwen-3", {}, "<|im_start|>system\ntext 0<|im_end|>\n<|im_start|>user\ntext 1<|im_end|>\n<|im_start|>assistant\n"),
    (
        "qwen-3",
        {"enable_thinking": False},
        "<|im_start|>system\ntext 0<|im_end|>\n<|im_start|>user\ntext 1<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n",
    ),
    ("gemma-3", {}, "<s><start_of_turn>user\ntext 0\n\ntext 1<end_of_turn>\n<start_of_turn>model\n"),
    ("mistral", {}, "<s>[INST] text 0\n\ntext 1[/INST]"),
    (
        "phi-4",
        {},
        "<|im_start|>system<|im_sep|>text 0<|im_end|><|im_start|>user<|im_sep|>text 1<|im_end|>"
        "<|im_start|>assistant<|im_sep|>",
    ),
    ("phi-4-mini", {}, "<|system|>text 0<|end|><|user|>text 1<|end|><|assistant|>"),
]


@pytest.mark.parametrize(("name", "variables", "text"), RECORDED)
def test_known_templates_render_the_prompts_of_their_models(name: str, variables: dict, text: str) -> None:
    assert template(name).render(turns("system", "user"), **variables) == text


@pytest.mark.parametrize(
    ("name", "roles", "cause"),
    [
        ("gemma-3", ("user", "user"), "Conversation roles must alternate user/assistant/user/assistant/..."),
        (
            "mistral",
            ("user", "user"),
            "After the optional system message, conversation roles must alternate user/assistant/user/assistant/...",
        ),
    ],
)
def test_a_refusal_has_the_message_of_the_template_as_its_cause(name: str, roles: tuple[str, ...], cause: str) -> None:
    with pytest.raises(TemplateError) as caught:
        template(name).render(turns(*roles))
    assert caught.value.cause == cause
    assert "rejects" in caught.value.message
    assert isinstance(caught.value, UsageError)


def test_json_in_templates_is_not_escaped_for_html() -> None:
    text = ChatTemplate("{{ tools | tojson }}").render(HI, tools=[TOOL])
    assert json.loads(text) == [TOOL]
    assert "<é>" in text


def test_strftime_now_gives_todays_date() -> None:
    before = datetime.now().strftime("%Y-%m-%d")
    assert ChatTemplate("{{ strftime_now('%Y-%m-%d') }}").render(HI) in (before, datetime.now().strftime("%Y-%m-%d"))


def test_variables_reach_the_template_and_override_named_tokens() -> None:
    chat = ChatTemplate("{{ bos_token }}{{ mood }}{{ documents[0].text }}", TOKENS)
    assert chat.render(HI, mood="calm", documents=[{"text": "D"}]) == "<s>calmD"
    assert chat.render(HI, bos_token="!", documents=[{}]) == "!"


def test_an_empty_field_counts_as_missing() -> None:
    chat = ChatTemplate("{{ messages[0].tool_calls is defined }} {{ messages[0].content is defined }}")
    assert chat.render([{"role": "user", "content": "x", "tool_calls": None}]) == "False True"


def test_objects_reach_a_template_as_plain_data_only() -> None:
    class Text(str):
        def delete(self) -> str:
            raise AssertionError

    chat = ChatTemplate(
        "{{ messages[0].content }} {{ messages[0].picture }} {{ messages[0].content.delete is defined }}"
    )
    assert chat.render([{"role": "user", "content": Text("x"), "picture": object()}]) == "x <object> False"


def test_rendering_changes_no_message() -> None:
    messages = [{"role": "assistant", "content": None, "thinking": "t"}]
    ChatTemplate("{{ messages[0].reasoning_content }}").render(messages)
    assert messages == [{"role": "assistant", "content": None, "thinking": "t"}]


def test_spans_cover_the_text_of_the_assistant() -> None:
    chat = template("phi-4")
    text, spans = chat.render_with_spans(turns("user", "assistant", "user", "assistant"))
    assert [text[start:end] for start, end in spans] == [
        "<|im_start|>assistant<|im_sep|>text 1<|im_end|>",
        "<|im_start|>assistant<|im_sep|>text 3<|im_end|>",
    ]
    assert chat.marks_generation()
    assert not template("qwen-3").marks_generation()


def test_a_span_tells_its_message_by_the_variables_of_loops_and_macros_in_sight() -> None:
    text = "{% generation %}{{ m.content }}{% endgeneration %}"
    loop = "{% set last = messages[-1] %}{% for m in messages if m.role == 'assistant' %}"
    indexed = loop.replace("m in messages if m.role == 'assistant'", "i in range(2)").replace("messages[-1]", "0")
    messages = turns("system", "user", "assistant", "user", "assistant")
    for source, authors in (
        (loop + text + "{% endfor %}", [1, 3]),
        ("{% macro w(m) %}" + text + "{% endmacro %}" + loop + "{{ w(m) }}{% endfor %}", [1, 3]),
        (indexed + text.replace("m.", "messages[2 * i + 2].") + "{% endfor %}", [None, None]),
        (indexed + "{% set m, n = messages[2], messages[4] %}" + text + "{% endfor %}", [None, None]),
    ):
        assert ChatTemplate(source).render_with_authors(messages)[2] == authors
    headed = "{% macro w() %}head{% generation %}x{% endgeneration %}{% endmacro %}{{ w() }}"
    with pytest.raises(TemplateError, match="stopped") as caught:
        ChatTemplate(headed).render_with_spans(messages)
    assert "macro" in str(caught.value.cause)


def test_templates_are_read_from_the_jinja_file_the_config_and_the_json_file(tmp_path: Path) -> None:
    def found(config: dict) -> str | None:
        chat = ChatTemplate.from_folder(tmp_path, config, {})
        return chat.render(HI) if chat else None

    assert found({}) is None
    (tmp_path / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert found({}) == "from json"
    assert found({"chat_template": "from config"}) == "from config"
    assert found({"chat_template": [{"name": "default", "template": "listed"}]}) == "listed"
    (tmp_path / "chat_template.jinja").write_text("from file")
    assert found({"chat_template": "from config"}) == "from file"


def test_named_templates_are_chosen_by_tools_and_by_name(tmp_path: Path) -> None:
    listed = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    chat = ChatTemplate.from_folder(tmp_path, {"chat_template": [*listed, {"name": "rag", "template": "rag"}]}, {})
    assert chat is not None
    assert chat.render(HI) == "plain"
    assert chat.render(HI, tools=[TOOL]) == "tools"
    assert chat.render(HI, template="rag") == "rag"
    with pytest.raises(TemplateError, match="no chat template named 'x'") as caught:
        chat.render(HI, template="x")
    assert caught.value.cause == "it has default, rag, tool_use"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("file tools")
    (tmp_path / "chat_template.jinja").write_text("file plain")
    chat = ChatTemplate.from_folder(tmp_path, {}, {})
    assert chat is not None
    assert (chat.render(HI), chat.render(HI, tools=[])) == ("file plain", "file tools")


@pytest.mark.parametrize("messages", [[], ["text"], [None], [["role", "user"]]])
def test_an_invalid_conversation_is_an_error_with_an_example(messages: list) -> None:
    with pytest.raises(UsageError) as caught:
        ChatTemplate("x").render(messages)
    assert '"role": "user"' in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("Entry not found", "'Entry not found'"),
        ("<!DOCTYPE html><style>a {}</style>{{ x }}", "web page"),
        ("<html>", "page"),
    ],
)
def test_an_error_page_in_place_of_a_template_is_named(content: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(content)
    with pytest.raises(TemplateError) as raised:
        ChatTemplate.from_folder(tmp_path, {}, {})
    assert cause in (raised.value.cause or "")


@pytest.mark.parametrize(
    "source", ["Answer briefly. {{ messages[0].content }}", "Error", "<|user|>{{ messages[0].content }}", ""]
)
def test_a_template_may_begin_with_text_or_a_tag(source: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    chat = ChatTemplate.from_folder(tmp_path, {}, {})
    assert chat is not None
    assert chat.render([{"role": "user", "content": "hi"}]) == source.replace("{{ messages[0].content }}", "hi")


def test_threads_can_share_one_template() -> None:
    chat = ChatTemplate(
        "{% for i in range(300) %}{% generation %}{{ messages[0].content }}{% endgeneration %}{% endfor %}"
    )
    found: dict[int, tuple[str, int]] = {}

    def work(number: int) -> None:
        text, spans = chat.render_with_spans([{"role": "user", "content": str(number)}])
        found[number] = (text, len(spans))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: (str(number) * 300, 300) for number in range(8)}


def test_long_conversations_stay_within_the_limits() -> None:
    messages = turns(*("user", "assistant") * 400)
    for message in messages:
        message["content"] *= 600
    for name in ("llama-3", "qwen-3", "gemma-3", "mistral", "phi-4", "phi-4-mini"):
        assert len(template(name).render(messages)) > 800 * 6 * 600


def test_a_conversation_beyond_the_limits_is_an_error_of_its_length() -> None:
    too_long = [{"role": "user", "content": "word " * 2_000_000}]
    with pytest.raises(DoesNotFitError, match="the conversation has 10,000,0"):
        template("qwen-3").render(too_long)


def test_a_template_writes_the_date_that_it_is_given() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}")
    assert template.render([{"role": "user", "content": "x"}], now=datetime(2024, 2, 29)) == "29 Feb 2024"
    assert template.render_with_spans([{"role": "user", "content": "x"}], now=datetime(2024, 2, 29))[0] == "29 Feb 2024"
