"""Settings of a new tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from macllm.errors import UsageError

Kind = Literal["bpe", "unigram", "wordpiece"]
Normalization = Literal["none", "nfc", "nfkc"]

END = "<|endoftext|>"
MASK = "<mask>"  # BART's
CHAT_MARKS = ("<|im_start|>", "<|im_end|>")  # ChatML's
CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""
# The named tokens of each kind, at the start of the vocabulary, as GPT-2, T5 and BERT have them.
_NAMED = {
    "bpe": {"eos_token": END, "pad_token": END},
    "unigram": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "wordpiece": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
}


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Data, kind and special tokens of a new tokenizer.

    `vocab_size` counts all tokens. <mask> (`add_mask`), `special_tokens` and T5's `sentinels` take the last ids,
    sentinel 0 the very last. With `chat_template` (Jinja source) the markers of ChatML are special tokens, and an
    answer's end is the end token.
    """

    data: tuple[str, ...]
    output: str
    kind: Kind = "bpe"
    vocab_size: int = 8192
    valid: str = ""
    special_tokens: tuple[str, ...] = ()
    sentinels: int = 0
    byte_fallback: bool = False
    normalization: Normalization = "none"
    lowercase: bool = False
    add_eos: bool = False
    add_mask: bool = False
    chat_template: str = ""

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("no data to train a tokenizer on", remedy="macllm tokenizer train texts/ --output FOLDER")
        if self.byte_fallback and self.kind != "unigram":
            cause = {
                "bpe": "a byte-level vocabulary has every byte already",
                "wordpiece": "WordPiece has [UNK] for a word with an unknown character",
            }[self.kind]
            raise UsageError(f"--byte-fallback has no effect with --type {self.kind}", cause=cause)
        if self.kind == "wordpiece" and self.add_mask:
            raise UsageError("--add-mask has no effect with --type wordpiece", cause="WordPiece has [MASK] already")
        if self.kind == "wordpiece" and (self.add_eos or self.chat_template):
            raise UsageError(
                f"--type wordpiece takes no {'chat template' if self.chat_template else '--add-eos'}",
                cause="texts are encoded as [CLS] text [SEP], for encoders",
                remedy="--type bpe or --type unigram",
            )
        tokens = [*self.leading, *self.extra]
        if odd := [token for token in tokens if not token.strip() or tokens.count(token) > 1]:
            raise UsageError(f"the special token {odd[0]!r} is empty or given twice", remedy="leave it out")

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.output)

    @property
    def named(self) -> dict[str, str]:
        """The named special tokens, as tokenizer_config.json has them."""
        mask = {"mask_token": MASK} if self.add_mask else {}
        return _NAMED[self.kind] | ({"eos_token": CHAT_MARKS[1]} if self.chat_template else {}) | mask

    @property
    def leading(self) -> tuple[str, ...]:
        """The special tokens with the first ids."""
        return tuple(dict.fromkeys(_NAMED[self.kind].values()))

    @property
    def extra(self) -> tuple[str, ...]:
        """The special tokens with the last ids."""
        marks = CHAT_MARKS if self.chat_template else ()
        descending = (f"<extra_id_{number}>" for number in range(self.sentinels - 1, -1, -1))
        return (*marks, *([MASK] if self.add_mask else []), *self.special_tokens, *descending)

    @property
    def model_size(self) -> int:
        """The size of the vocabulary without `extra`."""
        return self.vocab_size - len(self.extra)


def too_small(config: TokenizerConfig, least: int, cause: str) -> UsageError:
    """The error for a vocabulary without room for single characters."""
    return UsageError(
        f"a vocabulary of {config.vocab_size} is too small", cause=cause, remedy=f"--vocab-size {least} or more"
    )


def too_large(config: TokenizerConfig, most: int) -> UsageError:
    """The error for more tokens than the texts give."""
    return UsageError(
        f"a vocabulary of {config.vocab_size} is too large for these texts",
        cause=f"they give {most} tokens",
        remedy=f"--vocab-size {most}, or more texts",
    )
