"""Corrupted texts: which tokens, how many, by chance as stated, and the whole text back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macllm.errors import DataError, UsageError
from macllm.text.tokenizer import Tokenizer
from macllm.train.encoding import Encoding
from macllm.train.objectives import tokens
from macllm.train.objectives.infill import TextInfilling, infilled, permuted
from macllm.train.objectives.mlm import MaskedLM
from macllm.train.objectives.seq2seq import TextToText, TextToTextBatch, text_to_text_loss
from macllm.train.objectives.span import SpanCorruption, noise_spans
from macllm.train.objectives.texts import Text, padded, plain_text
from macllm.train.rows import PlainText, PromptCompletion
from macllm.train.rows.columns import parse
from tests.train.recipes import SENTINELS, write_text_tokenizer

MASK, VOCAB, SPECIAL = 3, 40, (0, 1, 2, 3)
SENTINEL_IDS = tuple(range(139, 99, -1))


def text(inner: Any, maskable: Any = None) -> Text:
    """A text between tokens 0 and 2."""
    inner = np.array(inner, dtype=np.int32)
    everything = np.ones(len(inner), dtype=bool)
    return Text(inner, everything if maskable is None else np.array(maskable), (0,), (2,), "here:1")


def chi_square(counts: Any, expected: Any) -> float:
    counts, expected = np.array(counts, float), np.array(expected, float)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_text_tokenizer(folder)
    return Tokenizer.from_folder(folder)


def test_of_the_chosen_tokens_80_percent_are_masked_and_10_exchanged() -> None:
    rows = [text(np.random.default_rng(n).integers(4, VOCAB, 200)) for n in range(300)]
    batch = MaskedLM(MASK, VOCAB, SPECIAL).collate(rows, np.random.default_rng(0))
    found, real = batch.inputs[batch.chosen], batch.targets[batch.chosen]
    assert len(found) == 300 * 30  # 15 % of each text
    masked, same = (found == MASK).sum(), (found == real).sum()
    others, ordinary = len(found) - masked - same, VOCAB - len(SPECIAL)
    expected = np.array([0.8, 0.1 + 0.1 / ordinary, 0.1 - 0.1 / ordinary]) * len(found)
    assert chi_square([masked, same, others], expected) < 13.8  # p = 0.001, as below
    exchanged = np.bincount(found[(found != MASK) & (found != real)], minlength=VOCAB)[4:]
    assert chi_square(exchanged, [exchanged.mean()] * ordinary) < 66.6
    places = batch.chosen[:, 1:201].reshape(300, 20, 10).sum((0, 2))
    assert chi_square(places, [places.mean()] * 20) < 43.8
    unchosen = ~batch.chosen
    np.testing.assert_array_equal(batch.inputs[unchosen], batch.targets[unchosen])


def test_special_tokens_and_padding_are_never_chosen_and_a_token_of_every_text_is() -> None:
    maskable = [True, False, True, False, False]
    rows = [text([7, 1, 8, 3, 0], maskable), text([9]), text(np.full(30, 5))]
    objective, random = MaskedLM(MASK, VOCAB, SPECIAL), np.random.default_rng(0)
    batches = [objective.collate(rows, random) for _ in range(400)]
    chosen = np.mean([batch.chosen for batch in batches], axis=0)
    assert set(np.flatnonzero(chosen[0])) == {1, 3}
    assert chosen[1].tolist() == [0, 1, *[0] * (chosen.shape[1] - 2)]
    assert set(np.flatnonzero(chosen[2])) == set(range(1, 31))
    assert chosen[2].sum() == pytest.approx(4.5, abs=0.1)  # of 30 tokens
    assert {int(batch.chosen[2].sum()) for batch in batches} == {4, 5}


@pytest.mark.parametrize(
    "objective", [MaskedLM(MASK, VOCAB, SPECIAL), SpanCorruption(SENTINEL_IDS), TextInfilling(MASK, (9,))]
)
def test_a_batch_is_a_function_of_the_random_numbers(objective: Any) -> None:
    rows = [text(np.random.default_rng(n).integers(4, VOCAB, 50)) for n in range(3)]
    first, again, other = (objective.collate(rows, np.random.default_rng(seed)) for seed in (5, 5, 6))
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(again, name))
    assert any(not np.array_equal(value, getattr(other, name)) for name, value in vars(first).items())


def restored(source: list[int], target: list[int], sentinels: tuple[int, ...]) -> list[int]:
    """The text with each sentinel of the source replaced by what follows it in the target."""
    spans, made = {}, list[int]()
    for token in target:
        if token in sentinels:
            spans[token] = current = list[int]()
        else:
            current.append(token)
    for token in source:
        made += spans[token] if token in sentinels else [token]
    return made


@given(st.lists(st.integers(4, 104), min_size=1, max_size=120), st.integers(0, 99), st.sampled_from([0.15, 0.5, 0.9]))
def test_the_spans_at_their_sentinels_give_the_text_back(inner: list[int], seed: int, ratio: float) -> None:
    free = tuple(sentinel for sentinel in SENTINEL_IDS if sentinel not in inner)  # 100 to 104 may be in the text
    batch = SpanCorruption(SENTINEL_IDS, ratio, 2.0).collate([text(inner)], np.random.default_rng(seed))
    source = batch.sources[0, : batch.source_lengths[0]].tolist()
    target = batch.targets[0, : batch.target_lengths[0]].tolist()
    assert (source[0], target[0], source[-1], target[-1]) == (0, 0, 2, 2)
    assert restored(source[1:-1], target[1:-1], free) == inner
    used = [token for token in target if token in free]
    assert used == list(free[: len(used)])
    assert [token for token in source if token in free] == used[:-1]  # the last one ends the target
    assert target[-2] == used[-1]


def test_spans_have_the_stated_density_and_mean_length() -> None:
    random = np.random.default_rng(0)
    drawn = [noise_spans(500, 0.15, 3.0, 99, random) for _ in range(200)]
    assert {sum(stop - start for start, stop in spans) for spans in drawn} == {75}
    assert {len(spans) for spans in drawn} == {25}
    starts = np.concatenate([[start for start, _ in spans] for spans in drawn])
    early = np.histogram(starts, 9, (0, 450))[0]  # T5's last span is always at the end of the text
    assert chi_square(early, [early.mean()] * 9) < 26.1
    assert {spans[-1][1] for spans in drawn} == {500}
    lengths = np.concatenate([[stop - start for start, stop in spans] for spans in drawn])
    # Compositions of 75 into 25 parts: a part is n with probability C(73 - n, 23) / C(74, 24).
    assert np.mean(lengths == 1) == pytest.approx(24 / 74, abs=0.02)
    assert len(noise_spans(500, 0.15, 3.0, 7, random)) == 7
    assert noise_spans(1, 0.15, 3.0, 99, random) == []


def test_infilling_masks_the_stated_share_in_poisson_spans() -> None:
    random, inner = np.random.default_rng(0), np.arange(1000, 1400, dtype=np.int32)
    masks = kept = 0
    for _ in range(200):
        source = infilled(inner, MASK, 0.3, 3.0, random)
        left = source[source != MASK]
        assert len(left) == 280
        assert (np.diff(left) > 0).all()  # in order
        masks, kept = masks + (source == MASK).sum(), kept + len(left)
    assert 120 / (masks / 200) == pytest.approx(3.0, rel=0.02)  # tokens per mask, those without a token included


@given(st.integers(1, 40), st.integers(0, 999))
def test_an_infilled_text_is_not_longer_than_it_was(length: int, seed: int) -> None:
    source = infilled(np.arange(10, 10 + length, dtype=np.int32), MASK, 0.3, 1.0, np.random.default_rng(seed))
    assert 1 <= len(source) <= length
    assert (source == MASK).any()


def test_sentences_are_permuted_whole_and_the_target_is_the_text() -> None:
    inner, random = [5, 6, 9, 7, 9, 8, 5, 9], np.random.default_rng(0)
    found = [tuple(permuted(np.array(inner), (9,), random).tolist()) for _ in range(600)]
    orders = {(5, 6, 9, 7, 9, 8, 5, 9), (5, 6, 9, 8, 5, 9, 7, 9), (7, 9, 5, 6, 9, 8, 5, 9), (7, 9, 8, 5, 9, 5, 6, 9)}
    orders |= {(8, 5, 9, 5, 6, 9, 7, 9), (8, 5, 9, 7, 9, 5, 6, 9)}
    assert set(found) == orders
    assert chi_square([found.count(order) for order in orders], [100] * 6) < 20.5
    assert permuted(np.array(inner), (), random).tolist() == inner
    batch = TextInfilling(MASK, (9,)).collate([text(inner)], random)
    assert batch.targets[0, : batch.target_lengths[0]].tolist() == [0, *inner, 2]


class Recording:
    """An encoder-decoder that records its decoder's input."""

    info = SimpleNamespace(decoder_start=2, position_count=6)
    training = True

    def hidden(self, tokens: mx.array, *, source: mx.array, source_lengths: mx.array) -> mx.array:
        self.inputs, self.source = np.array(tokens), np.array(source)
        return mx.zeros((*tokens.shape, 4))

    def logits(self, hidden: mx.array) -> mx.array:
        return mx.zeros((hidden.shape[0], VOCAB)) + hidden.sum()


