"""Steps of a tokenizer over a word: BPE's merges, Unigram's lattice, WordPiece's longest matches."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from macllm.errors import UsageError

from .fast import FastBackend
from .pieces import SentencePieceBackend
from .tokenizer import Tokenizer

_UNKNOWN_PENALTY = 10.0  # sentencepiece's: an unknown character scores so much less than the worst piece


@dataclass(frozen=True)
class Merge:
    """One merge of BPE.

    `rank` is its place in the order of training; `symbols` are those of the word after it.
    """

    left: str
    right: str
    rank: int
    symbols: tuple[str, ...]


@dataclass(frozen=True)
class Edge:
    """A piece of a Unigram lattice over the characters [start, stop).

    `score` is its log-probability; `best` pieces are on the best path.
    """

    start: int
    stop: int
    piece: str
    score: float
    best: bool = False


@dataclass(frozen=True)
class Match:
    """The longest token at `start` of a word, found after `tried` candidates; None if no token matches."""

    start: int
    token: str | None
    tried: int


@dataclass(frozen=True)
class SplitPart:
    """A stretch of the normalized text that the model splits alone, with its steps.

    `steps` are all of one kind; there are none for an added token, and for a part that is one token at once.
    """

    text: str
    symbols: tuple[str, ...]
    steps: tuple[Merge, ...] | tuple[Edge, ...] | tuple[Match, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Segmentation:
    """A word, the kind of its tokenizer ("BPE", "Unigram", "WordPiece"), its parts, tokens and ids."""

    word: str
    kind: str
    parts: tuple[SplitPart, ...]
    tokens: tuple[str, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class _Model:
    """A subword model: its kind, the split of a part, and the tokens for a symbol that it lacks."""

    kind: str
    split: Callable[[str], SplitPart]
    parts: Callable[[str], Iterable[str]]


def segment(tokenizer: Tokenizer, word: str) -> Segmentation:
    """The steps that split `word` into the tokens of `Tokenizer.encode`, without those around a text.

    Raises UsageError for a tokenizer whose steps are not known: Marian's, or one with rules of its own.
    """
    backend = tokenizer.backend
    if isinstance(backend, FastBackend):
        model = _of_library(backend)
    elif isinstance(backend, SentencePieceBackend):
        model = _of_sentencepiece(backend)
    else:
        raise UsageError(f"the steps of the tokenizer in {tokenizer.folder} cannot be shown", cause="it is Marian's")
    parts: list[SplitPart] = []
    for text, added in _apart(word, backend.added_tokens()):
        if added:
            parts.append(SplitPart(text, (text,), (), (text,)))
        else:
            parts += map(model.split, model.parts(text))
    ids = tokenizer.encode(word, add_special_tokens=False)
    tokens = tuple(tokenizer.id_to_token(index) or "" for index in ids)
    shown = tuple(token for part in parts for token in part.tokens)
    if shown != tokens:
        raise UsageError(
            f"the steps for {word!r} cannot be shown",
            cause=f"by the rules of {model.kind} they give {' '.join(shown)}, but the tokens are {' '.join(tokens)}",
            remedy="a word without special tokens, one at a time",
        )
    return Segmentation(word, model.kind, tuple(parts), tokens, tuple(ids))


def _apart(text: str, added: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The text split at added tokens: (text, is_added)."""
    contents = sorted(filter(None, added), key=len, reverse=True)
    split = re.split(f"({'|'.join(map(re.escape, contents))})", text) if contents else [text]
    yield from ((each, number % 2 == 1) for number, each in enumerate(split) if each)


def _of_library(backend: FastBackend) -> _Model:
    """The model of a `tokenizers.Tokenizer`; its pickled state has the parameters as JSON."""
    library: Any = backend.library
    state: dict[str, Any] = json.loads(library.model.__getstate__())
    kind = str(state["type"])

    def parts(text: str) -> list[str]:
        if library.normalizer is not None:
            text = library.normalizer.normalize_str(text)
        if library.pre_tokenizer is None:
            return [text]
        return [piece for piece, _ in library.pre_tokenizer.pre_tokenize_str(text)]

    if kind == "BPE":
        return _Model(kind, _library_bpe(state), parts)
    if kind == "WordPiece":
        return _Model(kind, lambda text: word_pieces(text, state), parts)
    if kind == "Unigram":
        scores: dict[str, float] = dict(state["vocab"])
        unknown = None if state["unk_id"] is None else state["vocab"][state["unk_id"]][0]
        fallback = _fallback(scores, unknown, state["byte_fallback"])
        return _Model(kind, lambda text: lattice(text, scores, fallback, min(scores.values())), parts)
    raise UsageError(f"the steps of a {kind} tokenizer cannot be shown")


