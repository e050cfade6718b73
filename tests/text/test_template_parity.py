from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from text_conversations import CONVERSATIONS, VARIANTS

from macllm.text.template import ChatTemplate, TemplateError

pytestmark = pytest.mark.parity
TEMPLATES = sorted(Path(__file__).parent.glob("templates/*.jinja"))
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


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
        return "refused", (error.cause or "") if isinstance(error, TemplateError) else str(error)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_text_and_refusals_equal_those_of_transformers(path: Path, record_property) -> None:
    source = path.read_text("utf-8")
    theirs, ours = oracle(source), ChatTemplate(source, TOKENS)
    compared = refused = 0
    for conversation, messages in CONVERSATIONS.items():
        for variant, options in VARIANTS.items():
            case = (conversation, variant)
            settings: dict[str, Any] = {"add_generation_prompt": False, **options}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = outcome(
                    lambda m=messages, s=settings: theirs.apply_chat_template(m, tokenize=False, **s), Exception
                )
            found = outcome(lambda m=messages, s=settings: ours.render(m, **s), TemplateError)
            assert found == expected or (not messages and found[0] == expected[0]), case
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
    assert ours.marks_generation
    for conversation in ("multi-turn", "system and multi-turn", "ends with the assistant", "one user turn"):
        messages = CONVERSATIONS[conversation]
        texts, spans = render_jinja_template(
            [messages], chat_template=source, return_assistant_tokens_mask=True, **TOKENS
        )
        assert ours.render_with_spans(messages) == (texts[0], spans[0])
