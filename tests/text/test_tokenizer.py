from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_corpus import CORPUS, EDGES, SENTENCES

from macllm.errors import CheckpointError, MacllmError, ModelNotFoundError, UsageError
from macllm.text.pieces import AddedTokenSplitter
from macllm.text.settings import AddedToken
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
def test_texts_round_trip_through_lossless_tokenizers(name: str, folders) -> None:
    tokenizer = Tokenizer.from_folder(folders[name])
    for text in [*SENTENCES, *EDGES]:
        if text.startswith((" ", "▁")) or "▁" in text:  # an added space before the text cannot be told from its own
            continue
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_bare_sentencepiece_model_gives_the_ids_of_sentencepiece(folders, tmp_path: Path) -> None:
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


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "x\u2028y", "z\x85", "e", "E", "é", "É", "中", "文", "中文"]


@pytest.mark.parametrize(
    ("config", "text", "tokens"),
    [
        ({}, "É 中文", ["e", "中", "文"]),
        ({"strip_accents": False}, "É", ["é"]),
        ({"do_lower_case": False}, "É E", ["É", "E"]),
        ({"do_lower_case": False, "strip_accents": True}, "É", ["E"]),
        ({"tokenize_chinese_chars": False}, "中文", ["中文"]),
        ({"do_lower_case": False, "strip_accents": None, "tokenize_chinese_chars": None}, "É中", ["É", "中"]),
    ],
)
def test_wordpiece_follows_its_config_and_ids_count_the_lines_of_its_file(
    config: dict, text: str, tokens: list[str], tmp_path: Path
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **config}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode(text) == [WORDS.index(token) for token in ("[CLS]", *tokens, "[SEP]")]
    assert tokenizer.vocab_size == len(WORDS)


def test_added_tokens_get_their_declared_ids_in_any_order(folders, tmp_path: Path) -> None:
    shutil.copytree(folders["gpt2 vocab.json"], tmp_path, dirs_exist_ok=True)
    size = Tokenizer.from_folder(tmp_path).vocab_size
    declared = {str(size + n): {"content": f"<t{n}>", "special": n == 1} for n in (2, 0, 1)}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": declared})
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("<t0><t1><t2>") == [size, size + 1, size + 2]
    assert size + 1 in tokenizer.special_ids
    assert not {size, size + 2} & tokenizer.special_ids


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.sampled_from(["<a>", "<a>b", "<w>", "<l>", "<r>", "<", "a", "_", "é", " ", "\n", "\u2003", "."]), max_size=9
    )
)
def test_added_tokens_are_found_where_the_tokenizers_library_finds_them(pieces: list[str]) -> None:
    import tokenizers

    flags = {"<a>": {}, "<a>b": {}, "<w>": {"single_word": True}, "<l>": {"lstrip": True}, "<r>": {"rstrip": True}}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    library.add_special_tokens([tokenizers.AddedToken(name, normalized=False, **each) for name, each in flags.items()])
    text = "".join(pieces)
    encoding = library.encode(text)
    spans = zip(encoding.ids, encoding.offsets, strict=True)
    theirs = [library.id_to_token(index) if index else text[start:end] for index, (start, end) in spans]
    splitter = AddedTokenSplitter({name: AddedToken(name, special=True, **each) for name, each in flags.items()})
    assert [chunk for chunk, _, _ in splitter.split(text) if chunk] == theirs


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


@pytest.mark.parametrize("wrong", [None, 5, b"text", ["text"]])
def test_encode_and_decode_refuse_arguments_of_wrong_types(wrong: Any, folders) -> None:
    tokenizer = Tokenizer.from_folder(folders["byte-level tokenizer.json with bos"])
    with pytest.raises(UsageError, match="encode takes a string, and this is"):
        tokenizer.encode(wrong)
    for ids in (None, 5, "text", [1.5], ["1"], [None]):
        with pytest.raises(UsageError, match="decode takes token ids, and this is"):
            tokenizer.decode(ids)  # type: ignore[arg-type]


def test_truncation_and_padding_of_the_file_are_ignored(folders) -> None:
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


def test_every_template_is_saved_and_synced_to_the_disk(
    folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    shutil.copytree(folders["gpt2 vocab.json"], source)
    (source / "chat_template.jinja").write_text("default")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    synced, sync = set[int](), os.fsync

    def note(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    Tokenizer.from_folder(source).save(copy)
    files = {path.relative_to(copy): path for path in copy.rglob("*") if path.is_file()}
    assert files.keys() == {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert synced >= {path.stat().st_ino for path in files.values()}
    saved = Tokenizer.from_folder(copy).chat_template
    assert saved is not None
    assert saved.sources == {"default": "default", "tool_use": "with tools"}


def test_a_pickled_tokenizer_gives_the_same_ids(folders) -> None:
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


def test_a_folder_without_a_tokenizer_is_a_missing_model(tmp_path: Path) -> None:
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
    with pytest.raises(CheckpointError, match="no content"):
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


def test_importing_the_text_modules_loads_no_tokenizer_library_numpy_or_mlx() -> None:
    code = (
        "import sys, macllm.text.tokenizer, macllm.text.detokenizer, macllm.text.template, macllm.text.parts;"
        "print(sorted({'tokenizers', 'sentencepiece', 'jinja2', 'numpy', 'mlx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("folder", DATA, ids=lambda folder: folder.name)
def test_offsets_come_with_the_ids_of_encode_in_the_order_of_the_text(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    for text in [*SENTENCES, *EDGES]:
        for special in (True, False):
            known = tokenizer.offsets(text, add_special_tokens=special)
            if known is None:
                continue
            assert known[0] == tokenizer.encode(text, add_special_tokens=special)
            inner = [span for span in known[1] if span != (0, 0)]
            assert all(0 <= start <= stop <= len(text) for start, stop in inner)
            assert inner == sorted(inner)


@pytest.mark.parametrize("name", LOSSLESS)
def test_the_characters_of_a_token_are_those_that_it_decodes_to(name: str, folders) -> None:
    tokenizer = Tokenizer.from_folder(folders[name])
    for text in [*SENTENCES, *EDGES, "a</s>b", "日本 \U0001f600 é"]:
        if "▁" in text or "\ufffd" in text:
            continue
        known = tokenizer.offsets(text, add_special_tokens=False)
        assert known is not None
        for index, (start, stop) in zip(*known, strict=True):
            own = tokenizer.decode([index])
            if "\ufffd" in own:  # a part of a character has all of it
                assert start < stop, text
            else:
                assert own.strip() == text[start:stop].strip(), text


def test_offsets_of_surrogates_that_become_one_character_are_not_known(folders) -> None:
    tokenizer = Tokenizer.from_folder(folders[LOSSLESS[0]])
    assert tokenizer.offsets("a\ud83d\ude00b") is None
    assert tokenizer.offsets("a\ud83db") is not None


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 5}, {7, 9}),
        ({"eos_token_id": 7}, {}, {7}),
        ({}, {"eos_token_id": 5}, {5}),
        (None, {"eos_token_id": None}, set()),
        (None, None, set()),
    ],
)
def test_the_ends_of_an_answer_are_those_of_the_checkpoint_and_the_tokenizer(
    generation: Any, config: Any, ends: set[int], folders, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[LOSSLESS[0]], tmp_path / "model")
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        (folder / name).unlink(missing_ok=True)
        if value is not None:
            (folder / name).write_text(json.dumps(value))
    tokenizer = Tokenizer.from_folder(folder)
    own = tokenizer.eos_token_id
    assert tokenizer.end_token_ids == ends | ({own} if own is not None else set())
