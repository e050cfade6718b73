"""GRPO and PPO on a task with a known optimum, and with shuffled rewards.

A prompt is two tokens out of eight, and an answer of two tokens is rewarded for each that repeats the prompt's: the
best expected reward is 1, that of chance 1/8. The model, a decoder of one layer, begins with random weights. Expected
rewards are exact: sums over all prompts and answers. Shuffled rewards are those that an answer has for another
prompt. `python -m tests.learning.reinforcement` prints a line for each
run, and one JSON object last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macllm.train.config import FinetuneConfig
from macllm.train.data import Dataset
from macllm.train.events import Counts
from macllm.train.initial import initialize
from macllm.train.loop import Trainer
from macllm.train.objectives import chosen
from macllm.train.objectives.prompts import PromptExample
from tests.train.toy import CharTokenizer, random_llama

TOKENS, OPTIMUM, CHANCE = 8, 1.0, 1 / 8
PROMPTS = [np.array(pair, np.int32) for pair in itertools.product(range(TOKENS), repeat=2)]
SEEDS = (0, 1, 2)
STEPS = 200
REWARDS = """
import random

order = random.Random(0)

def copies(completion_ids, pair):
    return [sum(a == b for a, b in zip(ids, own)) / 2 for ids, own in zip(completion_ids, pair)]

def shuffled(completion_ids):
    return copies(completion_ids, [[order.randrange(8), order.randrange(8)] for _ in completion_ids])
"""


class Endless(CharTokenizer):
    """Tokens without a stop token."""

    eos_token_id = None
    end_token_ids = frozenset()


def expected_reward(model: Any) -> float:
    """The mean reward over all prompts and all answers, by their probabilities."""
    rows = mx.array([[*pair.tolist(), first] for pair in PROMPTS for first in range(TOKENS)])
    p = np.array(mx.softmax(model(rows)[:, 1:].astype(mx.float32), axis=-1), np.float64)
    p = p.reshape(len(PROMPTS), TOKENS, 2, TOKENS)  # prompt, first token, place, next token
    first = p[:, 0, 0]
    second = (first[:, :, None] * p[:, :, 1]).sum(1)
    pairs = np.array(PROMPTS)
    at = np.arange(len(PROMPTS))
    return float((first[at, pairs[:, 0]] + second[at, pairs[:, 1]]).mean() / 2)


def learned(objective: str, reward: str, seed: int, steps: int, folder: Path) -> float:
    """The expected reward after a run."""
    (folder / "rewards.py").write_text(REWARDS)
    config = FinetuneConfig(
        data="rows", objective=objective, method="full", rewards=(f"{folder}/rewards.py:{reward}",), iters=steps,
        batch_size=16, num_generations=8, max_completion_length=2, kl_coefficient=0.0,
        num_iterations=2, learning_rate=3e-3, schedule="linear", warmup=0.0, seed=seed, steps_per_report=10**6,
    )  # fmt: skip
    model = random_llama(vocab_size=TOKENS, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    initialize(model, 0.1, seed)
    prompts = [PromptExample(pair, "rows", "", {"pair": pair.tolist()}) for pair in PROMPTS]
    bound = chosen(config, model, Endless()).bound(model, Endless())  # type: ignore[attr-defined]
    for _ in Trainer.of(model, bound, config, Dataset(prompts, [], Counts())).run():
        pass
    model.eval()
    return expected_reward(model)


def verdict(copies: list[float], shuffled: list[float]) -> dict[str, Any]:
    """The rewards after all runs as a text, and whether they are near the optimum, and near chance."""
    held = min(copies) > 0.98 * OPTIMUM and max(shuffled) < CHANCE + 0.1
    ours, noise = (", ".join(f"{value:.3f}" for value in values) for values in (copies, shuffled))
    return {"shown": f"expected reward {ours} of {OPTIMUM:.0f}; shuffled {noise}, chance {CHANCE}", "held": held}


def main() -> None:
    """Print the expected reward of each run, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--objective", choices=["grpo", "ppo"])
    only = parser.parse_args().objective
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for objective in [only] if only else ["grpo", "ppo"]:
            rewards: dict[str, list[float]] = {"copies": [], "shuffled": []}
            for reward, seed in itertools.product(rewards, SEEDS):
                began = time.perf_counter()
                rewards[reward].append(learned(objective, reward, seed, STEPS, Path(name)))
                seconds = time.perf_counter() - began
                print(f"{objective} {reward} {seed}: {rewards[reward][-1]:.4f} ({seconds:.0f} s)", flush=True)
            found[objective] = verdict(**rewards)
    print(json.dumps({"objectives": found}))


if __name__ == "__main__":
    main()
