from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import IM, TRAINING, train_byte_level, wordpiece_vocab, write
from text_corpus import SENTENCES

from macllm.errors import CheckpointError
from macllm.text.tokenizer import Tokenizer

TEXTS = ["hello world, how are you?", " two  spaces", "naïve café 😀", "日本語\n\ttab", SENTENCES[0]]
X, Y = {**IM, "content": "<|x|>"}, {**IM, "content": "<|y|>"}
SENTENCEPIECE = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
WORDPIECE = {"type": "WordPiece", "prefix": "##", "cleanup": True}
SUFFIX = {"type": "BPEDecoder", "suffix": "</w>"}
DECODERS: dict[str, Any] = {
    "none": None,
    "sentencepiece": SENTENCEPIECE,
    "Metaspace": METASPACE,
    "ByteLevel": BYTE_LEVEL,
    "WordPiece": WORDPIECE,
    "BPEDecoder": SUFFIX,
    "Fuse": {"type": "Fuse"},
    "ByteLevel and Strip": {"type": "Sequence", "decoders": [BYTE_LEVEL, SENTENCEPIECE["decoders"][-1]]},
    "Replace alone": SENTENCEPIECE["decoders"][0],
}


@pytest.fixture(scope="module")
def byte_level() -> dict[str, Any]:
    return json.loads(train_byte_level(["<|endoftext|>"], size=400).to_str())


def open_tokenizer(folder: Path, tokenizer: dict[str, Any], **files: Any) -> Tokenizer:
    write(folder, "tokenizer.json", tokenizer)
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **files.pop("config", {})})
    for name, value in files.items():
        write(folder, f"{name}.json", value)
    return Tokenizer.from_folder(folder)


def round_trip(tokenizer: Tokenizer, text: str) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream = tokenizer.detokenizer()
    pieces = "".join(map(stream.add, ids)) + stream.finish()
    assert pieces == tokenizer.decode(ids)
    return pieces


SPLIT = {"type": "Split", "pattern": {"Regex": " ?\\S+|\\s+"}, "behavior": "Isolated", "invert": False}
WITHOUT_REGEX = {**BYTE_LEVEL, "use_regex": False}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("steps", [[BYTE_LEVEL], [SPLIT, WITHOUT_REGEX]], ids=["alone", "after Split"])
def test_byte_level_texts_round_trip_with_any_decoder_in_the_file(
    decoder: str, steps: list[Any], byte_level: dict[str, Any], tmp_path: Path
) -> None:
    cutting = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    tokenizer = open_tokenizer(tmp_path, {**byte_level, "decoder": DECODERS[decoder], "pre_tokenizer": cutting})
    assert [round_trip(tokenizer, text) for text in TEXTS] == TEXTS


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["llama tokenizer.json", "gemma tokenizer.json"])
def test_sentencepiece_texts_round_trip_with_any_decoder_in_the_file(
    decoder: str, kind: str, folders, tmp_path: Path
) -> None:
    value = json.loads((folders[kind] / "tokenizer.json").read_text("utf-8"))
    for changed in (value, {**value, "normalizer": None, "pre_tokenizer": {**METASPACE, "split": False}}):
        tokenizer = open_tokenizer(tmp_path, {**changed, "decoder": DECODERS[decoder]})
        texts = [text for text in TEXTS if not text.startswith(" ")]
        assert [round_trip(tokenizer, text) for text in texts] == texts


