from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path

import pytest
from text_corpus import CORPUS

from macllm.text.tokenizer import Tokenizer

pytestmark = pytest.mark.parity


# The tokenizers library composes stacked marks differently from sentencepiece, which trained the model.
SENTENCEPIECE_DIFFERS = {"t5_spiece.model": {"a\u0300\u0301\u0302b"}}


def oracle(folder: Path, name: str | None = None):
    """The folder's tokenizer in transformers, of the class that it names, or `name`."""
    import transformers

    transformers.logging.set_verbosity_error()
    path = folder / "tokenizer_config.json"
    named = json.loads(path.read_text("utf-8"))["tokenizer_class"] if path.exists() else "AutoTokenizer"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, name or named).from_pretrained(folder)


def as_sentencepiece(folder: Path, text: str) -> list[int]:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model")).encode(text)


def decoded(tokenizer, ids: list[int], skip: bool) -> str:
    return tokenizer.decode(ids, skip_special_tokens=skip)


def test_ids_and_texts_equal_those_of_transformers(folder: Path, record_property) -> None:
    theirs, ours = oracle(folder), Tokenizer.from_folder(folder)
    random_ids = random.Random(0)
    assert ours.vocab_size == len(theirs)
    wrong = []
    compared = 0
    for text in CORPUS:
        for special in (True, False):
            expected = theirs.encode(text, add_special_tokens=special)
            compared += 1
            if text in SENTENCEPIECE_DIFFERS.get(folder.name, ()):
                assert ours.encode(text, False) == as_sentencepiece(folder, text)
            elif ours.encode(text, special) != expected:
                wrong.append(("encode", text, special, ours.encode(text, special), expected))
            cuts = [expected, expected[1:], expected[: len(expected) // 2]]
            noise = [random_ids.randrange(ours.vocab_size) for _ in range(12)]
            for ids in [*cuts, noise]:
                for skip in (True, False):
                    compared += 1
                    if ours.decode(ids, skip) != decoded(theirs, ids, skip):
                        wrong.append(("decode", ids, skip, ours.decode(ids, skip), decoded(theirs, ids, skip)))
    print(f"{folder.name}: {len(CORPUS)} texts, {compared} comparisons, {len(wrong)} differ")
    record_property("comparisons", compared)
    assert wrong[:3] == []


def test_named_tokens_equal_those_of_transformers(folder: Path) -> None:
    theirs, ours = oracle(folder), Tokenizer.from_folder(folder)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert {index for index, token in theirs.added_tokens_decoder.items() if token.special} == ours.special_ids


def test_tokenizers_saved_by_transformers_give_the_same_ids_and_texts(folder: Path, tmp_path: Path) -> None:
    theirs = oracle(folder)
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    for text in CORPUS:
        if text not in SENTENCEPIECE_DIFFERS.get(folder.name, ()):
            ids = theirs.encode(text)
            assert ours.encode(text) == ids, text
            assert ours.decode(ids) == theirs.decode(ids), text
            assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True), text


def test_tokenizers_saved_by_us_give_the_same_ids_in_transformers(folder: Path, tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(folder)
    ours.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"} if "bare" in folder.name else {}))
    theirs = oracle(tmp_path, "AutoTokenizer")
    for text in CORPUS:
        if text not in SENTENCEPIECE_DIFFERS.get(folder.name, ()):
            assert ours.encode(text) == theirs.encode(text), text


def test_tokenizer_json_wins_over_the_class_in_the_config(folders, tmp_path: Path) -> None:
    shutil.copytree(folders["llama tokenizer.json"], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "LlamaTokenizerFast"}))
    theirs, ours = oracle(tmp_path, "PreTrainedTokenizerFast"), Tokenizer.from_folder(tmp_path)
    for text in CORPUS:
        assert ours.encode(text) == theirs.encode(text), text
