"""GRPO and its variants: loss, gradients and advantages against TRL, and advantages in float64."""

from __future__ import annotations

import inspect
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.checkpoint import load_model
from macllm.train.config import FinetuneConfig
from macllm.train.objectives import grpo as module
from macllm.train.objectives.advantages import group_advantages
from macllm.train.objectives.clm import target_losses
from macllm.train.objectives.grpo import GRPO
from macllm.train.render import Example
from macllm.train.rollouts.experience import Experience, Rollout
from tests.tables.gradients import CASES, VOCAB, written
from tests.tables.twins import Twins
from tests.train.toy import random_llama

pytestmark = pytest.mark.filterwarnings("ignore")
LONGEST = 9
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"kl_coefficient": 0.04},
    "bnpo": {"policy_loss": "bnpo", "kl_coefficient": 0.0},
    "dr_grpo": {"policy_loss": "dr_grpo", "kl_coefficient": 0.04},
    "dapo": {"policy_loss": "dapo", "kl_coefficient": 0.1},
    "cispo": {"policy_loss": "cispo", "kl_coefficient": 0.0, "clip_high": 0.1},
    "gspo": {"importance": "sequence", "kl_coefficient": 0.04, "clip_low": 0.01, "clip_high": 0.02},
}
# Lengths of prompt and completion, and the advantage; a completion of 0 tokens is a row whose mask is empty. The
# advantages do not cancel in the loss, which is compared relative to its size.
ROWS: dict[str, list[tuple[int, int, float]]] = {
    "unequal lengths": [(4, 6, 1.0), (2, 9, -2.5), (7, 3, 0.3), (1, 1, -0.8)],
    "a masked row": [(3, 4, 0.7), (5, 0, 2.0), (2, 8, -2.2)],
    "no advantage": [(3, 5, 0.0), (6, 6, 0.0)],
    "one row": [(5, 7, -1.5)],
    "token 0 in the text": [(4, 6, 2.0), (4, 2, -0.5)],
}


def config(**settings: Any) -> FinetuneConfig:
    return FinetuneConfig(
        data="rows", objective="grpo", rewards=("exact_match",), max_completion_length=LONGEST, **settings
    )


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("grpo")
    oracle = written(CASES["Llama, grouped queries"], folder / "base")
    yield Twins(load_model(folder / "base"), oracle, folder)
    torch.set_num_threads(threads)


def experiences(model: Any, name: str) -> list[Experience]:
    """Answers whose old and reference log-probabilities lie on both sides of clipping."""
    random = np.random.default_rng(len(name))
    made = []
    for prompt, length, advantage in ROWS[name]:
        tokens = random.integers(0 if "token 0" in name else 1, VOCAB, prompt + length).astype(np.int32)
        one = Experience(tokens, prompt, {})
        log_p = np.zeros(0, np.float32)
        if length:
            batch = GRPO(config()).batch([one], [one], Rollout(0, [one], {}))
            log_p = -np.array(target_losses(model, batch.rows)[0])
        columns = {
            "old": log_p + random.normal(0, 0.2, length),
            "reference": log_p + random.normal(0, 0.4 if advantage else 1.2, length),  # alone, a small one is rounding
            "advantages": np.full(length, advantage),
        }
        made.append(Experience(tokens, prompt, {key: value.astype(np.float32) for key, value in columns.items()}))
    return made


def step(model: nn.Module, objective: GRPO, answers: Sequence[Experience]) -> tuple[float, dict[str, mx.array]]:
    batch = objective.batch(answers, answers, Rollout(0, answers, {}))
    (total, units, _), tree = nn.value_and_grad(model, lambda: objective.loss(model, batch))()
    return total.item() / units, {name: gradient / units for name, gradient in tree_flatten(tree)}


def padded(answers: Sequence[Experience], column: str | None = None) -> tuple[Any, Any]:
    """Prompts padded on the left, or a column of completions padded on the right, and their masks."""
    import torch

    parts = [each.tokens[: each.prompt_length] if column is None else each.columns[column] for each in answers]
    if column == "tokens":
        parts = [each.tokens[each.prompt_length :] for each in answers]
    width = max(map(len, parts))
    values, mask = np.zeros((len(parts), width), parts[0].dtype), np.zeros((len(parts), width), np.int64)
    for i, part in enumerate(parts):
        at = slice(width - len(part), width) if column is None else slice(0, len(part))
        values[i, at], mask[i, at] = part, 1
    return torch.tensor(values), torch.tensor(mask)


