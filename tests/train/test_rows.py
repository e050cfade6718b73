from __future__ import annotations

import json
from typing import Any

import pytest

from macllm.errors import DataError
from macllm.train.rows import (
    Chat,
    Columns,
    PlainText,
    Preference,
    PromptCompletion,
    PromptOnly,
    Row,
    TaggedWords,
    UnpairedPreference,
    content_key,
    parse,
)
from macllm.train.rows.conversation import without_nulls

ASKED = [{"role": "user", "content": "a"}]
ANSWERED = [{"role": "assistant", "content": "b"}]
WORSE = [{"role": "assistant", "content": "c"}]
SYSTEM = [{"role": "system", "content": "s"}]
OWN = [{"role": "system", "content": "of the conversation"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def call(arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ({"text": "t"}, PlainText("t", "f:1")),
        ({"text": "t", "label": "good"}, PlainText("t", "f:1", label="good")),
        ({"text": "t", "label": 0}, PlainText("t", "f:1", label=0)),
        ({"text": "t", "label": [1]}, PlainText("t", "f:1")),
        ({"tokens": ["a", "b"], "ner_tags": [0, 3]}, TaggedWords(("a", "b"), (0, 3), "f:1")),
        ({"words": ["a"], "labels": ["X"], "text": "a"}, TaggedWords(("a",), ("X",), "f:1")),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "margin": 2},
            Preference("p", "c", "r", "f:1", margin=2.0),
        ),
        ({"messages": [*ASKED, *ANSWERED]}, Chat([*ASKED, *ANSWERED], None, "f:1")),
        ({"prompt": "p"}, PromptOnly("p", "f:1")),
        ({"prompt": ASKED}, PromptOnly(ASKED, "f:1")),
        ({"prompt": "p", "completion": "c", "extra": 1}, PromptCompletion("p", "c", "f:1")),
        ({"prompt": ASKED, "completion": ANSWERED}, PromptCompletion(ASKED, ANSWERED, "f:1")),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, Preference("p", "c", "r", "f:1")),
        ({"prompt": ASKED, "chosen": ANSWERED, "rejected": WORSE}, Preference(ASKED, ANSWERED, WORSE, "f:1")),
        ({"chosen": "It is blue", "rejected": "It is green"}, Preference("It is", " blue", " green", "f:1")),
        ({"chosen": "yes", "rejected": "no"}, Preference("", "yes", "no", "f:1")),
        (
            {"chosen": [*ASKED, *ANSWERED], "rejected": [*ASKED, *WORSE]},
            Preference(ASKED, ANSWERED, WORSE, "f:1"),
        ),
        (  # the prompt is in words, and again among the messages
            {"prompt": "a", "chosen": [*ASKED, *ANSWERED], "rejected": [*ASKED, *WORSE]},
            Preference(ASKED, ANSWERED, WORSE, "f:1"),
        ),
        ({"prompt": "p", "completion": "c", "label": False}, UnpairedPreference("p", "c", False, "f:1")),
        (
            {"prompt": ASKED, "completion": ANSWERED, "label": True},
            UnpairedPreference(ASKED, ANSWERED, True, "f:1"),
        ),
        ({"prompt": "p", "completion": "c", "label": 0.0}, UnpairedPreference("p", "c", False, "f:1")),
        ({"prompt": "p", "completion": "c", "label": 1.0}, UnpairedPreference("p", "c", True, "f:1")),
        ({"prompt": "p", "completion": "c", "label": 0.5}, PromptCompletion("p", "c", "f:1")),
        ({"prompt": "p", "completion": "c", "label": "a topic"}, PromptCompletion("p", "c", "f:1")),
        (
            {"instruction": "a", "input": "", "output": "b"},
            PromptCompletion(ASKED, ANSWERED, "f:1"),
        ),
        (
            {"instruction": "Add", "input": "1 1", "output": "2", "system": "Be brief."},
            PromptCompletion(
                [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add\n\n1 1"}],
                [{"role": "assistant", "content": "2"}],
                "f:1",
            ),
        ),
        (
            {"instruction": "a", "input": "", "output": "c", "history": [["a", "b"]], "system": ""},
            Chat([*ASKED, *ANSWERED, *ASKED, *WORSE], None, "f:1"),
        ),
        (
            {"instruction": "a", "output": "b", "history": [], "tools": [TOOL]},
            PromptCompletion(ASKED, ANSWERED, "f:1", [TOOL]),
        ),
        ({"instruction": "a", "chosen": "b", "rejected": "c"}, Preference(ASKED, ANSWERED, WORSE, "f:1")),
        (
            {"instruction": "a", "input": "", "output": "b", "kto_tag": False},
            UnpairedPreference(ASKED, ANSWERED, False, "f:1"),
        ),
        ({"text": "t", "tools": "hammer, saw", "chat_template_kwargs": 1}, PlainText("t", "f:1")),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            Chat([*ASKED, *ANSWERED], None, "f:1"),
        ),
        ({"conversations": [*ASKED, *ANSWERED]}, Chat([*ASKED, *ANSWERED], None, "f:1")),
        ({"messages": [{"from": "user", "value": "a"}], "prompt": None}, Chat(ASKED, None, "f:1")),
        ({"messages": [*ASKED, *ANSWERED], "label": False}, UnpairedPreference(ASKED, ANSWERED, False, "f:1")),
        ({"conversations": [*ASKED, *ANSWERED], "kto_tag": True}, UnpairedPreference(ASKED, ANSWERED, True, "f:1")),
        ({"messages": [*ASKED, *ANSWERED], "label": "a topic"}, Chat([*ASKED, *ANSWERED], None, "f:1")),
        (
            {"conversations": ASKED, "chosen": {"from": "gpt", "value": "b"}, "rejected": WORSE[0]},
            Preference(ASKED, ANSWERED, WORSE, "f:1"),
        ),
    ],
    ids=lambda each: each.kind if not isinstance(each, dict) else ",".join(each),
)
def test_each_row_type_is_known_by_its_columns(values: dict[str, Any], row: Row) -> None:
    assert parse(values, "f:1") == row