def _library_bpe(state: Mapping[str, Any]) -> Callable[[str], SplitPart]:
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in state["merges"]]
    ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
    vocab: dict[str, int] = state["vocab"]
    prefix, suffix = state["continuing_subword_prefix"] or "", state["end_of_word_suffix"] or ""
    fallback = _fallback(vocab, state["unk_token"], state["byte_fallback"])

    def start(text: str) -> list[str]:
        marked = [char if at == 0 else prefix + char for at, char in enumerate(text)]
        marked[-1] += suffix
        return [token for symbol in marked for token in ([symbol] if symbol in vocab else fallback(symbol))]

    def join(left: str, right: str) -> str:
        return left + right.removeprefix(prefix) if prefix else left + right

    def split(text: str) -> SplitPart:
        if state["ignore_merges"] and text in vocab:
            return SplitPart(text, (text,), (), (text,))
        made = merged(start(text), lambda left, right: ranks.get((left, right)), join)
        tokens = _fused(made[1][-1].symbols if made[1] else made[0], state["unk_token"], state["fuse_unk"])
        return SplitPart(text, made[0], made[1], tokens)

    return split


def _of_sentencepiece(backend: SentencePieceBackend) -> _Model:
    """The model of a sentencepiece file."""
    processor, model = backend.processor_for(""), backend.model
    pieces = range(processor.get_piece_size())
    hidden = {index for index in pieces if processor.is_control(index) or processor.is_unknown(index)}
    hidden |= {index for index in pieces if processor.is_unused(index) or processor.is_byte(index)}
    scores = {processor.id_to_piece(index): processor.get_score(index) for index in pieces if index not in hidden}
    usual = list(scores.values())
    whole = [symbol.content for symbol in model.symbols if not symbol.special]
    all_pieces = {processor.id_to_piece(index) for index in pieces}
    fallback = _fallback(all_pieces, processor.id_to_piece(processor.unk_id()), model.byte_fallback)

    def parts(text: str) -> list[str]:
        normalized: Any = backend.processor_for(text).normalize(text)
        return [normalized] if normalized else []

    def rank(left: str, right: str) -> int | None:
        score = scores.get(left + right)
        return None if score is None else round(-score)

    def bpe(text: str) -> SplitPart:
        symbols = [piece for piece, is_whole in _apart(text, whole) for piece in ([piece] if is_whole else piece)]
        start, merges = merged(symbols, rank, lambda left, right: left + right, frozenset(whole))
        tokens = [each for token in (merges[-1].symbols if merges else start)
                  for each in ([token] if token in scores else fallback(token))]  # fmt: skip
        return SplitPart(text, start, merges, _fused(tokens, processor.id_to_piece(processor.unk_id()), True))

    if model.is_bpe:
        return _Model("BPE", bpe, parts)
    # sentencepiece prefers user-defined pieces to every other path over the same characters.
    scores |= {piece: len(piece) * max(usual) - 0.1 for piece in whole}
    return _Model("Unigram", lambda text: lattice(text, scores, fallback, min(usual)), parts)


def _fallback(vocab: Iterable[str], unknown: str | None, by_bytes: bool) -> Callable[[str], list[str]]:
    """Tokens of characters without one: their byte tokens if there are all, else the unknown token."""
    known = set(vocab) if by_bytes else set[str]()

    def tokens(text: str) -> list[str]:
        spelled = [f"<0x{byte:02X}>" for byte in text.encode()]
        if by_bytes and known.issuperset(spelled):
            return spelled
        return [] if unknown is None else [unknown]

    return tokens


