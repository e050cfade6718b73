"""What the `tokenizers` library runs: tokenizer.json, WordPiece's vocab.txt, GPT-2's vocab.json + merges.txt."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from macllm.errors import CheckpointError

from .decoding import TEXT_CLEANUP, ReplaceInText, Stage, stages_of
from .json_data import REDOWNLOAD
from .settings import AddedToken, TokenizerSettings

if TYPE_CHECKING:
    import tokenizers

_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class FastBackend:
    """Encodes and decodes through a `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
        self._tokenizer = tokenizer
        self.settings = settings
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = False
        _add_tokens(tokenizer, settings)
        named = {token.content for token in settings.named.values()} if settings.family else set[str]()
        added = tokenizer.get_added_tokens_decoder()
        ordinary = [token.content for token in added.values() if not token.special and token.content in named]
        if ordinary:
            tokenizer.add_special_tokens(ordinary)  # pyright: ignore[reportUnknownMemberType]
        self.special_ids = frozenset(i for i, token in added.items() if token.special or token.content in ordinary)
        model = type(tokenizer.model).__name__
        # Closing the gap before punctuation undoes WordPiece; in BPE the space was the model's own.
        self._cleanup = settings.flag("clean_up_tokenization_spaces", False) and (
            model != "BPE"
            or settings.flag("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
        )
        self._decoder: dict[str, Any] | None = None

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The token ids of `text`."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of `ids`; ids that are no token are left out."""
        text = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        for old, new in TEXT_CLEANUP if self._cleanup else ():
            text = text.replace(old, new)
        return text

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None where there is no such token."""
        return self._tokenizer.token_to_id(token)

    def id_to_token(self, index: int) -> str | None:
        """The token of an id, None where there is no such id."""
        return self._tokenizer.id_to_token(index)

    def stages(self) -> list[Stage] | None:
        """The decoder as fresh stages, None where it has a step that is not known here."""
        if self._decoder is None:
            decoder = self._tokenizer.decoder
            # The library tells a decoder's parameters only by pickling it, to the JSON of tokenizer.json.
            self._decoder = {"state": json.loads(decoder.__getstate__()) if decoder is not None else None}
        stages = stages_of(self._decoder["state"])
        if stages is None or not self._cleanup:
            return stages
        return [*stages, *(ReplaceInText(old, new) for old, new in TEXT_CLEANUP)]


def _add_tokens(tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
    """Adds what the settings name and the tokenizer does not know yet, in the order of the ids they declare."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing: dict[str, AddedToken] = {}
    for token in settings.tokens():
        if token.content not in known:
            missing.setdefault(token.content, token)
    if missing:
        tokens = [_library_token(token) for token in missing.values()]
        tokenizer.add_tokens(tokens)  # pyright: ignore[reportUnknownMemberType]


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
    """The result of `make()`, whose failures mean that `path` is damaged."""
    try:
        return make()
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            f"{path} is no tokenizer that can be read.",
            cause=str(error),
            remedy=REDOWNLOAD,
        ) from error


def load_json(path: Path, settings: TokenizerSettings) -> FastBackend:
    """The tokenizer that tokenizer.json describes in full."""
    import tokenizers

    tokenizer = _build(lambda: tokenizers.Tokenizer.from_file(str(path)), path)
    complete = settings.with_class_defaults(settings.family)
    present = {
        name: token for name, token in complete.named.items() if tokenizer.token_to_id(token.content) is not None
    }
    return FastBackend(tokenizer, replace(complete, named={**present, **settings.named}))


def load_wordpiece(path: Path, settings: TokenizerSettings) -> FastBackend:
    """BERT's tokenizer over vocab.txt, cased or not as `do_lower_case` says."""
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
    """Makes encoding put the begin and end tokens that `add_bos_token` and `add_eos_token` ask for."""
    from tokenizers import processors

    ends = {name: settings.named.get(f"{name}_token") for name in ("bos", "eos")}
    used = {name: token.content for name, token in ends.items() if token and settings.flag(f"add_{name}_token", False)}
    single = " ".join([*([used["bos"]] if "bos" in used else []), "$A", *([used["eos"]] if "eos" in used else [])])
    ids = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(used.values())]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
