"""Bounds of answers: those of rendering every prefix, at a cost that is linear in the conversation."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from macllm.errors import MacllmError, UsageError
from macllm.text.template import ChatTemplate
from macllm.train import turns
from macllm.train.render import to_examples
from macllm.train.rows import Chat, Messages
from macllm.train.turns import ChatTurns, locate
from tests.train.test_render import forgetful, plain
from tests.train.test_render_templates import Templated
from tests.train.toy import CharTokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def talk(count: int) -> Messages:
    return [
        {"role": ("user", "assistant")[at % 2], "content": f"text {at} " + "word " * (at % 5)} for at in range(count)
    ]


def errand(count: int) -> Messages:
    """One question, and calls of a tool until the answer."""
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": 1}}}
    steps = cycle([{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "seen"}])
    middle = [{**next(steps), "content": f"step {at}"} for at in range(2 * (count // 2) - 2)]
    return [{"role": "user", "content": "go"}, *middle, {"role": "assistant", "content": "done"}]


class Counting(CharTokenizer):
    """A tokenizer with offsets, which counts the characters that it renders and tokenizes."""

    def __init__(self, write: Any) -> None:
        super().__init__(write)
        self.rendered = self.tokenized = 0

    def render(self, messages: Any, *, tools: Any = None, add_generation_prompt: bool = True, **variables: Any) -> str:
        text = super().render(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        self.rendered += len(text)
        return text

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.tokenized += len(text)
        return super().encode(text, add_special_tokens)

    def offsets(self, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        self.tokenized += len(text)
        return super().encode(text, False), [(at, at + 1) for at in range(len(text))]


def test_rendering_is_linear_for_a_template_that_rewrites_old_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = []
    for count in (50, 200):
        tokenizer = Counting(forgetful)
        conversation = ChatTurns(talk(count), None, "f:1", tokenizer)
        made = locate(conversation, "")
        assert len(made) == count // 2
        costs.append(tokenizer.rendered / len(made[-1].text))
        assert made == by_prefixes(conversation, "", monkeypatch)
    assert costs[1] < 1.2 * costs[0] < 20


def test_old_answers_that_depend_on_more_than_their_neighbours_are_rendered_by_prefixes() -> None:
    def late(messages: Messages, answer_next: bool) -> str:
        """Reasoning for the last answer of up to four messages."""
        return (forgetful if len(messages) <= 4 else plain)(messages, answer_next)

    texts = [made.text for made in locate(ChatTurns(talk(8), None, "f:1", CharTokenizer(late)), "")]
    assert ["(hm)" in text for text in texts] == [True, True, False, False]


@pytest.mark.parametrize("conversation", [talk, errand])
def test_the_cost_of_a_long_conversation_is_linear(conversation: Any) -> None:
    costs = []
    for count in (50, 200):
        tokenizer = Counting(plain)
        (example,) = to_examples(Chat(conversation(count), None, "f:1"), tokenizer, mask_prompt=True)
        assert tokenizer.tokenized < 1.1 * len(example)
        assert tokenizer.rendered < 10 * len(example)
        costs.append(tokenizer.rendered / len(example))
    assert costs[1] < 1.2 * costs[0]


def by_prefixes(conversation: ChatTurns, closing: str, monkeypatch: pytest.MonkeyPatch) -> list[turns.Rendered]:
    with monkeypatch.context() as patch:
        for linear in ("_by_neighbours", "_by_old_forms"):
            patch.setattr(turns, linear, lambda *_: None)
        return locate(conversation, closing)


@pytest.mark.parametrize("messages", [talk(7), talk(8), [{"role": "system", "content": "s"}, *talk(8)], errand(8)])
@pytest.mark.parametrize(
    "name",
    ["gemma-3", "llama-3", "mistral", "phi-4-mini", "qwen-3"]
    + [
        f"formats/{name}"
        for name in ("hermes", "glm", "harmony", "qwen3-coder", "granite-3", "cohere", "deepseek-v3.1")
    ],
)
def test_turns_are_those_of_rendering_every_prefix(
    name: str, messages: Messages, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (repository / "tests/text/templates" / f"{name}.jinja").read_text()
    tokenizer = Templated(ChatTemplate(source, TOKENS))
    conversation = ChatTurns(messages, None, "f:1", tokenizer)
    try:
        want = by_prefixes(conversation, "</s>", monkeypatch)
    except MacllmError as error:
        with pytest.raises(type(error)):
            locate(conversation, "</s>")
        return
    assert locate(conversation, "</s>") == want


def test_a_template_that_numbers_its_turns_is_rendered_by_prefixes() -> None:
    def numbered(messages: Messages, answer_next: bool) -> str:
        written = "".join(f"<{'#' * at}{m['role'][0]}>{m['content']}$" for at, m in enumerate(messages))
        return written + f"<{'#' * len(messages)}a>" * answer_next

    (made,) = locate(ChatTurns(talk(6), None, "f:1", CharTokenizer(numbered)), "")
    assert [made.text[start:stop].strip("word $") for start, stop in made.spans] == ["text 1", "text 3", "text 5"]


def test_a_template_that_refuses_a_part_of_a_conversation_is_rendered_by_prefixes() -> None:
    def strict(messages: Messages, answer_next: bool) -> str:
        if any(message["content"].startswith("text 3") for message in messages) and len(messages) < 4:
            raise UsageError("the conversation has a gap")
        return plain(messages, answer_next)

    assert locate(ChatTurns(talk(6), None, "f:1", CharTokenizer(strict)), "") == locate(
        ChatTurns(talk(6), None, "f:1", CharTokenizer(plain)), ""
    )
