"""Normalization of text before it is split, and the end token after it."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, normalizers, processors

from .config import TokenizerConfig


def plain_normalizer(config: TokenizerConfig) -> Any:
    """The Unicode form and lower case of the config; None for neither."""
    steps: list[Any] = []
    if config.normalization != "none":
        steps.append({"nfc": normalizers.NFC, "nfkc": normalizers.NFKC}[config.normalization]())
    if config.lowercase:
        steps.append(normalizers.Lowercase())
    return normalizers.Sequence(steps) if steps else None


def bert_normalizer(config: TokenizerConfig) -> Any:
    """BERT's cleaning and spaces around CJK characters; with lower case, accents are removed too."""
    cleaning = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=config.lowercase
    )
    before = {"nfc": normalizers.NFC, "nfkc": normalizers.NFKC}.get(config.normalization)
    return cleaning if before is None else normalizers.Sequence([before(), cleaning])


def with_end(tokenizer: Tokenizer, config: TokenizerConfig) -> Any:
    """A post-processor that puts the end token after a text, as encoder-decoders such as T5 expect."""
    end = config.named["eos_token"]
    return processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