def test_roles_of_sharegpt_become_roles_of_chat() -> None:
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "u"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "a"},
    ]
    row = parse({"conversations": turns}, "f:1")
    assert isinstance(row, Chat)
    assert [message["role"] for message in row.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert row.messages[2]["tool_calls"] == [call({"x": 1})]
    under_role = parse({"messages": [{"role": "human", "content": "u"}, {"role": "gpt", "content": "a"}]}, "f:1")
    assert isinstance(under_role, Chat)
    assert [message["role"] for message in under_role.messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ({"messages": [*ASKED, *ANSWERED]}, Chat([*SYSTEM, *ASKED, *ANSWERED], None, "f:1")),
        ({"conversations": [*OWN, *ASKED]}, Chat([*OWN, *ASKED], None, "f:1")),
        ({"prompt": "a", "completion": "b"}, PromptCompletion([*SYSTEM, *ASKED], ANSWERED, "f:1")),
        ({"prompt": [*OWN, *ASKED], "completion": ANSWERED}, PromptCompletion([*OWN, *ASKED], ANSWERED, "f:1")),
        ({"prompt": ASKED}, PromptOnly([*SYSTEM, *ASKED], "f:1")),
        ({"chosen": "b", "rejected": "c"}, Preference(SYSTEM, ANSWERED, WORSE, "f:1")),
        ({"text": "t"}, PlainText("t", "f:1")),
    ],
)
def test_a_column_of_its_own_is_the_system_message_of_a_row_without_one(values: dict[str, Any], row: Row) -> None:
    assert parse({**values, "system": "s"}, "f:1") == row
    assert parse({**values, "system": ""}, "f:1") == parse(values, "f:1")


