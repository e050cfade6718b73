"""PPO: advantages against float64, and loss and every gradient against torch's autograd."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.checkpoint import load_model
from macllm.train.config import FinetuneConfig
from macllm.train.objectives import ppo as module
from macllm.train.objectives.advantages import generalized, whitened
from macllm.train.objectives.clm import supervised, target_losses
from macllm.train.objectives.ppo import PPO
from macllm.train.objectives.value_head import attach_value_head, drop_value_head, value_head
from macllm.train.rollouts.experience import AnswerGroup, Experience, Rollout
from macllm.train.rollouts.sampling import SampledCompletion
from tests.tables.gradients import CASES, VOCAB, written
from tests.tables.twins import GRADIENT, Twins

pytestmark = pytest.mark.filterwarnings("ignore")
# Lengths of prompt and completion; a completion of 0 tokens is a row whose mask is empty.
ROWS = {
    "unequal lengths": [(4, 6), (2, 9), (7, 3), (1, 1)],
    "a masked row": [(3, 4), (5, 0), (2, 8)],
    "one row": [(5, 7)],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "other clipping": {"clip_low": 0.1, "clip_high": 0.3, "value_clip": 0.05, "value_coefficient": 0.5},
}


def config(**settings: Any) -> FinetuneConfig:
    return FinetuneConfig(data="rows", objective="ppo", rewards=("exact_match",), **settings)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ppo")
    oracle = written(CASES["Llama, grouped queries"], folder / "base")
    yield Twins(load_model(folder / "base"), oracle, folder)
    torch.set_num_threads(threads)


@pytest.fixture
def valued(twins: Twins) -> Iterator[Twins]:
    """The twins, ours with a value head that is not zero."""
    attach_value_head(twins.model, 32)
    head: Any = value_head(twins.model)
    head.weight, head.bias = mx.random.normal((32,), key=mx.random.key(1)) * 0.1, mx.array(0.3)
    twins.model.train()
    yield twins
    drop_value_head(twins.model)


def experiences(model: Any, name: str) -> list[Experience]:
    """Answers whose old log-probabilities and values lie on both sides of the clipping."""
    random = np.random.default_rng(len(name))
    made = []
    for prompt, length in ROWS[name]:
        tokens = random.integers(1, VOCAB, prompt + length).astype(np.int32)
        one = Experience(tokens, prompt, {})
        log_p = values = np.zeros(0)
        if length:
            batch = PPO(config()).batch([one], [one], Rollout(0, [one], {}))
            log_p = -np.array(target_losses(model, batch.rows)[0])
            values = np.array(value_head(model)(supervised(model, batch.rows)[0]))
        columns = {
            "old": log_p + random.normal(0, 0.2, length),
            "reference": log_p + random.normal(0, 0.4, length),
            "values": values + random.normal(0, 0.2, length),
            "returns": values + random.normal(0, 0.5, length),
            "advantages": random.normal(0, 1, length) - 1.2,  # the two parts of the loss do not cancel
        }
        made.append(replace(one, columns={key: value.astype(np.float32) for key, value in columns.items()}))
    return made


def step(model: nn.Module, objective: PPO, answers: Sequence[Experience]) -> tuple[float, dict[str, mx.array]]:
    batch = objective.batch(answers, answers, Rollout(0, answers, {}))
    (total, units, _), tree = nn.value_and_grad(model, lambda: objective.loss(model, batch))()
    return total.item() / units, {name: gradient / units for name, gradient in tree_flatten(tree)}


def by_torch(answers: Sequence[Experience], settings: FinetuneConfig, head: Any) -> Callable[[Any], Any]:
    """The formulas of the paper, row by row and token by token, without padding."""
    import torch

    def loss(oracle: Any) -> Any:
        wide = next(oracle.parameters()).dtype
        policy, value = [], []
        for each in answers:
            states = oracle.model(torch.tensor(each.tokens[None]).long(), use_cache=False).last_hidden_state[0]
            log_p = oracle.lm_head(states).to(wide).log_softmax(-1)
            weight, bias = (part.to(wide) for part in head)
            for t, token in enumerate(each.tokens[each.prompt_length :].tolist()):
                now, at = {k: float(v[t]) for k, v in each.columns.items()}, each.prompt_length + t - 1
                ratio = torch.exp(log_p[at, token] - now["old"])
                kept = torch.clamp(ratio, 1 - settings.clip_low, 1 + (settings.clip_high or settings.clip_low))
                policy.append(torch.maximum(-now["advantages"] * ratio, -now["advantages"] * kept))
                v = states[at] @ weight + bias
                near = now["values"] + torch.clamp(v - now["values"], -settings.value_clip, settings.value_clip)
                value.append(torch.maximum((v - now["returns"]) ** 2, (near - now["returns"]) ** 2) / 2)
        return torch.stack(policy).mean() + settings.value_coefficient * torch.stack(value).mean()

    return loss


def compare(twins: Twins, answers: Sequence[Experience], settings: FinetuneConfig) -> bool:
    """True if the loss, the gradients of the model and those of the value head are torch's."""
    import torch

    ours: Any = value_head(twins.model)
    head = [torch.tensor(np.array(part), requires_grad=True) for part in (ours.weight, ours.bias)]
    loss, gradients = step(twins.model, PPO(settings), answers)
    own = [np.array(gradients.pop(f"value_head.{name}")) for name in ("weight", "bias")]
    difference = twins.difference(loss, gradients, by_torch(answers, settings, head))
    wide = [(part.detach().double()).requires_grad_() for part in head]
    by_torch(answers, settings, wide)(twins.oracle.double()).backward()
    twins.oracle.float()
    pairs = zip(own, (part.grad.numpy() for part in wide), strict=True)
    apart = max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)
    print(difference, apart)
    return difference.held and bool(apart <= GRADIENT)


