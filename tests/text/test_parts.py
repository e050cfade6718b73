from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macllm.text.parts import Splitter, splitter_for
from macllm.text.template import ChatTemplate

TEMPLATES = Path(__file__).parent / "templates"
QWEN = "<think> </think> <tool_call> </tool_call>"
CODER = QWEN + " <function= <parameter="
GLM = QWEN + " <arg_key> <arg_value>"
LLAMA = 'ipython "parameters" <|python_tag|>'
MISTRAL = "[THINK] [TOOL_CALLS] [ARGS]"
GEMMA = "<|channel>thought <channel|> <|tool_call> <tool_call|>"
HARMONY = "<|start|> <|channel|> <|message|>"
KIMI = "<think> <|tool_calls_section_begin|> <|tool_call_begin|>"
DEEPSEEK = "<think> <｜tool▁calls▁begin｜>"
LFM = "<think> <|tool_call_start|>"
MINIMAX = "<think> <minimax:tool_call>"
COHERE = "<|START_THINKING|> <|START_RESPONSE|> <|START_ACTION|>"
COMMAND_R = 'Action: ```json "tool_name"'
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "get_weather")]
A, B = '{"name": "a", "arguments": {}}', '{"name": "b", "arguments": {"x": "}</tool_call>\\""}}'
F = '{"name": "f", "parameters": {"x": 1}}'


def template(name: str) -> ChatTemplate:
    return ChatTemplate((TEMPLATES / f"{name}.jinja").read_text("utf-8"))


def split(splitter: Splitter, pieces: list[str]) -> list[tuple[Any, ...]]:
    """Parts of all pieces as (kind or number of the call, text), merged."""
    parts: list[tuple[Any, str]] = []
    for kind, text, call in [*(part for piece in pieces for part in splitter.add(piece)), *splitter.finish()]:
        head = kind if call is None else call
        if parts and parts[-1][0] == head:
            parts[-1] = (head, parts[-1][1] + text)
        else:
            parts.append((head, text))
    return parts


def content(text: str) -> list[tuple[Any, str]]:
    return [("content", text)]