def test_empty_columns_of_images_are_ignored_and_those_beside_a_text() -> None:
    row = {"messages": ASKED, "images": [], "image": {"path": None, "bytes": None}, "videos": None}
    assert parse(row, "f:1") == parse({"messages": ASKED}, "f:1")
    assert parse({"text": "t", "image": "a.png"}, "f:1") == PlainText("t", "f:1")


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_a_row_without_tools_has_none(tools: Any) -> None:
    assert parse({"messages": ASKED, "tools": tools}, "f:1") == Chat(ASKED, None, "f:1")


@pytest.mark.parametrize(
    "tools", [[TOOL], '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]']
)
def test_tools_are_a_list_or_its_json_text(tools: Any) -> None:
    for values in ({"messages": ASKED}, {"prompt": ASKED, "completion": ANSWERED}, {"prompt": ASKED}):
        row = parse({**values, "tools": tools}, "f:1")
        assert not isinstance(row, PlainText)
        assert row.tools == [TOOL]


def test_functions_are_tools_of_an_earlier_form() -> None:
    row = parse({"messages": ASKED, "functions": [TOOL["function"]], "tools": None}, "f:1")
    assert isinstance(row, Chat)
    assert row.tools == [TOOL]


def test_null_fields_are_left_out_on_all_levels() -> None:
    """Arrow gives every object the fields of all others, null."""
    answer = {
        "role": "assistant",
        "content": None,
        "name": None,
        "tool_calls": [{**call({"city": "Rome", "unit": None, "at": [{"hour": 1, "minute": None}]}), "index": None}],
    }
    tools = [{**TOOL, "strict": None, "function": {**TOOL["function"], "description": None}}]  # type: ignore[dict-item]
    row = parse({"messages": [{**ASKED[0], "tool_calls": None}, answer], "tools": tools, "text": None}, "f:1")
    assert isinstance(row, Chat)
    assert row.messages == [
        *ASKED,
        {
            "role": "assistant",
            "tool_calls": [call({"city": "Rome", "at": [{"hour": 1}]})],
            "content": None,
        },
    ]
    assert row.tools == [TOOL]


def test_nulls_that_a_row_was_written_with_are_values() -> None:
    """Arrow would have given all messages the same fields."""
    arguments = {"city": "Rome", "unit": None, "at": [{"minute": None}]}
    answer = {"role": "assistant", "content": None, "tool_calls": [{**call(arguments), "index": None}]}
    result = {"role": "tool", "content": {"found": None}}
    parts = {"role": "user", "content": [{"type": "text", "text": "a", "image_url": None}]}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"default": None}}}
    row = parse({"messages": [parts, answer, result], "tools": json.dumps([tool])}, "f:1")
    assert isinstance(row, Chat)
    assert row.messages == [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "tool_calls": [call(arguments)], "content": None},
        {"role": "tool", "content": {"found": None}},
    ]
    assert row.tools == [tool]


def test_messages_have_the_form_that_chat_gives_them() -> None:
    from macllm.text.messages import read_messages

    given = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, "b"]},
        {"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": {"sum": 2}},
    ]
    row = parse({"messages": given}, "f:1")
    assert isinstance(row, Chat)
    assert row.messages == read_messages(given)


def test_a_weight_stays_with_its_message() -> None:
    row = parse({"messages": [ASKED[0], {**ANSWERED[0], "weight": 0}, {**WORSE[0], "weight": 0.5}]}, "f:1")
    assert isinstance(row, Chat)
    assert [message.get("weight") for message in row.messages] == [None, 0, 0.5]


@pytest.mark.parametrize("flag", ["train", "training", "loss"])
def test_a_message_that_is_marked_as_not_learned_has_the_weight_0(flag: str) -> None:
    """axolotl's and ms-swift's flags; no template sees them."""
    messages = [
        {**ASKED[0], flag: False}, {**ANSWERED[0], flag: True}, {"from": "gpt", "value": "b", flag: False, "weight": 2},
    ]  # fmt: skip
    row = parse({"messages": messages}, "f:1")
    assert row == Chat([{**ASKED[0], "weight": 0}, *ANSWERED, {**ANSWERED[0], "weight": 0}], None, "f:1")
    with pytest.raises(DataError, match=r"messages\[0\] is marked as learned"):
        parse({"messages": [{**ASKED[0], flag: True}]}, "f:1")


