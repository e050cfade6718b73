"""Marian tokenizer: a pair of sentencepiece models with a shared vocabulary (vocab.json)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from macllm.errors import CheckpointError

from .decoding import Stage, byte_value, close_stages, push_through
from .json_data import REDOWNLOAD, read_json
from .pieces import AddedTokenSplitter, SentencePieceModel, unreadable
from .settings import AddedToken, TokenizerSettings

_SPACE = "\u2581"


class MarianBackend:
    """Splits text with source.spm, looks pieces up in vocab.json and appends `</s>`."""

    def __init__(self, folder: Path, settings: TokenizerSettings) -> None:
        path = folder / "source.spm"
        self.settings = settings = settings.with_class_defaults("marian")
        self._model = SentencePieceModel.read(path)
        try:
            self._processor = self._model.processor(add_dummy_prefix=self._model.add_dummy_prefix)
        except (RuntimeError, ValueError, OSError) as error:
            raise unreadable(path, error) from error
        self._ids: dict[str, int] = read_json(folder / "vocab.json")
        self._unknown = self._require("unk_token", folder)
        self._end = self._require("eos_token", folder)
        added = {token.content: token for token in settings.tokens()}
        for content in added:
            self._ids.setdefault(content, len(self._ids))
        self._tokens = {index: token for token, index in self._ids.items()}
        self._added: dict[str, AddedToken] = added
        self._splitter = AddedTokenSplitter(added)
        self.special_ids = frozenset(self._ids[token.content] for token in added.values() if token.special)

    def _require(self, name: str, folder: Path) -> int:
        content = self.settings.named[name].content
        if content not in self._ids:
            raise CheckpointError(
                f"{folder / 'vocab.json'} has no {json.dumps(content)}, its {name.replace('_', ' ')}.",
                remedy=REDOWNLOAD,
            )
        return self._ids[content]

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included."""
        return len(self._ids)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The token ids of `text`; a leading language code such as `>>fra<<` is one token."""
        ids: list[int] = []
        for chunk, token, _ in self._splitter.split(text):
            if token is not None:
                ids.append(self._ids[token])
            elif chunk:
                ids += [self._ids.get(piece, self._unknown) for piece in self._pieces(chunk)]
        return [*ids, self._end] if add_special_tokens else ids

    def _pieces(self, text: str) -> list[str]:
        code: list[str] = []
        if text.startswith(">>") and (end := text.find("<<")) >= 0:
            code, text = [text[: end + 2]], text[end + 2 :]
        return code + self._processor.encode(text, out_type=str)

    def offsets(self, text: str, add_special_tokens: bool) -> None:
        """None: sentencepiece normalizes text before it splits it."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of `ids`; unknown ids are left out."""
        stages = self.stages()
        skip = self.special_ids if skip_special_tokens else frozenset[int]()
        tokens = [self.id_to_token(index) for index in ids if index not in skip]
        text = "".join([push_through(stages, token) for token in tokens if token is not None])
        return text + close_stages(stages)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None for an unknown token."""
        return self._ids.get(token)

    def id_to_token(self, index: int) -> str | None:
        """The token of an id, None for an unknown id."""
        return self._tokens.get(index)

    def stages(self) -> list[Stage]:
        """New stages of the decoder."""
        specials = frozenset(token.content for token in self._added.values() if token.special)
        return [_PieceRuns(specials, self._model), _StripEnds()]


class _PieceRuns:
    """Decodes runs of pieces between special tokens; a special token is kept, with a space after it."""

    def __init__(self, specials: frozenset[str], model: SentencePieceModel) -> None:
        self._specials = specials
        self._trims = model.add_dummy_prefix or model.remove_extra_whitespaces
        self._all_spaces = model.remove_extra_whitespaces
        self._at_start = True
        self._run = bytearray()

    def push(self, piece: str) -> Iterable[str]:
        value = byte_value(piece)
        if value is not None:
            self._run.append(value)
            self._at_start = False
            return ()
        held = self.close()
        if piece in self._specials:
            self._at_start = True
            return (*held, piece, " ")
        if self._at_start and self._trims:
            trimmed = piece.lstrip(_SPACE) if self._all_spaces else piece.removeprefix(_SPACE)
            self._at_start = not trimmed and self._all_spaces
            piece = trimmed
        return (*held, piece.replace(_SPACE, " "))

    def close(self) -> Iterable[str]:
        run = bytes(self._run)
        self._run.clear()
        return (_decode_bytes(run),) if run else ()


def _decode_bytes(run: bytes) -> str:
    """The text of a run of byte pieces, one U+FFFD for each byte that belongs to no character."""
    return run.decode("utf-8", "surrogateescape").translate({0xDC00 + byte: "\ufffd" for byte in range(0x80, 0x100)})


class _StripEnds:
    """`str.strip` over a text that arrives in pieces."""

    def __init__(self) -> None:
        self._started = False
        self._held = ""

    def push(self, piece: str) -> Iterable[str]:
        text = self._held + (piece if self._started else piece.lstrip())
        self._started = self._started or bool(text)
        kept = text.rstrip()
        self._held = text[len(kept) :]
        return (kept,)

    def close(self) -> Iterable[str]:
        return ()
