"""Unigram language model (arXiv:1804.10959), trained by sentencepiece, written as tokenizer.json."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from .config import TokenizerConfig, too_large, too_small
from .normalizing import plain_normalizer, with_end

_LINE_ENDS = ("\n", "\t")  # always pieces of their own
_BYTE_MARKS = "<>0123456789ABCDEFx"  # of byte pieces: their spelling in a text is split into these
_BYTE_SCORE = -1000.0  # such a spelling is no byte piece while its characters are pieces
_THREADS = 4  # a constant, because the sums of threads are added up: the result depends on their number
_MAX_BYTES = 1 << 30  # of a text; longer ones would be left out


def train(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """A Unigram tokenizer. Raises UsageError for a vocabulary of a size that the texts cannot fill."""
    model = sentencepiece.SentencePieceProcessor(model_proto=_trained(texts, config))
    pieces = [(model.id_to_piece(index), _score(model, index)) for index in range(model.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, model.unk_id(), byte_fallback=config.byte_fallback))
    if (normalizer := plain_normalizer(config)) is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    spaces = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), spaces]) if config.byte_fallback else spaces
    tokenizer.add_special_tokens([*config.leading, *config.extra])
    if config.add_eos:
        tokenizer.post_processor = with_end(tokenizer, config)
    return tokenizer


def _score(model: sentencepiece.SentencePieceProcessor, index: int) -> float:
    return _BYTE_SCORE if model.is_byte(index) else model.get_score(index)


def _trained(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """sentencepiece's model of the normalized texts."""
    normalizer = plain_normalizer(config)
    kept = (text if normalizer is None else normalizer.normalize_str(text) for text in texts)
    pad, end, unknown = config.leading
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=kept,
            model_writer=model,
            model_type="unigram",
            vocab_size=config.model_size,
            byte_fallback=config.byte_fallback,
            required_chars=_BYTE_MARKS if config.byte_fallback else "",
            user_defined_symbols=list(_LINE_ENDS),
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=_MAX_BYTES,
            num_threads=_THREADS,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece=pad,
            eos_piece=end,
            unk_piece=unknown,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, config) from error
    return model.getvalue()


def _explained(error: RuntimeError, config: TokenizerConfig) -> Exception:
    """A UsageError for a vocabulary of the wrong size; other errors unchanged."""
    text, others = str(error), len(config.extra)
    if found := re.search(r"value <= (\d+)", text):
        return too_large(config, int(found[1]) + others)
    if found := re.search(r"required_chars\. -?\d+ vs (\d+)", text):
        return too_small(config, int(found[1]) + others, "single characters and special tokens need more")
    return error
