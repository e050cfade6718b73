"""sentencepiece tokenizers (tokenizer.model), with special tokens and spaces as in transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from macllm.errors import CheckpointError
from macllm.files import wrong_content

from .decoding import (
    TEXT_CLEANUP,
    ByteFallback,
    Metaspace,
    ReplaceInText,
    ReplaceInToken,
    Stage,
    StripText,
    close_stages,
    push_through,
)
from .json_data import REDOWNLOAD
from .piece_offsets import characters_of, pieces_of
from .settings import AddedToken, TokenizerSettings

if TYPE_CHECKING:
    import sentencepiece

_UNIGRAM, _BPE = 1, 2
_CONTROL, _USER_DEFINED = 3, 4
_SYMBOL_ENDS = (bytes([0x18, _CONTROL]), bytes([0x18, _USER_DEFINED]))  # field 3, the kind, comes last
_SPACE = "\u2581"
# Models with Llama's tokenizer class that transformers tokenizes by sentencepiece's own rules.
_SENTENCEPIECE_RULES = (
    "fuyu internlm2 internlm3 jamba llava llava_next minicpm3 ministral ministral3 mistral mistral3 mixtral nemotron"
    " persimmon phi3 phi3_v phimoe pixtral voxtral"
)


@dataclass(frozen=True)
class SentencePieceModel:
    """A sentencepiece model file and the settings in it."""

    data: bytes
    kind: int = _UNIGRAM
    byte_fallback: bool = False
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    symbols: tuple[AddedToken, ...] = ()  # control and user-defined pieces

    @property
    def is_bpe(self) -> bool:
        """True for BPE, False for Unigram and others."""
        return self.kind == _BPE

    @classmethod
    def read(cls, path: Path) -> SentencePieceModel:
        """Read a model file. Raises `CheckpointError` for an invalid one."""
        data = path.read_bytes()
        try:
            return _parse(data)
        except (IndexError, ValueError) as error:
            raise unreadable(path, error) from error

    def processor(self, *, add_dummy_prefix: bool, normalized: bool = True) -> sentencepiece.SentencePieceProcessor:
        """A processor with or without a space before the text, and with or without normalization."""
        import sentencepiece

        # A message appended to a protobuf is merged into it, the later value wins: normalizer_spec.add_dummy_prefix,
        # and for no normalization an empty precompiled_charsmap and no remove_extra_whitespaces.
        rules = [0x18, int(add_dummy_prefix), *([] if normalized else [0x12, 0, 0x20, 0])]
        return sentencepiece.SentencePieceProcessor(model_proto=self.data + bytes([0x1A, len(rules), *rules]))


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for an invalid sentencepiece file."""
    cause, remedy = wrong_content(path) or (str(error) or type(error).__name__, REDOWNLOAD)
    return CheckpointError(f"{path} is not a valid sentencepiece model.", cause=cause, remedy=remedy)


def _parse(data: bytes) -> SentencePieceModel:
    """Parse the needed fields of sentencepiece_model.proto (1 pieces, 2 trainer, 3 normalizer)."""
    model = SentencePieceModel(data)
    symbols, start = _leading_pieces(data)
    for field, value in _fields(data, start):
        if field == 1 and isinstance(value, bytes):
            symbols += _symbol(value) if value[-2:] in _SYMBOL_ENDS else []
        elif field == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value))
            model = replace(model, kind=trainer.get(3, _UNIGRAM), byte_fallback=bool(trainer.get(35, 0)))
        elif field == 3 and isinstance(value, bytes):
            rules = dict(_fields(value))
            model = replace(
                model, add_dummy_prefix=bool(rules.get(3, 1)), remove_extra_whitespaces=bool(rules.get(4, 1))
            )
    return replace(model, symbols=tuple(symbols))


def _leading_pieces(data: bytes) -> tuple[list[AddedToken], int]:
    """Symbols among the short pieces at the start of a file, and the end of these; a fast path."""
    symbols: list[AddedToken] = []
    at = 0
    while data[at : at + 1] == b"\n" and data[at + 1] < 0x80:
        end = at + 2 + data[at + 1]
        if data[end - 2 : end] in _SYMBOL_ENDS:
            symbols += _symbol(data[at + 2 : end])
        at = end
    return symbols, at


def _symbol(piece: bytes) -> list[AddedToken]:
    """The added token of a control or user-defined piece, as a list of one; empty for other pieces."""
    fields = dict(_fields(piece))
    kind, text = fields.get(3), fields.get(1)
    if kind not in (_CONTROL, _USER_DEFINED) or not isinstance(text, bytes):
        return []
    return [AddedToken(text.decode(), special=kind == _CONTROL)]


def _fields(data: bytes, at: int = 0) -> Iterator[tuple[int, int | bytes]]:
    """Iterate over the fields of a protobuf message from `at` on: (number, value)."""
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        size, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}.get(wire, -1), at)
        if size < 0 or at + size > len(data):
            raise ValueError(f"broken message at byte {at}")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    shift = 7
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"broken number at byte {at}")


