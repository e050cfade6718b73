"""Tokenizer of a model folder: encoding, decoding and chat rendering."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from macllm.errors import CheckpointError, ModelNotFoundError, UsageError
from macllm.files import replacing

from .detokenizer import Detokenizer
from .json_data import REDOWNLOAD, is_list, read_json
from .messages import kind_of
from .settings import TokenizerSettings

if TYPE_CHECKING:
    from .decoding import Stage
    from .template import ChatTemplate

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "source.spm",
    "target.spm",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_TAIL_TOKENS = 64  # context for decoding a continuation; more has no effect
_NO_LIMIT = 10**9  # transformers writes 10**30 for "no limit known"


class Backend(Protocol):
    """Interface of a tokenizer implementation."""

    @property
    def settings(self) -> TokenizerSettings:
        """The settings with the format's defaults."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        ...

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The token ids of `text`."""
        ...

    def offsets(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]] | None:
        """The token ids of `text` and the characters of each, None where they are not known."""
        ...

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of `ids`; unknown ids are left out."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None for an unknown token."""
        ...

    def id_to_token(self, index: int) -> str | None:
        """The token of an id, None for an unknown id."""
        ...

    def stages(self) -> list[Stage] | None:
        """New stages of the decoder, None if a step is not supported."""
        ...


class EncodesText(Protocol):
    """A tokenizer as far as it encodes."""

    @property
    def eos_token_id(self) -> int | None:
        """The end token."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text."""
        ...