def test_the_decoder_reads_the_target_shifted_right_after_its_start_token() -> None:
    model = Recording()
    batch = TextToTextBatch.of([np.array([5, 0, 6])] * 2, [np.array([7, 0, 8, 9]), np.array([0])])
    loss = text_to_text_loss(model, batch)  # type: ignore[arg-type]
    assert model.inputs[0, :4].tolist() == [2, 7, 0, 8]
    assert model.inputs[1, 0] == 2
    assert (model.inputs.shape, model.source.shape) == ((2, 6), (2, 6))  # no position beyond the table
    assert loss.denominator == 5
    assert loss.numerator.item() == pytest.approx(5 * np.log(VOCAB))


def test_each_piece_of_a_long_text_has_its_special_tokens(tokenizer: Tokenizer) -> None:
    row = PlainText("abcdefghij", "here:1")
    whole = plain_text(row, tokenizer)
    assert (whole.before, whole.after) == ((0,), (2,))
    encoding = Encoding[Text]("split", 6)
    encoding.add("text", [whole])
    assert [len(piece) for piece in encoding.kept] == [6, 6, 4]
    assert all(piece.tokens[0] == 0 and piece.tokens[-1] == 2 for piece in encoding.kept)
    assert np.concatenate([piece.inner for piece in encoding.kept]).tolist() == whole.inner.tolist()
    assert len(whole.cut(0, 6)) == 6
    with pytest.raises(UsageError, match="too few"):
        whole.pieces(2)


