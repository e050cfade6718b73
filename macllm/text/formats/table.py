"""Table of formats: reasoning tags, tool call sections and call formats, by model."""

from __future__ import annotations

from dataclasses import dataclass

from .call import Element, Quote
from .nested import Nested
from .pythonic import read_python
from .readers import Braces, Named, Tagged, read_json, refuse_code
from .shape import NAME, SPACE, Repeat


@dataclass(frozen=True)
class Thinking:
    """Tags around reasoning, at the beginning of an answer or, if the tag is a special token, `anywhere`."""

    opening: str
    closing: str
    anywhere: bool = False


@dataclass(frozen=True)
class Wrapper:
    """Tags around the whole answer, not part of it."""

    opening: str
    closing: str


@dataclass(frozen=True)
class Section:
    """A sequence of calls between two tags; without a closing tag it ends after the last call.

    `between` are tags around each call. A model uses the section if an opening tag and all of `needs` occur in its
    chat template or among its tokens. A `bare` section has no tags: the answer begins with a call of a tool in the
    request.
    """

    name: str
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    elements: tuple[Element, ...]
    between: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    bare: bool = False


@dataclass(frozen=True)
class Channels:
    """Messages with headers, `<|start|>role to=RECIPIENT<|channel|>NAME<|message|>TEXT<|end|>`."""

    name: str
    needs: tuple[str, ...]
    ends: tuple[str, ...]
    start: str = "<|start|>"
    channel: str = "<|channel|>"
    message: str = "<|message|>"
    thinking: tuple[str, ...] = ("analysis", "self")  # channels and recipients
    answering: tuple[str, ...] = ("user", "all")  # recipients
    header_of_call: bool = True  # the function name is in the header, not in the text


def _named(pattern: str) -> Named:
    return Named(f"(?s){pattern}")


def _invoke(name: str, prefix: str, tag: str = "parameter") -> Element:
    """`<invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke>`, with a prefix in every tag."""
    parameter, end = f"</{prefix}{tag}>", f"</{prefix}invoke>"
    opening = rf'<{prefix}{tag} name="?(?P<key>[^">]+)"?(?: string="(?P<type>[^">]+)")?>'
    return Element(
        name,
        start=(f"<{prefix}invoke name=",),
        read=Tagged(
            rf'\s*<{prefix}invoke name="?(?P<name>[^">]+)"?>',
            opening,
            parameter,
            rf"{end}|\Z",
        ),
        quotes=(Quote(f"<{prefix}{tag} name=", parameter, follow=(f"<{prefix}{tag}", end)),),
        closing=end,
    )


def _argument_keys(name: str, prefix: str = "", suffix: str = "") -> Element:
    """`NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>`, with a prefix or suffix in every tag."""
    key, value, call = (f"{prefix}{tag}{suffix}>" for tag in ("arg_key", "arg_value", "tool_call"))
    between = f"<{prefix}tool_sep{suffix}>"
    return Element(
        name,
        start=(NAME, SPACE, (f"<{key}", f"</{call}", between)),
        read=Tagged(
            rf"\s*(?P<name>[^\s<]+)(?:{between})?",
            rf"(?s)<{key}(?P<key>.*?)</{key}\s*<{value}",
            f"</{value}",
            r"\Z",
            guess=True,
        ),
        quotes=(Quote(f"<{value}", f"</{value}", follow=(f"<{key}", f"</{call}")),),
    )


_STRING = Quote('"', '"', escape="\\")
_DELIMITERS = (",", ")", "]", "}", ":")

