"""Bugs of other trainers, put back one at a time, each with the claim that it must break.

A mutant is a name, a patch, and a claim: a test that holds without the patch. Sources of the bugs: the trackers of
mlx-lm, mlx-lm-lora, mlx-tune, Unsloth, TRL and transformers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macllm.adapter import merge
from macllm.nn.lora.layers import LoRALinear
from macllm.train import data, loop, optim, render, snapshot
from macllm.train.contract import Loss, OptimizerState
from macllm.train.objectives import clm
from macllm.train.order import Order
from macllm.train.render import Example
from macllm.train.snapshot import Snapshots
from macllm.train.sources import Rows
from tests.train import test_adapter_merge, test_adapter_scale, test_data, test_loop, test_optim, test_render

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """A bug: `put` puts it back, and then `claim` must fail; it takes an empty folder."""

    name: str
    put: Callable[[Patch], object]
    claim: Callable[[Path], object]


def _claim(test: Callable[..., object], *arguments: Any) -> Callable[[Path], object]:
    """A test without fixtures."""
    return lambda _: test(*arguments)


def _in_folder(test: Callable[..., object], *arguments: Any) -> Callable[[Path], object]:
    """A test that takes `tmp_path` first."""
    return lambda folder: test(folder, *arguments)


LOSS = _claim(test_loop.test_the_loss_equals_its_definition_in_float64)
ACCUMULATION = _claim(test_loop.test_micro_batches_give_the_weights_of_whole_batches)
RUN = _claim(test_loop.test_a_run_equals_its_definition_in_float64)
RESUMED = _in_folder(test_loop.test_a_closed_and_resumed_run_ends_with_the_same_weights, 3)
EVALUATION = _claim(test_loop.test_evaluation_runs_before_the_first_step_at_its_interval_and_after_the_last)
BEST = _in_folder(test_loop.test_every_snapshot_records_the_best_loss_also_after_resuming)
KEPT = _in_folder(test_loop.test_the_newest_snapshots_and_the_best_one_are_kept)
TURNS = _claim(test_render.test_every_assistant_turn_and_its_end_marker_is_supervised)


def _epochs(rows: int, size: int, accumulation: int, epochs: int) -> Callable[[Path], object]:
    return _claim(test_loop.test_every_row_is_trained_on_once_an_epoch, rows, size, accumulation, epochs, False)


def _adamw(decay_all: bool) -> Callable[[Path], object]:
    return lambda _: test_optim.test_adamw_equals_its_definition_in_float64(_gradients(), decay_all)


def _gradients() -> Any:
    random = np.random.default_rng(0)
    return test_optim.arrays(random), [test_optim.arrays(random) for _ in range(20)]


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


def average_means(patch: Patch) -> None:
    """Micro-batches count alike, however many tokens they have."""
    loss = loop.Trainer.loss

    def mean(trainer: Any, batch: Any) -> Loss:
        numerator, denominator, metrics = loss(trainer, batch)
        return Loss(numerator / denominator, 1.0, metrics)

    patch.setattr(loop.Trainer, "loss", mean)


def clip_sums(patch: Patch) -> None:
    """The summed gradient is clipped, before it is averaged."""
    norms: list[mx.array] = []
    norm = loop.global_norm
    patch.setattr(loop, "global_norm", lambda gradients: norms.append(norm(gradients)) or norms[-1])
    clip_factor = loop.clip_factor
    patch.setattr(loop, "clip_factor", lambda _, most: clip_factor(norms[-1], most))


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


def updates(change: Callable[..., tuple[Any, Any, Any]]) -> Callable[[Patch], object]:
    """Change optimizer, gradients and state before each update: (adam, weights, gradients, state, scale)."""

    def put(patch: Patch) -> None:
        update = optim.AdamW.update

        def changed(adam: Any, weights: Any, gradients: Any, state: Any, rate: float, scale: mx.array) -> Any:
            adam, gradients, state = change(adam, weights, gradients, state, scale)
            return update(adam, weights, gradients, state, rate, scale)

        patch.setattr(optim.AdamW, "update", changed)

    return put


def leave_moments_biased(adam: Any, weights: Any, gradients: Any, state: OptimizerState, scale: mx.array) -> Any:
    """The first steps are 3.16 times as long as the learning rate."""
    return adam, gradients, replace(state, count=10**6)


def couple_decay(adam: Any, weights: Any, gradients: Any, state: OptimizerState, scale: mx.array) -> Any:
    """Weight decay goes through the moments."""
    decayed = {k: g + adam.weight_decay * weights[k] / scale for k, g in gradients.items()}
    return replace(adam, weight_decay=0.0), decayed, state


def decay_everything(adam: Any, weights: Any, gradients: Any, state: OptimizerState, scale: mx.array) -> Any:
    """Norms, biases and embeddings decay too."""
    return replace(adam, decay_all=True), gradients, state


def skip_last_step(patch: Patch) -> None:
    """Training ends one step early."""
    steps = loop.total_steps
    patch.setattr(loop, "total_steps", lambda *arguments: steps(*arguments) - 1)


def schedule_a_step_late(patch: Patch) -> None:
    """The rate of each step is that of the one before."""
    rate = optim.learning_rate
    patch.setattr(optim, "learning_rate", lambda config, step, steps: rate(config, max(0, step - 1), steps))


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


def scale_by_alpha(patch: Patch) -> None:
    """The update is scaled by alpha, not by alpha / rank."""
    initial = LoRALinear.initial.__func__  # type: ignore[attr-defined]

    def scaled(cls: Any, linear: Any, rank: int, scale: float, *rest: Any) -> Any:
        return initial(cls, linear, rank, scale * rank, *rest)

    patch.setattr(LoRALinear, "initial", classmethod(scaled))


def shuffle_on_resuming(patch: Patch) -> None:
    """Each process has an order of its own."""
    init, processes = Rows.__init__, itertools.count()
    patch.setattr(Rows, "__init__", lambda rows, *_, seed, **rest: init(rows, *_, seed=seed + next(processes), **rest))


def begin_data_again(patch: Patch) -> None:
    """The position in the data is lost: each process begins with the first batch."""
    batches = Rows.batches

    def counted(rows: Any, step: int, model: Any) -> Any:
        rows.done = getattr(rows, "done", -1) + 1
        return batches(rows, rows.done, model)

    patch.setattr(Rows, "batches", counted)


def resumed(change: Callable[[OptimizerState], OptimizerState]) -> Callable[[Patch], object]:
    """Change the optimizer's state in the snapshot that a run resumes."""

    def put(patch: Patch) -> None:
        latest = Snapshots.latest

        def changed(kept: Snapshots) -> Any:
            state = latest(kept)
            return state and replace(state, optimizer=change(state.optimizer))

        patch.setattr(Snapshots, "latest", changed)

    return put


