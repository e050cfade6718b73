"""Checkpoints of random weights for runs that train heads: an encoder with WordPiece, and a decoder."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers, processors

from macllm import checkpoint, families
from macllm.families.config import Config
from macllm.nn.models import build
from macllm.text.tokenizer import Tokenizer
from macllm.train.initial import initialize
from tests.train.recipes import CONFIG, write_recipe

ENCODER = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 40,
    "type_vocab_size": 2, "pad_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip
LETTERS = "abcdefgh"


def _write(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> Path:
    model = build(families.spec(Config(config)))
    initialize(model, 0.2, 0)
    model.info = checkpoint._described(model.info, config, {})
    model.info = checkpoint.replace(model.info, config=MappingProxyType(config))
    return checkpoint.save(model, tokenizer, folder)


def write_encoder(folder: Path, **changes: Any) -> Path:
    """A BERT of words with up to two pieces, in `folder`/model."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    fast = FastTokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    fast.add_special_tokens(words[:4])
    fast.save(str(folder / "tokenizer.json"))
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named}))
    return _write(folder / "model", {**ENCODER, **changes}, Tokenizer.from_folder(folder))


def write_decoder(folder: Path, **changes: Any) -> Path:
    """A Llama of bytes with a chat template, in `folder`/model."""
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(folder)
    return _write(folder / "model", {**CONFIG, **changes}, Tokenizer.from_folder(folder))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The rows as a file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(count: int, seed: int = 0) -> list[list[str]]:
    """Texts as lists of words of one or two letters."""
    draw = random.Random(seed)
    return [
        ["".join(draw.choice(LETTERS) for _ in range(draw.randint(1, 2))) for _ in range(draw.randint(3, 8))]
        for _ in range(count)
    ]


def labelled_texts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts with a label that says if some word begins with an a."""
    return [
        {"text": " ".join(each), "label": "with" if any(word[0] == "a" for word in each) else "without"}
        for each in words(count, seed)
    ]


def tagged_words(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Words with tags that say which begin with a vowel."""
    return [
        {"tokens": each, "ner_tags": ["VOWEL" if word[0] in "ae" else "O" for word in each]}
        for each in words(count, seed)
    ]


def ranked_pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs whose better answer has no b."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        better = "".join(draw.choice("acd") for _ in range(draw.randint(1, 5)))
        at = draw.randrange(len(better) + 1)
        made.append({"prompt": draw.choice("xyz"), "chosen": better, "rejected": better[:at] + "b" + better[at:]})
    return made