@dataclass(frozen=True)
class Spacing:
    """Rule for the space before a chunk: "always", "first" (at the start of the text only) or "never".

    With `native`, a chunk that begins with a space gets another one; else its own space counts.
    """

    prefix: str
    native: bool


class SentencePieceBackend:
    """Encodes with sentencepiece, decodes like transformers' converted tokenizers."""

    def __init__(self, path: Path, settings: TokenizerSettings) -> None:
        self._path = path
        self.model = SentencePieceModel.read(path)
        self._family = _family(path, settings)
        self._plain = self._load(add_dummy_prefix=False)
        self.settings = settings = self._named_by_the_model(settings)
        self._spacing = _spacing(self._family, self.model, settings)
        self._added = self._added_tokens(settings)
        self._added_by_id = {index: token for token, index in self._added.values()}
        self.special_ids = frozenset(index for token, index in self._added.values() if token.special)
        self._splitter = AddedTokenSplitter(self._cut_out(settings))
        self._before, self._after = self._ends(settings)
        self._cleanup = settings.flag("clean_up_tokenization_spaces", False) and self.model.kind != _BPE

    def _load(self, *, add_dummy_prefix: bool) -> sentencepiece.SentencePieceProcessor:
        try:
            normalized = self._family not in ("llama", "gemma")  # their classes do not normalize text
            return self.model.processor(add_dummy_prefix=add_dummy_prefix, normalized=normalized)
        except (RuntimeError, ValueError, OSError) as error:
            raise unreadable(self._path, error) from error

    @cached_property
    def _prefixing(self) -> sentencepiece.SentencePieceProcessor:
        return self._load(add_dummy_prefix=True)

    def _named_by_the_model(self, settings: TokenizerSettings) -> TokenizerSettings:
        """The settings with missing named tokens from the model file or the tokenizer class."""
        processor = self._plain
        ids = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
        pieces = {name: processor.id_to_piece(index) for name, index in ids.items() if index >= 0}
        settings = settings.with_defaults(**pieces)
        complete = settings.with_class_defaults(self._family)
        present = {name: token for name, token in complete.named.items() if self._is_piece(token.content)}
        return replace(settings, named={**present, **settings.named})

    def _is_piece(self, text: str) -> bool:
        return self._plain.id_to_piece(self._plain.piece_to_id(text)) == text

    def _added_tokens(self, settings: TokenizerSettings) -> dict[str, tuple[AddedToken, int]]:
        """Every added token with its id: the model's own symbols, then what the settings declare, in order."""
        processor = self._plain
        size = processor.get_piece_size()
        added = {symbol.content: (symbol, processor.piece_to_id(symbol.content)) for symbol in self.model.symbols}
        if self._family == "t5":
            count = int(settings.values.get("extra_ids", 100))
            names = [f"<extra_id_{index}>" for index in range(count - 1, -1, -1)]
            added |= {name: (AddedToken(name, special=True), size + index) for index, name in enumerate(names)}
            size += count
        declared = {token.content: index for index, token in settings.added.items()}
        for token in settings.tokens():
            if token.content in added:
                index = added[token.content][1]
            elif token.content in declared:
                index = declared[token.content]
            elif self._is_piece(token.content):
                index = processor.piece_to_id(token.content)
            else:
                index = max([size, *(1 + taken for _, taken in added.values())])
                if index >= (settings.rows or index + 1):
                    continue  # no declared id, and no row in the embedding
            added[token.content] = (token, index)
        return added

    def _cut_out(self, settings: TokenizerSettings) -> dict[str, AddedToken]:
        """The added tokens that are split off before sentencepiece runs."""
        tokens = {token.content: token for token, _ in self._added.values()}
        if self._family == "sentencepiece":  # sentencepiece finds user-defined tokens itself
            declared = {token.content for token in settings.tokens()}
            own = {symbol.content for symbol in self.model.symbols if not symbol.special} - declared
            tokens = {content: token for content, token in tokens.items() if content not in own}
        return tokens

    def _ends(self, settings: TokenizerSettings) -> tuple[list[int], list[int]]:
        """The ids that encoding puts before and after a text."""
        ends: dict[str, list[int]] = {}
        for name in ("bos", "eos"):
            token = settings.named.get(f"{name}_token")
            is_added = settings.flag(f"add_{name}_token", self._family == "t5" and name == "eos")
            index = self.token_to_id(token.content) if token and is_added else None
            ends[name] = [] if index is None else [index]
        return ends["bos"], ends["eos"]

    def added_tokens(self) -> list[str]:
        """The strings that are split off before sentencepiece runs."""
        return list(self._splitter.tokens)

    def processor_for(self, text: str) -> sentencepiece.SentencePieceProcessor:
        """The processor of a text from its start, which adds a space where this tokenizer does."""
        return self._processor(text, first=True)

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included."""
        pieces = self._plain.get_piece_size()
        return pieces + sum(index >= pieces for index in self._added_by_id)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The token ids of `text`."""
        ids: list[int] = []
        for chunk, token, at in self._splitter.split(text):
            if token is not None:
                ids.append(self._added[token][1])
            elif chunk:
                ids += self._encode_chunk(chunk, first=at == 0)
        return [*self._before, *ids, *self._after] if add_special_tokens else ids

    def offsets(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]] | None:
        """The token ids of `text` and the characters of each; None for T5, which rewrites white space."""
        if self._family == "t5":
            return None
        ids, spans = list[int](), list[tuple[int, int]]()
        for chunk, token, at in self._splitter.split(text):
            if token is not None:
                ids.append(self._added[token][1])
                spans.append((at, at + len(token)))
            elif chunk:
                pieces = pieces_of(self._processor(chunk, first=at == 0), chunk)
                ids += [piece.id for piece in pieces]
                spans += [(at + start, at + stop) for start, stop in characters_of(chunk, pieces)]
        if not add_special_tokens:
            return ids, spans
        ends = [(0, 0)] * len(self._before), [(0, 0)] * len(self._after)
        return [*self._before, *ids, *self._after], [*ends[0], *spans, *ends[1]]

    def _encode_chunk(self, chunk: str, *, first: bool) -> list[int]:
        if self._family == "t5":
            chunk = " ".join(chunk.split())
        return self._processor(chunk, first=first).encode(chunk)

    def _processor(self, chunk: str, *, first: bool) -> sentencepiece.SentencePieceProcessor:
        spacing = self._spacing
        if spacing.prefix == "never" or (spacing.prefix == "first" and not first):
            return self._plain
        if not spacing.native and chunk[:1] in (" ", _SPACE):
            return self._plain
        return self._prefixing

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of `ids`; unknown ids are left out."""
        stages = self.stages()
        skip = self.special_ids if skip_special_tokens else frozenset[int]()
        tokens = [self.id_to_token(index) for index in ids if index not in skip]
        text = "".join([push_through(stages, token) for token in tokens if token is not None])
        return text + close_stages(stages)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None for an unknown token."""
        if token in self._added:
            return self._added[token][1]
        index = self._plain.piece_to_id(token)
        return index if index >= 0 and self._plain.id_to_piece(index) == token else None

    def id_to_token(self, index: int) -> str | None:
        """The token of an id, None for an unknown id."""
        if index in self._added_by_id:
            return self._added_by_id[index].content
        return self._plain.id_to_piece(index) if 0 <= index < self._plain.get_piece_size() else None

    def stages(self) -> list[Stage]:
        """New stages of the decoder."""
        if self._family == "t5":
            stages: list[Stage] = [Metaspace(_SPACE, prefixed=True)]
        else:
            stages = [ReplaceInToken(_SPACE, " ")]
            if self.model.byte_fallback:
                stages.append(ByteFallback())
            if self._spacing.prefix != "never":
                stages.append(StripText(" ", 1, 0))
        return [*stages, *(ReplaceInText(old, new) for old, new in TEXT_CLEANUP if self._cleanup)]


