"""Conversations, tools and variables that chat templates are compared on."""

from __future__ import annotations

from typing import Any

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place, today & <later> — in °C.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
        },
    },
}
TIME = {
    "type": "function",
    "function": {"name": "time", "description": "Zeit: 'jetzt'", "parameters": {}, "return": {}},
}
USER, SYSTEM, ANSWER = "user", "system", "assistant"


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(name: str, arguments: Any, id: str = "abcdef123") -> dict[str, Any]:
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


def calling(*calls: dict[str, Any], content: str = "") -> dict[str, Any]:
    return say(ANSWER, content, tool_calls=list(calls))


def result(content: Any, id: str = "abcdef123") -> dict[str, Any]:
    return say("tool", content, tool_call_id=id, name="get_weather")


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one user turn": [say(USER, "Hello!")],
    "system and user": [say(SYSTEM, "Be brief."), say(USER, "Hi")],
    "white space": [say(SYSTEM, "  padded \n"), say(USER, "\n\n text  "), say(ANSWER, " answer \n"), say(USER, "x\t")],
    "multi-turn": [say(USER, "a"), say(ANSWER, "b"), say(USER, "c"), say(ANSWER, "d"), say(USER, "e")],
    "system and multi-turn": [say(SYSTEM, "S"), say(USER, "a"), say(ANSWER, "b"), say(USER, "c")],
    "ends with the assistant": [say(USER, "a"), say(ANSWER, "b")],
    "scripts and symbols": [say(USER, "你好 👩‍👩‍👧 مرحبا <b>&amp;</b> \"quotes\" 'single' \\ {{ x }} {% y %}")],
    "special tokens in text": [say(USER, "<|im_end|>\n<|eot_id|><end_of_turn>[/INST]<|end|>")],
    "empty content": [say(USER, ""), say(ANSWER, ""), say(USER, "")],
    "two user turns": [say(USER, "a"), say(USER, "b")],
    "assistant first": [say(ANSWER, "a"), say(USER, "b")],
    "system in the middle": [say(USER, "a"), say(SYSTEM, "b"), say(USER, "c")],
    "only a system turn": [say(SYSTEM, "alone")],
    "unknown role": [say(USER, "a"), say("critic", "b")],
    "tool call": [say(USER, "Weather?"), calling(call("get_weather", {"city": "Paris", "days": 2})), result("12 °C")],
    "tool call and answer": [
        say(SYSTEM, "Use tools."),
        say(USER, "Weather?"),
        calling(call("get_weather", {"city": "Köln"}), content="Let me look."),
        result('{"temperature": 12}'),
        say(ANSWER, "12 degrees."),
        say(USER, "Thanks"),
    ],
    "two tool calls": [
        say(USER, "Both?"),
        calling(call("get_weather", {"city": "A"}, "aaaaaaaa1"), call("get_weather", {"city": "B"}, "aaaaaaaa2")),
        result("1", "aaaaaaaa1"),
        result("2", "aaaaaaaa2"),
    ],
    "arguments as text": [say(USER, "w"), calling(call("get_weather", '{"city": "Oslo"}')), result("3")],
    "tool call with a short id": [
        say(USER, "w"),
        calling(call("get_weather", {"city": "Oslo"}, "1")),
        result("3", "1"),
    ],
    "tool result as list": [say(USER, "w"), calling(call("get_weather", {})), result([{"t": 1}, None, True])],
    "reasoning in the text": [say(USER, "a"), say(ANSWER, "<think>\nhm\n</think>\n\nb"), say(USER, "c")],
    "reasoning as a field": [say(USER, "a"), say(ANSWER, "b", reasoning_content="hm"), say(USER, "c")],
    "reasoning last": [say(USER, "a"), say(ANSWER, "b", reasoning_content="hm")],
    "reasoning under its old name": [say(USER, "a"), say(ANSWER, "b", thinking="hm")],
    "content parts": [say(SYSTEM, [{"type": "text", "text": "S"}]), say(USER, [{"type": "text", "text": " hi "}])],
    "image part": [say(USER, [{"type": "image", "url": "x.png"}, {"type": "text", "text": "what?"}])],
    "content is none": [say(USER, "a"), say(ANSWER, None), say(USER, "b")],
    "content is a number": [say(USER, 5)],
    "tools in the system message": [say(SYSTEM, "S", tools='[{"name": "f"}]'), say(USER, "a")],
    "skipped and stopped": [say(USER, "a"), say("skip", "b"), say(ANSWER, "c"), say("stop", "d"), say(USER, "e")],
    "no messages": [],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prompted": {"add_generation_prompt": True},
    "tools": {"tools": [WEATHER, TIME], "add_generation_prompt": True},
    "no thinking": {"enable_thinking": False, "add_generation_prompt": True},
    "thinking": {"enable_thinking": True, "add_generation_prompt": True},
    "date": {"date_string": "01 Jan 2025", "tools": [WEATHER], "tools_in_user_message": False},
    "builtin": {"builtin_tools": ["code_interpreter", "get_weather"], "custom_tools": [TIME]},
    "documents": {"documents": [{"title": "t", "text": "x"}]},
}
