"""Agreement of maclet's tokenizer, chat template, configs and recipe."""

from __future__ import annotations

import functools
import json
import random
import tomllib
from pathlib import Path
from typing import ClassVar

import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import pytest
import sentencepiece

from macllm.generation.request import SamplingParams
from macllm.generation.sampling import config_file
from macllm.generation.sampling.defaults import defaults
from macllm_models.maclet import make_data, make_tokenizer
from macllm_models.maclet.knowledge import Guide

HOME = Path(make_tokenizer.__file__).parent
CONVERSATION = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "what is BPE?\n"},
    {"role": "assistant", "content": "BPE merges pairs."},
    {"role": "user", "content": "why?"},
]


class Generation(jinja2.ext.Extension):
    """The block that marks what is learned, as transformers has it; its content is rendered."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The nodes of the block's content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@pytest.fixture(scope="module")
def pieces() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(HOME / "tokenizer.model"))


@functools.cache
def template() -> jinja2.Template:
    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    settings = json.loads((HOME / "tokenizer_config.json").read_text(encoding="utf-8"))
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation]
    )
    environment.globals["raise_exception"] = refuse
    return environment.from_string(settings["chat_template"])


def render(messages: list[dict[str, str]], **variables: bool) -> str:
    return template().render(messages=messages, **variables)


def test_the_template_marks_roles_and_ends_every_turn() -> None:
    assert render(CONVERSATION, add_generation_prompt=True) == (
        "<|system|> Be brief.<|end|><|user|> what is BPE?<|end|>"
        "<|assistant|>BPE merges pairs.<|end|><|user|> why?<|end|><|assistant|>"
    )
    assert render(CONVERSATION[:3]).endswith("<|assistant|>BPE merges pairs.<|end|>")


def test_the_template_refuses_other_roles() -> None:
    with pytest.raises(jinja2.TemplateError, match="not tool"):
        render([{"role": "tool", "content": "x"}])


def test_an_answer_continues_the_generation_prompt_token_by_token(
    pieces: sentencepiece.SentencePieceProcessor,
) -> None:
    prompt = pieces.encode(render(CONVERSATION[:2], add_generation_prompt=True))
    assert pieces.encode(render(CONVERSATION[:3]))[: len(prompt)] == prompt


def test_special_tokens_are_single_pieces_with_the_ids_of_the_configs(
    pieces: sentencepiece.SentencePieceProcessor,
) -> None:
    assert [pieces.id_to_piece(i) for i in range(len(make_tokenizer.SPECIAL))] == list(make_tokenizer.SPECIAL)
    assert pieces.encode("<|end|>") == [2]
    model = json.loads((HOME / "config.json").read_text(encoding="utf-8"))
    generation = json.loads((HOME / "generation_config.json").read_text(encoding="utf-8"))
    assert (model["eos_token_id"], model["pad_token_id"]) == (2, 1)
    assert generation["eos_token_id"] == [2]
    assert model["vocab_size"] == pieces.vocab_size() == make_tokenizer.VOCABULARY


def test_maclet_samples_greedily_by_default() -> None:
    generation = json.loads((HOME / "generation_config.json").read_text(encoding="utf-8"))
    params = defaults(generation)
    assert params == SamplingParams(temperature=0.0)
    assert config_file.read(generation).notes == []


@pytest.mark.parametrize(
    "text", ["Hello  world\n\ttab", "naïve café", "東京 🚀", "a<|b|>c", "x = {1: 'y'}", " ", "12345"]
)
def test_texts_round_trip_through_the_tokenizer(pieces: sentencepiece.SentencePieceProcessor, text: str) -> None:
    assert pieces.decode(pieces.encode(text)) == text


def test_tokenizer_config_equals_the_output_of_its_script() -> None:
    written = json.loads((HOME / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert written == make_tokenizer.config()


def test_training_the_tokenizer_twice_gives_the_same_bytes() -> None:
    guide = Guide(random.Random(0))
    texts = [turn.answer for turn in (guide.known() for _ in range(400))]
    assert make_tokenizer.train(texts, vocabulary=600) == make_tokenizer.train(texts, vocabulary=600)


def test_every_row_fits_the_context(pieces: sentencepiece.SentencePieceProcessor, tmp_path: Path) -> None:
    make_data.make(tmp_path, conversations=1_500)
    context = json.loads((HOME / "shape.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    longest = total = 0
    for line in (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        tokens = pieces.encode(render(row["messages"]) if "messages" in row else row["text"])
        assert 0 not in tokens
        longest, total = max(longest, len(tokens)), total + 1
    assert total > 1_500
    assert 0.6 * context < longest <= 0.95 * context


def test_the_recipe_trains_the_shape_with_a_context_of_1024() -> None:
    recipe = tomllib.loads((HOME / "recipe.toml").read_text(encoding="utf-8"))
    shape = json.loads((HOME / recipe["config"]).read_text(encoding="utf-8"))
    assert recipe["max_seq_length"] == shape["max_position_embeddings"] == make_tokenizer.CONTEXT == 1024
    assert shape["vocab_size"] == make_tokenizer.VOCABULARY


def test_the_folder_of_maclet_is_at_most_16_mib() -> None:
    assert sum(path.stat().st_size for path in HOME.rglob("*") if path.is_file()) <= 16 * 2**20
    assert sum(path.stat().st_size for path in (HOME / "data").iterdir()) < 2 * 2**20
