"""Training an adapter on a quantized base."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.nn import lora, quantize
from macllm.train.config import TrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Counts, Evaluated
from macllm.train.loop import Trainer
from macllm.train.objectives.clm import CausalLM, collate
from macllm.train.render import Example
from tests.train.test_adapter import make, randomize


def examples() -> list[Example]:
    random = np.random.default_rng(0)
    return [Example(random.integers(0, 97, n).astype(np.int32), np.arange(n) > 2, "here:1") for n in (21, 9, 30)]


def trainer(bits: int, unpacks: bool) -> Trainer:
    model = make()
    quantize.apply(model, bits=bits, group_size=32)
    if unpacks:
        quantize.remove(model)
    lora.apply(model, rank=4, alpha=8.0)
    randomize(model)
    model.train()
    config = TrainConfig(data="rows", iters=1, learning_rate=1e-9)
    return Trainer.of(model, CausalLM(), config, Dataset(examples(), examples(), Counts()))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_trains_and_evaluates_as_its_unpacked_weights(bits: int) -> None:
    """Nothing is rounded to 8 bits, in the first layer either, whose inputs have no gradient."""
    packed, unpacked = (trainer(bits, unpacks) for unpacks in (False, True))
    (loss, *_), found = packed.passes.gradient(collate(examples()))
    (want, *_), wanted = unpacked.passes.gradient(collate(examples()))
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    gradients = dict(tree_flatten(found))
    for name, gradient in tree_flatten(wanted):
        assert float(mx.abs(gradients[name] - gradient).max()) <= 1e-5 * float(mx.abs(gradient).max()), name
    ours, theirs = ([e.loss for e in each.run() if isinstance(e, Evaluated)] for each in (packed, unpacked))
    assert ours == pytest.approx(theirs, rel=1e-6)