JSON = Element(
    "JSON object",
    lead=(("[", ""), SPACE),
    start=("{", SPACE, ('"', "'", "}")),
    read=read_json,
    quotes=(_STRING, Quote("'", "'", escape="\\")),  # some models write Python's quotes
    brackets="{}",
)
PYTHON = Element(
    "Python call",
    lead=(("[", ""), SPACE),
    start=(NAME, SPACE, "("),
    read=read_python,
    quotes=tuple(Quote(mark, mark, escape="\\", follow=_DELIMITERS) for mark in ("'''", '"""', "'", '"')),
    brackets="([{)]}",
)
MISTRAL = Element(
    "Mistral's name[ARGS]",
    start=(NAME, SPACE, ("[ARGS]", "[CALL_ID]")),
    read=_named(r"(?P<name>[^\[]+?)\s*(?:\[CALL_ID\](?P<id>[^\[]*))?\[ARGS\](?P<arguments>.*)"),
    quotes=(_STRING,),
    brackets="{}",
)
MISTRAL_SHORT = Element(
    "Mistral's name and JSON",  # tokenizers of version 11, and decoders that leave out [ARGS]
    start=(NAME, SPACE, "{", SPACE, ('"', "}")),
    read=_named(r"(?P<name>[^\[{]+?)\s*(?P<arguments>\{.*)"),
    quotes=(_STRING,),
    brackets="{}",
)
_FUNCTION = Tagged(
    r"\s*<function=(?P<name>[^>]+)>",
    r"<parameter=(?P<key>[^>]+)>",
    "</parameter>",
    r"</function>|\Z",
    lines=True,
)
FUNCTION = Element(
    "XML function",
    start=("<function=", NAME, ">", SPACE, ("<parameter=", "</function>")),
    read=_FUNCTION,
    quotes=(Quote("<parameter=", "</parameter>", follow=("<parameter=", "</function>", "</tool_call>")),),
    closing="</function>",
)
FUNCTION_JSON = Element(
    "XML function with JSON",
    start=("<function=", NAME, ">", SPACE, "{"),
    read=_FUNCTION,
    quotes=(_STRING,),
    closing="</function>",
)
GLM = _argument_keys("GLM's argument keys")
LONGCAT = _argument_keys("LongCat's argument keys", "longcat_")
HUNYUAN = _argument_keys("Hunyuan's argument keys", "", ":opensource")
GEMMA = Element(
    "Gemma's braces",
    start=("call:", NAME, "{"),
    read=Braces('<|"|>'),
    quotes=(Quote('<|"|>', '<|"|>'),),
    brackets="{}",
)
FUNCTION_GEMMA = Element(
    "FunctionGemma's braces",
    start=("call:", NAME, "{"),
    read=Braces("<escape>"),
    quotes=(Quote("<escape>", "<escape>"),),
    brackets="{}",
)
KIMI = Element(
    "Kimi K2",
    start=(NAME, SPACE, "<|tool_call_argument_begin|>"),
    read=_named(r"(?P<id>(?:functions\.)?(?P<name>.+?)(?::\d+)?)\s*<\|tool_call_argument_begin\|>(?P<arguments>.*)"),
    quotes=(_STRING,),
    brackets="{}",
)
DEEPSEEK = Element(
    "DeepSeek V3.1",
    start=(NAME, "<｜tool▁sep｜>", SPACE, "{"),
    read=_named(r"(?P<name>.+?)<｜tool▁sep｜>(?P<arguments>.*)"),
    quotes=(_STRING,),
    brackets="{}",
)
DEEPSEEK_V3 = Element(
    "DeepSeek V3 and R1",
    start=("function<｜tool▁sep｜>", NAME, SPACE, "```json"),
    read=_named(r"function<｜tool▁sep｜>(?P<name>.+?)\s*```json\s*(?P<arguments>\{.*\})\s*(?:```)?"),
    quotes=(_STRING,),
    brackets="{}",
)
SOLAR = Element(
    "Solar",
    start=(NAME, "<|tool_call:name|>", NAME, "<|tool_call:args|>"),
    read=_named(r"(?P<id>.*?)<\|tool_call:name\|>(?P<name>.*?)<\|tool_call:args\|>(?P<arguments>.*)"),
    quotes=(_STRING,),
    brackets="{}",
)
HARMONY = Element(
    "Harmony",
    start=(Repeat(r"^{}\n", 0, 128), "to=", NAME, Repeat(r"^{}\n", 0, 64), "<|message|>"),
    read=_named(r".*?\bto=(?:functions\.)?(?P<name>[^\s<]+).*?<\|message\|>(?P<arguments>.*)"),
    quotes=(_STRING,),
    brackets="{}",
)
MINICPM = Element(
    "MiniCPM",
    start=('<function name="',),
    read=Tagged(
        r'\s*<function name="(?P<name>[^"]+)">',
        r'<param name="(?P<key>[^"]+)">',
        "</param>",
        r"</function>|\Z",
    ),
    quotes=(Quote('<param name="', "</param>", follow=("<param name=", "</function>")),),
    closing="</function>",
)
CODE = Element("code", start=(Repeat(r"^\s<", 1, 1),), read=refuse_code)
KIMI_K3 = Element(
    "Kimi K3",
    start=('<|open|>call tool="',),
    read=Tagged(
        r'\s*<\|open\|>call tool="(?P<name>[^"]+)"[^<]*<\|sep\|>',
        r'<\|open\|>argument key="(?P<key>[^"]+)"(?: type="(?P<type>[^"]+)")?<\|sep\|>',
        "<|close|>argument<|sep|>",
        r"<\|close\|>call<\|sep\|>|\Z",
    ),
    quotes=(
        Quote(
            "<|open|>argument ",
            "<|close|>argument<|sep|>",
            follow=("<|open|>argument", "<|close|>call"),
        ),
    ),
    closing="<|close|>call<|sep|>",
)
_M3 = "]<]minimax[>["  # one token
MINIMAX_M3 = Element("MiniMax M3", start=(f'{_M3}<invoke name="',), read=Nested(_M3), closing=f"{_M3}</invoke>")
MINIMAX, DSML, MUSE, INVOKE = (
    _invoke("MiniMax M2", ""),
    _invoke("DeepSeek V3.2", "｜DSML｜"),
    _invoke("Muse", "atem:"),
    _invoke("invoke", "antml:"),
)

