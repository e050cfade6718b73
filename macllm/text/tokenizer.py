"""Text to tokens and back, from the files of a model folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from macllm.errors import ModelNotFoundError, UsageError
from macllm.files import replacing

from .detokenizer import Detokenizer
from .json_data import REDOWNLOAD
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
_TAIL_TOKENS = 64  # of a text that goes on; how its end is decoded depends on no more
_NO_LIMIT = 10**9  # transformers writes 10**30 for "no limit known"


class Backend(Protocol):
    """What runs the vocabulary."""

    @property
    def settings(self) -> TokenizerSettings:
        """The settings, completed by the defaults of the format."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """What `skip_special_tokens` leaves out."""
        ...

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included."""
        ...

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The token ids of `text`."""
        ...

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of `ids`; ids that are no token are left out."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None where there is no such token."""
        ...

    def id_to_token(self, index: int) -> str | None:
        """The token of an id, None where there is no such id."""
        ...

    def stages(self) -> list[Stage] | None:
        """The decoder as fresh stages, None where it has a step that is not known."""
        ...


class Tokenizer:
    """A model's tokenizer: encodes, decodes, renders conversations.

    Safe to share between threads for reading.
    """

    def __init__(self, folder: Path, backend: Backend) -> None:
        self.folder = folder
        self.settings = backend.settings
        self._backend = backend
        self.special_ids = backend.special_ids
        self._template: ChatTemplate | None = None
        self._template_read = False

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a model folder.

        Taken from, in this order: tokenizer.json, source.spm (Marian), tokenizer.model or spiece.model
        (sentencepiece), vocab.json with merges.txt (byte-level BPE), vocab.txt (WordPiece).
        Raises `ModelNotFoundError` where there is none of them, `CheckpointError` where one is damaged.
        """
        folder = Path(folder)
        return cls(folder, _open(folder, TokenizerSettings.from_folder(folder)))

    def __reduce__(self) -> tuple[object, ...]:
        """Another process reads the files again."""
        return (Tokenizer.from_folder, (str(self.folder),))

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included; a model's embedding may have more rows."""
        return self._backend.vocab_size

    @property
    def max_length(self) -> int | None:
        """The longest input in tokens that `model_max_length` allows, None where it sets no limit."""
        limit = self.settings.values.get("model_max_length")
        return int(limit) if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT else None

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token that begins a text."""
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text; `generation_config.json` may know more of them."""
        return self._named_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """The id of the token that fills up a batch."""
        return self._named_id("pad_token")

    @property
    def unk_token_id(self) -> int | None:
        """The id of the token for what has no token."""
        return self._named_id("unk_token")

    def _named_id(self, name: str) -> int | None:
        token = self.settings.named.get(name)
        return None if token is None else self._backend.token_to_id(token.content)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`; an added token in the text is that token.

        `add_special_tokens` puts what the model expects around a text, such as the begin token.
        A lone surrogate, which no UTF-8 text has, counts as U+FFFD. Raises `UsageError` for anything but a text.
        """
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"encode takes one text, and this is {kind_of(text)}.", remedy="tokenizer.encode(text)")
        return self._backend.encode(_valid(text), add_special_tokens)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids; ids beyond the vocabulary have none. Raises `UsageError` for what are no ids."""
        try:
            known = [each for each in map(index, ids) if 0 <= each < 1 << 32]
        except TypeError as error:
            raise UsageError(
                f"decode takes token ids, and this is {kind_of(ids)}.", cause=str(error), remedy="tokenizer.decode([1])"
            ) from error
        return self._backend.decode(known, skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, None where it has no such token."""
        return self._backend.token_to_id(token)

    def id_to_token(self, index: int) -> str | None:
        """A token as the vocabulary writes it, None where it has no such id."""
        return self._backend.id_to_token(index) if 0 <= index < 1 << 32 else None

    def detokenizer(self, skip_special_tokens: bool = False, *, after: Sequence[int] = ()) -> Detokenizer:
        """A fresh stream of text, exact: all its pieces together are `decode` of all the tokens.

        `after` are the tokens of a text that the stream continues: with them in front the pieces are what `decode`
        adds to that text, a space before the first word too. Special tokens among them are no text.
        """
        tail = [index for index in after[-_TAIL_TOKENS:] if index not in self.special_ids]
        return Detokenizer(
            self.id_to_token,
            self._backend.stages(),
            skip=self.special_ids if skip_special_tokens else frozenset(),
            decode=lambda ids: self.decode(ids, skip_special_tokens),
            after=tail,
        )

    @property
    def chat_template(self) -> ChatTemplate | None:
        """How the model wants a conversation written, None for a model that only completes text."""
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
        """The conversation as the model's chat template writes it; `variables` such as `enable_thinking` reach it.

        Raises `TemplateError` where the template refuses, `UsageError` where the model has none.
        """
        if self.chat_template is None:
            raise UsageError(
                f"The model in {self.folder} has no chat template.",
                cause="it was trained to continue text, not to converse",
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
        """The tokens of `render`, which has written all special tokens itself."""
        text = self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False)

    def save(self, folder: str | Path) -> None:
        """Copies the files it came from into `folder`, each whole or not at all."""
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
    """`text` with U+FFFD for lone surrogates, which the tokenizing libraries refuse."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as original, replacing(target) as file:
        shutil.copyfileobj(original, file)
        shutil.copymode(source, file.name)