def test_nested_values_within_a_limit_are_read_and_others_refused() -> None:
    """Each later step recurses; JSON in texts is nested too."""

    def nested(levels: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for _ in range(levels):
            value = {"a": value}
        return value

    def refused(row: dict[str, Any]) -> bool:
        try:
            parse(row, "f:1")
        except DataError as error:
            return "f:1" in error.message and "nested too deeply" in error.message
        return False

    for levels, is_refused in ((90, False), (600, True)):
        arguments = '{"a":' * levels + "1" + "}" * levels
        for row in (
            {"text": "t", "more": nested(levels)},
            {"messages": [{**ASKED[0], "more": nested(levels)}]},
            {"messages": [{**ANSWERED[0], "tool_calls": [call(arguments)]}]},
            {"conversations": [{"from": "function_call", "value": f'{{"name": "f", "arguments": {arguments}}}'}]},
            {"messages": ASKED, "tools": f'[{{"name": "f", "parameters": {arguments}}}]'},
        ):
            assert refused(row) == is_refused


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "not a JSON object"),
        ({}, "no known columns"),
        ({"prompt": "p", "completion": None}, "no known columns"),
        ({"prompt": "p", "completion": 1}, "two strings or two lists"),
        ({"prompt": "p", "completion": []}, "two strings or two lists"),
        ({"prompt": 1, "completion": 1}, "prompt must be a string"),
        ({"prompt": "p", "chosen": "c", "rejected": WORSE}, "two strings or two lists"),
        ({"prompt": "p", "completions": ["c"], "labels": [True]}, "stepwise"),
        ({"text": 1}, "text is not a string"),
        ({"messages": []}, "no messages"),
        ({"messages": "x"}, "list of messages"),
        ({"messages": ["x"]}, r"messages\[0\] is a string"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] has no role"),
        ({"messages": [*ASKED, {"role": "user"}]}, r"messages\[1\] has neither content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "neither content"),
        ({"messages": ASKED, "tools": {}}, "tools is one object"),
        ({"messages": ASKED, "tools": "{"}, "not JSON"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]}, "'image'"),
        ({"messages": [{**ANSWERED[0], "tool_calls": [call('{"a"')]}]}, "not a JSON object"),
        ({"messages": [{**ANSWERED[0], "tool_calls": [call("[1]")]}]}, "not a JSON object"),
        ({"messages": [{**ANSWERED[0], "tool_calls": [call('{"a": NaN}')]}]}, "JSON lacks"),
        ({"messages": [{**ANSWERED[0], "tool_calls": [call({"a": [float("inf")]})]}]}, "JSON lacks"),
        ({"messages": [{**ANSWERED[0], "weight": -1}]}, "weight -1"),
        ({"messages": [{**ANSWERED[0], "weight": True}]}, "weight True"),
        ({"messages": [{**ANSWERED[0], "weight": 1e39}]}, r"weight 1e\+39"),
        ({"messages": [{**ANSWERED[0], "weight": 10**400}]}, "weight 1000000"),
        ({"messages": [{**ANSWERED[0], "weight": 1e-50}]}, "weight 1e-50"),
        ({"messages": [{**ANSWERED[0], "train": "no"}]}, "train = 'no'"),
        ({"messages": [{**ANSWERED[0], "train_detail": []}]}, "train_detail"),
        ({"instruction": "a", "output": "b", "history": ["a"]}, "history"),
        ({"messages": [{**ANSWERED[0], "weight": float("nan")}]}, "weight nan"),
        ({"messages": ASKED, "images": ["a.png"]}, "column images"),
        ({"prompt": "p", "completion": "c", "audio": {"path": "a.wav", "bytes": None}}, "column audio"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "narrator"),
        ({"conversations": [{"from": "function_call", "value": "f()"}]}, "function_call"),
        ({"conversations": "x"}, "conversations"),
        ({"tokens": ["a", "b"], "tags": ["X"]}, "2 words and 1 labels"),
        ({"tokens": ["a", "b"], "tags": ["X", 0.5]}, "words must be strings"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "margin": "1"}, "margin is '1'"),
        ({"instruction": "a", "output": ["b"]}, "must be strings"),
        ({"instruction": "a", "input": 1, "output": "b"}, "must be strings"),
        ({"instruction": "a", "chosen": "b", "rejected": None, "output": 1}, "must be strings"),
    ],
)
def test_an_invalid_row_is_named_with_its_fault(values: Any, says: str) -> None:
    with pytest.raises(DataError, match=f"f:1.*{says}"):
        parse(values, "f:1")


