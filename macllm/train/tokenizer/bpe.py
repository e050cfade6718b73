"""Byte-level BPE (arXiv:1508.07909 over bytes, as in GPT-2)."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .config import TokenizerConfig, too_large, too_small
from .normalizing import plain_normalizer, with_end

MIN_PAIRS = 2  # a pair that occurs once is no merge


def train(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """A byte-level BPE tokenizer. Raises UsageError for a vocabulary of a size that the texts cannot fill."""
    least = 256 + len(config.leading) + len(config.extra)
    if config.vocab_size < least:
        raise too_small(config, least, "256 bytes and the special tokens need more")
    tokenizer = Tokenizer(models.BPE())
    if (normalizer := plain_normalizer(config)) is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.model_size,
        min_frequency=MIN_PAIRS,
        special_tokens=list(config.leading),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (size := tokenizer.get_vocab_size()) < config.model_size:
        raise too_large(config, size + len(config.extra))
    tokenizer.add_special_tokens(list(config.extra))
    spaces = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = processors.Sequence([spaces, with_end(tokenizer, config)]) if config.add_eos else spaces
    return tokenizer