CASES: dict[str, tuple[str, str, str, list[tuple[Any, str]]]] = {
    # reasoning
    "thought": (
        QWEN,
        "",
        "<think>\nhm <b> </th\n</think>\n\nYes\n",
        [("reasoning", "hm <b> </th"), ("content", "Yes\n")],
    ),
    "no thought": (QWEN, "", "<think>\n\n</think>\n\nAnswer", content("Answer")),
    "plain text": (QWEN, "", "  no tags < at <thin all ", content("  no tags < at <thin all ")),
    "opened": (QWEN, "…assistant\n<think>\n", "hm\n</think>\n\nyes", [("reasoning", "hm"), ("content", "yes")]),
    "opened twice": (
        QWEN,
        "assistant\n<think>\n",
        "\n<think>\nhm\n</think>\nyes",
        [("reasoning", "hm"), ("content", "yes")],
    ),
    "opened and spoken of": (
        QWEN,
        "assistant\n<think>\n",
        "The <think> tag</think>yes",
        [("reasoning", "The <think> tag"), ("content", "yes")],
    ),
    "Gemma's, asked for in the prompt": (
        GEMMA + " <|think|>",
        "<|turn>system\n<|think|><turn|>\n<|turn>model\n",
        "<|channel>thought\nhm\n<channel|>yes",
        [("reasoning", "hm"), ("content", "yes")],
    ),
    "Gemma's, spoken of": (
        GEMMA,
        "",
        "Write `<|channel>thought` first.<|channel>thought\nhm<channel|>",
        [("content", "Write `<|channel>thought` first."), ("reasoning", "hm")],
    ),
    "opened and begun": (
        QWEN,
        "assistant\n<think>\nLet",
        " me\n</think>\nyes",
        [("reasoning", "me"), ("content", "yes")],
    ),
    "opened and closed": (QWEN, "assistant\n<think>\n\n</think>\n\n", "yes </think> no", content("yes </think> no")),
    "closed twice": (QWEN, "assistant\n<think></think>", "</think>yes", content("yes")),
    "never closed": (QWEN, "", "<think>\nnever closed ", [("reasoning", "never closed")]),
    "thought of in an answer": (
        QWEN,
        "",
        "The <think> tag opens, </think> closes.",
        content("The <think> tag opens, </think> closes."),
    ),
    "close spoken of": (
        QWEN,
        "",
        "<think>I write `</think>` now</think>A",
        [("reasoning", "I write `</think>` now"), ("content", "A")],
    ),
    "other model": ("no tags at all", "", "<think>kept</think> ", content("<think>kept</think> ")),
    "closing tag alone": ("content.split('</think>')", "", "<think>a</think>b", [("reasoning", "a"), ("content", "b")]),
    "Mistral's": (MISTRAL, "", "[THINK]hm[/THINK]yes", [("reasoning", "hm"), ("content", "yes")]),
    "Gemma's": (GEMMA, "", "<|channel>thought\nhm\n<channel|>yes", [("reasoning", "hm"), ("content", "yes")]),
    "Gemma's, opened": (
        GEMMA,
        "model\n<|channel>thought\n",
        "hm\n<channel|>yes",
        [("reasoning", "hm"), ("content", "yes")],
    ),
    "Gemma's, closed": (GEMMA, "model\n<|channel>thought\n<channel|>", "yes", content("yes")),
    "Cohere's": (
        COHERE,
        "<|START_THINKING|>",
        "hm<|END_THINKING|><|START_RESPONSE|>yes<|END_RESPONSE|>",
        [("reasoning", "hm"), ("content", "yes")],
    ),
    # Hermes
    "two calls": (
        QWEN,
        "",
        f"Let me.\n<tool_call>\n{A}\n</tool_call>\n<tool_call>\n{B}\n</tool_call>",
        [("content", "Let me."), (0, A), (1, B)],
    ),
    "two calls in one section": (
        QWEN,
        "",
        f"<tool_call>{A}\n{B}</tool_call>after",
        [(0, A), (1, B), ("content", "after")],
    ),
    "a list of calls": (QWEN, "", f"<tool_call>[{A}, {B}]</tool_call>", [(0, A), (1, B)]),
    "a call cut off": (QWEN, "", '<tool_call>\n{"name": "a", "argu', [(0, '{"name": "a", "argu')]),
    "a tag in prose": (
        QWEN,
        "",
        "Write <tool_call> and </tool_call> around.",
        content("Write <tool_call> and </tool_call> around."),
    ),
    "a placeholder": (QWEN, "", "<tool_call>{...}</tool_call>", content("<tool_call>{...}</tool_call>")),
    "a call in a code span": (
        QWEN,
        "",
        f"Write `<tool_call>{A}</tool_call>`.",
        content(f"Write `<tool_call>{A}</tool_call>`."),
    ),
    "a call in a code block": (
        QWEN,
        "",
        f"So:\n```\n<tool_call>{A}</tool_call>\n```\n<tool_call>{A}</tool_call>",
        [("content", f"So:\n```\n<tool_call>{A}</tool_call>\n```"), (0, A)],
    ),
    "a call in reasoning": (
        QWEN,
        "",
        f"<think><tool_call>{A}</tool_call></think>No",
        [("reasoning", f"<tool_call>{A}</tool_call>"), ("content", "No")],
    ),
    "thought and call": (
        QWEN,
        "",
        f"<think>\nhm\n</think>\n\n<tool_call>{A}</tool_call>",
        [("reasoning", "hm"), (0, A)],
    ),
    "call, then text": (
        QWEN,
        "",
        f"<tool_call>{A}</tool_call>\nDone <tool_call>",
        [(0, A), ("content", "Done <tool_call>")],
    ),
    # other formats
    "Qwen3-Coder": (
        CODER,
        "",
        "<tool_call>\n<function=f>\n<parameter=a>\n</tool_call>\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>",
        [(0, "<function=f>\n<parameter=a>\n</tool_call>\n</parameter>\n</function>"), (1, "<function=g>\n</function>")],
    ),
    "Qwen3-Coder without its tag": (
        CODER,
        "",
        "Hm.\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        [
            ("content", "Hm."),
            (0, "<function=f>\n<parameter=a>\n1\n</parameter>\n</function>"),
        ],
    ),
    "Qwen3-Coder, its own tags in a value": (
        CODER,
        "",
        "<tool_call><function=f>\n<parameter=a>\n</parameter> x </tool_call>\n</parameter>\n</function>\n</tool_call>",
        [(0, "<function=f>\n<parameter=a>\n</parameter> x </tool_call>\n</parameter>\n</function>")],
    ),
    "a function in prose": (
        CODER,
        "",
        "<tool_call> then <function=NAME> it is",
        content("<tool_call> then <function=NAME> it is"),
    ),
    "GLM": (
        GLM,
        "",
        "<think>hm</think><tool_call>f\n<arg_key>a</arg_key>\n<arg_value></tool_call> x</arg_value>\n</tool_call>\n<tool_call>g</tool_call>",  # noqa: E501
        [("reasoning", "hm"), (0, "f\n<arg_key>a</arg_key>\n<arg_value></tool_call> x</arg_value>"), (1, "g")],
    ),
    "GLM's tag in prose": (GLM, "", "the <tool_call>tag is <arg_key>", content("the <tool_call>tag is <arg_key>")),
    "Mistral list": (MISTRAL, "", f"[TOOL_CALLS] [{A}, {B}]", [(0, A), (1, B)]),
    "Mistral names": (
        MISTRAL,
        "",
        'Yes[TOOL_CALLS]f[ARGS]{"a": "[TOOL_CALLS]"}[TOOL_CALLS]g[CALL_ID]1[ARGS]{}',
        [("content", "Yes"), (0, 'f[ARGS]{"a": "[TOOL_CALLS]"}'), (1, "g[CALL_ID]1[ARGS]{}")],
    ),
    "Mistral names without [ARGS]": (
        MISTRAL,
        "",
        'Yes[TOOL_CALLS]f{"a": {"b": "[TOOL_CALLS]}"}}[TOOL_CALLS]g{}',
        [("content", "Yes"), (0, 'f{"a": {"b": "[TOOL_CALLS]}"}}'), (1, "g{}")],
    ),
    "Mistral's tag before braces": (MISTRAL, "", "Say [TOOL_CALLS]f{x} so.", content("Say [TOOL_CALLS]f{x} so.")),
    "Mistral in prose": (MISTRAL, "", "Say [TOOL_CALLS] first.", content("Say [TOOL_CALLS] first.")),
    "Llama": (LLAMA, "", f"\n{F}", [(0, F)]),
    "Llama, two": (LLAMA, "", f"{F}; {F}", [(0, F), (1, F)]),
    "Llama, OpenAI keys": (
        LLAMA,
        "",
        '{"type": "function", "name": "f", "parameters": {}}',
        [(0, '{"type": "function", "name": "f", "parameters": {}}')],
    ),
    "Llama, other order": (
        LLAMA,
        "",
        '{"parameters": {"x": "}"}, "name": "f"}',
        [(0, '{"parameters": {"x": "}"}, "name": "f"}')],
    ),
    "Llama, nested": (
        LLAMA,
        "",
        '{"type": "function", "function": {"name": "f", "parameters": {}}}',
        [(0, '{"type": "function", "function": {"name": "f", "parameters": {}}}')],
    ),
    "Llama, function as a name": (
        LLAMA,
        "",
        '{"type": "function", "function": "f", "parameters": {}}',
        [(0, '{"type": "function", "function": "f", "parameters": {}}')],
    ),
    "Llama, a list of it": (LLAMA, "", f"[{F}, {F}]", [(0, F), (1, F)]),
    "Llama, over lines": (
        LLAMA,
        "",
        '{\n  "name": "f",\n  "parameters": {\n  }\n}',
        [(0, '{\n  "name": "f",\n  "parameters": {\n  }\n}')],
    ),
    "Llama, a name of another type": (
        LLAMA,
        "",
        '{"parameters": {}, "name": ["f"]}',
        content('{"parameters": {}, "name": ["f"]}'),
    ),
    "Llama, a schema": (LLAMA, "", '{"name": "f", "description": "x"}', content('{"name": "f", "description": "x"}')),
    "OLMo": (
        "<function_calls>",
        "",
        "<function_calls>\nf(a=1)\nget_weather()\n</function_calls>",
        [(0, "f(a=1)"), (1, "get_weather()")],
    ),
    "Llama, other name": (LLAMA, "", '{"name": "g", "parameters": {}}', content('{"name": "g", "parameters": {}}')),
    "Llama, no parameters": (LLAMA, "", '{"name": "f"}', content('{"name": "f"}')),
    "Llama, other keys": (LLAMA, "", '{"name": "f", "age": 3}', content('{"name": "f", "age": 3}')),
    "Llama, parameters of another": (
        LLAMA,
        "",
        '{"parameters": {}, "name": "Alice"}',
        content('{"parameters": {}, "name": "Alice"}'),
    ),
    "Llama, JSON": (LLAMA, "", '{"nam": 1} is JSON', content('{"nam": 1} is JSON')),
    "Llama, cut off": (LLAMA, "", '{"n', content('{"n')),
    "Llama, later": (LLAMA, "", f"So: {F}", content(f"So: {F}")),
    "Llama, then text": (LLAMA, "", f"{F}; and so on", [(0, F), ("content", "; and so on")]),
    "Llama's tag": (LLAMA, "", "x<|python_tag|>f.call()", [("content", "x"), (0, "f.call()")]),
    "Llama's code": (LLAMA, "", "<|python_tag|>import math\nmath.pi", [(0, "import math\nmath.pi")]),
    "Python": (LLAMA, "", "[f(a=')]', b=[1]), get_weather()]", [(0, "f(a=')]', b=[1])"), (1, "get_weather()")]),
    "Python, other name": (LLAMA, "", "[print(1)]", content("[print(1)]")),
    "a list": (LLAMA, "", "[1, 2, 3]", content("[1, 2, 3]")),
    "LFM": (
        LFM,
        "",
        "<|tool_call_start|>[f(a='x, y')]<|tool_call_end|>Checking.",
        [(0, "f(a='x, y')"), ("content", "Checking.")],
    ),
    "Gemma": (
        GEMMA,
        "",
        'Hm<|tool_call>call:f{a:<|"|>}<tool_call|><|"|>,b:{c:1}}<tool_call|><|tool_call>call:g{}<tool_call|>',
        [("content", "Hm"), (0, 'call:f{a:<|"|>}<tool_call|><|"|>,b:{c:1}}'), (1, "call:g{}")],
    ),
    "Kimi": (
        KIMI,
        "",
        '<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": "}"}<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>',  # noqa: E501
        [
            (0, 'functions.f:0<|tool_call_argument_begin|>{"a": "}"}'),
            (1, "functions.g:1<|tool_call_argument_begin|>{}"),
        ],
    ),
    "MiniMax": (
        MINIMAX,
        "]~b]ai\n<think>\n",
        'hm\n</think>\n\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="a"></invoke></parameter>\n</invoke>\n<invoke name="g">\n</invoke>\n</minimax:tool_call>',  # noqa: E501
        [
            ("reasoning", "hm"),
            (0, '<invoke name="f">\n<parameter name="a"></invoke></parameter>\n</invoke>'),
            (1, '<invoke name="g">\n</invoke>'),
        ],
    ),
    "DeepSeek": (
        DEEPSEEK,
        "",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',  # noqa: E501
        [(0, 'f<｜tool▁sep｜>{"a": 1}'), (1, "g<｜tool▁sep｜>{}")],
    ),
    "DeepSeek V3": (
        DEEPSEEK,
        "",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',  # noqa: E501
        [(0, 'function<｜tool▁sep｜>f\n```json\n{"a": 1}')],
    ),
    "Cohere": (
        COHERE,
        "",
        '<|START_ACTION|>[\n {"tool_name": "f", "parameters": {}}\n]<|END_ACTION|>',
        [(0, '{"tool_name": "f", "parameters": {}}')],
    ),
    "Phi": ("<|tool_call|>", "", f"<|tool_call|>[{A}]<|/tool_call|>", [(0, A)]),
    "Granite": ("<|tool_call|>", "", f"<|tool_call|>[{A}]", [(0, A)]),
    "Command R": (
        COMMAND_R,
        "",
        'I do.\nAction:\n```json\n[\n  {"tool_name": "f", "parameters": {"x": "]```"}},\n  {"tool_name": "g"}\n]```\n',
        [("content", "I do."), (0, '{"tool_name": "f", "parameters": {"x": "]```"}}'), (1, '{"tool_name": "g"}')],
    ),
    "Command R in one line": (
        COMMAND_R,
        "",
        'Action: ```json\n[{"tool_name": "f", "parameters": {}}]\n```',
        [(0, '{"tool_name": "f", "parameters": {}}')],
    ),
    "an action without calls": (COMMAND_R, "", "Action: ```json is spoken of", content("Action: ```json is spoken of")),
    "Firefunction": ("functools[", "", f" functools[{A}, {B}]", [(0, A), (1, B)]),
    "functools spoken of": ("functools[", "", "import functools[1]", content("import functools[1]")),
    "JSON as Python writes it": (
        QWEN,
        "",
        "<tool_call>\n{'name': 'a', 'arguments': {'x': '}</tool_call>\"'}}\n</tool_call>",
        [(0, "{'name': 'a', 'arguments': {'x': '}</tool_call>\"'}}")],
    ),
    "a word between the tags": (
        GLM,
        "",
        "Write <tool_call>NAME</tool_call> here.",
        content("Write <tool_call>NAME</tool_call> here."),
    ),
    "a tool between the tags": (GLM, "", "Now <tool_call>f</tool_call>", [("content", "Now"), (0, "f")]),
    "an unknown tool on its own line": (GLM, "", "Now\n<tool_call>g</tool_call>", [("content", "Now"), (0, "g")]),
    "Python in long quotes": (
        LFM,
        "",
        '<|tool_call_start|>[f(x="""a "b")]<|tool_call_end|>\n""", y=\'\')]<|tool_call_end|>',
        [(0, 'f(x="""a "b")]<|tool_call_end|>\n""", y=\'\')')],
    ),
    # Harmony
    "analysis and final": (
        HARMONY,
        "<|start|>assistant",
        "<|channel|>analysis<|message|>Sum.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>",
        [("reasoning", "Sum."), ("content", "It is 4.")],
    ),
    "final alone": (HARMONY, "<|start|>assistant", "<|channel|>final<|message|>Hello.", content("Hello.")),
    "final opened": (HARMONY, "<|start|>assistant<|channel|>final<|message|>", "Hello.", content("Hello.")),
    "analysis opened": (
        HARMONY,
        "<|start|>assistant<|channel|>analysis<|message|>",
        "Sum<|end|><|start|>assistant<|channel|>final<|message|>4",
        [("reasoning", "Sum"), ("content", "4")],
    ),
    "no header": (HARMONY, "<|start|>assistant", "Hello.", content("Hello.")),
    "preamble": (HARMONY, "<|start|>assistant", "<|channel|>commentary<|message|>I look.<|end|>", content("I look.")),
    "recipient in the channel": (
        HARMONY,
        "<|start|>assistant",
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "<|end|>"}<|call|>',
        [(0, 'commentary to=functions.f <|constrain|>json<|message|>{"a": "<|end|>"}')],
    ),
    "recipient in the role": (
        HARMONY,
        "<|start|>assistant",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>",  # noqa: E501
        [("reasoning", "a"), (0, "to=functions.f<|channel|>commentary json<|message|>{}")],
    ),
    "two recipients": (
        HARMONY,
        "<|start|>assistant",
        " to=functions.f<|channel|>commentary<|message|>{}<|call|><|start|>assistant<|channel|>commentary to=functions.g<|message|>{}<|call|>",  # noqa: E501
        [(0, "to=functions.f<|channel|>commentary<|message|>{}"), (1, "commentary to=functions.g<|message|>{}")],
    ),
    "a recipient spoken of": (
        HARMONY,
        "<|start|>assistant",
        "<|channel|>analysis<|message|>Use to=functions.f, then <|call|> it<|end|>",
        [("reasoning", "Use to=functions.f, then <|call|> it")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_parts_do_not_depend_on_the_size_of_the_pieces(name: str) -> None:
    source, prompt, text, parts = CASES[name]
    for size in range(1, len(text) + 1):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert split(splitter_for(source, prompt=prompt, tools=TOOLS), pieces) == parts, size


EVERYTHING = " ".join((CODER, GLM, LLAMA, MISTRAL, GEMMA, KIMI, DEEPSEEK, LFM, MINIMAX, COHERE))
FRAGMENTS = [
    *(
        "<think>",
        "</think>",
        "<th",
        "ink>",
        "<tool_call>",
        "</tool_call>",
        " ",
        "\n",
        "a",
        "</",
        "`",
        "```",
        A,
        B,
        F,
        "[",
        "]",
    ),
    *(
        "<function=f>",
        "<parameter=a>",
        "</parameter>",
        "</function>",
        "f\n<arg_key>",
        "</arg_value>",
        "[TOOL_CALLS]",
        "f[ARGS]{",
    ),
    *(
        '"',
        "}",
        "{",
        "<|channel>thought",
        "<channel|>",
        "<|tool_call>call:f{",
        '<|"|>',
        "<tool_call|>",
        "f(a='",
        "')",
        ";",
        "\\",
    ),
    *(
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        "<|START_ACTION|>",
        "<|python_tag|>",
        "<|message|>",
        "<|end|>",
        "<|start|>assistant",
    ),
    *("<|channel|>analysis", "<|channel|>final", " to=functions.f", "<|call|>"),
]


@settings(deadline=None, max_examples=150)
@given(
    pieces=st.lists(st.sampled_from(FRAGMENTS), max_size=12),
    source=st.sampled_from([EVERYTHING, HARMONY, QWEN]),
    data=st.data(),
)
def test_parts_of_random_text_do_not_depend_on_its_cuts_and_add_no_text(
    pieces: list[str], source: str, data: st.DataObject
) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    cut = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = split(splitter_for(source, tools=TOOLS), [text])
    assert split(splitter_for(source, tools=TOOLS), cut) == whole
    assert split(splitter_for(source, tools=TOOLS), list(text)) == whole
    rest = iter(text)  # the parts hold only characters of the text, in order
    assert all(character in rest for _, content in whole for character in content)


def test_plain_text_is_never_held_back_or_changed() -> None:
    splitter = splitter_for(None)
    text = " <think> a </think> [TOOL_CALLS] \n"
    assert [splitter.add(char) for char in text] == [[("content", char, None)] for char in text]
    assert splitter.finish() == []


def test_text_streams_before_its_part_ends() -> None:
    splitter = splitter_for(QWEN)
    splitter.add("<think>\n")
    assert splitter.add("one two") == [("reasoning", "one two", None)]
    assert splitter.add(" three</think>") == [("reasoning", " three", None)]
    assert splitter.add('<tool_call>{"na') == [("tool_call", '{"na', 0)]
    assert splitter.add('me": ') == [("tool_call", 'me":', 0)]


def test_a_bare_json_call_is_recognized_by_a_known_name_and_parameters() -> None:
    splitter = splitter_for(LLAMA, tools=TOOLS)
    assert splitter.add('{"name": "get_weather", "parameters": ') == []
    assert splitter.add('{"ci') == [("tool_call", '{"name": "get_weather", "parameters": {"ci', 0)]
    splitter = splitter_for(LLAMA, tools=TOOLS)
    assert splitter.add('{"name": "Al') == [("content", '{"name": "Al', None)]


def test_bare_json_is_content_without_tools() -> None:
    for source in (LLAMA, QWEN):
        assert split(splitter_for(source), [F]) == [("content", F)]


@pytest.mark.parametrize(
    "unit", ["a", " ", "\n", "`", "<", "<think>", "<tool_call>", "[", '{"a": ', "</parameter>", "é"]
)
@pytest.mark.parametrize("source", [EVERYTHING, HARMONY])
def test_splitting_takes_time_linear_in_the_text(unit: str, source: str) -> None:
    def seconds(size: int) -> float:
        splitter, text = splitter_for(source, tools=TOOLS), unit * size
        started = time.process_time()
        for start in range(0, len(text), 7):
            splitter.add(text[start : start + 7])
        splitter.finish()
        return time.process_time() - started

    seconds(70)
    once = min(seconds(1_000) for _ in range(2))
    assert min(seconds(8_000) for _ in range(2)) < 8 * 3 * once + 0.05


def test_the_tags_come_from_the_template_of_the_model() -> None:
    answer = "<think>hm</think>x"
    assert split(splitter_for(template("qwen-3")), [answer]) == [("reasoning", "hm"), ("content", "x")]
    assert split(splitter_for(template("gemma-3")), [answer]) == [("content", answer)]
    call = '[TOOL_CALLS] [{"name": "f", "arguments": {}}]'
    assert split(splitter_for(template("mistral")), [call])[0][0] == 0
    assert split(splitter_for(template("llama-3"), tools=TOOLS), [F]) == [(0, F)]


def test_the_tags_come_from_every_named_template() -> None:
    chat = ChatTemplate({"default": "<think>", "tool_use": "<tool_call> </tool_call>"})
    answer = f"<think>hm</think>x<tool_call>{A}</tool_call>"
    assert split(splitter_for(chat), [answer]) == [("reasoning", "hm"), ("content", "x"), (0, A)]


class TagTokenizer:
    """A tokenizer whose special tokens are tags that its template lacks."""

    chat_template = ChatTemplate("{{ messages }}")

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens
        self.special_ids = frozenset(range(len(tokens)))

    def token_to_id(self, token: str) -> int | None:
        return self.tokens.index(token) if token in self.tokens else None

    def id_to_token(self, index: int) -> str | None:
        return self.tokens[index] if index < len(self.tokens) else None

    def decode(self, ids: Any) -> str:
        return "".join(self.tokens[index] if index < len(self.tokens) else chr(index) for index in ids)


def test_special_tokens_supply_tags_that_the_template_lacks() -> None:
    from macllm.text.parts import part_splitter

    tokenizer: Any = TagTokenizer(
        "<|im_start|>", "<|im_end|>", "<|tool_call_start|>", "<|tool_call_end|>", "<think>", "</think>"
    )
    prompt = [0, *map(ord, "user\nWhat is <think> for?"), 1, 0, *map(ord, "assistant\n")]
    answer = "<|tool_call_start|>[f()]<|tool_call_end|>"
    assert split(part_splitter(tokenizer, prompt), [answer]) == [(0, "f()")]
    assert split(part_splitter(tokenizer, [*prompt, 4, ord("\n")]), ["hm</think>x"]) == [
        ("reasoning", "hm"),
        ("content", "x"),
    ]
    assert split(part_splitter(tokenizer, [0, *map(ord, "a <think> b"), 1, 0]), ["x </think>"]) == [
        ("content", "x </think>")
    ]


QUESTIONS = (
    "What is <think>?",
    "<think>",
    "<think>\nis that a tag",
    "Explain <|channel>thought",
    "a [assistant] <think>",
)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("opens", ["", "<think>\n"])
def test_a_tag_in_the_users_question_opens_no_reasoning(question: str, opens: str) -> None:
    from macllm.text.parts import part_splitter

    tokenizer: Any = TagTokenizer()
    tokenizer.chat_template = ChatTemplate(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
        + opens
        + "{# <think> </think> <|channel>thought <channel|> #}"
    )
    messages = [{"role": "assistant", "content": "a <think> b"}, {"role": "user", "content": question}]
    prompt = [*map(ord, tokenizer.chat_template.render(messages))]
    head = [("reasoning", "hm")] if opens else []
    text = "hm</think>A tag." if opens else "A tag."
    assert split(part_splitter(tokenizer, prompt), [text]) == [*head, ("content", "A tag.")]
    begun = [*prompt, *map(ord, "I" if opens else "<think>I")]
    assert split(part_splitter(tokenizer, begun), [" see</think>yes"]) == [("reasoning", "see"), ("content", "yes")]