# tried in this order: formats with a more specific start come first
ELEMENTS = (
    JSON,
    FUNCTION,
    FUNCTION_JSON,
    MINIMAX,
    INVOKE,
    DSML,
    MUSE,
    MINIMAX_M3,
    MINICPM,
    KIMI_K3,
    GEMMA,
    MISTRAL,
    KIMI,
    DEEPSEEK_V3,
    DEEPSEEK,
    SOLAR,
    HARMONY,
    GLM,
    LONGCAT,
    HUNYUAN,
    PYTHON,
    MISTRAL_SHORT,
)

THINKING = (
    *(Thinking(f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "reasoning")),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("<mm:think>", "</mm:think>"),
    Thinking("<think:opensource>", "</think:opensource>"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>", anywhere=True),
    Thinking("<|begin_of_thought|>", "<|end_of_thought|>"),
    Thinking("<|channel>thought", "<channel|>", anywhere=True),
    Thinking("<|open|>think<|sep|>", "<|close|>think<|sep|>", anywhere=True),
    Thinking("<|think|>", "<|end|>", anywhere=True),
    Thinking("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)

WRAPPERS = (
    Wrapper("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    Wrapper("<|START_TEXT|>", "<|END_TEXT|>"),
    Wrapper("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
    Wrapper("<response>", "</response>"),
    Wrapper("<answer>", "</answer>"),
    Wrapper("<|begin_of_solution|>", "<|end_of_solution|>"),
    Wrapper("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"),
    Wrapper("<|begin|>assistant<|content|>", "<|end|>"),
    Wrapper("<|content|>", "<|end|>"),
)

_HUNYUAN_TAGS = ("<tool_call:opensource>", "</tool_call:opensource>")
SECTIONS = (
    Section("Hermes", ("<tool_call>",), ("</tool_call>",), (JSON,)),
    Section("Qwen3-Coder", ("<tool_call>", ""), ("</tool_call>",), (FUNCTION, FUNCTION_JSON), needs=("<function=",)),
    Section("GLM", ("<tool_call>",), ("</tool_call>",), (GLM,), needs=("<arg_key>",)),
    Section("LongCat", ("<longcat_tool_call>",), ("</longcat_tool_call>",), (LONGCAT,)),
    Section("function calls", ("<function_calls>",), ("</function_calls>",), (MINIMAX, PYTHON)),
    Section("InternLM", ("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"), ("<|action_end|>",), (JSON,)),
    Section("Seed-OSS", ("<seed:tool_call>",), ("</seed:tool_call>",), (FUNCTION,)),
    Section("MiniMax", ("<minimax:tool_call>",), ("</minimax:tool_call>",), (MINIMAX,)),
    Section("MiniMax M3", (f"{_M3}<tool_call>",), (f"{_M3}</tool_call>",), (MINIMAX_M3,)),
    Section("Muse", ("<atem:function_calls>",), ("</atem:function_calls>",), (MUSE,)),
    Section("DeepSeek V3.2", ("<｜DSML｜function_calls>",), ("</｜DSML｜function_calls>",), (DSML,)),
    Section("DeepSeek V4", ("<｜DSML｜tool_calls>",), ("</｜DSML｜tool_calls>",), (DSML,)),
    Section(
        "DeepSeek",
        ("<｜tool▁calls▁begin｜>",),
        ("<｜tool▁calls▁end｜>",),
        (DEEPSEEK_V3, DEEPSEEK),
        between=("<｜tool▁call▁begin｜>", "```", "<｜tool▁call▁end｜>"),
    ),
    Section(
        "Kimi K2",
        ("<|tool_calls_section_begin|>",),
        ("<|tool_calls_section_end|>",),
        (KIMI,),
        between=("<|tool_call_begin|>", "<|tool_call_end|>"),
    ),
    Section("Kimi K3", ("<|open|>tools<|sep|>",), ("<|close|>tools<|sep|>",), (KIMI_K3,)),
    Section("Mistral", ("[TOOL_CALLS]",), (), (JSON, MISTRAL, MISTRAL_SHORT)),
    Section("LFM", ("<|tool_call_start|>",), ("<|tool_call_end|>",), (JSON, PYTHON)),
    Section("Gemma", ("<|tool_call>",), ("<tool_call|>",), (GEMMA,)),
    Section("FunctionGemma", ("<start_function_call>",), ("<end_function_call>",), (FUNCTION_GEMMA,)),
    Section("Phi and Granite", ("<|tool_call|>",), ("<|/tool_call|>",), (JSON,)),
    Section("Firefunction", ("functools",), (), (JSON,), needs=("functools[",)),
    Section("Command R", ("Action:",), ("```",), (JSON,), between=("```json",), needs=("tool_name", "```json")),
    Section("Cohere", ("<|START_ACTION|>",), ("<|END_ACTION|>",), (JSON,)),
    Section("Apertus", ("<|tools_prefix|>",), ("<|tools_suffix|>",), (JSON,)),
    Section("Nemotron Nano", ("<TOOLCALL>",), ("</TOOLCALL>",), (JSON,)),
    Section("list of calls", ("<tool_calls>",), ("</tool_calls>",), (JSON,)),
    Section("function call", ("<function_call>",), ("</function_call>",), (JSON,)),
    Section("GigaChat", ("<|function_call|>", "<|message_sep|>\n\nfunction call<|role_sep|>"), (), (JSON,)),
    Section(
        "Solar",
        ("<|begin|>assistant<|tool_calls|>", "<|tool_calls|>"),
        ("<|calls|>",),
        (SOLAR,),
        between=("<|tool_call:begin|>", "<|tool_call:end|>"),
    ),
    Section("Functionary", ("",), (), (FUNCTION, FUNCTION_JSON), needs=("<function=",)),
    Section("Hunyuan", ("<tool_calls:opensource>",), ("</tool_calls:opensource>",), (HUNYUAN,), _HUNYUAN_TAGS),
    Section("MiniCPM", ("",), (), (MINICPM,), needs=('<function name="',)),
    Section("Llama 3 tag", ("<|python_tag|>",), (), (JSON, PYTHON, CODE)),
    Section("Llama 4 tags", ("<|python_start|>",), ("<|python_end|>",), (JSON, PYTHON)),
    Section("Llama 3", (), (), (JSON, PYTHON), needs=("ipython",), bare=True),
    Section("Llama 3 without code", (), (), (JSON,), needs=('{"name": function name, "parameters"',), bare=True),
    Section("Python list", (), (), (PYTHON,), needs=("[func_name1(",), bare=True),
)

CHANNELS = (
    Channels("Harmony", ("<|channel|>", "<|message|>"), ("<|end|>", "<|call|>", "<|return|>")),
    Channels("Muse", ("<|message|>", "to=self"), ("<|eom|>", "<|eot|>"), header_of_call=False),
)

# tokens at the end of an answer that carry no content
SILENT = ("<|tool_response>", "<|close|>message<|sep|>", "<|end_of_msg|>")
