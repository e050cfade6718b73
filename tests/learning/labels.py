"""Encoders learn labels by a rule that a program checks, and nothing from shuffled labels.

A text's label says if a certain letter occurs in it; a word's, if the letter stands before it.

    python -m tests.learning.labels
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal

import mlx.core as mx
import numpy as np

from macllm import families
from macllm.families import labels
from macllm.families.config import Config
from macllm.nn.models import EncoderLM, build
from macllm.train.config import TrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Counts, Evaluated
from macllm.train.initial import initialize
from macllm.train.loop import Trainer
from macllm.train.objectives.classify import Classify
from macllm.train.objectives.labelled import Labelled
from macllm.train.objectives.tag import Tag
from tests.train.labelled_base import ENCODER

LETTERS, LONGEST, STEPS = 12, 8, 300
SEEDS = (0, 1, 2)
NAMES = ("no", "yes")
_FIRST, _LAST, _SOUGHT = 1, 2, 3  # [CLS], [SEP], and the letter that the rules look for
Task = Literal["classify", "tag"]


def has_the_letter(letters: Sequence[int] | np.ndarray) -> bool:
    """True for a text with the letter."""
    return _SOUGHT in letters


def follow_the_letter(letters: Sequence[int] | np.ndarray) -> list[bool]:
    """True for each letter that has the letter before it."""
    return [False, *(letter == _SOUGHT for letter in letters[:-1])]


def rows(task: Task, count: int, seed: int) -> list[Labelled]:
    """Texts of 2 to `LONGEST` letters, half of them with the letter that the rules look for."""
    random = np.random.default_rng((seed, count))
    made = []
    for number in range(count):
        letters = 3 + random.integers(1, LETTERS, random.integers(2, LONGEST + 1))
        for place in random.permutation(len(letters))[: random.integers(1, 3)] if number % 2 else ():
            letters[place] = _SOUGHT
        tokens = np.array([_FIRST, *letters, _LAST], np.int32)
        if task == "classify":
            made.append(Labelled(tokens, np.array([has_the_letter(letters)], np.int32), f"text {number}"))
        else:
            places = np.arange(1, len(letters) + 1, dtype=np.int32)
            made.append(Labelled(tokens, np.array(follow_the_letter(letters), np.int32), f"text {number}", places))
    return made


def shuffled(given: Sequence[Labelled], seed: int) -> list[Labelled]:
    """The rows with labels in random order, in which each true label has the same share of others.

    A share by chance would be learned: the rules are of one bit, and a small surplus decides all predictions.
    """
    random = np.random.default_rng(seed)
    every = np.concatenate([each.labels for each in given])
    share, drawn = every.mean(), np.zeros_like(every)
    for value in (0, 1):
        places = random.permutation(np.flatnonzero(every == value))
        drawn[places[: round(share * len(places))]] = 1
    parts = np.split(drawn, np.cumsum([len(each.labels) for each in given])[:-1])
    return [dataclasses.replace(each, labels=part) for each, part in zip(given, parts, strict=True)]


def new_model(task: Task, seed: int) -> EncoderLM:
    """A BERT of random weights with a head for the task."""
    config = ENCODER | {"vocab_size": LETTERS + 3, "intermediate_size": 64}
    model = build(families.spec(Config(config)))
    assert isinstance(model, EncoderLM)
    initialize(model, 0.1, seed)
    model.info = dataclasses.replace(model.info, config=config)
    labels.put_labels(model, "sequence" if task == "classify" else "token", NAMES, seed=seed)
    return model


def accuracy(task: Task, given: Sequence[Labelled], unseen: Sequence[Labelled], seed: int, steps: int) -> float:
    """Accuracy on unseen rows after training on `given`."""
    config = TrainConfig(
        data="rows", iters=steps, batch_size=32, learning_rate=3e-3, seed=seed, warmup=0.1, val_batches=-1,
        steps_per_eval=0,
    )  # fmt: skip
    objective = Classify(NAMES) if task == "classify" else Tag(NAMES)
    dataset = Dataset(list(given), list(unseen), Counts())
    events = Trainer.of(new_model(task, seed), objective, config, dataset).run()
    return [event.metrics["accuracy"] for event in events if isinstance(event, Evaluated)][-1]


def measured(task: Task, seed: int, steps: int = STEPS) -> dict[str, float]:
    """Accuracy on unseen texts after training on labels, on shuffled ones, and of the frequent label."""
    given = rows(task, 2000, seed)
    seen = {each.tokens.tobytes() for each in given}
    unseen = [each for each in rows(task, 1000, seed + 100) if each.tokens.tobytes() not in seen]
    share = np.concatenate([each.labels for each in unseen]).mean()
    return {
        "accuracy": accuracy(task, given, unseen, seed, steps),
        "shuffled": accuracy(task, shuffled(given, seed), unseen, seed, steps),
        "more frequent": float(max(share, 1 - share)),
        "texts": len(unseen),
    }


def main() -> None:
    """Print the accuracies of all seeds, and one JSON line."""
    tasks: tuple[Task, ...] = ("classify", "tag")
    found = {task: {seed: measured(task, seed) for seed in SEEDS} for task in tasks}
    for task, each in found.items():
        for seed, values in each.items():
            print(task, seed, {name: round(value, 3) for name, value in values.items()})
    print(json.dumps({"objectives": {task: _verdict(each) for task, each in found.items()}, "seeds": found}))


def _verdict(found: dict[int, dict[str, float]]) -> dict[str, object]:
    """The findings of all seeds of a task as a text, and if each learns the rule from labels alone."""
    right, other, most = ([each[name] for each in found.values()] for name in ("accuracy", "shuffled", "more frequent"))
    shown = f"unseen texts: {min(right):.0%} to {max(right):.0%} right, with shuffled labels {max(other):.0%}"
    shown += f" (always the more frequent label: {max(most):.0%})"
    held = min(right) > 0.95 and all(a < b + 0.06 for a, b in zip(other, most, strict=True))
    return {"shown": shown, "held": held}


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    main()