def test_columns_of_other_names_are_read_in_place_of_the_standard_ones() -> None:
    columns = Columns(chat="dialogue", prompt="question", completion="answer", text="body")
    assert parse({"dialogue": ASKED, "messages": 1}, "f:1", columns) == Chat(ASKED, None, "f:1")
    named = {"question": "p", "answer": "c", "prompt": 0, "text": 0}
    assert parse(named, "f:1", columns) == PromptCompletion("p", "c", "f:1")
    assert parse({"body": "t"}, "f:1", columns) == PlainText("t", "f:1")
    with pytest.raises(DataError, match="no known columns"):
        parse({"text": "t"}, "f:1", columns)


@pytest.mark.parity
def test_implicit_prompts_and_nulls_are_read_as_in_trl() -> None:
    from trl import extract_prompt
    from trl.trainer.utils import remove_none_values

    pairs: list[tuple[Any, Any]] = [
        ("The sky is blue.", "The sky is green."),
        ("a b", "a bc"),
        ("same start one", "same start two"),
        ("ab", "ab"),
        ([*ASKED, *ANSWERED], [*ASKED, *WORSE]),
        ([*ASKED, *ANSWERED, *ASKED, *ANSWERED], [*ASKED, *ANSWERED, *ASKED, *WORSE]),
        ([*ASKED, *ANSWERED], [*ASKED, *WORSE, *ASKED, *WORSE]),
    ]
    for chosen, rejected in pairs:
        want = extract_prompt({"chosen": chosen, "rejected": rejected})
        if want["prompt"] == []:
            continue
        row = parse({"chosen": chosen, "rejected": rejected}, "f:1")
        assert isinstance(row, Preference)
        assert {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected} == want
    nested = {"a": None, "b": [{"c": None, "d": [None, 1]}], "e": {"f": {"g": None}}}
    assert without_nulls(nested) == remove_none_values(nested)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*ASKED, *ANSWERED]},
        {"prompt": ASKED, "completion": ANSWERED},
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        {"prompt": "p", "completion": "c", "label": True},
        {"prompt": "p"},
    ],
)
def test_a_row_gives_variables_to_its_template(row: dict[str, Any]) -> None:
    given = {"enable_thinking": False, "more": {"a": None, "b": 1}, "none": None}
    parsed = parse({**row, "chat_template_kwargs": given}, "f:1")
    assert getattr(parsed, "variables") == {"enable_thinking": False, "more": {"b": 1}}  # noqa: B009
    assert content_key(parsed) != content_key(parse(row, "f:1"))
    assert parse({**row, "chat_template_kwargs": {}}, "f:1") == parse(row, "f:1")
    for bad in ([1], "text", {"messages": []}, {"tools": []}, {"add_generation_prompt": True}):
        with pytest.raises(DataError, match="f:1: chat_template_kwargs"):
            parse({**row, "chat_template_kwargs": bad}, "f:1")