def trl(answers: Sequence[Experience], settings: FinetuneConfig) -> Callable[[Any], Any]:
    """TRL's loss, without its correction of the divergence, which the paper does not have."""
    import torch
    from trl import GRPOTrainer

    def loss(oracle: Any) -> Any:
        answers_with_tokens = [
            Experience(e.tokens, e.prompt_length, {**e.columns, "tokens": e.tokens[e.prompt_length :]}) for e in answers
        ]
        prompts, prompt_mask = padded(answers_with_tokens)
        completions, mask = padded(answers_with_tokens, "tokens")
        kind = settings.policy_loss
        high = settings.highest_ratio - (kind != "cispo")
        trainer = SimpleNamespace(
            beta=settings.kl_coefficient, loss_type=kind, importance_sampling_level=settings.importance,
            epsilon_low=settings.clip_low, epsilon_high=high, max_completion_length=LONGEST, temperature=1.0,
            top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, aux_loss_enabled=False,
            _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1, model=oracle,
            args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
            accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
            _metrics={"train": Collected(), "eval": Collected()},
        )  # fmt: skip
        trainer._get_per_token_logps_and_entropies = log_probabilities
        inputs = {
            "prompt_ids": prompts.long(), "prompt_mask": prompt_mask,
            "completion_ids": completions.long(), "completion_mask": mask,
            "advantages": torch.tensor([a for _, _, a in ROWS[name_of(answers)]], dtype=torch.float32),
            "old_per_token_logps": padded(answers, "old")[0],
            "ref_per_token_logps": padded(answers, "reference")[0],
            "num_items_in_batch": mask.sum().float(),
        }  # fmt: skip
        return GRPOTrainer._compute_loss(trainer, oracle, inputs)

    return loss


def log_probabilities(model: Any, tokens: Any, mask: Any, kept: int, **more: Any) -> tuple[Any, Any, None]:
    """Log-probabilities of the last `kept` tokens by transformers; no loss reads the entropies."""
    import torch

    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, -kept - 1 : -1]
    log_p = logits.float().log_softmax(-1).gather(-1, tokens[:, -kept:, None]).squeeze(-1)
    return log_p, torch.zeros_like(log_p), None


class Collected(dict):
    def __missing__(self, key: str) -> list[Any]:
        return self.setdefault(key, [])


def name_of(answers: Sequence[Experience]) -> str:
    shapes = [(e.prompt_length, len(e)) for e in answers]
    return next(
        name for name, rows in ROWS.items() if [row[:2] for row in rows] == shapes and len(rows) == len(answers)
    )


@pytest.mark.parity
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_every_gradient_are_those_of_trl(name: str, rows: str, twins: Twins) -> None:
    settings = config(**SETTINGS[name])
    twins.model.train()
    answers = experiences(twins.model, rows)
    if rows == "no advantage" and not settings.kl_coefficient:
        pytest.skip("the loss is 0")
    difference = twins.difference(*step(twins.model, GRPO(settings), answers), trl(answers, settings))
    assert difference.held, difference


def without_prompt(answer: Experience) -> Example:
    return Example(answer.tokens, np.arange(len(answer.tokens)) >= answer.prompt_length, "here").cut(
        answer.prompt_length - 1, len(answer.tokens)
    )


def unshifted(answer: Experience) -> Example:
    at = np.arange(len(answer.tokens))
    return Example(answer.tokens, (at >= answer.prompt_length - 1) & (at < len(at) - 1), "here")


# Known bugs of GRPO trainers: a text of the loss and what stands there instead, or another example of an answer.
MUTANTS: dict[str, tuple[str, str] | Callable[[Experience], Example]] = {
    "no policy gradient": ("change = log_p - batch", "change = mx.stop_gradient(log_p) - batch"),
    "a ratio to the reference": ('batch.column("old")', 'batch.column("reference")'),
    "a divergence with the wrong sign": ('batch.column("reference") - log_p', 'log_p - batch.column("reference")'),
    "a reference that moves": ('batch.column("reference") - log_p', "mx.stop_gradient(log_p) - log_p"),
    "an answer without its prompt": without_prompt,
    "a mask that is not shifted": unshifted,
}


