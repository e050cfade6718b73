"""The table format x (render, call, parse, render): `python -m tests.text.format_table [FOLDER ...]`.

Each chat template writes answers with reasoning, text and tool calls. The written text is split and parsed, which
must give the answer again, and rendered again, which must give the same text. The default templates are small ones,
one per format; folders are searched for those of models (*.jinja, tokenizer_config.json with a chat_template).
A dash: the template does not write such an answer.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macllm.text.parts import splitter_for
from macllm.text.template import ChatTemplate, TemplateError
from macllm.text.tool_calls import ToolCall, ToolCallError, parse_tool_calls

OWN = Path(__file__).parent / "templates" / "formats"
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>"}
_PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "share": {"type": "number"},
    "exact": {"type": "boolean"},
    "options": {"type": "object"},
    "tags": {"type": "array", "items": {"type": "string"}},
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place",
            "parameters": {"type": "object", "properties": _PROPERTIES, "required": ["city"]},
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}},
    },
]
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"enable_thinking": True},
    {"enable_thinking": False},
    {"reasoning_effort": "high"},
    {"thinking": True},
    {"thinking": False},
)
# the first of these ends an answer
_END = re.compile(
    r"<\|(?:im_end|eot_id|eom_id|eot|END_OF_TURN_TOKEN|end_of_text|assistant_end|role_end)\|>|<eos>|<turn\|>|<end_of_turn>"
    r"|<｜end▁of▁sentence｜>|\[e~\[|</assistant>|<seed:eos>|<end_of_sentence>|<SPECIAL_12>|<sep>|<｜hy_eos:opensource｜>"
)
# these end an answer at the end of the text
_LAST = re.compile(r"(?:<\|(?:end|message_sep|tool_response)\|?>|\s)+\Z")


@dataclass(frozen=True)
class Probe:
    """One answer to render and to read again."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()

    def message(self, *, as_text: bool, as_null: bool) -> dict[str, Any]:
        """The answer as a chat template reads it; templates differ on arguments and empty content."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content or (None if as_null else "")}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                _entry(ToolCall(name, arguments), index, as_text=as_text)
                for index, (name, arguments) in enumerate(self.calls)
            ]
        return message


def _entry(call: ToolCall, index: int, *, as_text: bool) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False) if as_text else call.arguments
    identity = f"call{index:05d}"
    return {"type": "function", "id": identity, "function": {"name": call.name, "arguments": arguments}}


_TAGGED = "</tool_call> <tool_call> <think> [TOOL_CALLS] [ARGS] <tool_call|> <|tool_call_end|> </think> )]}"
PROBES: dict[str, Probe] = {
    "answer": Probe("It is 4 < 5 & `<b>`."),
    "thought": Probe("It is 4.", "Two and two."),
    "call": Probe(calls=(("get_weather", {"city": "Paris", "days": 2}),)),
    "no arguments": Probe(calls=(("now", {}),)),
    "two": Probe(calls=(("get_weather", {"city": "A"}), ("now", {}))),
    "values": Probe(
        calls=(
            (
                "get_weather",
                {
                    "city": "Köln 👩‍👧 <b> {x} [y] \"quoted\" 'single' a, b",
                    "days": -3,
                    "share": 0.25,
                    "exact": True,
                    "options": {"a": {"b": [1, "two", False]}, "c d": ""},
                    "tags": ["x", "y, z"],
                },
            ),
        )
    ),
    "lines": Probe(calls=(("get_weather", {"city": "first\n\n  second <p>\n\tthird \\n \\ end"}),)),
    "tags": Probe(calls=(("get_weather", {"city": _TAGGED}),)),
    "text call": Probe("Let me look.", calls=(("get_weather", {"city": "Paris"}),)),
    "thought call": Probe("", "Where?", (("get_weather", {"city": "Paris"}),)),
}


@dataclass
class Row:
    """The outcomes of one template, by the name of the probe."""

    name: str
    outcomes: dict[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, str]:
        """The probes that were not read or written again equal."""
        return {name: outcome for name, outcome in self.outcomes.items() if outcome not in ("ok", "-")}


def templates(folders: list[Path]) -> Iterator[tuple[str, str]]:
    """Names and sources of the templates in folders."""
    for folder in folders:
        for path in sorted(folder.rglob("*.jinja")):
            yield path.stem, path.read_text("utf-8")
        for path in sorted(folder.rglob("tokenizer_config.json")):
            source = json.loads(path.read_bytes()).get("chat_template")
            if isinstance(source, str):
                yield path.relative_to(folder).parts[0], source


def row(name: str, source: str) -> Row:
    """The row of one template."""
    template = ChatTemplate(source, TOKENS)
    return Row(name, {probe: outcome(template, source, PROBES[probe]) for probe in PROBES})


def outcome(template: ChatTemplate, source: str, probe: Probe) -> str:
    """The result of one probe: "ok", "-", or the fault."""
    written = _write(template, probe)
    if written is None:
        return "-"
    prompt, opened, answer, variables, way = written
    splitter = splitter_for(source, tools=TOOLS, prompt=opened[-400:])
    texts: dict[str, str] = {"content": "", "reasoning": ""}
    raw: dict[int, str] = {}
    for part in [*(part for character in answer for part in splitter.add(character)), *splitter.finish()]:
        if part.call is None:
            texts[part.kind] += part.text
        else:
            raw[part.call] = raw.get(part.call, "") + part.text
    try:
        calls = [call for text in raw.values() for call in parse_tool_calls(text, TOOLS)]
    except ToolCallError as error:
        return f"unread: {error.cause}"
    if [(call.name, call.arguments) for call in calls] != list(probe.calls):
        return f"other calls: {calls}; parts {texts} of {answer!r}"
    if not texts["content"] and texts["reasoning"] == probe.content:
        texts = {"content": probe.content, "reasoning": ""}  # a template may write content into a channel for reasoning
    if texts["content"].strip() != probe.content or texts["reasoning"].strip() not in ("", probe.reasoning):
        return f"other text: {texts} of {answer!r}"
    if probe.reasoning and probe.reasoning in answer and not texts["reasoning"]:
        return f"reasoning not seen: {texts} of {answer!r}"
    again = Probe(texts["content"].strip(), texts["reasoning"], tuple((call.name, call.arguments) for call in calls))
    once = prompt + answer
    twice = _rendered(template, again.message(**way), variables)
    return (
        "ok" if twice is not None and twice.startswith(once) else f"written again it differs: {twice!r} from {once!r}"
    )


def _write(template: ChatTemplate, probe: Probe) -> tuple[str, str, str, dict[str, Any], dict[str, bool]] | None:
    """Text before the answer, prompt, the rendered answer, variant and message form; None if not written."""
    wanted = [*(name for name, _ in probe.calls), probe.content, probe.reasoning]
    flags = (False, True)
    ways = [({"as_text": text, "as_null": null}, each) for text in flags for null in flags for each in VARIANTS]
    for exact in (True, False):  # past turns may lack the empty reasoning of a prompt
        for way, variables in ways:
            prompt = _rendered(template, None, variables)
            whole = _rendered(template, probe.message(**way), variables)
            if prompt is None or whole is None or (exact and not whole.startswith(prompt)):
                continue
            before = prompt if exact else _PIECE.sub("", _common(prompt, whole))
            answer = _LAST.sub("", _END.split(whole[len(before) :])[0])
            if all(text in answer for text in wanted):
                return before, prompt if probe.reasoning else before, answer, variables, way
    return None


_PIECE = re.compile(r"(?:<[^<>]*|\[[^\[\]]*)\Z")


def _common(one: str, other: str) -> str:
    """The longest beginning that two texts share."""
    return one[: next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))]


def _rendered(template: ChatTemplate, answer: dict[str, Any] | None, variables: dict[str, Any]) -> str | None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What now?"}]
    try:
        return template.render(
            [*messages, *([answer] if answer else [])], tools=TOOLS, add_generation_prompt=not answer, **variables
        )
    except TemplateError:
        return None


def main(folders: list[str]) -> int:
    """Print the table; the exit code is the number of failures."""
    rows = [row(*each) for each in templates([Path(folder) for folder in folders] or [OWN])]
    width = max(len(each.name) for each in rows)
    print(f"{'template':{width}s} " + " ".join(f"{name:>7s}" for name in PROBES))
    for each in rows:
        print(f"{each.name:{width}s} " + " ".join(f"{each.outcomes[name].split(':')[0][:7]:>7s}" for name in PROBES))
    for each in rows:
        for name, outcome in each.failures.items():
            print(f"\n{each.name}, {name}: {outcome}")
    counts = {
        "templates": len(rows),
        "ok": sum(outcome == "ok" for each in rows for outcome in each.outcomes.values()),
        "failed": sum(len(each.failures) for each in rows),
    }
    print(json.dumps(counts))
    return min(counts["failed"], 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
