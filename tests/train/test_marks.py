"""Loss weights of messages in marked templates, first answers, and the choice among named templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from macllm.errors import DataError
from macllm.text.template import ChatTemplate
from macllm.text.tokenizer import Tokenizer
from macllm.train.render import Example, to_examples
from macllm.train.rows import Chat, Messages, parse
from tests.train.test_render_parity import SAME, checkpoint, trl_template
from tests.train.test_render_templates import TOKENS, Templated

# An answer has two blocks with its thought, which only the last answer shows, one without, and none for a call alone.
BLOCKS = (
    "{% if m.role == 'assistant' %}{% if m.thinking and at == messages|length - 1 %}"
    "{% generation %}({{ m.thinking }}){% endgeneration %} {% endif %}"
    "{% if m.content %}{% generation %}{{ m.content }}${% endgeneration %}{% endif %}"
    "{% else %}{{ m.role[0] }}:{{ m.content }}|{% endif %}"
)
BY_MESSAGE = "{% for m in messages %}{% set at = loop.index0 %}" + BLOCKS + "{% endfor %}"
CALL = {"function": {"name": "f", "arguments": {}}}
MESSAGES = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "one", "thinking": "a", "weight": 0.5},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0.25},
    {"role": "tool", "content": "r"},
    {"role": "assistant", "content": "three", "thinking": "c", "weight": 0.75},
]


def learned(example: Example) -> list[tuple[str, float]]:
    """The runs of characters with one loss weight."""
    made: list[tuple[str, float]] = []
    for token, weight in zip(example.tokens.tolist(), example.loss_weights.tolist(), strict=True):
        if made and made[-1][1] == weight:
            made[-1] = (made[-1][0] + chr(token), weight)
        else:
            made.append((chr(token), weight))
    return [each for each in made if each[1]]


def parsed(row: Any) -> Any:
    return parse(row, "f:1")


def test_each_block_has_the_weight_of_its_message() -> None:
    tokenizer = Templated(ChatTemplate(BY_MESSAGE, TOKENS))
    (example,) = to_examples(parsed({"messages": MESSAGES}), tokenizer, mask_prompt=True)
    assert learned(example) == [("one$", 0.5), ("(c)", 0.75), ("three$", 0.75)]
    (example,) = to_examples(
        parsed({"prompt": MESSAGES[:4], "completion": [MESSAGES[6] | {"weight": 1}]}), tokenizer, mask_prompt=True
    )
    assert learned(example) == [("(c)", 1.0), ("three$", 1.0)]


BY_INDEX = "{% for at in range(messages|length) %}" + BLOCKS.replace("m.", "messages[at].") + "{% endfor %}"


def test_blocks_without_a_message_in_sight_are_told_apart_by_the_blocks_before_each_answer() -> None:
    tokenizer = Templated(ChatTemplate(BY_INDEX, TOKENS))
    (example,) = to_examples(parsed({"messages": MESSAGES}), tokenizer, mask_prompt=True)
    assert learned(example) == [("one$", 0.5), ("(c)", 0.75), ("three$", 0.75)]
    with pytest.raises(DataError, match="f:1 has weights"):  # the thought of `one` is lost when `three` follows
        to_examples(parsed({"messages": [*MESSAGES[:3], MESSAGES[6]]}), tokenizer, mask_prompt=True)


ROWS: list[Messages] = [
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}],
    [
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "no"},
    ],
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}$\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKS = "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}${% endgeneration %}{% else %}.{% endif %}"
MARKED = PLAIN.replace("{{ m.content }}$", MARKS)


@pytest.mark.parametrize("messages", ROWS)
@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("named", [("default", "tool_use"), ("tool_use", "default")])
def test_the_template_that_is_used_is_the_one_whose_marks_count(messages: Messages, tools: Any, named: Any) -> None:
    template = ChatTemplate(dict(zip(named, (PLAIN, MARKED), strict=True)), TOKENS)
    (example,) = to_examples(Chat(messages, tools, "f:1"), Templated(template), mask_prompt=True)
    answers = [each["content"] + "$" for each in messages if each["role"] == "assistant"]
    assert learned(example) == [(answer, 1.0) for answer in answers]


def test_a_first_answer_is_learned_without_its_heading_whatever_the_template_writes_before_it() -> None:
    turns = "{% for m in messages %}[{{ m.role }}] {{ m.content }}${% endfor %}"
    for source in (
        "<s>default system|" + turns + "{% if add_generation_prompt %}[assistant] {% else %}|{% endif %}",
        "<s>" + turns,  # no generation prompt: answers are told by their content
    ):
        tokenizer = Templated(ChatTemplate(source, TOKENS))
        (example,) = to_examples(Chat(ROWS[1][:1], None, "f:1"), tokenizer, mask_prompt=True)
        assert learned(example)[0][0].rstrip("|") == "hello$"
    thinking = PLAIN.replace("<assistant>{% endif", "<assistant><think>{% endif")
    with pytest.raises(DataError, match="cannot find"):
        to_examples(Chat(ROWS[1], None, "f:1"), Templated(ChatTemplate(thinking, TOKENS)), mask_prompt=True)


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted({*SAME} - {"cohere"}))  # cohere's refuses such a conversation
def test_a_first_answer_is_learned_as_trl_marks_it(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(checkpoint(tmp_path, trl_template(f"{name}_training")))
    made = theirs.apply_chat_template(ROWS[1], return_dict=True, return_assistant_tokens_mask=True)
    marked = theirs.decode([i for i, on in zip(made["input_ids"], made["assistant_masks"], strict=True) if on])
    tokenizer = Tokenizer.from_folder(checkpoint(tmp_path, trl_template(name)))
    (ours,) = to_examples(Chat(ROWS[1], None, "f:1"), tokenizer, mask_prompt=True)
    # TRL also marks line breaks around an answer.
    assert theirs.decode(ours.tokens[ours.loss_mask]).replace("\n", "") == marked.replace("\n", "")