@pytest.mark.parity
@pytest.mark.parametrize("name", MUTANTS)
def test_a_known_bug_put_back_is_seen(name: str, twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant, settings = MUTANTS[name], config(kl_coefficient=0.1)
    twins.model.train()
    answers = [e for e in experiences(twins.model, "unequal lengths") if e.prompt_length > 1]
    if isinstance(mutant, tuple):
        source = textwrap.dedent(inspect.getsource(GRPO.loss))
        assert source.count(mutant[0]) == 1
        names = dict(vars(module))
        exec(source.replace(*mutant), names)
        monkeypatch.setattr(GRPO, "loss", names["loss"])
    else:
        monkeypatch.setattr(Experience, "example", property(mutant))
    monkeypatch.setitem(ROWS, name, [row for row in ROWS["unequal lengths"] if row[0] > 1])
    difference = twins.difference(*step(twins.model, GRPO(settings), answers), trl(answers, settings))
    assert not difference.held


REWARDS = {
    "ordinary": [[1.0, 0.0, 0.5, 2.0], [0.3, -0.7, 0.1, 0.2]],
    "no variance": [[1.0, 1.0, 1.0], [0.1, 0.1, 0.1]],
    "one group without variance": [[0.7, 0.7, 0.7], [0.0, 1.0, 0.0]],
    "a NaN": [[math.nan, 0.0, 1.0, 5.0], [1.0, 2.0, 3.0, 4.0]],
    "all NaN in a group": [[math.nan, math.nan], [1.0, 0.0]],
    "one number in a group": [[math.nan, 3.0], [1.0, 0.0]],
    "large numbers": [[1e6, 1e6 + 1], [3.0, -4.0]],
}


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_those_of_float64(scale: Any, rewards: str) -> None:
    groups = np.array(REWARDS[rewards])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean = np.nanmean(groups, axis=1, keepdims=True)
        deviation = {
            "group": np.nan_to_num(np.nanstd(groups, axis=1, ddof=1, keepdims=True)),
            "batch": np.nanstd(groups, ddof=1),
            "none": 1 - 1e-4,
        }[scale]
    wanted = np.nan_to_num((groups - mean) / (deviation + 1e-4))
    found = np.array(group_advantages(list(groups), scale))
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
    assert (found[np.isnan(groups)] == 0).all()
    same = (
        np.nanmax(groups, axis=1) == np.nanmin(groups, axis=1) if not np.isnan(groups).all(1).any() else [True, False]
    )
    assert (found[np.array(same)] == 0).all()


@pytest.mark.parity
@pytest.mark.parametrize("rewards", REWARDS)
def test_advantages_are_those_of_trl(rewards: str) -> None:
    import torch
    from trl.trainer.utils import nanstd

    groups = torch.tensor(REWARDS[rewards], dtype=torch.float64)
    for scale, deviation in (("group", nanstd(groups, dim=1)[:, None]), ("batch", nanstd(groups))):
        wanted = torch.nan_to_num((groups - groups.nanmean(dim=1, keepdim=True)) / (deviation + 1e-4), nan=0.0)
        found = np.array(group_advantages([np.array(each) for each in groups], scale))
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6, atol=1e-9)


def test_leaving_one_out_compares_with_the_mean_of_the_others() -> None:
    rewards = np.array([1.0, math.nan, 0.0, 5.0])
    (found,) = group_advantages([rewards], "none", leave_one_out=True)
    np.testing.assert_allclose(found, [1 - 2.5, 0, 0 - 3.0, 5 - 0.5], rtol=1e-12)


def test_gradients_do_not_depend_on_micro_batches() -> None:
    model = random_llama(vocab_size=VOCAB)
    answers = experiences(model, "unequal lengths")
    for settings in SETTINGS.values():
        objective = GRPO(config(**settings))

        def summed(size: int, objective: GRPO = objective) -> dict[str, np.ndarray]:
            total: dict[str, np.ndarray] = {}
            for start in range(0, len(answers), size):
                batch = objective.batch(answers[start : start + size], answers, Rollout(0, answers, {}))
                tree = nn.value_and_grad(model, lambda batch=batch: objective.loss(model, batch))()[1]
                for name, gradient in tree_flatten(tree):
                    total[name] = total.get(name, 0) + np.array(gradient)
            return total

        whole, parts = summed(4), summed(1)
        for name, gradient in whole.items():
            np.testing.assert_allclose(parts[name], gradient, atol=2e-6 * np.abs(gradient).max())
