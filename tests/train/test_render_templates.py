"""Loss masks of conversations rendered by the templates of real models."""

from __future__ import annotations

from pathlib import Path

import pytest

from macllm.text.template import ChatTemplate
from macllm.train.render import to_examples
from macllm.train.rows import Chat
from tests.train.toy import CharTokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
]


class Templated(CharTokenizer):
    def __init__(self, template: ChatTemplate) -> None:
        self.chat_template = template  # type: ignore[assignment]

    def id_to_token(self, index: int) -> str | None:
        return TOKENS["eos_token"]

    def render(self, messages, *, tools=None, add_generation_prompt=True, **variables) -> str:
        return self.chat_template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)  # type: ignore[union-attr]


# Supervised texts of each example of the conversation.
SUPERVISED = {
    "llama-3": [["First.<|eot_id|>", "Second.<|eot_id|>"]],
    "gemma-3": [["First.<end_of_turn>", "Second.<end_of_turn>"]],
    "mistral": [["First.</s>", "Second.</s>"]],
    # Its generation marks include the headers of the answers.
    "phi-4": [[f"<|im_start|>assistant<|im_sep|>{text}.<|im_end|>" for text in ("First", "Second")]],
    "phi-4-mini": [["First.<|end|>", "Second.<|end|>"]],
    # It begins the last answer with an empty thought, but not the earlier ones.
    "qwen-3": [["<think>\n\n</think>\n\nFirst.<|im_end|>"], ["<think>\n\n</think>\n\nSecond.<|im_end|>"]],
}


@pytest.mark.parametrize("name", SUPERVISED)
def test_only_answers_and_their_end_markers_are_supervised(name: str, repository: Path) -> None:
    source = (repository / "tests/text/templates" / f"{name}.jinja").read_text()
    tokenizer = Templated(ChatTemplate(source, TOKENS))
    made = to_examples(Chat(MESSAGES, None, "f:1"), tokenizer, mask_prompt=True)
    got = []
    for example in made:
        text = "".join(chr(t) if on else "\0" for t, on in zip(example.tokens, example.loss_mask, strict=True))
        got.append([part for part in text.split("\0") if part])
    assert [[part.strip() for part in parts] for parts in got] == SUPERVISED[name]


@pytest.mark.parametrize("name", sorted(SUPERVISED.keys() - {"phi-4"}))
def test_an_example_begins_with_the_prompt_of_the_chat(name: str, repository: Path) -> None:
    source = (repository / "tests/text/templates" / f"{name}.jinja").read_text()
    tokenizer = Templated(ChatTemplate(source, TOKENS))
    last = to_examples(Chat(MESSAGES, None, "f:1"), tokenizer, mask_prompt=True)[-1]
    prompt = tokenizer.render(MESSAGES[:-1])
    assert tokenizer.decode(list(last.tokens)).startswith(prompt)
    assert not last.loss_mask[len(prompt) - 1]
    assert last.loss_mask[len(prompt)]
