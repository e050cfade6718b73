"""Turns as JSON, and exports of conversations."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from macllm.chat import archive, exports
from macllm.chat.conversation import Attachment, Conversation, Origin, Turn
from macllm.chat.turn_json import from_json, to_json
from macllm.errors import DataError, MacllmError, UsageError
from macllm.generation.request import SamplingParams
from tests.chat.test_conversation import answer, talk, user

TURNS = strategies.from_type(Turn)
VALUES = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(max_size=3),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(max_size=8), inner),
    max_leaves=5,
)


def has_nan(value: Any) -> bool:
    return value != value if not isinstance(value, tuple) else any(map(has_nan, value))


@given(TURNS)
@settings(max_examples=60, deadline=None)
def test_a_turn_is_the_same_after_json(turn: Turn) -> None:
    text = json.dumps(to_json(turn))
    if "NaN" not in text:
        assert from_json(Turn, json.loads(text)) == turn


def test_tuples_in_settings_return_as_tuples_and_defaults_are_left_out() -> None:
    sampling = SamplingParams(logit_bias=((1, 0.5),), sequence_bias=(((1, 2), -1.0),), bad_words_ids=((3,),), seed=4)
    turn = Turn(role="assistant", content="x", tokens=(1, 2), origin=Origin(model="m", sampling=sampling))
    value = json.loads(json.dumps(to_json(turn)))
    assert value["origin"]["sampling"] == {
        "logit_bias": [[1, 0.5]], "sequence_bias": [[[1, 2], -1.0]], "bad_words_ids": [[3]], "seed": 4,
    }  # fmt: skip
    assert sorted(value) == ["content", "origin", "role", "tokens"]
    assert from_json(Turn, value) == turn


def test_unknown_keys_of_a_newer_version_are_ignored() -> None:
    value = {"role": "user", "content": "a", "mood": {"x": 1}, "attachments": [{"name": "n", "text": "t", "kind": 3}]}
    assert from_json(Turn, value) == Turn(role="user", content="a", attachments=(Attachment("n", "t"),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content": 3}, "turn.content must be text"),
        ({"role": "robot"}, "turn.role must be one of user, assistant, cut"),
        ({"finish": "tired"}, "turn.finish must be one of"),
        ({"seed": True}, "turn.seed must be a whole number"),
        ({"tokens": 3}, "turn.tokens must be a list"),
        ({"tokens": ["a"]}, "turn.tokens must be a whole number"),
        ({"usage": {"prompt_tokens": 1}}, "turn.usage has no completion_tokens"),
        ({"origin": {"model": "m", "sampling": {"logit_bias": [[1]]}}}, "logit_bias must be a list of 2"),
        ({"origin": []}, "turn.origin must be an object"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        from_json(Turn, {"role": "user", "content": "a"} | change)
    assert message in caught.value.message


@given(VALUES)
@settings(max_examples=60, deadline=None)
def test_other_json_is_never_more_than_one_error(value: Any) -> None:
    for kind in (Turn, Origin):
        with pytest.raises(DataError):
            from_json(kind, value)


def tree() -> Conversation:
    conversation = replace(talk("a", "b", "c"), title="T", system="S")
    conversation = conversation.at(conversation.path[1].id).added(user("d \ud800 ä"))
    return conversation.added(Turn(role="cut", content="", kept=conversation.path[0].id)).at(conversation.path[1].id)


def test_an_export_is_read_back_whole(tmp_path: Path) -> None:
    archive.write_export(tmp_path / "chat.json", tree())
    again = archive.read_export(tmp_path / "chat.json")
    assert (list(again.nodes), again.head, again.title) == (list(again.nodes), again.path[1].id, "T")
    archive.write_export(tmp_path / "again.json", again)
    assert archive.read_export(tmp_path / "again.json") == again


BROKEN = {
    "not JSON": "{",
    "a list": "[]",
    "other": '{"messages": []}',
    "newer": '{"format": "macllm conversation", "version": 2}',
    "without version": '{"format": "macllm conversation"}',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_another_file_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(BROKEN[kind])
    with pytest.raises(DataError) as caught:
        archive.read_export(tmp_path / "x.json")
    assert caught.value.cause
    assert caught.value.remedy


@pytest.mark.parametrize(
    "change",
    [
        {"messages": 3},
        {"messages": [3]},
        {"head": "nowhere"},
        {"id": "../../x"},
        {"id": 3},
        {"created": "now"},
        {"title": 3},
        {"messages": [{"id": "a", "parent": "b", "created": 1, "turn": {"role": "user", "content": ""}}]},
        {"messages": [{"id": "a", "parent": "a", "created": 1, "turn": {"role": "user", "content": ""}}]},
        {"messages": [{"id": "a", "parent": None, "created": 1, "turn": {"role": "user", "content": ""}}] * 2},
    ],
)
def test_an_inconsistent_export_is_refused_with_the_place(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(archive.as_object(talk("a", "b")) | change))
    with pytest.raises(DataError, match="not consistent") as caught:
        archive.read_export(tmp_path / "x.json")
    assert caught.value.cause


class Page(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_web_page_has_all_text_escaped_and_no_scripts_or_links_outside() -> None:
    evil = '<script>alert(1)</script> <img src=x onerror=y> & "</div>'
    turns = (
        Turn(role="user", content=evil, attachments=(Attachment(evil, evil),)),
        Turn(role="assistant", content=f"See\n```{evil}\n{evil}\n```\nend {evil}", reasoning=evil, finish="cancelled"),
        Turn(role="cut", content=evil, kept=None),
    )
    conversation = Conversation.begin(evil)
    for turn in turns:
        conversation = conversation.added(turn)
    text = exports.export(replace(conversation, title=evil), "html")
    page = Page(text)
    assert set(page.tags) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "section", "div", "pre", "code", "details",
        "summary",
    }  # fmt: skip
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert "".join(page.texts).count("<script>alert(1)</script>") == 10
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text


def test_fenced_code_of_a_web_page_is_a_block_and_other_text_keeps_its_lines() -> None:
    conversation = talk("q", "One\n\ntwo\n```py\nx = 1\n```\nthree\n~~~\nopen")
    text = exports.export(conversation, "html")
    assert '<div class="text">One\n\ntwo</div><pre><code>x = 1\n</code></pre><div class="text">three</div>' in text
    assert "<pre><code>open\n</code></pre>" in text


def test_markdown_has_attachments_and_cuts() -> None:
    attached = (Attachment("a.md", "````\nx"), Attachment("b.txt", "plain\n"))
    conversation = Conversation.begin().added(Turn(role="user", content="Look", attachments=attached))
    conversation = conversation.added(Turn(role="cut", content="They\nlooked.", kept=conversation.head))
    assert exports.export(conversation, "md").splitlines()[2:] == [
        "## You", "", "Look", "", "**a.md**", "", "`````", "````", "x", "`````", "",
        "**b.txt**", "", "```", "plain", "```", "",
        "> The model no longer reads the messages above. Summary:", "> They", "> looked.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "form"), [("a.json", "json"), ("a.HTML", "html"), ("a.htm", "html"), ("a.md", "md"), ("a", "md")]
)
def test_the_format_follows_the_name_of_the_file(name: str, form: str) -> None:
    assert exports.format_of(Path(name)) == form


def test_an_unknown_format_is_an_error() -> None:
    with pytest.raises(UsageError, match="no export as pdf"):
        exports.format_of(Path("chat.PDF"))
    with pytest.raises(UsageError, match="pdf"):
        exports.export(talk("a"), "pdf")


def test_a_message_is_found_by_its_number_in_the_path_or_its_id() -> None:
    conversation = talk("a", "b", "c").at(None).added(user("d")).added(answer("e"))
    assert archive.find_message(conversation, "2") == conversation.head
    other = next(iter(conversation.nodes))
    assert archive.find_message(conversation, other[:8] if not other[:8].isdecimal() else other) == other
    for name in ("3", "0", "", "zz"):
        with pytest.raises(MacllmError, match="no message"):
            archive.find_message(conversation, name)
