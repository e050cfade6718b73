"""Tokenizer settings: named tokens, added tokens and flags of tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from macllm.errors import CheckpointError

from .json_data import REDOWNLOAD, is_object, list_in, object_in, read_json

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_END = "<|endoftext|>"
_BRACKETS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ANGLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_ROBERTA = {**_ANGLES, "sep_token": "</s>", "cls_token": "<s>", "pad_token": "<pad>", "mask_token": "<mask>"}
_GEMMA = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
# The tokens that a tokenizer class names when its config does not.
_CLASS_TOKENS = {
    "bert": _BRACKETS,
    "roberta": _ROBERTA,
    "gpt2": {"unk_token": _END, "bos_token": _END, "eos_token": _END},
    "qwen2": {"unk_token": _END, "eos_token": _END, "pad_token": _END},
    "t5": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "marian": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "gemma": _GEMMA,
    "llama": _ANGLES,
}
_ALIASES = {
    "bart": "roberta",
    "longformer": "roberta",
    "led": "roberta",
    "mt5": "t5",
    "umt5": "t5",
    "codellama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
}


@dataclass(frozen=True)
class AddedToken:
    """A string that is always one token.

    `lstrip` and `rstrip` include the white space around it, `single_word` requires word boundaries on both sides,
    `normalized` matches in the normalized text instead of the raw one.
    """

    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @classmethod
    def read(cls, value: Any, *, special: bool) -> AddedToken:
        """The token of a string or an object in JSON; `special` is the default of its flag."""
        if isinstance(value, str):
            return cls(value, special=special)
        if not is_object(value) or not isinstance(value.get("content"), str):
            raise CheckpointError(f"An added token of the tokenizer has no content: {value!r}.", remedy=REDOWNLOAD)
        flags = {name: bool(value.get(name, False)) for name in ("lstrip", "rstrip", "single_word")}
        is_special = bool(value.get("special", special))
        normalized = bool(value.get("normalized", not is_special))
        return cls(value["content"], special=is_special, normalized=normalized, **flags)


@dataclass(frozen=True)
class TokenizerSettings:
    """tokenizer_config.json, with special_tokens_map.json and added_tokens.json folded in."""

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    named: Mapping[str, AddedToken] = field(default_factory=dict[str, AddedToken])
    extra_special: tuple[AddedToken, ...] = ()
    added: Mapping[int, AddedToken] = field(default_factory=dict[int, AddedToken])
    model_type: str = ""
    rows: int | None = None  # of the model's embedding, `vocab_size` in config.json

    @classmethod
    def from_folder(cls, folder: Path) -> TokenizerSettings:
        """The settings of a model folder; defaults for missing files."""
        values = read_json(folder / "tokenizer_config.json")
        if "added_tokens_decoder" not in values:
            values = {**values, **read_json(folder / "special_tokens_map.json")}
        declared = object_in(values.get("added_tokens_decoder"))
        added = {_id(index): AddedToken.read(token, special=False) for index, token in declared.items()}
        by_content = {token.content: token for token in added.values()}
        named: dict[str, AddedToken] = {}
        for name, value in values.items():
            if name.endswith("_token") and not name.startswith("add_") and _is_token(value):
                token = AddedToken.read(value, special=True)
                named[name] = replace(by_content.get(token.content, token), special=True)
        extra: Any = values.get("extra_special_tokens") or values.get("additional_special_tokens")
        if is_object(extra):
            named |= {name: AddedToken.read(value, special=True) for name, value in extra.items()}
        specials = tuple(AddedToken.read(value, special=True) for value in list_in(extra))
        if not added:
            known = {token.content for token in (*named.values(), *specials)}
            for content, index in read_json(folder / "added_tokens.json").items():
                is_special = content in known
                added[_id(index)] = AddedToken(content, special=is_special, normalized=not is_special)
        config = read_json(folder / "config.json")
        rows = config.get("vocab_size", object_in(config.get("text_config")).get("vocab_size"))
        rows = rows if isinstance(rows, int) and rows > 0 else None
        return cls(values, named, specials, added, str(config.get("model_type", "")), rows)

    @property
    def tokenizer_class(self) -> str:
        """`tokenizer_class` without the suffix "Fast" of transformers 4."""
        return str(self.values.get("tokenizer_class") or "").removesuffix("Fast")

    @property
    def family(self) -> str:
        """The family of the tokenizer class or model type, such as "bert"; empty for others."""
        name = (self.tokenizer_class or self.model_type).lower()
        for known in (*_CLASS_TOKENS, *_ALIASES):
            if name.startswith(known):
                return _ALIASES.get(known, known)
        return ""

    def flag(self, name: str, default: bool) -> bool:
        """A boolean of tokenizer_config.json; null counts as missing."""
        value = self.values.get(name)
        if isinstance(value, str):
            return value.strip().lower() in ("true", "1", "yes")
        return default if value is None else bool(value)

    def tokens(self) -> Iterator[AddedToken]:
        """All tokens of the settings: those with declared ids, then named ones, then extra ones."""
        for index in sorted(self.added):
            yield self.added[index]
        yield from self.named.values()
        yield from self.extra_special

    def with_class_defaults(self, family: str) -> TokenizerSettings:
        """The settings with missing named tokens from a family's tokenizer class."""
        return self.with_defaults(**_CLASS_TOKENS.get(family, {}))

    def with_defaults(self, **contents: str) -> TokenizerSettings:
        """The settings with missing named tokens set to the given contents."""
        by_content = {token.content: token for token in self.added.values()}
        missing = {
            name: replace(by_content.get(content, AddedToken(content)), special=True)
            for name, content in contents.items()
            if name not in self.values and name not in self.named
        }
        return replace(self, named={**missing, **self.named})


def _id(index: Any) -> int:
    try:
        return int(index)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"An added token of the tokenizer has the id {index!r}, not a number.", remedy=REDOWNLOAD
        ) from error


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or isinstance(object_in(value).get("content"), str)
