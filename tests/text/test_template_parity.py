from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from text_conversations import CONVERSATIONS, VARIANTS, call, calling, result, say

from macllm.errors import UsageError
from macllm.text.template import ChatTemplate

pytestmark = pytest.mark.parity
TEMPLATES = sorted(Path(__file__).parent.glob("templates/*.jinja"))
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


# Conversations that transformers renders only in another form: it writes lists and null in Python's
# notation, leaves out content that is null, and writes arguments given as text as a JSON string. A template
# that needs ids of nine characters refuses all others.
CALL = {"name": "get_weather", "arguments": {"city": "Oslo"}}
OTHER_FORMS: dict[str, list[dict[str, Any]]] = {
    "content parts": [say("system", "S"), say("user", " hi ")],
    "arguments as text": [say("user", "w"), calling(call(**CALL)), result("3")],
    "tool result as list": [say("user", "w"), calling(call("get_weather", {})), result('[{"t": 1}, null, true]')],
    "tool call with a short id": [say("user", "w"), calling(call(**CALL, id="0" * 9)), result("3", "0" * 9)],
}
REFUSED = {
    "image part",
    "content is none",
    "content is a number",
    "no messages",
}  # by a UsageError that names the place


def oracle(source: str):
    import transformers
    from tokenizers import Tokenizer, models

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), **TOKENS
    )
    tokenizer.chat_template = source
    return tokenizer


def outcome(render, *refusals: type[Exception]) -> tuple[str, str]:
    try:
        return "text", render()
    except refusals as error:
        return "refused", (error.cause or "") if isinstance(error, UsageError) else str(error)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_text_and_refusals_equal_those_of_transformers(path: Path, record_property) -> None:
    source = path.read_text("utf-8")
    theirs, ours = oracle(source), ChatTemplate(source, TOKENS)
    compared = refused = 0
    for conversation, messages in CONVERSATIONS.items():
        for variant, options in VARIANTS.items():
            case = (conversation, variant)
            settings: dict[str, Any] = {"add_generation_prompt": False, **options}
            found = outcome(lambda m=messages, s=settings: ours.render(m, **s), UsageError)
            forms = [messages, OTHER_FORMS.get(conversation, messages)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected, other = (
                    outcome(lambda m=form, s=settings: theirs.apply_chat_template(m, tokenize=False, **s), Exception)
                    for form in forms
                )
            if conversation in REFUSED:
                assert found[0] == "refused", case
            else:
                assert found in (expected, other), case
                assert conversation not in OTHER_FORMS or "'type'" not in found[1], case
            compared += 1
            refused += expected[0] == "refused"
    record_property("comparisons", compared)
    print(f"{path.stem}: {compared} renderings compared, {refused} of them refusals")
    assert compared - refused > 100


@pytest.mark.parametrize("name", ["phi-4", "features"])
def test_assistant_spans_equal_those_of_transformers(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (Path(__file__).parent / "templates" / f"{name}.jinja").read_text("utf-8")
    ours = ChatTemplate(source, TOKENS)
    assert ours.marks_generation()
    for conversation in ("multi-turn", "system and multi-turn", "ends with the assistant", "one user turn"):
        messages = CONVERSATIONS[conversation]
        texts, spans = render_jinja_template(
            [messages], chat_template=source, return_assistant_tokens_mask=True, **TOKENS
        )
        assert ours.render_with_spans(messages) == (texts[0], spans[0])
