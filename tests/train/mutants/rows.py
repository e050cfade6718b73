"""Bugs in rows, loss masks and the order of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from macllm.train import data, render
from macllm.train.objectives import clm
from macllm.train.order import Order
from macllm.train.render import Example
from macllm.train.sources import Rows
from tests.train import test_data, test_loop, test_render

from .mutant import Mutant, Patch, claim, in_folder


def _epochs(rows: int, size: int, accumulation: int, epochs: int) -> Callable[[Path], object]:
    return claim(test_loop.test_every_row_is_trained_on_once_an_epoch, rows, size, accumulation, epochs, False)


def batches(change: Callable[[clm.Batch, Sequence[Sequence[Example]]], clm.Batch]) -> Callable[[Patch], object]:
    """Change each batch after it is laid out."""
    laid_out = clm._laid_out
    return lambda patch: patch.setattr(clm, "_laid_out", lambda rows: change(laid_out(rows), rows))


def learn_padding(batch: clm.Batch, rows: Sequence[Sequence[Example]]) -> clm.Batch:
    """Each row predicts the padding after its last token."""
    weights = batch.weights.copy()
    for i, (row,) in enumerate(rows):
        weights[i, len(row) - 1 : len(row)] = 1
    return replace(batch, weights=weights)


def learn_prompts(batch: clm.Batch, rows: Sequence[Sequence[Example]]) -> clm.Batch:
    """Every token has a loss."""
    weights = batch.weights.copy()
    for i, (row,) in enumerate(rows):
        weights[i, : len(row) - 1] = 1
    return replace(batch, weights=weights)


def mask_padding_by_token(batch: clm.Batch, rows: object) -> clm.Batch:
    """A real token 0 is taken for padding."""
    return replace(batch, weights=np.where(batch.targets == 0, 0, batch.weights).astype(np.float32))


def leave_mask_unshifted(batch: clm.Batch, rows: object) -> clm.Batch:
    """The mask is that of inputs, not of targets."""
    return replace(batch, weights=np.pad(batch.weights[:, :-1], ((0, 0), (1, 0))))


def drop_prompts(patch: Patch) -> None:
    """Answers are learned without what they answer."""
    laid_out = clm._laid_out

    def short(rows: Sequence[Sequence[Example]]) -> clm.Batch:
        return laid_out([[each.cut(int(np.argmax(each.loss_mask)), len(each)) for each in row] for row in rows])

    patch.setattr(clm, "_laid_out", short)


def drop_tail_of_accumulation(patch: Patch) -> None:
    """The last micro-batches of an epoch are left out if they do not fill a step."""
    floor = property(lambda rows: max(1, rows._order.batches_per_epoch // rows._accumulation))
    patch.setattr(Rows, "steps_per_epoch", floor)


def drop_tail_of_rows(patch: Patch) -> None:
    """The last rows of an epoch are left out if they do not fill a batch."""
    patch.setattr(Order, "batches_per_epoch", property(lambda order: max(1, order.bins_per_epoch // order._batch_size)))


def draw_with_replacement(patch: Patch) -> None:
    """Each batch is drawn from all rows anew."""

    def bins(order: Any, batch: int) -> tuple[tuple[int, ...], ...]:
        random = np.random.default_rng((order._seed, batch))
        return tuple((int(row),) for row in random.integers(0, len(order._lengths), order._batch_size))

    patch.setattr(Order, "bins", bins)


def repeat_first_epoch(patch: Patch) -> None:
    """All epochs have the order of the first."""
    bins = Order.bins
    patch.setattr(Order, "bins", lambda order, batch: bins(order, batch % order.batches_per_epoch))


def predict_first_tokens(patch: Patch) -> None:
    """The first token of a piece has a loss, which nothing predicts."""
    patch.setattr(
        Example,
        "cut",
        lambda row, start, stop: replace(row, tokens=row.tokens[start:stop], loss_mask=row.loss_mask[start:stop]),
    )


def end_truncated_rows(patch: Patch) -> None:
    """A row that was cut ends with the end token, as if it were over."""
    cut = Example.cut

    def ended(row: Example, start: int, stop: int) -> Example:
        piece = cut(row, start, stop)
        return replace(piece, tokens=np.append(piece.tokens[:-1], np.int32(0)))

    patch.setattr(Example, "cut", ended)


def begin_chats_twice(patch: Patch) -> None:
    """The tokenizer adds a begin token to that of the template."""
    align = render.align

    def begun(*arguments: Any) -> Any:
        tokens, spans = align(*arguments)
        return [1, *tokens], [(start + 1, stop + 1) for start, stop in spans]

    patch.setattr(render, "align", begun)


def learn_last_answers_only(patch: Patch) -> None:
    """One prefix is masked: only the last answer has a loss."""
    locate = render.locate

    def last(*arguments: Any) -> Any:
        return [replace(each, spans=each.spans[-1:], weights=each.weights[-1:]) for each in locate(*arguments)]

    patch.setattr(render, "locate", last)


def learn_no_ends(patch: Patch) -> None:
    """The token that ends an answer has no loss."""
    patch.setattr(render, "_with_ends", lambda tokens, spans, *_: (tokens, spans))


def train_on_validation_rows(patch: Patch) -> None:
    """Rows that are held out stay among the training rows."""
    hold_out = data._hold_out
    patch.setattr(data, "_hold_out", lambda rows, *rest: (rows, hold_out(rows, *rest)[1]))


LOSS = claim(test_loop.test_the_loss_equals_its_definition_in_float64)
TURNS = claim(test_render.test_every_assistant_turn_and_its_end_marker_is_supervised)
ROWS_ONCE = claim(test_data.test_a_batch_depends_only_on_the_seed_and_its_number)
SPLIT = in_folder(test_data.test_splitting_predicts_every_token_once, 13, 5)
LONG = in_folder(test_data.test_long_rows_are_truncated_split_dropped_or_refused_and_counted)
BEGUN = claim(test_render.test_a_chat_gets_no_begin_token_beyond_its_templates)
ENDS = claim(test_render.test_an_answer_without_an_end_marker_learns_the_end_of_the_conversation)
WEIGHTS = claim(test_render.test_the_weight_of_a_message_is_the_loss_weight_of_its_tokens, False)
HELD_OUT = in_folder(test_data.test_validation_rows_are_not_trained_on_and_depend_on_the_seed)

MUTANTS = [
    Mutant("padding is learnt", batches(learn_padding), LOSS),
    Mutant("padding is told by its token", batches(mask_padding_by_token), LOSS),
    Mutant("mask without a shift", batches(leave_mask_unshifted), LOSS),
    Mutant("prompts are learnt", batches(learn_prompts), LOSS),
    Mutant("prompts are dropped", drop_prompts, LOSS),
    Mutant("loss weights are ignored", batches(learn_prompts), WEIGHTS),
    Mutant("tail of an accumulation is dropped", drop_tail_of_accumulation, _epochs(11, 1, 8, 1)),
    Mutant("tail of the rows is dropped", drop_tail_of_rows, _epochs(7, 3, 1, 2)),
    Mutant("rows are drawn with replacement", draw_with_replacement, _epochs(20, 4, 4, 1)),
    Mutant("every epoch has one order", repeat_first_epoch, ROWS_ONCE),
    Mutant("first token is predicted", predict_first_tokens, SPLIT),
    Mutant("truncated rows end", end_truncated_rows, LONG),
    Mutant("two begin tokens", begin_chats_twice, BEGUN),
    Mutant("last answer only", learn_last_answers_only, TURNS),
    Mutant("ends are not learnt", learn_no_ends, ENDS),
    Mutant("validation rows are trained on", train_on_validation_rows, HELD_OUT),
]
