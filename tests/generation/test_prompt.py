from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import macllm
from macllm.errors import UsageError
from macllm.generation.prompt import encode_prompt, read_prompt
from macllm.generation.request import Request
from macllm.hub.names import bundled_folder
from macllm.text.tokenizer import Tokenizer
from tests.generation.generate_fakes import FakeModel, FakeTokenizer

MODEL, TOKENIZER = FakeModel(), FakeTokenizer()
HI = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((TOKENIZER, MODEL, "hi"), "The model and the tokenizer are swapped"),
        ((TOKENIZER, MODEL, [HI]), "The model and the tokenizer are swapped"),
        (("name", TOKENIZER, "hi"), "The model is a string"),
        ((None, TOKENIZER, "hi"), "The model is null"),
        ((TOKENIZER, TOKENIZER, "hi"), "The model is of type FakeTokenizer"),
        ((MODEL, "hi", TOKENIZER), "The tokenizer is a string"),
        ((MODEL, MODEL, "hi"), "The tokenizer is of type FakeModel"),
        ((MODEL, [HI], TOKENIZER), "The tokenizer is a list"),
        ((MODEL, TOKENIZER, TOKENIZER), "The prompt is of type FakeTokenizer"),
        ((MODEL, TOKENIZER, MODEL), "The prompt is of type FakeModel"),
        ((MODEL, TOKENIZER, None), "The prompt is null"),
        ((MODEL, TOKENIZER, 5), "The prompt is a number"),
        ((MODEL, TOKENIZER, [1, 2]), "The prompt is a list of tokens"),
        ((MODEL, TOKENIZER, b"hi"), "The conversation is a string"),
        ((MODEL, TOKENIZER, HI), "The conversation is one object"),
        ((MODEL, TOKENIZER, ["hi"]), r"messages\[0\] is a string"),
        ((MODEL, TOKENIZER, []), "has no messages"),
        ((MODEL, TOKENIZER, [HI, {"role": "assistant"}]), r"messages\[1\] has neither content nor tool calls"),
    ],
)
def test_swapped_and_wrong_arguments_are_named(arguments: tuple[Any, ...], match: str) -> None:
    for call in (macllm.generate, macllm.stream):
        with pytest.raises(UsageError, match=match) as caught:
            call(*arguments)
        assert caught.value.remedy


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (Request(prompt=5), "The prompt is a number"),  # type: ignore[arg-type]
        (Request(messages=HI), "The conversation is one object"),  # type: ignore[arg-type]
        (Request(messages=(HI,), tools=({"type": "x"},)), r"tools\[0\] has the type 'x'"),
        (Request(messages=(HI,), variables=[1]), "variables is a list"),  # type: ignore[arg-type]
        (Request(messages=(HI,), variables={"messages": []}), "variables has 'messages'"),
        (Request(messages=(HI,), variables={5: 1}), "variables has 5"),  # type: ignore[dict-item]
        (Request(prompt="x", messages=(HI,)), "has a prompt and messages"),
        (Request(messages=(HI,), raw=True), "raw=True needs a text"),
    ],
)
def test_an_invalid_request_is_a_usage_error_that_names_the_fault(request_: Request, match: str) -> None:
    from macllm.text.template import ChatTemplate

    class Chatting(FakeTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.chat_template = ChatTemplate("{{ messages[0].content }}")

        def encode_chat(self, messages: Any, **variables: Any) -> list[int]:
            return self.encode(self.chat_template.render(messages, **variables))

    with pytest.raises(UsageError, match=match):
        encode_prompt(Chatting(), request_)


def test_a_decoder_continues_a_text_without_the_end_token_that_the_tokenizer_adds() -> None:
    tokenizer = Tokenizer.from_folder(bundled_folder("maclet-text2text"))
    end = tokenizer.eos_token_id
    read = tokenizer.encode("what is it")
    assert read[-1] == end
    assert encode_prompt(tokenizer, Request(prompt="what is it", raw=True), "encoder-decoder") == tuple(read)
    assert encode_prompt(tokenizer, Request(prompt="what is it", raw=True)) == tuple(read[:-1])
    typed = encode_prompt(tokenizer, Request(prompt="what is it</s>", raw=True))
    assert typed == tuple(read)  # the text's own stays
    maclet = Tokenizer.from_folder(bundled_folder("maclet"))
    for text in ("Hi", "Hi<|im_end|>"):
        assert encode_prompt(maclet, Request(prompt=text, raw=True)) == tuple(maclet.encode(text))


def test_prompts_are_normalized_to_a_text_or_messages() -> None:
    assert read_prompt("hi") == "hi"
    assert read_prompt(iter([{**HI, "name": None}])) == (HI,)
    assert read_prompt([{"role": "user", "content": ["a", "b"]}])[0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]


def test_embed_names_arguments_of_wrong_types() -> None:
    model = FakeModel()
    model.info = replace(model.info, hidden_size=4)
    for arguments, match in (
        ((TOKENIZER, model, ["a"]), "swapped"),
        ((model, TOKENIZER, 5), "texts is a number"),
        ((model, TOKENIZER, ["a", None]), "text 1 is null"),
    ):
        with pytest.raises(UsageError, match=match):
            macllm.embed(*arguments)