def _family(path: Path, settings: TokenizerSettings) -> str:
    """The tokenizer family: "llama", "gemma", "t5", or "sentencepiece" for sentencepiece's own rules."""
    family = settings.family
    if not family and path.name == "spiece.model":
        return "t5"
    if family == "llama" and (not settings.tokenizer_class or settings.model_type in _SENTENCEPIECE_RULES.split()):
        return "sentencepiece"
    return family if family in ("t5", "gemma", "llama") else "sentencepiece"


def _spacing(family: str, model: SentencePieceModel, settings: TokenizerSettings) -> Spacing:
    if family == "t5":
        return Spacing("always", native=True)
    if family == "sentencepiece":
        legacy = settings.flag("legacy", True)
        prefix = ("always" if legacy else "first") if model.add_dummy_prefix else "never"
        return Spacing(prefix, native=legacy or model.remove_extra_whitespaces)
    if not settings.flag("add_prefix_space", family == "llama"):
        return Spacing("never", native=True)
    return Spacing("always" if settings.flag("legacy", False) else "first", native=False)


class AddedTokenSplitter:
    """Splits text at added tokens; of several at one place the longest matches."""

    def __init__(self, tokens: Mapping[str, AddedToken]) -> None:
        self.tokens = tokens
        contents = sorted((content for content in tokens if content), key=len, reverse=True)
        self._find: Callable[[str, int], re.Match[str] | None] | None = None
        if contents:
            self._find = re.compile("|".join(re.escape(content) for content in contents)).search

    def split(self, text: str) -> Iterator[tuple[str, str | None, int]]:
        """Chunks in order: (text, None, position) for ordinary text, (content, content, position) for a token."""
        start = at = 0
        while self._find is not None and (match := self._find(text, at)) is not None:
            token = self.tokens[match.group()]
            left, right = match.span()
            if token.single_word and (
                _is_word(text[left - 1 : left] if left else "") or _is_word(text[right : right + 1])
            ):
                at = right
                continue
            if token.lstrip:
                left = start + len(text[start:left].rstrip())
            if token.rstrip:
                right = len(text) - len(text[right:].lstrip())
            yield text[start:left], None, start
            yield token.content, token.content, left
            start = at = right
        yield text[start:], None, start


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"
