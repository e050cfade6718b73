"""Bugs in the weights that are trained, merged and stored, with an adapter or in full."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from macllm import checkpoint
from macllm.adapter import merge, mlx_lm
from macllm.nn.lora import Whole, tree
from macllm.nn.lora.layers import LoRALinear
from macllm.train import finetune
from tests.train import test_adapter_merge, test_adapter_scale, test_full, test_modules_to_save

from .mutant import Mutant, Patch, claim


def scale_by_alpha(patch: Patch) -> None:
    """The update is scaled by alpha, not by alpha / rank."""
    initial = LoRALinear.initial.__func__  # type: ignore[attr-defined]

    def scaled(cls: Any, linear: Any, rank: int, scale: float, *rest: Any) -> Any:
        return initial(cls, linear, rank, scale * rank, *rest)

    patch.setattr(LoRALinear, "initial", classmethod(scaled))


def train_layers(count: int) -> Callable[[Patch], object]:
    """As many of the last layers are trained, whatever the setting; -1: all weights."""
    train_weights = finetune.train_weights
    return lambda patch: patch.setattr(
        finetune, "train_weights", lambda model, _, heads: train_weights(model, count, heads)
    )


def freeze_modules(patch: Patch) -> None:
    """The modules beside an adapter are copied, but not trained."""
    whole_copy = tree.whole_copy
    patch.setattr(tree, "whole_copy", lambda *arguments: whole_copy(*arguments).freeze())


def store_factors_only(patch: Patch) -> None:
    """The modules that were trained beside an adapter are not written."""
    save = mlx_lm.save

    def lossy(changes: dict[str, Any], *rest: Any) -> None:
        save({name: change for name, change in changes.items() if not isinstance(change, Whole)}, *rest)

    patch.setattr(mlx_lm, "save", lossy)


def _with_base(test: Callable[[Path, Path], object]) -> Callable[[Path], object]:
    """A test of full fine-tuning that takes a base and an empty folder."""
    return lambda folder: test(test_full.write_base(folder / "base", tied=True), folder)


def _stored(folder: Path) -> None:
    test_modules_to_save.test_modules_are_stored_whole_and_come_back(test_modules_to_save.UNTIED, "mlx", folder)


def _fused(folder: Path) -> None:
    test_modules_to_save.test_merging_keeps_modules_that_are_stored_whole(None, folder)


SCALE = claim(test_adapter_scale.test_the_update_is_scaled_by_alpha_over_rank)
MERGED = claim(
    test_adapter_merge.test_merging_into_4_bits_gives_the_touched_layers_more_bits_where_rounding_would_lose_the_update
)
ALL_WEIGHTS = _with_base(test_full.test_all_weights_decay_if_wanted)
LAST_LAYERS = _with_base(test_full.test_the_last_layers_alone_are_trained)
TYPES = _with_base(test_full.test_the_model_has_the_types_of_its_base)
TRAINABLE = claim(test_modules_to_save.test_gradients_reach_modules_whole_and_the_base_comes_back_in_between)

MUTANTS = [
    Mutant("update scaled by alpha", scale_by_alpha, SCALE),
    Mutant("fused update is lost", lambda patch: patch.setattr(merge, "BUDGET", math.inf), MERGED),
    Mutant("embeddings stay frozen in full", train_layers(2), ALL_WEIGHTS),
    Mutant("number of layers is ignored in full", train_layers(-1), LAST_LAYERS),
    Mutant("all weights are stored in float32", lambda patch: patch.setattr(checkpoint, "stored_types", _none), TYPES),
    Mutant("modules stay frozen", freeze_modules, TRAINABLE),
    Mutant("modules are not stored", store_factors_only, _stored),
    Mutant("modules are lost by fusing", lambda patch: patch.setattr(tree, "without_base", _base), _fused),
]


def _none(folder: Path) -> dict[str, Any]:
    return {}


def _base(module: Any, precision: object) -> Any:
    return tree.base_of(module)