def test_special_tokens_inside_a_text_are_not_maskable(tokenizer: Tokenizer) -> None:
    objective = MaskedLM(tokens.mask(tokenizer), tokenizer.vocab_size, tuple(sorted(tokenizer.special_ids)))
    (example,) = objective.examples(PlainText("a<mask>b", "here:1"), tokenizer)
    assert example.maskable.tolist() == [True, False, True]
    with pytest.raises(DataError, match="prompt and completion"):
        objective.examples(PromptCompletion("a", "b", "here:1"), tokenizer)


def test_sentinels_and_full_stops_are_those_of_the_tokenizer(tokenizer: Tokenizer) -> None:
    assert tokens.sentinels(tokenizer) == tuple(range(3 + SENTINELS, 3, -1))
    assert [tokenizer.id_to_token(index) for index in tokens.full_stops(tokenizer)] == ["."]


def test_a_tokenizer_without_these_tokens_is_refused(tmp_path: Path) -> None:
    from tests.train.recipes import write_recipe

    write_recipe(tmp_path)
    plain = Tokenizer.from_folder(tmp_path)
    with pytest.raises(UsageError, match="no mask token"):
        tokens.mask(plain)
    with pytest.raises(UsageError, match="no sentinels"):
        tokens.sentinels(plain)


def test_a_row_of_text_to_text_is_a_source_and_a_target(tokenizer: Tokenizer) -> None:
    objective = TextToText()
    row = parse({"source": "abc", "target": "xy"}, "here:1")
    assert row == parse({"prompt": "abc", "completion": "xy"}, "here:1")
    (pair,) = objective.examples(row, tokenizer)
    assert [len(tokens) for tokens in pair.sequences] == [5, 4]
    assert (len(pair), pair.num_target_tokens, pair.ends) == (5, 4, True)
    short = pair.cut(0, 3)
    assert [tokens.tolist() for tokens in short.sequences] == [[0, pair.source.inner[0], 2], [0, *pair.target.inner]]
    assert not short.ends
    for other in (PlainText("a", "here:1"), PromptCompletion([{"role": "user", "content": "a"}], [], "here:1")):
        with pytest.raises(DataError, match="here:1"):
            objective.examples(other, tokenizer)


def test_padding_makes_few_widths() -> None:
    rows, lengths = padded([np.arange(9), np.arange(0)])
    assert rows.shape == (2, 16)
    assert lengths.tolist() == [9, 0]
