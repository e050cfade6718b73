"""First tokens of words against transformers' `is_split_into_words`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import BertWordPieceTokenizer

from macllm.text.tokenizer import Tokenizer
from macllm.text.words import word_tokens

pytestmark = pytest.mark.parity
TEXTS = [
    ["EU", "rejects", "German", "call", "to", "boycott", "British", "lamb", "."],
    ["don't", "U.S.-based", "naïve", "café", "3.14", "(", "x", ")"],
    ["日本語", "", "\u200b", "a\u0301", "emoji", "🤖", "-"],
    ["word"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertTokenizerFast

    made = tmp_path_factory.mktemp("wordpiece")
    trained = BertWordPieceTokenizer()
    every = [" ".join(words) for words in TEXTS] * 2 + ["rejected calling germany boycotts lambs", "the a u s based"]
    trained.train_from_iterator(every, vocab_size=90, min_frequency=1, show_progress=False)
    trained.save_model(str(made))
    BertTokenizerFast(str(made / "vocab.txt")).save_pretrained(made)
    return made


@pytest.mark.parametrize("words", TEXTS, ids=range(len(TEXTS)))
def test_tokens_and_first_pieces_are_those_of_transformers(words: list[str], folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)(words, is_split_into_words=True)
    tokens, places = word_tokens(words, Tokenizer.from_folder(folder))
    numbers = theirs.word_ids()
    assert tokens == theirs["input_ids"]
    assert places == [numbers.index(number) if number in numbers else -1 for number in range(len(words))]
    assert len(tokens) > len(words) or len(words) == 1
