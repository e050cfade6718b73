from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import LLAMA_CONFIG, LLAMA_PIECES, train_pieces, write

from macllm.text.tokenizer import Tokenizer

SPACES = [
    *(" hello", "  hello world", "   three", "hello", "hello  world ", "", " ", "  ", "   ", " .", " 日本"),
    *("\n hello", " \nhello", "\thello", "hello\n\n  indented\n    more", "\u3000x", "\u00a0x", " \u00a0 x"),
]
MARKS = ["▁hello", "▁▁x", " ▁x"]
TOKENS = ["<s> hello", "<s>hello", "</s> a</s>b</s>  c", "a <tool> b<tool>c", "  <tool> x", " <s> x", "x</s>"]
NAMES = {name: LLAMA_CONFIG[name] for name in ("bos_token", "eos_token", "unk_token")}
CLASS = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **NAMES}
PIECES = {**LLAMA_PIECES, "user_defined_symbols": ["<tool>"]}
GEMMA_IDS = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>"}
GEMMA = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True}
T5_IDS = {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}

# pieces, tokenizer_config.json, model type
VARIANTS: dict[str, tuple[dict, dict, str]] = {
    "llama": (PIECES, CLASS, "llama"),
    "llama, legacy": (PIECES, {**CLASS, "legacy": True}, "llama"),
    "llama, not legacy": (PIECES, {**CLASS, "legacy": False}, "llama"),
    "llama without prefix": (PIECES, {**CLASS, "add_prefix_space": False}, "llama"),
    "llama, prefix off in the model": ({**PIECES, "add_dummy_prefix": False}, CLASS, "llama"),
    "llama, spaces removed in the model": ({**PIECES, "remove_extra_whitespaces": True}, CLASS, "llama"),
    "llama, normalized in the model": ({**PIECES, "normalization_rule_name": "nmt_nfkc"}, CLASS, "llama"),
    "llama without class": (PIECES, NAMES, "llama"),
    "no config": (PIECES, {}, "llama"),
    "no config, default training": ({}, {}, "llama"),
    "mistral": (PIECES, CLASS, "mistral"),
    "mistral, legacy": (PIECES, {**CLASS, "legacy": True}, "mistral"),
    "mistral, not legacy": (PIECES, {**CLASS, "legacy": False}, "mistral"),
    "mistral, prefix off in the model": ({**PIECES, "add_dummy_prefix": False}, CLASS, "mistral"),
    "mistral, normalized in the model": ({**PIECES, "normalization_rule_name": "nmt_nfkc"}, CLASS, "mistral"),
    "phi3": (PIECES, CLASS, "phi3"),
    "gemma": ({**LLAMA_PIECES, **GEMMA_IDS, "add_dummy_prefix": False}, GEMMA, "gemma"),
    "t5": (T5_IDS, {"tokenizer_class": "T5Tokenizer"}, "t5"),
    "t5, spaces kept in the model": (
        {**T5_IDS, "remove_extra_whitespaces": False},
        {"tokenizer_class": "T5Tokenizer"},
        "t5",
    ),
}


def build(folder: Path, variant: str) -> Path:
    pieces, config, model_type = VARIANTS[variant]
    name = "spiece" if model_type == "t5" else "tokenizer"
    train_pieces(folder / name, **pieces)
    (folder / f"{name}.vocab").unlink()
    write(folder, "tokenizer_config.json", config)
    write(folder, "config.json", {"model_type": model_type})
    return folder / f"{name}.model"


@pytest.mark.parametrize("variant", ["mistral", "phi3", "no config", "no config, default training"])
def test_without_a_tokenizer_class_ids_equal_sentencepieces(variant: str, tmp_path: Path) -> None:
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(build(tmp_path, variant)))
    ours = Tokenizer.from_folder(tmp_path)
    for text in SPACES + MARKS:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text), text


@pytest.mark.parametrize(
    ("variant", "text", "tokens"),
    [
        ("llama", "hello", ["▁", "he", "ll", "o"]),
        ("llama", " hello", ["▁", "he", "ll", "o"]),
        ("llama", "  hello", ["▁▁", "he", "ll", "o"]),
        ("llama", " ", ["▁"]),
        ("llama", "", []),
        ("llama", "</s>a", ["</s>", "a"]),
        ("llama, legacy", "</s>a", ["</s>", "▁a"]),
        ("llama, spaces removed in the model", "  a", ["▁", "▁a"]),
        ("llama, normalized in the model", "\na", ["▁", "<0x0A>", "a"]),
        ("mistral", " a", ["▁", "▁a"]),
        ("mistral", "</s>a", ["</s>", "▁a"]),
        ("mistral", "<tool>a", ["▁", "<tool>", "a"]),
        ("mistral, not legacy", "</s>a", ["</s>", "a"]),
        ("t5, spaces kept in the model", "  a\n a", ["▁", "a", "▁", "a"]),
    ],
)
def test_spaces_are_tokenized_by_the_rules_of_the_class(
    variant: str, text: str, tokens: list[str], tmp_path: Path
) -> None:
    build(tmp_path, variant)
    ours = Tokenizer.from_folder(tmp_path)
    assert [ours.id_to_token(index) for index in ours.encode(text, add_special_tokens=False)] == tokens


@pytest.mark.parity
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sentencepiece_model_gives_the_ids_of_the_tokenizer_json_saved_by_transformers(
    variant: str, tmp_path: Path
) -> None:
    import transformers

    build(tmp_path, variant)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "saved")
    assert "tokenizer.json" in {path.name for path in (tmp_path / "saved").iterdir()}
    ours, saved = Tokenizer.from_folder(tmp_path), Tokenizer.from_folder(tmp_path / "saved")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == VARIANTS[variant][2]
    for text in [*SPACES, *TOKENS, *([] if variant.startswith("t5") else MARKS)]:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, special) == ids, (text, special)
            assert saved.encode(text, special) == ids, (text, special)
            assert ours.decode(ids) == saved.decode(ids) == theirs.decode(ids), text
