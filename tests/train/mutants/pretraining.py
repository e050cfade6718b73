"""Bugs in corrupted texts, targets of decoders, and losses on routers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from macllm.train.objectives import clm, mlm, seq2seq
from tests.train.objectives import test_corruption, test_experts

from .mutant import Mutant, Patch, claim


def read_targets_unshifted(patch: Patch) -> None:
    """The decoder reads the token that it is to predict."""
    joined = np.concatenate

    def unshifted(arrays: Any, axis: int = 0) -> Any:
        made = joined(arrays, axis=axis)
        return np.roll(made, -1, axis=1) if axis == 1 else made

    patch.setattr(seq2seq, "np", SimpleNamespace(**{**vars(np), "concatenate": unshifted}))


def count_padding(patch: Patch) -> None:
    """Padding is routed like tokens."""
    collected = clm._laid_out
    patch.setattr(test_experts, "small_batch", lambda: _without_lengths(collected))


def _without_lengths(laid_out: Any) -> clm.Batch:
    batch = laid_out([[test_experts.example(9, 2)], [test_experts.example(5, 1)]])
    inputs, targets = batch.inputs % 50, batch.targets % 50
    return clm.Batch(inputs, targets, batch.weights, lengths=np.full(2, 1000, np.int32))


MUTANTS = [
    Mutant(
        "a decoder that reads its target unshifted",
        read_targets_unshifted,
        claim(test_corruption.test_the_decoder_reads_the_target_shifted_right_after_its_start_token),
    ),
    Mutant(
        "masks alone, without exchanged and kept tokens",
        lambda patch: patch.setattr(mlm, "_AS_MASK", 1.0),
        claim(test_corruption.test_of_the_chosen_tokens_80_percent_are_masked_and_10_exchanged),
    ),
    Mutant(
        "a balance loss that counts padding",
        count_padding,
        claim(test_experts.test_evaluation_and_padding_leave_the_loss_alone),
    ),
]
