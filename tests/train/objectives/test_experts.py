"""Losses on routers: balance and z-loss with every gradient of transformers and torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.checkpoint import load_model
from macllm.errors import UsageError
from macllm.nn.info import ModelInfo
from macllm.nn.recompute import checkpoint_layers
from macllm.nn.routing import Routed
from macllm.train.config import PretrainConfig
from macllm.train.config.expert import ExpertSettings
from macllm.train.objectives.clm import Batch, CausalLM, collate, collate_packed
from macllm.train.objectives.experts import ExpertLosses, expert_losses
from macllm.train.pretrain import new_model
from tests.tables.gradients import CASES, UNEQUAL, example, written
from tests.tables.twins import Twins
from tests.train.toy import ToyLM, random_llama

LOSSES = ExpertLosses(balance=0.7, z=0.3)
MIXTRAL = {
    "model_type": "mixtral", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.05,
}  # fmt: skip
ROWS = {"unequal lengths": UNEQUAL, "a masked row": (example(19, 19), example(8, 2), example(13, 4))}


@pytest.fixture(scope="module", params=["Mixtral", "Qwen3, experts"])
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("experts")
    oracle = written(CASES[request.param], folder / "base")
    yield Twins(load_model(folder / "base"), oracle, folder)
    torch.set_num_threads(threads)


def reference(oracle: Any, rows: Sequence[Any]) -> Any:
    """transformers' balance loss, and a z-loss in torch, beside the mean loss; padding is token 7."""
    import torch

    width = max(map(len, rows)) - 1
    tokens, labels, real = (np.full((len(rows), width), fill) for fill in (7, -100, 0))
    for i, row in enumerate(rows):
        own = slice(0, len(row) - 1)
        tokens[i, own], real[i, own] = row.tokens[:-1], 1
        labels[i, own] = np.where(row.loss_mask, row.tokens, -100)[1:]
    inputs = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(real)}
    made = oracle(**inputs, output_router_logits=True, use_cache=False)
    losses = torch.nn.functional.cross_entropy(made.logits.flatten(0, 1), torch.tensor(labels).flatten())
    kept = torch.tensor(real).flatten().bool()
    z = torch.stack([torch.logsumexp(logits[kept], -1).square().mean() for logits in made.router_logits]).mean()
    return losses + LOSSES.balance * made.aux_loss + LOSSES.z * z


def step(model: nn.Module, batch: Batch) -> tuple[float, dict[str, mx.array]]:
    """The loss and its gradients."""
    model.train()
    objective = CausalLM(experts=LOSSES)
    (total, units, metrics), tree = nn.value_and_grad(model, lambda: objective.loss(model, batch))()
    assert metrics.keys() == {"balance", "router_z", "unused_experts"}
    return total.item() / units, {name: gradient / units for name, gradient in tree_flatten(tree)}


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("form", ["padded", "packed", "computed again"])
def test_loss_and_gradients_are_those_of_transformers(form: str, rows: str, twins: Twins) -> None:
    some = ROWS[rows]
    batch = collate_packed([some[:2], some[2:]]) if form == "packed" else collate(some)
    checkpoint_layers(twins.model, form == "computed again")
    difference = twins.difference(*step(twins.model, batch), lambda oracle: reference(oracle, some))
    checkpoint_layers(twins.model, False)
    assert difference.held, difference


def test_metrics_tell_balance_and_unused_experts() -> None:
    logits = mx.array([[[4.0, 2.0, 0.0, -9.0], [4.0, 0.0, 2.0, -9.0], [-9.0, -9.0, 0.0, 9.0]]])
    loss, metrics = ExpertLosses(1.0, 0.0).loss([Routed(logits, 2)], mx.array([[1.0, 1.0, 0.0]]))
    assert metrics["unused_experts"].item() == 1  # the last one is chosen in padding only
    probable = np.exp([4.0, 2.0, 0.0, -9.0])
    probable = probable / probable.sum()
    mixed = np.array([probable[0], (probable[1] + probable[2]) / 2, (probable[1] + probable[2]) / 2, probable[3]])
    assert loss.item() == pytest.approx(4 * (np.array([1.0, 0.5, 0.5, 0.0]) * mixed).sum(), rel=1e-6)
    even = [Routed(mx.zeros((1, 4, 4)), 1)]
    _, metrics = ExpertLosses(1.0, 0.0).loss(even, mx.ones((1, 4)))
    assert metrics["balance"].item() == pytest.approx(1.0)  # the least there is
    assert metrics["router_z"].item() == pytest.approx(np.log(4) ** 2)