class Tokenizer:
    """A model's tokenizer: encodes, decodes, renders conversations.

    Safe to share between threads for reading.
    """

    def __init__(self, folder: Path, backend: Backend) -> None:
        self.folder = folder
        self.settings = backend.settings
        self.backend = backend
        self.special_ids = backend.special_ids
        self._template: ChatTemplate | None = None
        self._template_read = False
        self._end_ids: frozenset[int] | None = None

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a model folder.

        Source, in this order: tokenizer.json, source.spm (Marian), tokenizer.model or spiece.model
        (sentencepiece), vocab.json with merges.txt (byte-level BPE), vocab.txt (WordPiece).
        Raises `ModelNotFoundError` without any of these files, `CheckpointError` for a damaged one.
        """
        folder = Path(folder)
        return cls(folder, _open(folder, TokenizerSettings.from_folder(folder)))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the folder only: another process reads the files again."""
        return (Tokenizer.from_folder, (str(self.folder),))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's embedding may have more rows."""
        return self.backend.vocab_size

    @property
    def max_length(self) -> int | None:
        """The maximum input length in tokens (`model_max_length`), None without a limit."""
        limit = self.settings.values.get("model_max_length")
        return int(limit) if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT else None

    @property
    def bos_token_id(self) -> int | None:
        """The id of the begin-of-sequence token."""
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id of the end-of-sequence token; generation_config.json may list more."""
        return self._named_id("eos_token")

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Ids that end an answer: the end-of-sequence token, and those of the checkpoint.

        They are in generation_config.json, else in config.json.
        """
        if self._end_ids is None:
            self._end_ids = self._read_end_ids()
        return self._end_ids

    def _read_end_ids(self) -> frozenset[int]:
        own = self.eos_token_id
        for name in ("generation_config.json", "config.json"):
            try:
                given: Any = read_json(self.folder / name).get("eos_token_id")
            except CheckpointError:  # reported where the model is loaded
                continue
            listed = given if is_list(given) else [given]
            ids = frozenset(each for each in listed if isinstance(each, int) and not isinstance(each, bool))
            if ids:
                return ids if own is None else ids | {own}
        return frozenset(() if own is None else (own,))

    @property
    def pad_token_id(self) -> int | None:
        """The id of the padding token."""
        return self._named_id("pad_token")

    @property
    def unk_token_id(self) -> int | None:
        """The id of the unknown token."""
        return self._named_id("unk_token")

    @property
    def mask_token_id(self) -> int | None:
        """The id of the token that stands for masked ones."""
        return self._named_id("mask_token")

    def _named_id(self, name: str) -> int | None:
        token = self.settings.named.get(name)
        return None if token is None else self.backend.token_to_id(token.content)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`; added tokens in the text are recognized.

        `add_special_tokens` adds the tokens that the model expects around a text, such as the begin token.
        A lone surrogate, invalid in UTF-8, counts as U+FFFD. Raises `UsageError` for anything but a string.
        """
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"encode takes a string, and this is {kind_of(text)}.", remedy="tokenizer.encode(text)")
        return self.backend.encode(_valid(text), add_special_tokens)

    def offsets(self, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[tuple[int, int]]] | None:
        """The token ids of `text` and the characters [start, stop) of each; None where they are not known.

        An added token that is no part of the text has the characters (0, 0). Tokens in the middle of a character have
        the whole character; a tokenizer may leave out white space at the ends of a token.
        """
        valid = _valid(text)
        return self.backend.offsets(valid, add_special_tokens) if len(valid) == len(text) else None

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids; ids beyond the vocabulary are ignored. Raises `UsageError` for other values."""
        try:
            known = [each for each in map(index, ids) if 0 <= each < 1 << 32]
        except TypeError as error:
            raise UsageError(
                f"decode takes token ids, and this is {kind_of(ids)}.", cause=str(error), remedy="tokenizer.decode([1])"
            ) from error
        return self.backend.decode(known, skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token in the vocabulary's spelling, None for an unknown token."""
        return self.backend.token_to_id(token)

    def id_to_token(self, index: int) -> str | None:
        """The token of an id in the vocabulary's spelling, None for an unknown id."""
        return self.backend.id_to_token(index) if 0 <= index < 1 << 32 else None

    def detokenizer(self, skip_special_tokens: bool = False, *, after: Sequence[int] = ()) -> Detokenizer:
        """A new streaming detokenizer: its concatenated output equals `decode` of all tokens.

        `after` are the tokens of a preceding text: the output is then what `decode` appends to that text, including a
        space before the first word. Special tokens among them are ignored.
        """
        tail = [index for index in after[-_TAIL_TOKENS:] if index not in self.special_ids]
        return Detokenizer(
            self.id_to_token,
            self.backend.stages(),
            skip=self.special_ids if skip_special_tokens else frozenset(),
            decode=lambda ids: self.decode(ids, skip_special_tokens),
            after=tail,
        )

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The model's chat template, None for a base model."""
        if not self._template_read:
            from .template import ChatTemplate

            named = {name: token.content for name, token in self.settings.named.items()}
            self._template = ChatTemplate.from_folder(self.folder, self.settings.values, named)
            self._template_read = True
        return self._template

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Render a conversation with the chat template and its `variables`, such as `enable_thinking`.

        Raises `TemplateError` if the template rejects it, `UsageError` for a model without a template.
        """
        if self.chat_template is None:
            raise UsageError(
                f"The model in {self.folder} has no chat template.",
                cause="models without one continue or rewrite text; they were not trained to chat",
                remedy="macllm generate, or a model whose name ends in -Instruct, -it or -chat",
            )
        return self.chat_template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Tokenize the text of `render`, which includes all special tokens."""
        text = self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False)

    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's files to `folder`, each atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            source = self.folder / name
            if source.is_file() and source.resolve() != (folder / name).resolve():
                _copy(source, folder / name)
        extra = self.folder / "additional_chat_templates"
        if extra.is_dir() and extra.resolve() != (folder / extra.name).resolve():
            (folder / extra.name).mkdir(exist_ok=True)
            for source in sorted(extra.glob("[!.]*.jinja")):
                _copy(source, folder / extra.name / source.name)


def encode_unended(tokenizer: EncodesText, text: str) -> list[int]:
    """The tokens of a text to continue: without the end token that the tokenizer adds, if it adds one."""
    tokens = tokenizer.encode(text)
    if tokens[-1:] != [tokenizer.eos_token_id]:
        return tokens
    bare = tokenizer.encode(text, add_special_tokens=False)  # of these, an end token is the text's own
    return tokens[:-1] if tokens[-1 - len(bare) : -1] == bare else tokens


def _open(folder: Path, settings: TokenizerSettings) -> Backend:
    """The backend for the files in `folder`."""
    from . import fast

    path = {name: folder / name for name in FILES}
    if path["tokenizer.json"].is_file():
        return fast.load_json(path["tokenizer.json"], settings)
    if path["source.spm"].is_file() and path["vocab.json"].is_file():
        from .marian import MarianBackend

        return MarianBackend(folder, settings)
    for name in ("tokenizer.model", "spiece.model"):
        if path[name].is_file():
            from .pieces import SentencePieceBackend

            return SentencePieceBackend(path[name], settings)
    if path["vocab.json"].is_file() and path["merges.txt"].is_file():
        return fast.load_byte_bpe(path["vocab.json"], path["merges.txt"], settings)
    if path["vocab.txt"].is_file():
        return fast.load_wordpiece(path["vocab.txt"], settings)
    raise ModelNotFoundError(
        f"{folder} has no tokenizer.",
        cause="none of tokenizer.json, tokenizer.model, spiece.model, source.spm, vocab.json, vocab.txt",
        remedy=REDOWNLOAD,
    )


def _valid(text: str) -> str:
    """`text` with U+FFFD for lone surrogates, which the tokenizer libraries reject."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as original, replacing(target) as file:
        shutil.copyfileobj(original, file)
        shutil.copymode(source, file.name)