def _fused(tokens: Iterable[str], unknown: str | None, fuse: bool) -> tuple[str, ...]:
    """Tokens with each run of unknown ones as one, if they are fused."""
    kept: list[str] = []
    for token in tokens:
        if not (fuse and token == unknown and kept[-1:] == [unknown]):
            kept.append(token)
    return tuple(kept)


def merged(
    symbols: Iterable[str],
    rank: Callable[[str, str], int | None],
    join: Callable[[str, str], str],
    whole: frozenset[str] = frozenset(),
) -> tuple[tuple[str, ...], tuple[Merge, ...]]:
    """The first symbols, and the merges of BPE (arXiv:1508.07909).

    Each merge takes the pair of lowest rank, the leftmost of equals. Symbols in `whole` are not merged.
    """
    start = now = tuple(symbols)
    merges: list[Merge] = []
    while True:
        found = [
            (each, at)
            for at, (left, right) in enumerate(pairwise(now))
            if not {left, right} & whole and (each := rank(left, right)) is not None
        ]
        if not found:
            return start, tuple(merges)
        first, at = min(found)
        left, right = now[at : at + 2]
        now = (*now[:at], join(left, right), *now[at + 2 :])
        merges.append(Merge(left, right, first, now))


def lattice(text: str, scores: Mapping[str, float], fallback: Callable[[str], list[str]], worst: float) -> SplitPart:
    """The Unigram lattice of `text` (arXiv:1804.10959, 3.1) with its best path by Viterbi's algorithm.

    A character that is no piece has an edge with 10 less than the `worst` score; runs of such are looked up together.
    """
    longest = max(map(len, scores), default=1)
    edges: list[Edge] = []
    for start in range(len(text)):
        stops = range(start + 1, min(start + longest, len(text)) + 1)
        here = [
            Edge(start, stop, text[start:stop], scores[text[start:stop]])
            for stop in stops
            if text[start:stop] in scores
        ]
        if not any(edge.stop == start + 1 for edge in here):
            here.insert(0, Edge(start, start + 1, text[start], worst - _UNKNOWN_PENALTY))
        edges += here
    path = _best_path(edges, len(text))
    tokens: list[str] = []
    run = ""
    for edge in path:
        known = edge.piece in scores
        if known and run:
            tokens += fallback(run)
            run = ""
        if known:
            tokens.append(edge.piece)
        else:
            run += edge.piece
    tokens += fallback(run) if run else []
    best = set(path)
    shown = tuple(Edge(e.start, e.stop, e.piece, e.score, best=e in best) for e in edges)
    return SplitPart(text, tuple(text), shown, tuple(tokens))


def _best_path(edges: Iterable[Edge], length: int) -> list[Edge]:
    """The edges of the path from 0 to `length` with the best sum of scores; of equals, the first found."""
    best: list[tuple[float, Edge | None]] = [(0.0, None), *((-math.inf, None) for _ in range(length))]
    for edge in edges:  # sorted by their starts, so that best[edge.start] is final
        score = best[edge.start][0] + edge.score
        if score > best[edge.stop][0]:
            best[edge.stop] = (score, edge)
    path: list[Edge] = []
    at = length
    while (edge := best[at][1]) is not None:
        path.append(edge)
        at = edge.start
    return path[::-1]


def word_pieces(text: str, state: Mapping[str, Any]) -> SplitPart:
    """WordPiece's greedy longest matches. One place without a match makes the whole word unknown."""
    vocab, prefix, unknown = state["vocab"], state["continuing_subword_prefix"], state["unk_token"]
    if len(text) > state["max_input_chars_per_word"]:
        return SplitPart(text, (text,), (), (unknown,))
    matches: list[Match] = []
    at = 0
    while at < len(text):
        candidates = ((prefix if at else "") + text[at:stop] for stop in range(len(text), at, -1))
        found = next(((tried, each) for tried, each in enumerate(candidates, 1) if each in vocab), None)
        if found is None:
            matches.append(Match(at, None, len(text) - at))
            return SplitPart(text, (text,), tuple(matches), (unknown,))
        tried, token = found
        matches.append(Match(at, token, tried))
        at += len(token) - (len(prefix) if at else 0)
    return SplitPart(text, (text,), tuple(matches), tuple(match.token or "" for match in matches))