def mixtral(**changes: Any) -> Any:
    return new_model({**MIXTRAL, **changes}, PretrainConfig(data="x", init_std=0.3))


def test_the_weight_is_that_of_config_json_if_it_asks_for_the_loss() -> None:
    asked = mixtral(output_router_logits=True)
    assert expert_losses(ExpertSettings(), asked) == ExpertLosses(0.05, 0.0)
    assert expert_losses(ExpertSettings(router_aux_loss_coef=-1.0), asked) is None
    assert expert_losses(ExpertSettings(router_aux_loss_coef=0.2), asked) == ExpertLosses(0.2, 0.0)
    assert expert_losses(ExpertSettings(router_z_loss_coef=0.1), mixtral()) == ExpertLosses(0.0, 0.1)
    assert expert_losses(ExpertSettings(), mixtral()) is None
    with pytest.raises(UsageError, match="router_z_loss_coef has no effect"):
        expert_losses(ExpertSettings(router_z_loss_coef=0.1), random_llama())


def test_an_unsupported_class_whose_config_asks_for_the_loss_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = ToyLM()
    model.info = ModelInfo(config={"model_type": "unheard", "output_router_logits": True, "router_aux_loss_coef": 0.1})
    with caplog.at_level(logging.WARNING):
        assert expert_losses(ExpertSettings(), model) is None
    assert "no loss of load balance" in caplog.text


def small_batch() -> Batch:
    """Two rows with tokens of the small vocabulary."""
    batch = collate([example(9, 2), example(5, 1)])
    return replace(batch, inputs=batch.inputs % 50, targets=batch.targets % 50)


def test_evaluation_and_padding_leave_the_loss_alone() -> None:
    model, objective, batch = mixtral(), CausalLM(experts=LOSSES), small_batch()
    model.eval()
    assert objective.loss(model, batch).numerator.item() == CausalLM().loss(model, batch).numerator.item()
    model.train()
    wide = {name: np.pad(getattr(batch, name), ((0, 0), (0, 8))) for name in ("inputs", "targets", "weights")}
    one, two = (objective.loss(model, each) for each in (batch, replace(batch, **wide)))
    assert two.numerator.item() == pytest.approx(one.numerator.item(), rel=1e-6)
    assert two.metrics["balance"].item() == pytest.approx(one.metrics["balance"].item(), rel=1e-6)


def test_training_with_the_balance_loss_uses_the_experts_evenly() -> None:
    batch, found = small_batch(), {}
    for weight in (1e-9, 1.0):
        model, objective = mixtral(), CausalLM(experts=ExpertLosses(weight, 0.0))
        routers = [layer.feed_forward.router for layer in model.decoder.layers]
        for router in routers:  # experts 2 and 3 are seldom chosen
            router.weight = router.weight * mx.array([2.0, 2.0, 0.1, 0.1])[:, None]
        model.train()
        gradient = nn.value_and_grad(model, lambda m=model, o=objective: o.loss(m, batch))
        for _ in range(60):
            (_, units, metrics), slopes = gradient()
            for router, slope in zip(routers, slopes["decoder"]["layers"], strict=True):
                router.weight = router.weight - 1.0 * slope["feed_forward"]["router"]["weight"] / units
        found[weight] = metrics["balance"].item() / units
    assert 2.0 - 1e-3 < found[1.0] < 2.1  # two choices for each token, at best evenly
    assert found[1e-9] > 2.2
