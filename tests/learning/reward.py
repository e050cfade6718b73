"""A reward model learns a rule that a program checks, and does not from pairs in random order.

The better answer repeats the first letter of its prompt. Prompts of the test are not among those of the training.

    python -m tests.learning.reward
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from macllm.families import labels
from macllm.nn.models import DecoderLM
from macllm.train.config import TrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Counts
from macllm.train.loop import Trainer
from macllm.train.objectives.reward import RankedPair, Reward, token_rewards
from macllm.train.render import Example
from tests.train.toy import random_llama

LETTERS, PROMPT, STEPS = 12, 4, 300
SEEDS = (0, 1, 2)
_ASK, _END = LETTERS + 1, LETTERS + 2  # tokens between prompt and answer, and after it


def follows_the_rule(prompt: Sequence[int], answer: int) -> bool:
    """True for an answer that repeats the first letter of its prompt."""
    return prompt[0] == answer


def pairs(count: int, seed: int) -> list[RankedPair]:
    """Pairs of an answer that follows the rule and one that does not; both are letters of the prompt."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        prompt = [int(letter) for letter in 1 + random.permutation(LETTERS)[:PROMPT]]
        other = int(random.choice(prompt[1:]))
        rows = [np.array([*prompt, _ASK, answer, _END], np.int32) for answer in (prompt[0], other)]
        assert [follows_the_rule(prompt, answer) for answer in (prompt[0], other)] == [True, False]
        made.append(RankedPair(*(Example(row, np.arange(len(row)) > PROMPT, f"pair {number}") for row in rows)))
    return made


def in_random_order(given: Sequence[RankedPair], seed: int) -> list[RankedPair]:
    """The pairs, each turned round with probability one half."""
    turned = np.random.default_rng(seed).random(len(given)) < 0.5
    return [RankedPair(pair.rejected, pair.chosen) if turn else pair for pair, turn in zip(given, turned, strict=True)]


def trained(rows: Sequence[RankedPair], seed: int, steps: int, centering: float = 0.01) -> DecoderLM:
    """A reward model after `steps` steps."""
    model = random_llama(vocab_size=_END + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    labels.put_labels(model, "sequence", ("reward",), seed=seed)
    config = TrainConfig(data="rows", iters=steps, batch_size=32, learning_rate=3e-3, seed=seed, warmup=0.1)
    for _ in Trainer.of(model, Reward(centering), config, Dataset(list(rows), [], Counts())).run():
        pass
    model.eval()
    return model


def accuracy(model: DecoderLM, rows: Sequence[RankedPair]) -> tuple[float, float]:
    """Share of pairs that the model orders rightly, and its mean reward."""
    better, worse = (
        token_rewards(model, [each.tokens.tolist() for each in side], batch_size=64)
        for side in zip(*((pair.chosen, pair.rejected) for pair in rows), strict=True)
    )
    return float((better > worse).mean()), float((better + worse).mean() / 2)


def measured(seed: int, steps: int = STEPS) -> dict[str, float]:
    """Accuracy on unseen prompts after training on pairs, and on pairs in random order."""
    few = pairs(2000, 10 * seed)
    seen = {pair.chosen.tokens[:PROMPT].tobytes() for pair in few}
    unseen = [pair for pair in pairs(1000, 10 * seed + 1) if pair.chosen.tokens[:PROMPT].tobytes() not in seen][:500]
    right, mean = accuracy(trained(few, seed, steps), unseen)
    random, _ = accuracy(trained(in_random_order(few, seed), seed, steps), unseen)
    return {"accuracy": right, "random order": random, "mean reward": mean, "pairs": len(unseen)}


def main() -> None:
    """Print the accuracies of all seeds, and one JSON line."""
    found = {seed: measured(seed) for seed in SEEDS}
    for seed, each in found.items():
        print(seed, {name: round(value, 3) for name, value in each.items()})
    right, turned = ([each[name] for each in found.values()] for name in ("accuracy", "random order"))
    shown = f"unseen prompts: {min(right):.0%} to {max(right):.0%} right, of pairs in random order {max(turned):.0%}"
    held = min(right) > 0.9 and all(abs(each - 0.5) < 0.1 for each in turned)
    print(json.dumps({"objectives": {"reward": {"shown": shown, "held": held}}, "seeds": found}))


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    main()