def without_moments(state: OptimizerState) -> OptimizerState:
    """Zeros in all slots."""
    return replace(
        state, slots={slot: {k: mx.zeros_like(v) for k, v in of.items()} for slot, of in state.slots.items()}
    )


def choose_best_by_training_loss(patch: Patch) -> None:
    """The loss of the last report decides which weights are best."""
    evaluate = loop.Trainer._evaluate

    def told(trainer: Any) -> Any:
        yield from evaluate(trainer)
        if trainer.state.step and math.isfinite(trainer._last_loss):
            trainer.state = replace(trainer.state, eval_loss=trainer._last_loss)

    patch.setattr(loop.Trainer, "_evaluate", told)


def _damaged(folder: Path) -> None:
    kept = test_loop.snapshots(folder)
    kept.save(test_loop.state_of(1))
    path = kept.save(test_loop.state_of(2)) / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of a weight
    path.write_bytes(data)
    latest = kept.latest()
    assert latest is not None
    assert latest.step == 1


def _synced(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_loop.test_a_snapshot_is_synced_before_its_rename(folder, patch)


ROWS_ONCE = _claim(test_data.test_a_batch_depends_only_on_the_seed_and_its_number)
FIRST_STEP = _claim(lambda: test_optim.test_the_first_step_is_as_long_as_the_learning_rate(_gradients()))
SPLIT = _in_folder(test_data.test_splitting_predicts_every_token_once, 13, 5)
LONG = _in_folder(test_data.test_long_rows_are_truncated_split_dropped_or_refused_and_counted)
BEGUN = _claim(test_render.test_a_chat_gets_no_begin_token_beyond_its_templates)
ENDS = _claim(test_render.test_an_answer_without_an_end_marker_learns_the_end_of_the_conversation)
WEIGHTS = _claim(test_render.test_the_weight_of_a_message_is_the_loss_weight_of_its_tokens, False)
HELD_OUT = _in_folder(test_data.test_validation_rows_are_not_trained_on_and_depend_on_the_seed)
SCHEDULE = _claim(test_optim.test_a_schedule_rises_to_its_peak_and_falls_no_lower_than_its_floor, "cosine", 7)
SCALE = _claim(test_adapter_scale.test_the_update_is_scaled_by_alpha_over_rank)
MERGED = _claim(
    test_adapter_merge.test_merging_into_4_bits_gives_the_touched_layers_more_bits_where_rounding_would_lose_the_update
)

MUTANTS = [
    Mutant("padding is learnt", batches(learn_padding), LOSS),
    Mutant("padding is told by its token", batches(mask_padding_by_token), LOSS),
    Mutant("mask without a shift", batches(leave_mask_unshifted), LOSS),
    Mutant("prompts are learnt", batches(learn_prompts), LOSS),
    Mutant("prompts are dropped", drop_prompts, LOSS),
    Mutant("loss weights are ignored", batches(learn_prompts), WEIGHTS),
    Mutant("mean of means", average_means, ACCUMULATION),
    Mutant("clipped before averaging", clip_sums, RUN),
    Mutant("tail of an accumulation is dropped", drop_tail_of_accumulation, _epochs(11, 1, 8, 1)),
    Mutant("tail of the rows is dropped", drop_tail_of_rows, _epochs(7, 3, 1, 2)),
    Mutant("rows are drawn with replacement", draw_with_replacement, _epochs(20, 4, 4, 1)),
    Mutant("every epoch has one order", repeat_first_epoch, ROWS_ONCE),
    Mutant("no bias correction", updates(leave_moments_biased), FIRST_STEP),
    Mutant("coupled decay", updates(couple_decay), _adamw(True)),
    Mutant("norms and embeddings decay", updates(decay_everything), _adamw(False)),
    Mutant("last step is skipped", skip_last_step, RUN),
    Mutant("schedule is a step late", schedule_a_step_late, SCHEDULE),
    Mutant("first token is predicted", predict_first_tokens, SPLIT),
    Mutant("truncated rows end", end_truncated_rows, LONG),
    Mutant("two begin tokens", begin_chats_twice, BEGUN),
    Mutant("last answer only", learn_last_answers_only, TURNS),
    Mutant("ends are not learnt", learn_no_ends, ENDS),
    Mutant("validation rows are trained on", train_on_validation_rows, HELD_OUT),
    Mutant("update scaled by alpha", scale_by_alpha, SCALE),
    Mutant("fused update is lost", lambda patch: patch.setattr(merge, "BUDGET", math.inf), MERGED),
    Mutant("dropout in evaluation", lambda patch: patch.setattr(nn.Module, "eval", lambda module: module), EVALUATION),
    Mutant("best by training loss", choose_best_by_training_loss, BEST),
    Mutant("last is best", lambda patch: patch.setattr(Snapshots, "best", Snapshots.latest), KEPT),
    Mutant("resuming shuffles again", shuffle_on_resuming, RESUMED),
    Mutant("resuming begins the data again", begin_data_again, RESUMED),
    Mutant("resuming loses moments", resumed(without_moments), RESUMED),
    Mutant("resuming loses the count of updates", resumed(partial(replace, count=0)), RESUMED),
    Mutant("resuming loses the random state", lambda patch: patch.setattr(mx.random, "seed", lambda _: None), RESUMED),
    Mutant("snapshots are not verified", lambda patch: patch.setattr(snapshot, "_verify", _names), _damaged),
    Mutant("snapshots are not synced", lambda patch: patch.setattr(snapshot, "sync", lambda _: None), _synced),
]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
