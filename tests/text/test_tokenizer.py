from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from text_corpus import CORPUS, EDGES, SENTENCES

from macllm.errors import CheckpointError, MacllmError, ModelNotFoundError, UsageError
from macllm.text.tokenizer import Tokenizer

DATA = sorted(path for path in (Path(__file__).parent / "data").iterdir() if path.is_dir())
LOSSLESS = ("byte-level tokenizer.json with bos", "gpt2 vocab.json", "llama tokenizer.model", "gemma tokenizer.model")


@pytest.mark.parametrize("folder", DATA, ids=lambda folder: folder.name)
def test_ids_and_texts_equal_those_recorded_from_transformers(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    lines = (folder / "goldens.jsonl").read_text("utf-8").splitlines()
    assert len(lines) > 50
    for line in lines:
        text, ids, plain, whole, skipped = json.loads(line)
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.encode(text, add_special_tokens=False) == plain, text
        assert tokenizer.decode(ids) == whole, text
        assert tokenizer.decode(ids, skip_special_tokens=True) == skipped, text


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_text_comes_back(name: str, folders) -> None:
    tokenizer = Tokenizer.from_folder(folders[name])
    for text in [*SENTENCES, *EDGES]:
        if text.startswith((" ", "▁")) or "▁" in text:  # a space put before the text cannot be told from its own
            continue
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_sentencepiece_conventions_are_those_of_the_model_file(folders, tmp_path: Path) -> None:
    import sentencepiece

    for source, name in (("llama tokenizer.model", "tokenizer.model"), ("t5 spiece.model", "spiece.model")):
        folder = tmp_path / source.replace(" ", "_")
        folder.mkdir()
        shutil.copy(folders[source] / name, folder / "tokenizer.model")
        ours = Tokenizer.from_folder(folder)
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        for text in [*SENTENCES, *EDGES]:
            assert ours.encode(text) == theirs.encode(text), text
        for text in SENTENCES:
            ids = theirs.encode(text)
            assert theirs.unk_id() in ids or ours.decode(ids) == theirs.decode(ids)


def test_tokens_and_ids_are_inverse(folders) -> None:
    for name in ("byte-level tokenizer.json", "llama tokenizer.model legacy", "t5 spiece.model", "marian"):
        tokenizer = Tokenizer.from_folder(folders[name])
        tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.vocab_size)]
        assert None not in tokens, name
        assert [tokenizer.token_to_id(token) for token in tokens if token] == list(range(tokenizer.vocab_size)), name
        assert tokenizer.id_to_token(tokenizer.vocab_size) is None
        assert tokenizer.id_to_token(-1) is None
        assert tokenizer.token_to_id("no such token") is None


def test_ids_beyond_the_vocabulary_have_no_text(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    ids = tokenizer.encode("The quick brown fox", add_special_tokens=False)
    assert tokenizer.decode([-1, *ids, 10**6, 2**40]) == tokenizer.decode(ids)


def test_a_long_text_is_not_cut_by_the_truncation_that_the_file_asks_for(folders) -> None:
    tokenizer = Tokenizer.from_folder(folders["byte-level tokenizer.json"])
    assert len(tokenizer.encode("one two three four five six seven eight")) > 5
    assert len(tokenizer.encode("a")) == 1


def test_a_lone_surrogate_counts_as_the_replacement_character(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("😀")


def test_saved_files_give_the_same_tokenizer(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.save(tmp_path / "copy")
    copy = Tokenizer.from_folder(tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} <= {path.name for path in folder.iterdir()}
    tokenizer.save(folder)
    for text in CORPUS[::5]:
        assert copy.encode(text) == tokenizer.encode(text)


def test_another_process_can_be_handed_a_tokenizer(folders) -> None:
    tokenizer = Tokenizer.from_folder(folders["llama tokenizer.model"])
    assert pickle.loads(pickle.dumps(tokenizer)).encode("Hi there") == tokenizer.encode("Hi there")


def test_named_tokens_and_limits_come_from_the_config(folders) -> None:
    tokenizer = Tokenizer.from_folder(folders["gpt2 vocab.json"])
    assert tokenizer.max_length == 1024
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.token_to_id("<|endoftext|>")
    assert tokenizer.pad_token_id is None
    t5 = Tokenizer.from_folder(folders["t5 spiece.model"])
    assert t5.token_to_id("<extra_id_0>") == t5.vocab_size - 1
    assert t5.token_to_id("<extra_id_99>") == t5.vocab_size - 100


def test_legacy_special_token_files_are_read(folders, tmp_path: Path) -> None:
    shutil.copy(folders["llama tokenizer.model"] / "tokenizer.model", tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|done|>"}, "pad_token": "</s>"}')
    (tmp_path / "added_tokens.json").write_text('{"<|done|>": 900, "<|more|>": 901}')
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.eos_token_id == 900
    assert tokenizer.encode("<|done|><|more|>")[-2:] == [900, 901]
    assert tokenizer.special_ids >= {900}
    assert 901 not in tokenizer.special_ids
    assert tokenizer.vocab_size == 902


def test_a_folder_without_tokenizer_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no tokenizer"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.txt", "tokenizer_config.json"])
def test_damaged_files_are_one_clear_error(name: str, folders, tmp_path: Path) -> None:
    source = {"tokenizer.json": "gemma tokenizer.json", "tokenizer.model": "llama tokenizer.model"}.get(name)
    good = (folders[source] / name).read_bytes() if source else b"\xff\xfe{}"
    for damaged in (good[: len(good) // 2], b"", b"\xff" * 50, b"[1, 2]", b"{" * 100_000):
        if name == "vocab.txt" and damaged != b"\xff" * 50:
            continue
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(MacllmError) as caught:
            Tokenizer.from_folder(tmp_path)
        assert name in caught.value.message or isinstance(caught.value, ModelNotFoundError)
        assert caught.value.remedy


def test_an_added_token_without_text_is_an_error(folders, tmp_path: Path) -> None:
    shutil.copy(folders["llama tokenizer.model"] / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"7": {"special": true}}}')
    with pytest.raises(CheckpointError, match="no text"):
        Tokenizer.from_folder(tmp_path)


def test_a_conversation_is_rendered_and_encoded_without_a_second_begin_token(folders, tmp_path: Path) -> None:
    shutil.copytree(folders["llama tokenizer.model"], tmp_path, dirs_exist_ok=True)
    plain = Tokenizer.from_folder(tmp_path)
    with pytest.raises(UsageError, match="no chat template"):
        plain.render([{"role": "user", "content": "hi"}])
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.render([{"role": "user", "content": "hi"}]) == "<s>hi"
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(ids[0]) == 1


def test_importing_loads_no_library() -> None:
    code = (
        "import sys, macllm.text.tokenizer, macllm.text.detokenizer, macllm.text.template, macllm.text.parts;"
        "print(sorted({'tokenizers', 'sentencepiece', 'jinja2', 'numpy', 'mlx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
