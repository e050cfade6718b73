"""Passes through a model: sums of losses and gradients over a step, of losses over an evaluation."""

from __future__ import annotations

from collections.abc import Generator
from itertools import islice
from typing import Any, Generic

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from macllm.ops.quantized import using_activations

from . import pack
from .config import TrainConfig
from .contract import Arrays, B, E, Loss, Objective, Source, Summarizes
from .data import Dataset
from .events import Advanced
from .generating import generated, measure
from .group import Alone, Group, sum_gradients, sum_losses
from .snapshot import Sums
from .sources import Rows, Validation, measured


class Passes(Generic[B]):
    """Losses of a model on the batches of a source and of a validation, and their gradients.

    Of a `group` of processes each takes its part of the batches, and all get the same sums.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective[Any, Any, B],
        source: Source[B],
        validation: Validation[Any, B],
        group: Group | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.source = source
        self.validation = validation
        self.group: Group = group or Alone()
        self.gradient = nn.value_and_grad(model, self.loss)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        objective: Objective[Any, E, B],
        config: TrainConfig,
        dataset: Dataset[E],
        step_rows: tuple[int, int],
        group: Group | None = None,
    ) -> Passes[B]:
        """Passes over the rows of `dataset`.

        `step_rows` are the batch size and the accumulation by which the rows of a step are chosen; `config` says how
        many of them go through the model at once.
        """
        group = group or Alone()
        chosen, accumulation = step_rows
        source = Rows(
            objective,
            dataset.train,
            batch_size=chosen,
            accumulation=accumulation,
            seed=config.seed,
            bin_size=pack.bin_size(config, model, objective),
            counts=dataset.counts,
        )
        size = config.batch_size
        validation = Validation(
            objective,
            dataset.valid,
            batch_size=chosen,
            micro_batch=size,
            most=config.val_batches,
            seed=config.seed,
            counts=dataset.valid_counts,
        )
        own = generated(objective, source.regrouped(size).part(group.rank, group.size), size, group.size)
        return cls(model, objective, own, validation, group)

    def loss(self, batch: B) -> Loss:
        """The loss of a batch.

        Activations stay floats: of a frozen embedding, which has no gradient, the first quantized layer would round
        them to 8 bits, and the loss would not be the one that the gradient belongs to.
        """
        with using_activations("float"):
            return self.objective.loss(self.model, batch)

    def gradients(self, step: int, weights: Arrays) -> tuple[Arrays, Sums]:
        """Gradients of the summed loss over the micro-batches of step `step`, and the sums of the losses.

        `weights` are the trained ones, which the model has.
        """
        summed: Arrays = {}
        sums = Sums()
        for batch in self.source.batches(step, self.model):
            result, tree = self.gradient(batch)
            loss = Loss(*result)
            gradients = dict(tree_flatten(tree))
            summed = {k: summed[k] + g for k, g in gradients.items()} if summed else gradients
            mx.eval(loss.numerator, loss.metrics, summed)
            sums = sums.plus(Sums.of(loss, batch))
        return sum_gradients(summed, weights, self.group), sum_losses(sums, self.group)

    def evaluation(self) -> Generator[Advanced, None, Sums]:
        """The sums of the validation losses, without dropout, yielding progress."""
        sums = Sums()
        self.model.eval()
        try:
            batches = enumerate(measured(self.objective, self.model, self.validation.batches()))
            for number, batch in islice(batches, self.group.rank, None, self.group.size):
                yield Advanced("evaluating", number, len(self.validation))
                sums = sums.plus(Sums.of(measure(self.objective, self.model, batch, self.loss), batch))
        finally:
            self.model.train()
        return sum_losses(sums, self.group)

    def metrics(self, sums: Sums) -> dict[str, float]:
        """The metrics per unit of the loss, or what the objective makes of them."""
        means = sums.means()
        return self.objective.summary(means) if isinstance(self.objective, Summarizes) else means
