"""WordPiece as in BERT (arXiv:1810.04805): words of a vocabulary, longest match first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .bpe import MIN_PAIRS
from .config import TokenizerConfig, too_large, too_small
from .normalizing import bert_normalizer

_INSIDE = "##"
_COVERAGE = 0.9995  # of all characters; rarer ones are unknown, as sentencepiece's default has it
_AT_ONCE = 1000  # copies of a word in one text
_MAX_CHARS = 100  # of a word; a longer one is unknown, as in BERT


def train(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """A WordPiece tokenizer. Raises UsageError for a vocabulary of a size that the texts cannot fill.

    The texts are read once, into counts of words.
    """
    words = _words(texts, config)
    first, inside = _alphabet(words)
    # The library numbers the characters inside of words in the order of a hash table that differs from run to run, and
    # breaks ties by these numbers. As special tokens they have the numbers of this list.
    leading = [*config.leading, *(_INSIDE + char for char in inside)]
    least = len({*leading, *first, *inside}) + len(config.extra)
    if config.vocab_size < least:
        raise too_small(config, least, "single characters and special tokens need more")
    trained = Tokenizer(models.WordPiece(unk_token=config.named["unk_token"]))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.model_size,
        min_frequency=MIN_PAIRS,
        special_tokens=leading,
        limit_alphabet=len({*first, *inside}),
        initial_alphabet=sorted({*first, *inside}),
        continuing_subword_prefix=_INSIDE,
        show_progress=False,
    )
    trained.train_from_iterator(_repeated(words), trainer)
    vocab = trained.get_vocab()
    if len(vocab) < config.model_size:
        raise too_large(config, len(vocab) + len(config.extra))
    return _finished(vocab, config)


def _words(texts: Iterable[str], config: TokenizerConfig) -> Counter[str]:
    """Words of the texts, as BERT splits them, with their counts."""
    normalizer, splitter = bert_normalizer(config), pre_tokenizers.BertPreTokenizer()
    counts = Counter[str]()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    return counts


def _alphabet(words: Counter[str]) -> tuple[list[str], list[str]]:
    """Characters at the start of words and inside of them, sorted, without those too rare to be covered."""
    counts = Counter[str]()
    for word, count in words.items():
        for char in word:
            counts[char] += count
    kept, covered, total = set[str](), 0, counts.total()
    for char, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= _COVERAGE * total:
            break
        kept.add(char)
        covered += count
    first = {word[0] for word in words} & kept
    inside = {char for word in words for char in word[1:]} & kept
    return sorted(first), sorted(inside)


def _repeated(words: Counter[str]) -> Iterator[str]:
    """Each word as often as it was counted, many in a text."""
    for word, count in sorted(words.items()):
        for start in range(0, count, _AT_ONCE):
            yield f"{word} " * min(_AT_ONCE, count - start)


def _finished(vocab: dict[str, int], config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of a vocabulary: [CLS] text [SEP]."""
    unknown, first, last = (config.named[f"{name}_token"] for name in ("unk", "cls", "sep"))
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=_MAX_CHARS))
    tokenizer.normalizer = bert_normalizer(config)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_INSIDE)
    tokenizer.add_special_tokens([*config.leading, *config.extra])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, vocab[token]) for token in (first, last)],
    )
    return tokenizer
