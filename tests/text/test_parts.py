from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macllm.text.parts import PartSplitter
from macllm.text.template import ChatTemplate
from macllm.text.tool_calls import parse_tool_calls

TEMPLATES = Path(__file__).parent / "templates"
QWEN = "<think> </think> <tool_call> </tool_call>"


def template(name: str) -> ChatTemplate:
    return ChatTemplate((TEMPLATES / f"{name}.jinja").read_text("utf-8"))


def split(splitter: PartSplitter, pieces: list[str]) -> list[tuple[str, str]]:
    """The parts of all pieces, neighbours of one kind as one."""
    parts: list[tuple[str, str]] = []
    for kind, text in [*(part for piece in pieces for part in splitter.add(piece)), *splitter.finish()]:
        if parts and parts[-1][0] == kind:
            parts[-1] = (kind, parts[-1][1] + text)
        else:
            parts.append((kind, text))
    return parts


CASES = [
    (QWEN, "", "<think>\nhm <b> </th\n</think>\n\nAnswer\n", [("reasoning", "hm <b> </th"), ("content", "Answer\n")]),
    (QWEN, "", "<think>\n\n</think>\n\nAnswer", [("content", "Answer")]),
    (QWEN, "", "  no tags < at <thin all ", [("content", "  no tags < at <thin all ")]),
    (QWEN, "…assistant\n<think>\n", "hm\n</think>\n\nyes", [("reasoning", "hm"), ("content", "yes")]),
    (QWEN, "", "<think>\nnever closed ", [("reasoning", "never closed")]),
    (
        QWEN,
        "",
        'Let me.\n<tool_call>\n{"a": 1}\n</tool_call>\n<tool_call>\n{"b": 2}\n</tool_call>',
        [("content", "Let me."), ("tool_call", '{"a": 1}\n{"b": 2}')],
    ),
    ("no tags at all", "", "<think>kept</think> ", [("content", "<think>kept</think> ")]),
    ("[TOOL_CALLS] [INST]", "", '[TOOL_CALLS] [{"name": "f"}]', [("tool_call", '[{"name": "f"}]')]),
    ("[THINK] [TOOL_CALLS]", "", "[THINK]hm[/THINK]yes", [("reasoning", "hm"), ("content", "yes")]),
    (
        'ipython "parameters"',
        "",
        '\n{ "name" : "f", "parameters": {}}',
        [("tool_call", '{ "name" : "f", "parameters": {}}')],
    ),
    ('ipython "parameters"', "", '{"nam": 1} is JSON', [("content", '{"nam": 1} is JSON')]),
    ('ipython "parameters"', "", '{"n', [("content", '{"n')]),
    (
        'ipython "parameters" <|python_tag|>',
        "",
        "x<|python_tag|>f.call()",
        [("content", "x"), ("tool_call", "f.call()")],
    ),
    ("<|tool_call|>", "", '<|tool_call|>[{"name": "f"}]<|/tool_call|>', [("tool_call", '[{"name": "f"}]')]),
    ("content.split('</think>')", "", "<think>a</think>b", [("reasoning", "a"), ("content", "b")]),
]


@pytest.mark.parametrize(("source", "prompt", "text", "parts"), CASES)
def test_parts_are_the_same_however_the_text_arrives(
    source: str, prompt: str, text: str, parts: list[tuple[str, str]]
) -> None:
    for size in range(1, len(text) + 1):
        splitter = PartSplitter.for_template(source, prompt=prompt)
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert split(splitter, pieces) == parts, size


@settings(deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(["<think>", "</think>", "<th", "ink>", "<tool_call>", "</tool_call>", " ", "\n", "a", "</"])
    )
)
def test_any_pieces_give_what_the_whole_gives(pieces: list[str]) -> None:
    whole = split(PartSplitter.for_template(QWEN), ["".join(pieces)])
    assert split(PartSplitter.for_template(QWEN), pieces) == whole


def test_plain_text_is_never_held_back_or_changed() -> None:
    splitter = PartSplitter.for_template(None)
    text = " <think> a </think> [TOOL_CALLS] \n"
    assert [splitter.add(char) for char in text] == [[("content", char)] for char in text]
    assert splitter.finish() == []


def test_text_is_given_out_before_its_section_ends() -> None:
    splitter = PartSplitter.for_template(QWEN)
    splitter.add("<think>\n")
    assert splitter.add("one two") == [("reasoning", "one two")]
    assert splitter.add(" three") == [("reasoning", " three")]


def test_the_tags_come_from_the_template_of_the_model() -> None:
    answer = "<think>hm</think>x"
    assert split(PartSplitter.for_template(template("qwen-3")), [answer]) == [("reasoning", "hm"), ("content", "x")]
    assert split(PartSplitter.for_template(template("gemma-3")), [answer]) == [("content", answer)]
    call = '[TOOL_CALLS] [{"name": "f", "arguments": {}}]'
    assert split(PartSplitter.for_template(template("mistral")), [call])[0][0] == "tool_call"
    call = '{"name": "f", "parameters": {}}'
    assert split(PartSplitter.for_template(template("llama-3")), [call]) == [("tool_call", call)]


def test_the_tags_of_every_named_template_count() -> None:
    chat = ChatTemplate({"default": "<think>", "tool_use": "<tool_call> </tool_call>"})
    answer = "<think>hm</think>x<tool_call>{}</tool_call>"
    assert split(PartSplitter.for_template(chat), [answer]) == [
        ("reasoning", "hm"),
        ("content", "x"),
        ("tool_call", "{}"),
    ]


def test_calls_that_a_template_writes_are_read_back() -> None:
    function = {"name": "get_weather", "arguments": {"city": "Köln <b>", "days": 2}}
    messages = [
        {"role": "user", "content": "w"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": "abcdef123", "function": function}],
        },
    ]
    for name, start, end in (
        ("qwen-3", "<|im_start|>assistant\n", "<|im_end|>"),
        ("llama-3", "assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        ("mistral", "[/INST]", "</s>"),
    ):
        chat = template(name)
        text = ChatTemplate(chat.sources, {"bos_token": "<s>", "eos_token": "</s>"}).render(
            messages, add_generation_prompt=False
        )
        answer = text.rpartition(start)[2].partition(end)[0]
        parts = split(PartSplitter.for_template(chat), list(answer))
        (call,) = parse_tool_calls("".join(text for kind, text in parts if kind == "tool_call"))
        assert (call.name, call.arguments) == (function["name"], function["arguments"]), name
