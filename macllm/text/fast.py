"""Tokenizers of the `tokenizers` library: tokenizer.json, vocab.txt, vocab.json and merges.txt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from macllm.errors import CheckpointError
from macllm.files import wrong_content

from .decoding import TEXT_CLEANUP, ByteLevel, ReplaceInText, Stage, close_stages, decoder_stages, push_through
from .json_data import REDOWNLOAD
from .settings import AddedToken, TokenizerSettings
from .tokenizer_repair import declared_ids, misread_tokens, moved_ids, repair_decoder, repair_special_ids

if TYPE_CHECKING:
    import tokenizers

_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class FastBackend:
    """Encodes and decodes through a `tokenizers.Tokenizer`."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings, declared: Mapping[str, int] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self.settings = settings
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = False
        _set_flags(tokenizer, settings)
        _add_tokens(tokenizer, settings)
        ids = {token.content: index for index, token in settings.added.items()}
        # The library's ids mapped to declared ids, where they differ.
        self._moved = moved_ids(tokenizer, {**ids, **(declared or {})})
        self._library = {index: own for own, index in self._moved.items()}
        named = {token.content for token in settings.named.values()} if settings.family else set[str]()
        named |= {token.content for token in settings.added.values() if token.special}
        added = tokenizer.get_added_tokens_decoder()
        ordinary = [token.content for token in added.values() if not token.special and token.content in named]
        if ordinary:
            tokenizer.add_special_tokens(ordinary)  # pyright: ignore[reportUnknownMemberType]
        self.special_ids = frozenset(
            self._moved.get(index, index)
            for index, token in added.items()
            if token.special or token.content in ordinary
        )
        model = type(tokenizer.model).__name__
        # Removing the space before punctuation undoes WordPiece; in BPE the space is part of the text.
        self._cleanup = settings.flag("clean_up_tokenization_spaces", False) and (
            model != "BPE"
            or settings.flag("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
        )
        self._decoder: dict[str, Any] | None = None
        self._literal = misread_tokens(tokenizer)

    @property
    def library(self) -> tokenizers.Tokenizer:
        """The library's tokenizer."""
        return self._tokenizer

    def added_tokens(self) -> list[str]:
        """The strings that are always one token."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The token ids of `text`."""
        ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return [self._moved.get(index, index) for index in ids] if self._moved else ids

    def offsets(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """The token ids of `text` and the characters of each."""
        encoded = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        ids = [self._moved.get(index, index) for index in encoded.ids] if self._moved else encoded.ids
        return ids, encoded.offsets

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of `ids`; unknown ids are left out."""
        if self._literal and (stages := self.stages()) is not None:
            kept = [index for index in ids if not skip_special_tokens or index not in self.special_ids]
            pieces = [push_through(stages, token) for index in kept if (token := self.id_to_token(index)) is not None]
            return "".join(pieces) + close_stages(stages)
        if self._moved:
            ids = [own for index in ids if (own := self._own(index)) is not None]
        text = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        for old, new in TEXT_CLEANUP if self._cleanup else ():
            text = text.replace(old, new)
        return text

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None for an unknown token."""
        index = self._tokenizer.token_to_id(token)
        return index if index is None else self._moved.get(index, index)

    def id_to_token(self, index: int) -> str | None:
        """The token of an id, None for an unknown id."""
        own = self._own(index)
        return own if own is None else self._tokenizer.id_to_token(own)

    def _own(self, index: int) -> int | None:
        """The library's id for a declared id, None for an id that only the library uses."""
        return self._library.get(index, None if index in self._moved else index)

    def stages(self) -> list[Stage] | None:
        """New stages of the decoder, None if a step is not supported."""
        if self._decoder is None:
            decoder = self._tokenizer.decoder
            # The library exposes a decoder's parameters only through pickling, as the JSON of tokenizer.json.
            self._decoder = {"state": json.loads(decoder.__getstate__()) if decoder is not None else None}
        stages = decoder_stages(self._decoder["state"])
        for stage in stages or ():
            if isinstance(stage, ByteLevel):
                stage.literal = self._literal
        if stages is None or not self._cleanup:
            return stages
        return [*stages, *(ReplaceInText(old, new) for old, new in TEXT_CLEANUP)]


def _add_tokens(tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
    """Add the tokens of the settings that the tokenizer lacks, in the order of their declared ids.

    A token without a declared id and without a row in the embedding is left out: its text is split like any other.
    """
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    declared = {token.content for token in settings.added.values()}
    missing: dict[str, AddedToken] = {}
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    for token in settings.tokens():
        if token.content in known or token.content in missing:
            continue
        new = tokenizer.token_to_id(token.content) is None
        if new and token.content not in declared and size >= (settings.rows or size + 1):
            continue
        missing[token.content] = token
        size += new
    if missing:
        tokens = [_library_token(token) for token in missing.values()]
        tokenizer.add_tokens(tokens)  # pyright: ignore[reportUnknownMemberType]


def _set_flags(tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
    """Set the flags of added tokens from tokenizer_config.json, as transformers does; keep `special`."""
    if "added_tokens_decoder" not in settings.values:  # added_tokens.json has no flags
        return
    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    declared = (token for token in settings.added.values() if token.content in known)
    tokens = [_library_token(replace(each, special=each.special or known[each.content].special)) for each in declared]
    changed = [token for token in tokens if _flags(token) != _flags(known[token.content])]
    if changed:
        tokenizer.add_tokens(changed)  # pyright: ignore[reportUnknownMemberType]


def _flags(token: tokenizers.AddedToken) -> tuple[bool, ...]:
    return token.special, token.lstrip, token.rstrip, token.single_word, token.normalized


def _library_token(token: AddedToken) -> tokenizers.AddedToken:
    import tokenizers

    return tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _build(make: Any, path: Path) -> Any:
    """Call `make()` and report its failure as a damaged file `path`."""
    try:
        return make()
    except Exception as error:  # the library raises bare Exception
        cause, remedy = wrong_content(path) or (str(error), REDOWNLOAD)
        raise CheckpointError(f"{path} is not a valid tokenizer.", cause=cause, remedy=remedy) from error


def load_json(path: Path, settings: TokenizerSettings) -> FastBackend:
    """The tokenizer of tokenizer.json."""
    import tokenizers

    tokenizer: tokenizers.Tokenizer = _build(lambda: tokenizers.Tokenizer.from_file(str(path)), path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    repair_decoder(tokenizer)
    complete = settings.with_class_defaults(settings.family)
    present = {
        name: token for name, token in complete.named.items() if tokenizer.token_to_id(token.content) is not None
    }
    complete = replace(complete, named={**present, **settings.named})
    backend = FastBackend(tokenizer, complete, declared_ids(path))
    repair_special_ids(tokenizer, backend.token_to_id)
    return backend


def load_wordpiece(path: Path, settings: TokenizerSettings) -> FastBackend:
    """BERT's WordPiece tokenizer over vocab.txt, cased or uncased by `do_lower_case`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    settings = settings.with_class_defaults("bert")
    lines = _build(lambda: path.read_text(encoding="utf-8"), path).split("\n")
    vocab = {token: index for index, token in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=settings.named["unk_token"].content))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=settings.values.get("strip_accents"),
        lowercase=settings.flag("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    backend = FastBackend(tokenizer, settings)
    first, last = settings.named["cls_token"].content, settings.named["sep_token"].content
    ids = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B:1 {last}:1", special_tokens=ids
    )
    return backend


def load_byte_bpe(vocab: Path, merges: Path, settings: TokenizerSettings) -> FastBackend:
    """Byte-level BPE over vocab.json and merges.txt: RoBERTa, BART, Qwen 2, else GPT-2."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    family = settings.family if settings.family in ("roberta", "qwen2") else "gpt2"
    settings = settings.with_class_defaults(family)
    read = cast("Callable[[str, str], models.BPE]", models.BPE.from_file)  # pyright: ignore[reportUnknownMemberType]
    tokenizer = Tokenizer(_build(lambda: read(str(vocab), str(merges)), merges))
    prefix_space = settings.flag("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    if family == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated", invert=False)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend = FastBackend(tokenizer, settings)
    if family == "roberta":
        first, last = (settings.named[name].content for name in ("cls_token", "sep_token"))
        tokenizer.post_processor = processors.RobertaProcessing(
            (last, tokenizer.token_to_id(last) or 0),
            (first, tokenizer.token_to_id(first) or 0),
            trim_offsets=settings.flag("trim_offsets", True),
            add_prefix_space=prefix_space,
        )
    else:
        _set_ends(tokenizer, settings)
    return backend


def _set_ends(tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
    """Add begin and end tokens to encoding, as set by `add_bos_token` and `add_eos_token`."""
    from tokenizers import processors

    ends = {name: settings.named.get(f"{name}_token") for name in ("bos", "eos")}
    used = {name: token.content for name, token in ends.items() if token and settings.flag(f"add_{name}_token", False)}
    single = " ".join([*([used["bos"]] if "bos" in used else []), "$A", *([used["eos"]] if "eos" in used else [])])
    ids = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(used.values())]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
