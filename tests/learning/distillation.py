"""A student that learns from a teacher beats the same student on the rows alone, at equal steps.

The text is drawn from a random Markov chain, so that the best possible loss is known: its entropy rate. The teacher has
seen much text. The student sees few rows, and with them the teacher's distributions, whole or its most probable tokens;
or, instead of them, sequences that the teacher wrote (arXiv:1606.07947).

    python -m tests.learning.distillation
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from macllm.nn.models import DecoderLM
from macllm.train.config import TrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Counts, Evaluated
from macllm.train.loop import Trainer
from macllm.train.objectives.clm import CausalLM
from macllm.train.objectives.distil import Distil
from macllm.train.objectives.teacher import Teacher
from macllm.train.pretrain import new_model
from macllm.train.render import Example
from tests.train.toy import LLAMA

VOCAB, LENGTH, STEPS = 32, 24, 150
SEEDS = (0, 1, 2)
CLAIMED = ("forward", "jsd", "top", "sequences")


class Chain:
    """A random Markov chain of the first order."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        logits = random.normal(size=(VOCAB, VOCAB)) * 1.5
        self.next = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def rows(self, count: int, seed: int) -> list[Example]:
        """Rows of `LENGTH` tokens."""
        random = np.random.default_rng((seed, count))
        tokens = np.zeros((count, LENGTH), np.int32)
        tokens[:, 0] = random.integers(0, VOCAB, count)
        for at in range(1, LENGTH):
            below = random.random(count)[:, None] < self.next[tokens[:, at - 1]].cumsum(1)
            tokens[:, at] = np.minimum(below.argmax(1), VOCAB - 1)
        mask = np.arange(LENGTH) > 0
        return [Example(row, mask, "chain") for row in tokens]

    @property
    def entropy(self) -> float:
        """Entropy rate, in nats per token."""
        stationary = np.linalg.matrix_power(self.next, 200)[0]
        return float(-(stationary[:, None] * self.next * np.log(self.next)).sum())


def model(dim: int, seed: int) -> DecoderLM:
    """A llama of random weights."""
    settings = {"vocab_size": VOCAB, "hidden_size": dim, "intermediate_size": 2 * dim, "num_hidden_layers": 2}

    class Recipe:
        config, init_std = "config.json", 0.1

    Recipe.seed = seed  # type: ignore[attr-defined]
    return new_model({**LLAMA, **settings}, Recipe)  # type: ignore[arg-type]


def trained(student: DecoderLM, objective: Any, rows: Sequence[Example], seed: int, steps: int = STEPS) -> DecoderLM:
    """The model after `steps` steps."""
    config = TrainConfig(data="rows", iters=steps, batch_size=16, learning_rate=3e-3, seed=seed, steps_per_eval=0)
    for _ in Trainer.of(student, objective, config, Dataset(list(rows), [], Counts())).run():
        pass
    return student


def held_out(student: DecoderLM, rows: Sequence[Example]) -> float:
    """Cross-entropy in nats per token."""
    config = TrainConfig(data="rows", iters=1, batch_size=64, val_batches=-1)
    events = Trainer.of(student, CausalLM(), config, Dataset(list(rows), list(rows), Counts())).run()
    loss = next(event.loss for event in events if isinstance(event, Evaluated))
    events.close()
    return loss


def measured(seed: int, steps: int = STEPS) -> dict[str, float]:
    """Held-out losses of the teacher, of the student on rows alone, and of the student with the teacher."""
    chain = Chain(seed)
    few, unseen = chain.rows(64, seed + 100), chain.rows(256, seed + 200)
    teacher = trained(model(32, seed + 10), CausalLM(), chain.rows(4000, seed + 300), seed, 3 * steps)
    teacher.eval()
    objectives = {
        "rows": CausalLM(),
        "forward": Distil(Teacher(teacher)),
        "reverse": Distil(Teacher(teacher), kind="reverse"),
        "jsd": Distil(Teacher(teacher), kind="jsd"),
        "top": Distil(Teacher(teacher), top=8),
    }
    found = {"entropy": chain.entropy, "teacher": held_out(teacher, unseen)}
    for name, objective in objectives.items():
        found[name] = held_out(trained(model(16, seed), objective, few, seed, steps), unseen)
    written = sampled(teacher, 16 * steps, seed)
    found["sequences"] = held_out(trained(model(16, seed), CausalLM(), written, seed, steps), unseen)
    return found


def sampled(teacher: DecoderLM, count: int, seed: int) -> list[Example]:
    """Rows of `LENGTH` tokens that the teacher wrote after random first tokens."""
    key = mx.random.key(seed)
    rows = mx.random.randint(0, VOCAB, (count, 1), key=key)
    for own in mx.random.split(key, LENGTH - 1):
        rows = mx.concatenate([rows, mx.random.categorical(teacher(rows)[:, -1:], key=own)], axis=1)
        mx.eval(rows)
    return [Example(row, np.arange(LENGTH) > 0, "teacher") for row in np.array(rows, np.int32)]


def main() -> None:
    """Print the losses of all seeds, and one JSON line."""
    losses = {seed: measured(seed) for seed in SEEDS}
    for seed, found in losses.items():
        print(seed, {name: round(value, 3) for name, value in found.items()})
    gains = {name: [found["rows"] - found[name] for found in losses.values()] for name in CLAIMED}
    shown = f"held-out nats a token less than from labels alone, least of {len(SEEDS)} seeds: "
    shown += ", ".join(f"{name} {min(each):.2f}" for name, each in gains.items())
    learned = {"shown": shown, "held": min(min(each) for each in gains.values()) > 0.05}
    print(json.dumps({"objectives": {"distil": learned}, "losses": losses, "gain": gains}))


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    main()