@pytest.fixture(scope="module")
def words() -> dict[str, dict[str, Any]]:
    """Tokenizers that mark the continuation (WordPiece) or the end of a word (BPE with a suffix)."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, trainers

    vocab = {token: index for index, token in enumerate(wordpiece_vocab())}
    pieces = Library(models.WordPiece(vocab, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = Library(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    ends.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    options = {"special_tokens": ["<unk>"], "end_of_word_suffix": "</w>", "show_progress": False}
    ends.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=400, **options))
    return {"WordPiece": json.loads(pieces.to_str()), "BPEDecoder": json.loads(ends.to_str())}


@pytest.mark.parametrize("decoder", ["none", "Metaspace", "ByteLevel", "sentencepiece", "WordPiece", "BPEDecoder"])
@pytest.mark.parametrize("kind", ["WordPiece", "BPEDecoder"])
def test_subwords_are_joined_with_any_decoder_in_the_file(
    kind: str, decoder: str, words: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    tokenizer = open_tokenizer(tmp_path, {**words[kind], "decoder": DECODERS[decoder]})
    assert round_trip(tokenizer, "the quick brown foxes") == "the quick brown foxes"


@pytest.mark.parametrize("kind", ["byte-level", "byte-level {} with bos", "llama", "gemma", "t5"])
def test_a_fitting_decoder_decodes_as_the_tokenizers_library(kind: str, folders) -> None:
    from tokenizers import Tokenizer as Library

    folder = folders[kind.format("tokenizer.json") if "{}" in kind else f"{kind} tokenizer.json"]
    library, ours = Library.from_file(str(folder / "tokenizer.json")), Tokenizer.from_folder(folder)
    library.no_truncation()
    library.no_padding()
    for text in TEXTS:
        ids = library.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("added", "config", "files", "expected"),
    [
        ([(400, X), (401, Y)], {}, {}, (400, 401)),
        ([(500, X), (450, Y)], {}, {}, (500, 450)),
        ([(401, X), (400, Y)], {}, {}, (401, 400)),
        ([(400, X), (400, Y)], {}, {}, (400, 401)),  # one id for two tokens: the library gives the second a new one
        ([(5, X), (401, Y)], {}, {}, (400, 401)),  # an id of the vocabulary
        ([(400, X), (401, Y)], {"added_tokens_decoder": {"401": X, "400": Y}}, {}, (400, 401)),  # tokenizer.json wins
        ([(400, X)], {"added_tokens_decoder": {"700": Y}}, {}, (400, 700)),
        ([], {}, {"added_tokens": {"<|x|>": 600, "<|y|>": 500}}, (600, 500)),
    ],
)
def test_added_tokens_have_the_ids_that_the_files_declare(
    added: list, config: dict, files: dict, expected: tuple[int, int], byte_level: dict[str, Any], tmp_path: Path
) -> None:
    tokens = [*byte_level["added_tokens"], *({"id": index, **token} for index, token in added)]
    tokenizer = open_tokenizer(tmp_path, {**byte_level, "added_tokens": tokens}, config=config, **files)
    ids = tokenizer.encode("a<|x|>b<|y|>", add_special_tokens=False)
    assert (ids[1], ids[3]) == expected
    assert (tokenizer.token_to_id("<|x|>"), tokenizer.token_to_id("<|y|>")) == expected
    assert [tokenizer.id_to_token(index) for index in expected] == ["<|x|>", "<|y|>"]
    assert round_trip(tokenizer, "a<|x|>b<|y|>") == "a<|x|>b<|y|>"
    assert tokenizer.decode([*ids, 460]) == "a<|x|>b<|y|>"
    if not files:
        assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|x|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|x|>": {"id": "<|x|>", "ids": [7], "tokens": ["<|x|>"]}},
}
ROBERTA = {
    "type": "RobertaProcessing",
    "sep": ["<|y|>", 3],
    "cls": ["<|x|>", 7],
    "trim_offsets": True,
    "add_prefix_space": False,
}


@pytest.mark.parametrize(
    ("processor", "ends"),
    [
        (TEMPLATE, ("<|x|>", "")),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, TEMPLATE]}, ("<|x|>", "")),
        (ROBERTA, ("<|x|>", "<|y|>")),
        ({**ROBERTA, "type": "BertProcessing"}, ("<|x|>", "<|y|>")),
    ],
)
@pytest.mark.parametrize("numbers", [(400, 401), (500, 501)])
def test_the_post_processor_adds_its_tokens_with_their_declared_ids(
    processor: dict[str, Any],
    ends: tuple[str, str],
    numbers: tuple[int, int],
    byte_level: dict[str, Any],
    tmp_path: Path,
) -> None:
    added = [{"id": numbers[0], **X}, {"id": numbers[1], **Y}]
    tokens = [*byte_level["added_tokens"], *added]
    tokenizer = open_tokenizer(tmp_path, {**byte_level, "added_tokens": tokens, "post_processor": processor})
    assert tokenizer.decode(tokenizer.encode("a b")) == f"{ends[0]}a b{ends[1]}"
    assert tokenizer.encode("a b")[0] == numbers[0]


def test_a_named_token_beyond_the_rows_of_the_embedding_is_none(
    byte_level: dict[str, Any], folders, tmp_path: Path
) -> None:
    config = {"eos_token": "</s>", "pad_token": "<|endoftext|>"}
    without = open_tokenizer(tmp_path, byte_level, config=config)
    assert without.eos_token_id == 400  # the number of embedding rows is not known
    for rows in ({"vocab_size": 400}, {"text_config": {"vocab_size": 400}}):
        write(tmp_path, "config.json", rows)
        tokenizer = Tokenizer.from_folder(tmp_path)
        assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.vocab_size) == (None, 0, 400)
        assert max(tokenizer.encode("a</s>")) < 400
        assert round_trip(tokenizer, "a</s>") == "a</s>"
    write(tmp_path, "config.json", {"vocab_size": 401})
    assert Tokenizer.from_folder(tmp_path).eos_token_id == 400
    pieces = tmp_path / "pieces"
    shutil.copytree(folders["llama tokenizer.model"], pieces)
    write(pieces, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "eos_token": "<|im_end|>"})
    write(pieces, "config.json", {"vocab_size": 900})
    assert Tokenizer.from_folder(pieces).eos_token_id is None
    assert round_trip(Tokenizer.from_folder(pieces), "a<|im_end|>") == "a<|im_end|>"


def test_a_token_is_special_if_any_file_says_so(byte_level: dict[str, Any], tmp_path: Path) -> None:
    ordinary = {**X, "special": False}
    for in_json, in_config, special in ((X, ordinary, True), (ordinary, X, True), (ordinary, ordinary, False)):
        tokens = [*byte_level["added_tokens"], {"id": 400, **in_json}]
        config = {"added_tokens_decoder": {"400": in_config}}
        tokenizer = open_tokenizer(tmp_path, {**byte_level, "added_tokens": tokens}, config=config)
        assert (400 in tokenizer.special_ids) is special
        assert tokenizer.decode(tokenizer.encode("a<|x|>b"), skip_special_tokens=True) == (
            "ab" if special else "a<|x|>b"
        )


@pytest.mark.parametrize(
    ("flag", "text", "pieces"),
    [
        ("rstrip", "a<|x|> b", ["a", "<|x|>", "b"]),
        ("lstrip", "a <|x|>b", ["a", "<|x|>", "b"]),
        ("single_word", "a<|x|>b", None),
    ],
)
def test_token_flags_of_the_config_override_those_of_the_tokenizer_file(
    flag: str, text: str, pieces: list[str] | None, byte_level: dict[str, Any], tmp_path: Path
) -> None:
    tokens = [*byte_level["added_tokens"], {"id": 400, **X}]
    for changed in (False, True):
        config = {"added_tokens_decoder": {"400": {**X, flag: changed}}}
        tokenizer = open_tokenizer(tmp_path, {**byte_level, "added_tokens": tokens}, config=config)
        found = [tokenizer.id_to_token(index) for index in tokenizer.encode(text)]
        assert (400 in tokenizer.encode(text)) is (pieces is not None or not changed)
        assert (found == pieces) is (changed and pieces is not None)


def test_added_tokens_json_leaves_the_flags_of_the_tokenizer_file(byte_level: dict[str, Any], tmp_path: Path) -> None:
    tokens = [*byte_level["added_tokens"], {"id": 400, **X, "rstrip": True}]
    tokenizer = open_tokenizer(tmp_path, {**byte_level, "added_tokens": tokens}, added_tokens={"<|x|>": 400})
    assert len(tokenizer.encode("a<|x|>  b")) == 3


def test_added_tokens_are_not_decoded_through_the_byte_alphabet(byte_level: dict[str, Any], tmp_path: Path) -> None:
    tokens = [{"id": 400, **X, "content": "<|é|>"}, {"id": 401, **X, "content": "Ġö", "special": False}]
    tokens += [{"id": 402, **X, "content": "<|端|>"}]
    tokenizer = open_tokenizer(tmp_path, {**byte_level, "added_tokens": [*byte_level["added_tokens"], *tokens]})
    for text in ("a<|é|>é b", "Ġö é", "<|端|>é"):
        assert round_trip(tokenizer, text) == text
    assert tokenizer.decode(tokenizer.encode("a<|é|>é b"), skip_special_tokens=True) == "aé b"


@pytest.mark.parametrize(
    "config",
    [
        {"add_bos_token": "false", "add_eos_token": "False", "eos_token": "<|endoftext|>"},
        {"eos_token": 0, "bos_token": ["<s>"], "pad_token": None},
        {"added_tokens_decoder": [X], "extra_special_tokens": 5, "model_max_length": "512"},
        {"chat_template": [], "clean_up_tokenization_spaces": "false"},
    ],
)
def test_config_values_of_wrong_types_are_ignored(
    config: dict[str, Any], byte_level: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = open_tokenizer(tmp_path, byte_level, config=config)
    assert tokenizer.vocab_size == 400
    assert [round_trip(tokenizer, text) for text in TEXTS] == TEXTS
    assert tokenizer.chat_template is None


@pytest.mark.parametrize("name", ["tokenizer_config", "added_tokens"])
def test_an_added_token_with_an_invalid_id_is_a_checkpoint_error(
    name: str, byte_level: dict[str, Any], tmp_path: Path
) -> None:
    files: dict[str, Callable[[], Tokenizer]] = {
        "tokenizer_config": lambda: open_tokenizer(tmp_path, byte_level, config={"added_tokens_decoder": {"x": X}}),
        "added_tokens": lambda: open_tokenizer(tmp_path, byte_level, added_tokens={"<|x|>": None}),
    }
    with pytest.raises(CheckpointError, match="has the id"):
        files[name]()
