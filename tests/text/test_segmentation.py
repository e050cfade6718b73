"""Merges, lattices and matches of a word, against each library's own algorithm."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from text_corpus import SENTENCES

from macllm.errors import UsageError
from macllm.text.segmentation import Edge, Match, Merge, lattice, segment
from macllm.text.tokenizer import Tokenizer

WORDS = [
    "unbelievable", "tokenizers", "The quick, brown", "naïve", "日本語です", "😀!", "aaaaab", "a", "3.14159",
    "don't", "xyzzy", "two  spaces ", "\ttab\nline", "☃\u0007☃", *SENTENCES,
]  # fmt: skip


def remade(symbols: Iterable[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """BPE as first published: each round merges all occurrences of the pair that was learned first."""
    word = list(symbols)
    while pairs := [pair for pair in pairwise(word) if pair in ranks]:
        pair, out = min(pairs, key=ranks.__getitem__), list[str]()
        for symbol in word:
            out = [*out[:-1], out[-1] + symbol] if out and (out[-1], symbol) == pair else [*out, symbol]
        word = out
    return word


def unigram_file(scores: Mapping[str, float]) -> bytes:
    """A sentencepiece model of these pieces without normalization, written by hand."""

    def field(number: int, data: bytes) -> bytes:
        size, out = len(data), b""
        while size >= 128:
            out, size = out + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + out + bytes([size]) + data

    def piece(text: str, score: float, kind: int = 1) -> bytes:
        return field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind]))

    pieces = [piece("<unk>", 0, 2), *(piece(text, score) for text, score in scores.items())]
    trainer, normalizer = field(2, b"\x18\x01"), field(3, field(1, b"identity") + b"\x18\x00\x20\x00")
    return b"".join(pieces) + trainer + normalizer


def test_tokens_and_ids_are_those_of_encoding(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    if (folder / "source.spm").exists():
        with pytest.raises(UsageError, match="cannot be shown"):
            segment(tokenizer, "a")
        return
    steps = 0
    for word in WORDS:
        made = segment(tokenizer, word)
        assert list(made.ids) == tokenizer.encode(word, add_special_tokens=False)
        assert [token for part in made.parts for token in part.tokens] == list(made.tokens)
        steps += sum(len(part.steps) for part in made.parts)
    assert steps > 100


@pytest.mark.parametrize("name", ["byte-level tokenizer.json", "roberta vocab.json", "llama tokenizer.json"])
def test_the_merges_applied_as_first_published_give_the_tokens(name: str, folders) -> None:
    tokenizer = Tokenizer.from_folder(folders[name])
    merges = json.loads(tokenizer.backend.library.to_str())["model"]["merges"]  # type: ignore[attr-defined]
    ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
    seen = 0
    for word in WORDS:
        for part in segment(tokenizer, word).parts:
            found = [step for step in part.steps if isinstance(step, Merge)]
            assert [ranks[step.left, step.right] for step in found] == [step.rank for step in found]
            assert remade(part.symbols, ranks) == list(found[-1].symbols if found else part.symbols)
            seen += len(found)
    assert seen > 300


def test_the_best_path_and_its_score_are_sentencepieces() -> None:
    import sentencepiece

    pieces = ["▁", *"abcdeé日", "ab", "abc", "bc", "cd", "de", "▁a", "▁ab", "cde", "aa", "aaa", "▁abcde", "éé"]
    scores = {piece: -1.0 - (7 * number % 11) - number / 16 for number, piece in enumerate(pieces)}
    oracle = sentencepiece.SentencePieceProcessor(model_proto=unigram_file(scores))
    texts = ["▁abcde▁ab", "aaaaaaa", "▁", "日é▁éé", "abxyzcde", "q", "▁abcabcdedecd", "☃☃a☃", "ééé"]
    for text in texts:
        part = lattice(text, scores, lambda unknown: [unknown], min(scores.values()))
        assert list(part.tokens) == oracle.encode(text, out_type=str), text
        path = [edge for edge in part.steps if isinstance(edge, Edge) and edge.best]
        best = oracle.nbest_encode_as_proto(text, nbest_size=2).nbests[0]
        assert math.isclose(sum(edge.score for edge in path), best.score, rel_tol=1e-6)
        assert "".join(edge.piece for edge in path) == text
        inside = {(a, b) for a in range(len(text)) for b in range(a + 1, len(text) + 1) if text[a:b] in scores}
        known = {(edge.start, edge.stop) for edge in part.steps if isinstance(edge, Edge) and edge.piece in scores}
        assert known == inside


@pytest.mark.parity
@pytest.mark.parametrize("name", ["bert vocab.txt", "bert vocab.txt cased"])
def test_longest_matches_are_those_of_transformers_wordpiece(name: str, folders) -> None:
    legacy = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
    folder = folders[name]
    vocab = {token: at for at, token in enumerate((folder / "vocab.txt").read_text("utf-8").splitlines())}
    oracle = legacy.WordpieceTokenizer(vocab, "[UNK]")
    tokenizer = Tokenizer.from_folder(folder)
    for word in WORDS:
        for part in segment(tokenizer, word).parts:
            assert list(part.tokens) == oracle.tokenize(part.text)


def test_a_word_of_wordpiece_without_a_match_is_unknown(folders) -> None:
    tokenizer = Tokenizer.from_folder(folders["bert vocab.txt"])
    (part,) = segment(tokenizer, "the☃☃").parts
    assert part.tokens == ("[UNK]",)
    assert part.steps == (Match(0, "the", 3), Match(3, None, 2))


def test_special_tokens_are_parts_without_steps(folders) -> None:
    tokenizer = Tokenizer.from_folder(folders["byte-level tokenizer.json"])
    first, second = segment(tokenizer, "<|im_start|>the").parts
    assert (first.tokens, first.steps) == (("<|im_start|>",), ())
    assert second.steps