@pytest.mark.parity
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_every_gradient_are_those_of_torch(name: str, rows: str, valued: Twins) -> None:
    assert compare(valued, experiences(valued.model, rows), config(**SETTINGS[name]))


# Known bugs: a text of the loss, and what stands there instead.
MUTANTS = {
    "no policy gradient": ("ratio = mx.exp(log_p", "ratio = mx.exp(mx.stop_gradient(log_p)"),
    "a ratio to the reference": ('ratio = mx.exp(log_p - batch.column("old"))',
                                 'ratio = mx.exp(log_p - batch.column("reference"))'),
    "the advantage's sign": ("policy = -mx.minimum(", "policy = mx.minimum("),
    "no clipping of values": ("near = mx.clip(values, before - config.value_clip, before + config.value_clip)",
                              "near = values"),
    "the smaller loss of a value": ("0.5 * mx.maximum(", "0.5 * mx.minimum("),
}  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("name", MUTANTS)
def test_a_known_bug_put_back_is_seen(name: str, valued: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    source = textwrap.dedent(inspect.getsource(PPO.loss))
    assert source.count(MUTANTS[name][0]) == 1
    names = dict(vars(module))
    exec(source.replace(*MUTANTS[name]), names)
    answers = experiences(valued.model, "unequal lengths")
    assert compare(valued, answers, config())
    monkeypatch.setattr(PPO, "loss", names["loss"])
    assert not compare(valued, answers, config())


EPISODES = [np.random.default_rng(n).normal(size=(2, n)) for n in (1, 2, 7, 30)]


@pytest.mark.parametrize("episode", EPISODES, ids=lambda each: f"{each.shape[1]} tokens")
def test_advantages_are_sums_of_errors_in_float64(episode: np.ndarray) -> None:
    rewards, values = episode
    after = np.append(values[1:], 0)
    for discount, lam in ((1.0, 0.95), (0.9, 0.7), (0.99, 1.0)):
        errors = rewards + discount * after - values
        wanted = [
            sum((discount * lam) ** (k - t) * errors[k] for k in range(t, len(errors))) for t in range(len(errors))
        ]
        np.testing.assert_allclose(generalized(rewards, values, discount, lam), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("episode", EPISODES, ids=lambda each: f"{each.shape[1]} tokens")
def test_lambda_1_gives_returns_minus_values_and_lambda_0_the_error_of_a_step(episode: np.ndarray) -> None:
    rewards, values = episode
    for discount in (1.0, 0.9):
        powers = discount ** np.arange(len(rewards))
        returns = [(rewards[t:] * powers[: len(rewards) - t]).sum() for t in range(len(rewards))]
        np.testing.assert_allclose(
            generalized(rewards, values, discount, 1.0), returns - values, rtol=1e-10, atol=1e-12
        )
        errors = rewards + discount * np.append(values[1:], 0) - values
        np.testing.assert_allclose(generalized(rewards, values, discount, 0.0), errors, rtol=1e-12)


def test_whitened_advantages_have_mean_0_and_deviation_1() -> None:
    found = np.concatenate(whitened([3 + 5 * each[0] for each in EPISODES]))
    assert abs(found.mean()) < 1e-12
    assert found.std() == pytest.approx(1, abs=1e-6)


def group(rewards: Sequence[float], old: np.ndarray, reference: np.ndarray, values: np.ndarray) -> AnswerGroup:
    completion = SampledCompletion(np.zeros(len(old), np.int32), old.astype(np.float32), False)
    columns = {"old": old, "reference": reference, "values": values}
    columns = {name: array.astype(np.float32) for name, array in columns.items()}
    return AnswerGroup(
        np.zeros(2, np.int32), "here", [completion] * len(rewards), np.array(rewards), [columns] * len(rewards)
    )


def test_the_reward_comes_last_and_the_divergence_costs_each_token() -> None:
    old, reference, values = (np.random.default_rng(n).normal(size=5).astype(np.float32) for n in range(3))
    settings = config(kl_coefficient=0.3, discount=0.9, gae_lambda=0.8, whiten=False)
    ((first, second),) = PPO(settings).credited([group([2.0, float("nan")], old, reference, values)])
    rewards = -0.3 * (old.astype(np.float64) - reference)
    rewards[-1] += 2.0
    wanted = generalized(rewards, values, 0.9, 0.8)
    np.testing.assert_allclose(first["advantages"], wanted, rtol=1e-6)
    np.testing.assert_allclose(first["returns"], wanted + values, rtol=1e-6)
    assert "advantages" not in second
    white = PPO(replace(settings, whiten=True)).credited([group([2.0], old, reference, values)])[0][0]
    np.testing.assert_allclose(white["advantages"], (wanted - wanted.mean()) / wanted.std(), rtol=1e-6)
    np.testing.assert_allclose(white["returns"], first["returns"], rtol=1e-6)
