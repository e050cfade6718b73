"""Rollouts: sampled tokens with their log-probabilities, as a function of (seed, step, weights)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macllm.errors import DoesNotFitError, MacllmError
from macllm.nn import lora
from macllm.train.config import FinetuneConfig
from macllm.train.contract import Loss
from macllm.train.data import Dataset
from macllm.train.events import Counts, Step
from macllm.train.loop import Trainer
from macllm.train.objectives import chosen
from macllm.train.objectives.clm import collate, target_losses
from macllm.train.objectives.policy import PolicyBatch, PolicyObjective
from macllm.train.objectives.prompts import PromptExample
from macllm.train.rewards import Rewards
from macllm.train.rollouts.experience import Experience, Rollout
from macllm.train.rollouts.sampling import SampledCompletion, SamplingTask, sample
from macllm.train.snapshot import Snapshots
from macllm.train.sources import Rows
from tests.train.toy import CharTokenizer, random_llama

VOCAB = 50
PROMPT = np.array([7, 3, 11, 4], np.int32)


def sample_group(
    model: Any, prompt: np.ndarray, seeds: Sequence[int], *, max_tokens: int, ends: Any
) -> list[SampledCompletion]:
    return sample(model, [SamplingTask(prompt, seeds, max_tokens)], ends=ends)[0]


class Text(CharTokenizer):
    end_token_ids = frozenset({0, 5})


def even(answers: Any) -> list[float]:
    """The share of tokens with even numbers."""
    return [float(np.mean(np.array(ids) % 2 == 0)) for ids in answers.completion_ids]


def trainer(
    objective: str = "grpo", folder: Path | None = None, reward: Callable[[Any], Any] = even, **settings: Any
) -> Trainer[PolicyBatch]:
    """A trainer of an adapter on six prompts of unequal lengths."""
    settings = {"iters": 4, "batch_size": 2, "num_generations": 3, "max_completion_length": 4, **settings}
    config = FinetuneConfig(data="rows", objective=objective, rewards=("a.py:even",), learning_rate=1e-2, **settings)  # type: ignore[arg-type]
    model = random_llama(vocab_size=VOCAB, num_hidden_layers=1)
    lora.apply(model, rank=2, alpha=4.0)
    made: PolicyObjective = chosen(config, model, Text())  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("macllm.train.objectives.policy.combined", lambda *_: Rewards({"even": reward}, [1.0]))
        made = made.bound(model, Text())
    prompts = [PromptExample(np.arange(1, n + 2, dtype=np.int32), f"rows:{n}", "?") for n in range(1, 7)]
    snapshots = None if folder is None else Snapshots(folder / "snapshots", 9, {})
    return Trainer.of(model, made, config, Dataset(prompts, prompts[:2], Counts()), snapshots)


def weights(one: Trainer[Any]) -> dict[str, bytes]:
    return {name: bytes(np.array(weight)) for name, weight in one.state.weights.items()}


def finished(one: Trainer[Any], steps: int | None = None) -> Trainer[Any]:
    """The trainer after all its steps, or stopped after some."""
    events = one.run()
    for _ in events:
        if steps is not None and one.state.step == steps:
            events.close()
            break
    return one


def test_sampling_log_probabilities_are_those_of_the_training_forward() -> None:
    model = random_llama(vocab_size=VOCAB)
    model.train()
    completions = sample_group(model, PROMPT, range(6), max_tokens=12, ends={5, 6, 7})
    assert len({len(each) for each in completions}) > 1
    answers = [Experience.of(PROMPT, each, {}) for each in completions]
    forward = -target_losses(model, collate([each.example for each in answers]))[0]
    sampled = np.concatenate([each.log_probs for each in completions])
    np.testing.assert_allclose(sampled, np.array(forward), rtol=2e-6, atol=2e-6)


def test_completions_end_at_a_stop_token_or_are_told_to_be_cut() -> None:
    completions = sample_group(random_llama(vocab_size=VOCAB), PROMPT, range(8), max_tokens=4, ends={5, 6, 7, 8, 9})
    for each in completions:
        stops = np.isin(each.tokens, [5, 6, 7, 8, 9])
        assert not stops[:-1].any()
        assert stops[-1] != each.truncated
        assert each.truncated <= (len(each) == 4)
    assert {each.truncated for each in completions} == {True, False}


def test_frequencies_of_first_tokens_are_the_models_probabilities() -> None:
    model = random_llama(vocab_size=VOCAB)
    first = [each.tokens[0] for each in sample_group(model, PROMPT, range(4000), max_tokens=1, ends=())]
    wanted = np.array(mx.softmax(model(mx.array(PROMPT)[None])[0, -1]))
    found = np.bincount(first, minlength=VOCAB) / len(first)
    assert (np.abs(found - wanted) < 4.5 * np.sqrt(wanted / len(first)) + 1e-3).all()


def test_the_prompt_is_read_once_for_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_llama(vocab_size=VOCAB)
    hidden, shapes = type(model).hidden, []
    monkeypatch.setattr(type(model), "hidden", lambda m, t, **k: (shapes.append(t.shape), hidden(m, t, **k))[1])
    sample_group(model, PROMPT, range(5), max_tokens=4, ends=())
    assert shapes == [(1, 4), (5, 1), (5, 1), (5, 1)]


@pytest.mark.parametrize("window", [None, 6])
def test_prompts_of_unequal_lengths_are_answered_side_by_side_as_each_alone(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {} if window is None else {"model_type": "mistral", "sliding_window": window}
    model = random_llama(vocab_size=VOCAB, **config)
    prompts = [np.arange(1, length + 1, dtype=np.int32) for length in (4, 1, 13, 7)]
    asked = [SamplingTask(prompt, range(9 * n, 9 * n + 3), 5 + 4 * n) for n, prompt in enumerate(prompts)]
    alone = [sample(model, [each], ends={5, 6, 7})[0] for each in asked]
    hidden, shapes = type(model).hidden, []
    monkeypatch.setattr(type(model), "hidden", lambda m, t, **k: (shapes.append(t.shape), hidden(m, t, **k))[1])
    together = sample(model, asked, ends={5, 6, 7})
    assert shapes[0] == (4, 13)
    assert shapes[1] == (12, 1)
    assert shapes[-1][0] <= 6, "ended answers are dropped"
    for each, own, same in zip(asked, together, alone, strict=True):
        assert [one.tokens.tolist() for one in own] == [one.tokens.tolist() for one in same]
        assert [one.truncated for one in own] == [one.truncated for one in same]
        assert max(map(len, own)) <= each.max_tokens
        for one, other in zip(own, same, strict=True):
            np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=2e-6, atol=2e-6)


def test_an_answer_that_fills_the_context_leaves_room_for_longer_ones_beside_it() -> None:
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    model = random_llama(model_type="gpt2", vocab_size=VOCAB, **shape)
    asked = [SamplingTask(np.arange(1, 13, dtype=np.int32), [1, 2], 4), SamplingTask(PROMPT[:2], [3, 4, 5], 14)]
    together = sample(model, asked, ends=())
    for each, own in zip(asked, together, strict=True):
        assert [len(one) for one in own] == [each.max_tokens] * len(each.seeds)
        alone = sample(model, [each], ends=())[0]
        assert [one.tokens.tolist() for one in own] == [one.tokens.tolist() for one in alone]


def test_at_most_32_answers_are_sampled_side_by_side_unless_one_prompt_has_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_llama(vocab_size=VOCAB, num_hidden_layers=1)
    hidden, shapes = type(model).hidden, []
    monkeypatch.setattr(type(model), "hidden", lambda m, t, **k: (shapes.append(t.shape), hidden(m, t, **k))[1])
    asked = [SamplingTask(PROMPT, range(count), 2) for count in (20, 12, 1, 40)]
    assert [len(each) for each in sample(model, asked, ends=())] == [20, 12, 1, 40]
    assert [rows for rows, length in shapes if length == 1] == [32, 1, 40]


def rollout(one: Trainer[PolicyBatch], step: int = 0) -> list[np.ndarray]:
    batches = list(one.passes.source.batches(step, one.model))
    return [np.array(each.rows.inputs)[:, :6] for each in batches]


def test_a_rollout_is_a_function_of_seed_step_and_weights() -> None:
    first, again = (np.concatenate(rollout(trainer())) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, np.concatenate(rollout(trainer(seed=1))))
    assert not np.array_equal(first, np.concatenate(rollout(trainer(), step=1)))
    other = trainer()
    other.put({name: weight + 0.5 for name, weight in other.state.weights.items()})
    assert not np.array_equal(first, np.concatenate(rollout(other)))


@pytest.mark.parametrize("objective", ["grpo", "ppo"])
def test_a_rollout_does_not_depend_on_micro_batches(objective: str) -> None:
    one = trainer(objective, num_iterations=2)
    prompts = [PromptExample(np.arange(1, n + 2, dtype=np.int32), f"rows:{n}", "?") for n in range(1, 7)]
    rows = Rows(one.passes.objective, prompts, batch_size=4, accumulation=1, seed=0)
    kept = []
    for size in (4, 1, 3):
        source = one.passes.objective.source(rows.regrouped(size), size)  # type: ignore[attr-defined]
        list(source.batches(0, one.model))
        kept.append(source.kept(1))
    assert kept[0]
    assert all(mx.array_equal(kept[0][name], other[name]) for other in kept[1:] for name in kept[0])


def test_answers_without_a_reward_are_told_and_not_trained_on() -> None:
    def some(answers: Any) -> list[float]:
        return [[1.0, float("nan"), float("inf")][i % 3] for i in range(len(answers.completions))]

    one = trainer(reward=some)
    batches = list(one.passes.source.batches(0, one.model))
    assert sum(map(len, batches)) == 2
    assert {batch.metrics["invalid_rewards"] for batch in batches} == {float(np.float32(2 / 3))}
    assert all(np.isfinite(array).all() for batch in batches for array in batch.columns.values())
    silent = trainer(reward=lambda answers: [None] * len(answers.completions))
    with pytest.raises(MacllmError, match="no answer of rollout 1 has a reward"):
        list(silent.passes.source.batches(0, silent.model))


def test_groups_of_equal_rewards_are_told_and_give_no_gradient() -> None:
    one = trainer(reward=lambda answers: [0.3] * len(answers.completions), kl_coefficient=0.0)
    before = weights(one)
    events = [event for event in finished_events(one) if isinstance(event, Step)]
    assert weights(one) == before
    assert {event.metrics["zero_variance"] for event in events} == {1.0}
    assert {event.grad_norm for event in events} == {0.0}


def finished_events(one: Trainer[Any]) -> Sequence[Any]:
    return list(one.run())


CASES = {
    "between the steps of a rollout": ("grpo", {"num_iterations": 3}, 2),
    "between two rollouts": ("grpo", {"num_iterations": 2}, 2),
    "minibatches": ("ppo", {"num_iterations": 2, "num_minibatches": 2}, 3),
    "ppo": ("ppo", {"num_iterations": 3}, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_resumes_bit_for_bit(case: str, tmp_path: Path) -> None:
    objective, settings, stop = CASES[case]
    whole = finished(trainer(objective, **settings))
    finished(trainer(objective, tmp_path, **settings), steps=stop)
    resumed = trainer(objective, tmp_path, **settings)
    assert resumed.state.step == stop
    assert weights(finished(resumed)) == weights(whole)


def test_a_run_that_was_stopped_after_its_rollout_generates_the_same_again(tmp_path: Path) -> None:
    whole = finished(trainer())
    stopped = trainer(folder=tmp_path)
    loss = stopped.passes.objective.loss

    def interrupted(model: Any, batch: Any) -> Loss:
        if stopped.state.step == 2:
            raise KeyboardInterrupt
        return loss(model, batch)

    stopped.passes.objective.loss = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        finished(stopped)
    assert weights(finished(trainer(folder=tmp_path))) == weights(whole)


def test_a_snapshot_without_its_rollout_is_seen_as_another_run(tmp_path: Path) -> None:
    """A mutant: the rollout is not kept, so that the rest of it is generated by later weights."""
    whole = finished(trainer(num_iterations=3))
    finished(trainer(folder=tmp_path, num_iterations=3), steps=2)
    resumed = trainer(folder=tmp_path, num_iterations=3)
    resumed.passes.source.restore({})  # type: ignore[attr-defined]
    assert weights(finished(resumed)) != weights(whole)


def test_a_rollout_survives_its_arrays() -> None:
    one = trainer("ppo", num_iterations=2)
    list(one.passes.source.batches(0, one.model))
    kept = one.passes.source.kept(1)  # type: ignore[attr-defined]
    again = Rollout.from_arrays(kept).arrays()
    assert kept.keys() == again.keys()
    assert {"column.old", "column.reference", "column.advantages", "column.returns", "column.values"} <= kept.keys()
    assert all(mx.array_equal(kept[name], again[name]) for name in kept)


def test_validation_measures_the_mean_reward_and_draws_the_same_each_time() -> None:
    one = trainer()
    batch = next(iter(one.passes.validation.batches()))
    losses = [one.passes.objective.evaluate(one.model, batch) for _ in range(2)]  # type: ignore[attr-defined]
    assert losses[0].numerator.item() == losses[1].numerator.item() == -losses[0].metrics["reward"].item()
    assert losses[0].denominator == 2
    assert one.model.training


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    one = trainer()
    long = PromptExample(np.ones(2048 * 4, np.int32), "rows:9", "?")
    object.__setattr__(one.model.info, "context_length", 100)
    with pytest.raises(DoesNotFitError, match="rows:9 has 8192 tokens"):
        one.passes.objective._limit(one.model, long)  # type: ignore[attr-defined]


def test_metrics_are_json(tmp_path: Path) -> None:
    events = finished_events(trainer(folder=tmp_path, steps_per_report=2))
    steps = [event for event in events if isinstance(event, Step)]
    assert len(steps) == 2
    assert {"reward", "reward_std", "truncated", "length", "kl", "clipped", "zero_variance"} <= steps[0].metrics.keys()
    json.dumps(steps[0].metrics)
